package registry

import (
	"context"

	"golang.org/x/sync/singleflight"
)

// share puts a question once for all who ask it at the same moment. It must
// not die with the first of them, so ask's context has no end but the
// client's own time limits; each may leave when its ctx ends.
func share[T any](ctx context.Context, asks *singleflight.Group, key string, ask func(context.Context) (T, error)) (answer T, err error) {
	asked := asks.DoChan(key, func() (any, error) { return ask(context.WithoutCancel(ctx)) })
	select {
	case <-ctx.Done():
		return answer, ctx.Err()
	case result := <-asked:
		return result.Val.(T), result.Err
	}
}
