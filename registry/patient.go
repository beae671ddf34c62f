package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	// answerTimeout bounds the wait for the head of an answer. A registry may itself be a
	// cache that fetches before it answers. But a mirror waits twice, for the seeder's
	// question and for its own, and an engine has another way when it is told no in time.
	answerTimeout = 10 * time.Second
	// blobTimeout is the same for a blob, which may be large; some caches have all of it
	// before they send a byte. Engines have no other way for blobs of a manifest that came
	// through us, but wait.
	blobTimeout = 25 * time.Second
	// maxBusy bounds the time for which a registry is waited for that has said when to ask
	// again. Longer waits are the puller's to decide on.
	maxBusy = 3 * time.Second
)

// errSilent is the error of a question to which no answer has begun.
var errSilent = errors.New("no answer has begun in time")

// send sends a request for something of host, and again when the registry says that it is
// too busy at the moment. A seeder that asks us to wait is not waited for: it does that itself.
func (c *Client) send(req *http.Request, host string) (*http.Response, error) {
	for left := maxBusy; ; {
		resp, err := c.sendOnce(req, host)
		if err != nil || c.cfg.Via != nil {
			return resp, err
		}
		wait := busyFor(resp)
		if wait == 0 || wait > left {
			return resp, nil
		}
		resp.Body.Close()
		select {
		case <-req.Context().Done():
			return nil, req.Context().Err()
		case <-time.After(wait):
		}
		left -= wait
	}
}

// busyFor is after how long a registry wants to be asked again; 0 where it does not say.
func busyFor(resp *http.Response) time.Duration {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	after := resp.Header.Get("Retry-After") // seconds, or a date (RFC 9110, 10.2.3)
	if seconds, err := strconv.ParseUint(after, 10, 16); err == nil {
		return max(time.Duration(seconds)*time.Second, time.Second/2)
	}
	if at, err := http.ParseTime(after); err == nil {
		return max(time.Until(at), time.Second/2)
	}
	return 0
}

// sendOnce sends a request, which must be answered sooner than the transport wants it if
// it is for no blob.
func (c *Client) sendOnce(req *http.Request, host string) (*http.Response, error) {
	if c.prompt == 0 || req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
		return c.to(host).Do(req)
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(c.prompt, func() { cancel(errSilent) })
	resp, err := c.to(host).Do(req.WithContext(ctx))
	timer.Stop()
	if err != nil {
		if context.Cause(ctx) == errSilent {
			err = errSilent
		}
		cancel(nil)
		return nil, err
	}
	resp.Body = &cancelled{resp.Body, cancel}
	return resp, nil
}

// cancelled is a body whose context ends with it.
type cancelled struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (b *cancelled) Close() error {
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}
