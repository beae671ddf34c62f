package registry

import (
	"errors"
	"io"
	"sync/atomic"
	"time"
)

// errIdle is the error of a body that was ended for its silence.
var errIdle = errors.New("no byte comes any more")

// idleBody is a response body that fails when nothing arrives for a while,
// instead of waiting for as long as the connection stands.
type idleBody struct {
	io.ReadCloser
	timer *time.Timer
	limit time.Duration
	idle  atomic.Bool // the limit was reached
}

func newIdleBody(body io.ReadCloser, limit time.Duration) *idleBody {
	b := &idleBody{ReadCloser: body, limit: limit}
	b.timer = time.AfterFunc(limit, func() {
		b.idle.Store(true)
		body.Close()
	})
	b.timer.Stop()
	return b
}

func (b *idleBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.limit)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	if err != nil && err != io.EOF && b.idle.Load() {
		err = errIdle
	}
	return n, err
}

func (b *idleBody) Close() error {
	b.timer.Stop()
	return b.ReadCloser.Close()
}
