package registry

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
)

const (
	// askTimeout bounds a question that is shared, and that nobody may wait for any
	// more: an upstream that sends a byte now and then is never idle.
	askTimeout = time.Minute
	// maxOrphans bounds the questions of one kind that go on although who asked first has
	// left, for others who wait for the answer or come back for it. Who asks of a registry
	// that hangs and leaves, again and again, would have any number of connections made.
	maxOrphans = 256
)

// errOrphan is why a question was given up.
var errOrphan = errors.New("who asked has left, as have many others")

// questions are those under way to an upstream. The zero value is ready.
type questions struct {
	asks    singleflight.Group
	orphans atomic.Int64
}

// share puts a question once for all who ask it at the same moment. It must
// not die with the first of them; each may leave when its ctx ends.
func share[T any](ctx context.Context, q *questions, key string, ask func(context.Context) (T, error)) (answer T, err error) {
	for {
		asked := q.asks.DoChan(key, func() (any, error) {
			ctx, end := q.outlive(ctx)
			defer end()
			answer, err := ask(ctx)
			if err != nil && context.Cause(ctx) == errOrphan {
				err = errOrphan
			}
			return answer, err
		})
		select {
		case <-ctx.Done():
			return answer, ctx.Err()
		case result := <-asked:
			if result.Err != errOrphan || ctx.Err() != nil {
				return result.Val.(T), result.Err
			}
			// It was another's, who has left: now it is ours.
		}
	}
}

// outlive returns a context for a question that goes on when its asker's has ended, unless
// too many do. end is to be called with the question's.
func (q *questions) outlive(asker context.Context) (ctx context.Context, end func()) {
	ctx, timeout := context.WithTimeout(context.WithoutCancel(asker), askTimeout)
	ctx, cancel := context.WithCancelCause(ctx)
	stay := context.AfterFunc(asker, func() {
		if q.orphans.Add(1) > maxOrphans {
			cancel(errOrphan)
		}
	})
	return ctx, func() {
		if !stay() {
			q.orphans.Add(-1)
		}
		cancel(nil)
		timeout()
	}
}
