package layers

import (
	"context"
	"io"
	"math"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	// longestChunk is the most bytes that BitTorrent clients ask for at once. A
	// limiter must let so many through in one go.
	longestChunk = 128 << 10
	// stretch is how many bytes go out by sendfile before a limiter, which may have been
	// set meanwhile, is looked at again. net hands the kernel no more at once either.
	stretch = 4 << 20
)

// Limiter lets so many bytes a second through, of all that shares it: HTTP and
// BitTorrent. It can be set anew while bytes wait for it. nil lets all through.
type Limiter struct{ at atomic.Pointer[bucket] }

// bucket is a Limiter between two times that it was set.
type bucket struct {
	tokens *rate.Limiter // nil = no limit
	over   chan struct{} // closed when another has taken its place
}

// NewLimiter returns a Limiter to so many bytes a second; 0 is no limit. The burst is
// a tenth of a second.
func NewLimiter(bytes int64) *Limiter {
	l := &Limiter{}
	l.at.Store(newBucket(bytes))
	return l
}

func newBucket(bytes int64) *bucket {
	b := &bucket{over: make(chan struct{})}
	if bytes > 0 {
		b.tokens = rate.NewLimiter(rate.Limit(bytes), int(min(max(bytes/10, 2*longestChunk), math.MaxInt32)))
	}
	return b
}

// Set has the Limiter let so many bytes a second through from now on, also of what
// waits for it already.
func (l *Limiter) Set(bytes int64) { close(l.at.Swap(newBucket(bytes)).over) }

// Wait returns when n bytes may pass, or ctx's error.
func (l *Limiter) Wait(ctx context.Context, n int) error {
	for l != nil && n > 0 {
		b := l.at.Load()
		if b.tokens == nil {
			return nil
		}
		some := min(n, b.tokens.Burst())
		passed, err := b.wait(ctx, some)
		if err != nil {
			return err
		}
		if passed {
			n -= some
		}
	}
	return nil
}

// wait waits for n bytes, at the most a burst. They have not passed if the bucket's time
// was over before.
func (b *bucket) wait(ctx context.Context, n int) (passed bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	reserved := b.tokens.ReserveN(time.Now(), n)
	delay := reserved.Delay()
	if delay == 0 {
		return true, nil
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true, nil
	case <-b.over:
		return false, nil
	case <-ctx.Done():
		reserved.Cancel()
		return false, ctx.Err()
	}
}

// Held tells whether l is what holds bytes back now, and not whoever sends them.
func (l *Limiter) Held() bool {
	if l.open() {
		return false
	}
	tokens := l.at.Load().tokens
	return tokens != nil && tokens.Tokens() < float64(tokens.Burst())/2
}

// open tells whether there is no limit now.
func (l *Limiter) open() bool { return l == nil || l.at.Load().tokens == nil }

// Limited returns r held to what l lets through, or r itself where l is nil.
func Limited(ctx context.Context, r io.Reader, l *Limiter) io.Reader {
	if l == nil {
		return r
	}
	return &limited{ctx, r, l}
}

type limited struct {
	ctx     context.Context
	r       io.Reader
	limiter *Limiter
}

// Read implements io.Reader.
func (l *limited) Read(p []byte) (int, error) {
	if !l.limiter.open() {
		p = p[:min(len(p), longestChunk)]
	}
	n, err := l.r.Read(p)
	if waitErr := l.limiter.Wait(l.ctx, n); waitErr != nil && err == nil {
		err = waitErr
	}
	return n, err
}

// WriteTo implements io.WriterTo, so that a file can still go out by sendfile.
func (l *limited) WriteTo(w io.Writer) (written int64, err error) {
	to := &limitedWriter{l.ctx, w, l.limiter}
	if r, ok := l.r.(io.WriterTo); ok {
		return r.WriteTo(to)
	}
	return to.ReadFrom(l.r)
}

// limitedWriter is limited from the other side.
type limitedWriter struct {
	ctx     context.Context
	w       io.Writer
	limiter *Limiter
}

// Write implements io.Writer.
func (l *limitedWriter) Write(p []byte) (int, error) {
	if err := l.limiter.Wait(l.ctx, len(p)); err != nil {
		return 0, err
	}
	return l.w.Write(p)
}

// ReadFrom implements io.ReaderFrom. A part of a file is handed on in the form in which
// net/http knows it, one stretch after the other.
func (l *limitedWriter) ReadFrom(r io.Reader) (written int64, err error) {
	file, ok := r.(*io.LimitedReader)
	if !ok {
		return io.Copy(struct{ io.Writer }{l}, r)
	}
	for file.N > 0 {
		n := min(file.N, stretch)
		if !l.limiter.open() {
			n = min(n, longestChunk)
			if err := l.limiter.Wait(l.ctx, int(n)); err != nil {
				return written, err
			}
		}
		part := &io.LimitedReader{R: file.R, N: n}
		got, err := io.Copy(l.w, part)
		written += got
		file.N -= got
		if err != nil || got < n {
			return written, err
		}
	}
	return written, nil
}
