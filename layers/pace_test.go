package layers

import (
	"testing"
	"time"
)

// A window is judged by what came in the time that counted, and the next begins anew.
func TestMeasure(t *testing.T) {

	for _, test := range []struct {
		name   string
		waited time.Duration // of each second
		came   int64         // in each
		slow   int           // windows in a minute
		rate   int64
	}{
		{"silence", time.Second, 0, 4, 0},
		{"a trickle", time.Second, 1 << 10, 4, 1 << 10},
		{"just below", time.Second, minRate - 1, 4, minRate - 1},
		{"enough", time.Second, minRate, 0, 0},
		{"a trickle that we cause", 0, 1 << 10, 0, 0},
		{"a quarter counts", time.Second / 4, 1 << 10, 1, 4 << 10},
		{"a quarter counts and is enough", time.Second / 4, minRate / 4, 0, 0},
	} {
		m, here, slow := measure{window: 15 * time.Second}, int64(0), 0
		for range 60 {
			here += test.came
			if rate, is := m.tick(test.waited, here); is {
				if slow++; rate != test.rate {
					t.Errorf("%s: %d bytes a second, want %d", test.name, rate, test.rate)
				}
			}
		}
		if slow != test.slow {
			t.Errorf("%s: %d windows of a minute were too slow, want %d", test.name, slow, test.slow)
		}
	}
}
