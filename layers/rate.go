package layers

import (
	"context"
	"io"
	"math"

	"golang.org/x/time/rate"
)

// longestChunk is the most bytes that BitTorrent clients ask for at once. A
// limiter must let so many through in one go.
const longestChunk = 128 << 10

// NewLimiter lets so many bytes a second through, of all that shares it: HTTP
// and BitTorrent. 0 is no limit, and returns nil. The burst is a tenth of a
// second.
func NewLimiter(bytes int64) *rate.Limiter {
	if bytes <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytes), int(min(max(bytes/10, 2*longestChunk), math.MaxInt32)))
}

// Limited returns r held to what l lets through, or r itself where l is nil.
func Limited(ctx context.Context, r io.Reader, l *rate.Limiter) io.Reader {
	if l == nil {
		return r
	}
	return &limited{ctx, r, l}
}

// Held tells whether l is what holds bytes back now, and not whoever sends them.
func Held(l *rate.Limiter) bool { return l != nil && l.Tokens() < float64(l.Burst())/2 }

type limited struct {
	ctx     context.Context
	r       io.Reader
	limiter *rate.Limiter
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p[:min(len(p), longestChunk)])
	if waitErr := l.limiter.WaitN(l.ctx, n); waitErr != nil && err == nil {
		err = waitErr
	}
	return n, err
}
