package layers

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := make([]byte, 10<<20)
		limiter := NewLimiter(1 << 20)
		start := time.Now()
		got, err := io.ReadAll(Limited(t.Context(), bytes.NewReader(content), limiter))
		if err != nil || len(got) != len(content) {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}
		if took := time.Since(start); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("10 MiB at 1 MiB/s took %v", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := io.ReadAll(Limited(ctx, bytes.NewReader(content), limiter)); err == nil {
			t.Error("read after the context's end = nil error")
		}
	})
	if r := bytes.NewReader(nil); Limited(t.Context(), r, nil) != io.Reader(r) {
		t.Error("no limiter, and yet another reader")
	}
}

// What waits for a limit that is raised goes on at once, and what went free is held.
func TestLimitSetInMidTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 8 << 20
		limiter := NewLimiter(1) // a day's wait for each chunk
		var got atomic.Int64
		read := func(r io.Reader) error {
			_, err := io.Copy(countingWriter{&got}, struct{ io.Reader }{r})
			return err
		}
		var readers sync.WaitGroup
		for range 3 {
			readers.Go(func() {
				if err := read(Limited(t.Context(), bytes.NewReader(make([]byte, size)), limiter)); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if n := got.Load(); n != 2*longestChunk {
			t.Fatalf("%d bytes passed at once at a byte a second, want the burst", n)
		}
		start := time.Now()
		limiter.Set(1 << 20)
		time.Sleep(8 * time.Second) // of the bubble's clock
		if n := got.Load(); n < 7<<20 || n > 9<<20 {
			t.Errorf("%d bytes passed within 8 s at 1 MiB/s", n)
		}
		limiter.Set(0)
		readers.Wait()
		if took := time.Since(start); got.Load() != 3*size || took > 8*time.Second {
			t.Errorf("%d bytes of %d passed, %v after the limit was lifted", got.Load(), 3*size, took-8*time.Second)
		}

		limiter.Set(1 << 20)
		start = time.Now()
		if err := read(Limited(t.Context(), bytes.NewReader(make([]byte, size)), limiter)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 7*time.Second || took > 9*time.Second {
			t.Errorf("8 MiB at 1 MiB/s, which once was free, took %v", took)
		}
	})
}

type countingWriter struct{ n *atomic.Int64 }

func (w countingWriter) Write(b []byte) (int, error) {
	w.n.Add(int64(len(b)))
	return len(b), nil
}

// A file goes out as one that net/http knows for sendfile, under a limit too, and a limit
// that is set in the middle holds the rest.
func TestLimitedFileStaysAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blob")
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		limiter := NewLimiter(0)
		w := &fileTaker{t: t, after: 2 * stretch, then: func() { limiter.Set(1 << 20) }}
		start := time.Now()
		n, err := io.Copy(w, Limited(t.Context(), &io.LimitedReader{R: f, N: int64(len(content))}, limiter))
		if err != nil || n != int64(len(content)) || !bytes.Equal(w.got, content) {
			t.Fatalf("copied %d bytes of %d, %v", n, len(content), err)
		}
		if took := time.Since(start); took < 7*time.Second || took > 9*time.Second {
			t.Errorf("the last 8 MiB of 16 took %v at 1 MiB/s", took)
		}
	})
}

// fileTaker takes parts of files alone, and calls then after so many bytes.
type fileTaker struct {
	t     *testing.T
	got   []byte
	after int
	then  func()
}

func (w *fileTaker) Write([]byte) (int, error) {
	w.t.Error("bytes were copied by way of memory")
	return 0, io.ErrClosedPipe
}

func (w *fileTaker) ReadFrom(r io.Reader) (int64, error) {
	part, ok := r.(*io.LimitedReader)
	if ok {
		_, ok = part.R.(*os.File)
	}
	if !ok {
		w.t.Errorf("given a %T, want part of a file", r)
	}
	b, err := io.ReadAll(r)
	if w.got = append(w.got, b...); len(w.got) == w.after {
		w.then()
	}
	return int64(len(b)), err
}
