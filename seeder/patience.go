package seeder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"sync"
	"sync/atomic"
	"time"

	"github.com/murderp2p/murder/layers/tracing"
	"github.com/murderp2p/murder/registry"
)

// A mirror gives a seeder up within a second in which nothing comes from it: no
// beat before an answer (see beat.go), no byte of a body. A body may rightly stop
// for longer, while the registry's does; so its silence is only the reason to ask
// /livez. A request is waited for a little longer while something else comes from
// the seeder: on a host under load the beat or the probe may be what is late.
const defaultPatience = time.Second

// Silence is counted in ticks, twentieths of the patience.
const (
	beatTicks  = 18  // before an answer
	bodyTicks  = 5   // of a body, before /livez is asked
	livezTicks = 14  // before that answers: with the line above and the ticks' own delay, a second
	doubtTicks = 60  // of one request, while the seeder is heard elsewhere
	quietTicks = 20  // of a body that /livez has been asked for, before it is asked again
	lateTicks  = 100 // that do not count, see silence
)

// answerPatience is how many times the patience a seeder that says it is at work may take
// to answer: longer than it may wait for a registry and its token server.
const answerPatience = 45

// silence is for how long nothing has come from a seeder, in ticks.
//
// A tick that comes late tells of us: this process, or the machine, did not get
// to run, and what the seeder has sent meanwhile may lie unread. It does not
// count, so that nobody is judged before all has been read that is there. A host
// whose ticks are always late is starved and doubts for longer, but not for ever.
type silence struct {
	own  int // ticks without anything for one request
	all  int // ticks without anything from the seeder
	late int
}

// tick notes that a tick has come so long after the last one, and whether
// anything has been heard from the seeder in between.
func (s *silence) tick(after, every time.Duration, heard bool) {
	if heard {
		s.all = 0
	}
	if after > 2*every {
		if s.late++; s.late <= lateTicks {
			return
		}
	}
	s.own++
	if !heard {
		s.all++
	}
}

// reached tells whether the seeder has been silent for so many ticks.
func (s *silence) reached(limit int) bool {
	return s.own >= limit && (s.all >= limit || s.own >= doubtTicks)
}

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
	every    time.Duration // a tick
	heard    atomic.Int64  // how often anything has come from the seeder
}

// newPatience returns that of a client; 0 means defaultPatience.
func newPatience(cfg ClientConfig) *patience {
	long := cmp.Or(cfg.Patience, defaultPatience)
	transport := func() *http.Transport {
		t := registry.Transport()
		t.Proxy = nil // seeders are neighbours, not the internet
		t.DialContext = (&net.Dialer{Timeout: 3 * long}).DialContext
		t.DialTLSContext = cfg.DialTLS
		t.ResponseHeaderTimeout = answerPatience * long
		return t
	}
	return &patience{requests: transport(), probes: transport(), livez: cfg.URL.JoinPath("/livez").String(), every: long / 20}
}

// probe returns nil when /livez answers in time.
func (p *patience) probe(ctx context.Context) error {
	w := p.watch(ctx)
	defer w.cancel(nil)
	req, err := http.NewRequestWithContext(w.ctx, http.MethodGet, p.livez, nil)
	if err != nil {
		return err
	}
	w.begin(livezTicks, false)
	defer w.end()
	resp, err := p.probes.RoundTrip(req)
	if err != nil {
		return w.blame(err)
	}
	defer resp.Body.Close()
	p.heard.Add(1)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", p.livez, resp.Status)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10))
	return w.blame(err)
}

// RoundTrip implements http.RoundTripper. The answer's body fails, too, when
// the seeder hangs in the middle of it.
func (p *patience) RoundTrip(req *http.Request) (*http.Response, error) {
	w := p.watch(req.Context())
	req = req.Clone(httptrace.WithClientTrace(w.ctx, &httptrace.ClientTrace{Got1xxResponse: w.beat}))
	req.Header.Set(beatHeader, "1")
	tracing.Tell(req)
	w.begin(beatTicks, false)
	resp, err := p.requests.RoundTrip(req)
	w.end()
	if err != nil {
		defer w.cancel(nil)
		return nil, w.blame(err)
	}
	p.heard.Add(1)
	resp.Body = &watchedBody{ReadCloser: resp.Body, watch: w}
	return resp, nil
}

// watch looks after one request while it waits for the seeder.
type watch struct {
	patience *patience
	ctx      context.Context // the request's
	cancel   context.CancelCauseFunc

	mu      sync.Mutex // guards below
	turn    int        // of waiting; a tick of an earlier one says nothing
	timer   *time.Timer
	limit   int   // of ticks
	probes  bool  // /livez is asked when the limit is reached
	heard   int64 // what patience.heard was when it ticked last
	ticked  time.Time
	silence silence
}

func (p *patience) watch(ctx context.Context) *watch {
	w := &watch{patience: p}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	return w
}

// begin is called when the waiting begins, end when it is over.
func (w *watch) begin(limit int, probes bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.turn++
	w.limit, w.probes = limit, probes
	w.restart()
}

func (w *watch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.turn++
	w.timer.Stop()
}

// restart counts from nothing. w.mu is held.
func (w *watch) restart() {
	w.silence = silence{}
	w.ticked, w.heard = time.Now(), w.patience.heard.Load()
	turn := w.turn
	w.timer = time.AfterFunc(w.patience.every, func() { w.tick(turn) })
}

// tick ends the request when the silence has become too long. That of a body
// only asks /livez, and less often once that has answered: a thousand hosts may
// wait for what a slow registry sends.
func (w *watch) tick(turn int) {
	reached, probes := w.count(turn)
	if !reached {
		return
	}
	err := errHangs
	if probes {
		err = w.patience.probe(w.ctx)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.turn != turn:
	case err == nil:
		w.limit = min(2*w.limit, quietTicks)
		w.restart()
	case !w.silence.reached(w.limit):
		w.restart()
	default:
		w.cancel(errHangs)
	}
}

// count counts a tick, and sets the next unless the limit is reached.
func (w *watch) count(turn int) (reached, probes bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.turn != turn {
		return false, false
	}
	now, heard := time.Now(), w.patience.heard.Load()
	w.silence.tick(now.Sub(w.ticked), w.patience.every, heard != w.heard)
	w.ticked, w.heard = now, heard
	if !w.silence.reached(w.limit) {
		w.timer.Reset(w.patience.every)
		return false, false
	}
	return true, w.probes
}

// blame returns errHangs if that is why the request ended with err.
func (w *watch) blame(err error) error {
	if err != nil && errors.Is(context.Cause(w.ctx), errHangs) {
		return errHangs
	}
	return err
}

// beat is told that the seeder is at work on the answer.
func (w *watch) beat(int, textproto.MIMEHeader) error {
	w.patience.heard.Add(1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silence = silence{}
	return nil
}

// watchedBody is a body under watch while it is being read.
type watchedBody struct {
	io.ReadCloser
	watch *watch
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.begin(bodyTicks, true)
	n, err := b.ReadCloser.Read(p)
	b.watch.end()
	if n > 0 {
		b.watch.patience.heard.Add(1)
	}
	if err == io.EOF {
		return n, err
	}
	return n, b.watch.blame(err)
}

func (b *watchedBody) Close() error {
	defer b.watch.cancel(nil)
	return b.ReadCloser.Close()
}
