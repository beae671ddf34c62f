package registry

import (
	"context"
	"time"

	"golang.org/x/sync/singleflight"
)

// askTimeout bounds a question that is shared, and that nobody may wait for any
// more: an upstream that sends a byte now and then is never idle.
const askTimeout = time.Minute

// share puts a question once for all who ask it at the same moment. It must
// not die with the first of them; each may leave when its ctx ends.
func share[T any](ctx context.Context, asks *singleflight.Group, key string, ask func(context.Context) (T, error)) (answer T, err error) {
	asked := asks.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
		defer cancel()
		return ask(ctx)
	})
	select {
	case <-ctx.Done():
		return answer, ctx.Err()
	case result := <-asked:
		return result.Val.(T), result.Err
	}
}
