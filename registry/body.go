package registry

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// decode undoes the compression that some proxy has put on resp, though nobody asked for
// it: what is hashed is what the registry holds. The size is not told then, and there are
// no sections of it.
func decode(resp *http.Response) (*http.Response, error) {
	switch coding := strings.ToLower(strings.Join(resp.Header.Values("Content-Encoding"), ",")); {
	case coding == "" || coding == "identity":
		return resp, nil
	case coding != "gzip" && coding != "x-gzip" || resp.StatusCode == http.StatusPartialContent:
		resp.Body.Close()
		return nil, Unavailable("the registry sent a body encoded as %q, which was not asked for", clip(coding))
	}
	resp.Header.Del("Content-Encoding")
	resp.Header.Del("Content-Length")
	resp.ContentLength = -1
	resp.Body = &gunzipped{ReadCloser: resp.Body}
	return resp, nil
}

// gunzipped is a compressed body as it was before. What follows the compressed bytes is
// no part of it.
type gunzipped struct {
	io.ReadCloser // compressed
	plain         *gzip.Reader
}

func (b *gunzipped) Read(p []byte) (n int, err error) {
	if b.plain == nil {
		if b.plain, err = gzip.NewReader(b.ReadCloser); err != nil {
			return 0, noEOF(err)
		}
	}
	return b.plain.Read(p)
}

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
