package layers

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A registry that does not answer holds up those who ask for the same blob of it, and not
// those who ask another.
func TestFlightThatDoesNotBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fs Flights[int]
		d, answer := sha256Of(nil), make(chan struct{})
		failed := errors.New("no answer")
		hangs := func() (int, error) { <-answer; return 0, failed }
		ended := make(chan error, 2)
		join := func(from, who string, begin func() (int, error)) {
			_, _, err := fs.Join(t.Context(), d, from, who, begin)
			ended <- err
		}
		go join("ill.test", "ann", hangs)
		synctest.Wait()
		go join("ill.test", "ann", nil)
		begun := time.Now()
		if _, _, err := fs.Join(t.Context(), d, "well.test", "ann", nil); !errors.Is(err, ErrElsewhere) || time.Since(begun) > 2*time.Second {
			t.Errorf("Join = %v after %v", err, time.Since(begun))
		}
		close(answer)
		for range 2 {
			if err := <-ended; err != failed {
				t.Errorf("Join = %v, want %v", err, failed)
			}
		}
		if n, joined, err := fs.Join(t.Context(), d, "well.test", "ann", func() (int, error) { return 1, nil }); n != 1 || joined || err != nil {
			t.Errorf("Join = %d, %v, %v", n, joined, err)
		}
	})
}
