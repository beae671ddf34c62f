package seeder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"sync"
	"sync/atomic"
	"time"

	"github.com/murderp2p/murder/registry"
)

// A mirror gives a seeder up within a second in which nothing comes from it: no
// beat before an answer (see beat.go), no byte of a body. A body may rightly stop
// for longer, while the registry's does; so its silence is only the reason to ask
// /livez. A seeder of which anything else has come meanwhile is waited for a
// little longer: on a host under load the beat or the probe may be what is late.
const (
	answerWithin = 750 * time.Millisecond // for /livez
	bodySilence  = 250 * time.Millisecond // together a second
	beatWithin   = 900 * time.Millisecond
	doubtFor     = 3 * time.Second
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

// livedWithin tells whether anything has come from the seeder of late.
func (p *patience) livedWithin(limit time.Duration) bool {
	return time.Since(time.Unix(0, p.alive.Load())) < limit
}

// probe returns nil when /livez answers in time.
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

// noBeat is the check for a request to which no beat has come.
func noBeat(context.Context) error { return errHangs }

// RoundTrip implements http.RoundTripper. The answer's body fails, too, when
// the seeder hangs in the middle of it.
func (p *patience) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	w := &watch{patience: p, ctx: ctx, cancel: cancel, limit: beatWithin, check: noBeat}
	w.begin()
	req = req.Clone(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: w.beat}))
	req.Header.Set(beatHeader, "1")
	resp, err := p.requests.RoundTrip(req)
	w.end()
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errHangs) {
			err = cause
		}
		cancel(nil)
		return nil, err
	}
	p.lives()
	w.limit, w.check = bodySilence, p.probe
	resp.Body = &watchedBody{ReadCloser: resp.Body, watch: w}
	return resp, nil
}

// watch ends one request when the seeder is silent and found dead.
type watch struct {
	patience *patience
	ctx      context.Context
	cancel   context.CancelCauseFunc
	limit    time.Duration               // of silence
	check    func(context.Context) error // what to do about it: nil is waiting on

	mu    sync.Mutex // guards below
	timer *time.Timer
	since time.Time // of the silence
	turn  int       // of waiting; a probe that ends in a later turn says nothing
}

// begin is called when the waiting begins, end when it is over.
func (w *watch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.turn++
	turn := w.turn
	w.since = time.Now()
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
	err := w.check(w.ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.turn != turn {
		return
	}
	if err != nil && (time.Since(w.since) > doubtFor || !w.patience.livedWithin(answerWithin)) {
		w.cancel(errHangs)
		return
	}
	w.timer = time.AfterFunc(w.limit, func() { w.silent(turn) })
}

// beat is told that the seeder is at work on the answer.
func (w *watch) beat(int, textproto.MIMEHeader) error {
	w.patience.lives()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = time.Now()
	w.timer.Reset(w.limit)
	return nil
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
