package seeder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/murderp2p/murder/registry"
)

// A mirror gives a seeder up within a second. But a seeder may rightly be
// silent for longer than that, while its registry thinks: so a silence is
// only the reason to ask /livez, and a seeder that answers it is waited for. So
// is one of which anything else has come meanwhile: on a host under load the
// probe may be what is late.
const (
	silence      = 150 * time.Millisecond // before the first answer
	answerWithin = 750 * time.Millisecond // for /livez; together under a second
	bodySilence  = 250 * time.Millisecond // in mid-body
)

var errHangs error = hangs{}

// hangs is a way of not being reachable.
type hangs struct{}

func (hangs) Error() string        { return "it does not answer any more" }
func (hangs) Is(target error) bool { return target == registry.ErrUnreachable }

// patience is the http.RoundTripper to a seeder.
type patience struct {
	requests http.RoundTripper
	probes   http.RoundTripper // a connection of their own: the other may be what hangs
	livez    string
	alive    atomic.Int64 // when anything last came from the seeder, in nanoseconds since 1970
}

func (p *patience) lives() { p.alive.Store(time.Now().UnixNano()) }

func newPatience(livez string) *patience {
	transport := func() *http.Transport {
		t := registry.Transport()
		t.Proxy = nil // seeders are neighbours, not the internet
		t.ResponseHeaderTimeout = 2 * maxWait
		return t
	}
	return &patience{requests: transport(), probes: transport(), livez: livez}
}

// check returns nil when /livez answers in time, or anything else does.
func (p *patience) check(ctx context.Context) error {
	err := p.probe(ctx)
	if err != nil && time.Since(time.Unix(0, p.alive.Load())) < answerWithin {
		return nil
	}
	return err
}

func (p *patience) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.livez, nil)
	if err != nil {
		return err
	}
	resp, err := p.probes.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", p.livez, resp.Status)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10))
	return err
}

// RoundTrip implements http.RoundTripper. The answer's body fails, too, when
// the seeder hangs in the middle of it.
func (p *patience) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	w := &watch{patience: p, ctx: ctx, cancel: cancel, limit: silence}
	w.begin()
	resp, err := p.requests.RoundTrip(req.WithContext(ctx))
	w.end()
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errHangs) {
			err = cause
		}
		cancel(nil)
		return nil, err
	}
	p.lives()
	w.limit = bodySilence
	resp.Body = &watchedBody{ReadCloser: resp.Body, watch: w}
	return resp, nil
}

// watch ends one request when the seeder is silent and found dead.
type watch struct {
	patience *patience
	ctx      context.Context
	cancel   context.CancelCauseFunc
	limit    time.Duration

	mu    sync.Mutex // guards below
	timer *time.Timer
	turn  int // of waiting; a probe that ends in a later turn says nothing
}

// begin is called when the waiting begins, end when it is over.
func (w *watch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.turn++
	turn := w.turn
	w.timer = time.AfterFunc(w.limit, func() { w.silent(turn) })
}

func (w *watch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.turn++
	w.timer.Stop()
}

// silent asks whether the seeder still lives, and goes on waiting if it does.
func (w *watch) silent(turn int) {
	err := w.patience.check(w.ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.turn != turn {
		return
	}
	if err != nil {
		w.cancel(errHangs)
		return
	}
	w.timer = time.AfterFunc(time.Second, func() { w.silent(turn) })
}

// watchedBody is a body under watch while it is being read.
type watchedBody struct {
	io.ReadCloser
	watch *watch
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.begin()
	n, err := b.ReadCloser.Read(p)
	b.watch.end()
	if n > 0 {
		b.watch.patience.lives()
	}
	if err != nil && err != io.EOF && errors.Is(context.Cause(b.watch.ctx), errHangs) {
		err = errHangs
	}
	return n, err
}

func (b *watchedBody) Close() error {
	defer b.watch.cancel(nil)
	return b.ReadCloser.Close()
}
