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

// whole returns body as one that must come within twice the idle time, all of it: for
// answers without which nothing goes on. An upstream that sends a byte now and then is
// never idle.
func (c *Client) whole(body io.ReadCloser) io.ReadCloser {
	b := &wholeBody{ReadCloser: body}
	b.timer = time.AfterFunc(2*c.idle, func() {
		b.late.Store(true)
		body.Close()
	})
	return b
}

// Whole is [Client.Bound] for an answer without which nothing goes on: it must come within
// twice the idle time, all of it.
func (c *Client) Whole(body io.ReadCloser) io.ReadCloser { return c.whole(c.Bound(body)) }

var errLate = errors.New("it trickles")

type wholeBody struct {
	io.ReadCloser
	timer *time.Timer
	late  atomic.Bool
}

func (b *wholeBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF && b.late.Load() {
		err = errLate
	}
	return n, err
}

func (b *wholeBody) Close() error {
	b.timer.Stop()
	return b.ReadCloser.Close()
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
