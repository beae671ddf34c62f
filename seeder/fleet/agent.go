package fleet

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

const (
	maxTasks   = maxJobs // orders that a host remembers
	maxAtOnce  = 4       // orders that it is at work on; the others wait
	attempts   = 3       // before it gives up
	retryAfter = 2 * time.Second
)

// Carry makes one attempt to carry an order out, and tells how it goes, until ctx ends.
// Its error may be a [*NeedCredentials], or have [ErrHopeless] in its chain; else it is
// called again a few times.
type Carry func(ctx context.Context, order Order, say func(Progress)) error

// NeedCredentials is an attempt's error when the registry wants to know who asks.
type NeedCredentials struct {
	Image     string
	Challenge string
	Err       error
}

func (n *NeedCredentials) Error() string { return n.Err.Error() }
func (n *NeedCredentials) Unwrap() error { return n.Err }

// ErrHopeless is in the chain of an attempt's error that another would end with as well.
var ErrHopeless = errors.New("another attempt would fail as well")

// Agent is a mirror's side: it holds a link to each seeder, and carries orders out, each
// once, however many seeders tell of it.
type Agent struct {
	Member Member
	Carry  Carry
	// Account is asked now and then what the host has moved; nil = nobody is told.
	Account func() Account
	Log     *slog.Logger

	mu      sync.Mutex // guards what follows
	seeders []Seeder
	moved   chan struct{} // closed when seeders are others than they were; nil = nobody looks
	tasks   []*task       // the oldest first
	uplinks map[*uplink]bool
	results map[State]int64 // how many orders ended so
}

// task is an order that the host knows.
type task struct {
	ctx    context.Context
	cancel context.CancelFunc
	begun  time.Time
	fresh  chan struct{} // holds one token when there are new credentials

	// guarded by Agent.mu
	order  Order
	report Report
}

// Run holds the links until ctx ends, and returns when all that was ordered is at rest.
func (a *Agent) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	places := make(chan struct{}, maxAtOnce)
	start := func(t *task) {
		t.ctx, t.cancel = context.WithTimeout(ctx, min(time.Duration(t.order.Left), MaxLifetime))
		group.Go(func() { a.work(t, places) })
	}
	held := make(map[string]context.CancelFunc) // by the seeder's URL
	for ctx.Err() == nil {
		list, moved := a.now()
		gone := maps.Clone(held)
		for _, s := range list {
			url := s.URL.String()
			delete(gone, url)
			if held[url] == nil {
				linked, cancel := context.WithCancel(ctx)
				held[url] = cancel
				group.Go(func() { a.hold(linked, s, start) })
			}
		}
		for url, cancel := range gone {
			cancel()
			delete(held, url)
		}
		select {
		case <-ctx.Done():
		case <-moved:
		}
	}
	return nil
}

// SetSeeders says to whom links are to be held. What one has ordered is carried out also
// when it is not among them any more.
func (a *Agent) SetSeeders(list []Seeder) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seeders = list
	if a.moved != nil {
		close(a.moved)
		a.moved = nil
	}
}

// now is to whom links are to be held, until moved is closed.
func (a *Agent) now() (list []Seeder, moved <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.moved == nil {
		a.moved = make(chan struct{})
	}
	return a.seeders, a.moved
}

// Links is how many seeders the host holds a link to.
func (a *Agent) Links() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.uplinks)
}

// Results is how many orders have ended in a state, [Ready] or [Failed].
func (a *Agent) Results(s State) int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.results[s]
}

// ordered takes in an order, which may be known: then it is told how that goes, and
// what is new of it is the credentials.
func (a *Agent) ordered(u *uplink, o Order, start func(*task)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.task(o.ID)
	if t == nil {
		if !a.room() || o.Left <= 0 {
			return // it holds for longer than we are this busy, or is told of again
		}
		t = &task{begun: time.Now(), fresh: make(chan struct{}, 1), order: o}
		t.report = Report{Order: o.ID, Progress: Progress{State: Waiting}}
		a.tasks = append(a.tasks, t)
		a.Log.Info("prefetch ordered", "order", o.ID, "images", len(o.Images), "seeder", u.seeder.URL.Redacted())
		start(t)
	} else {
		t.renew(o)
	}
	u.note(t, o.Every)
}

// renew takes the credentials of the newest word of an order. a.mu is held.
func (t *task) renew(o Order) {
	renewed := false
	images := slices.Clone(t.order.Images)
	for i, image := range images {
		for _, again := range o.Images {
			if again.Ref == image.Ref && again.Authorization != "" && again.Authorization != image.Authorization {
				images[i].Authorization, renewed = again.Authorization, true
			}
		}
	}
	t.order.Images = images
	if renewed {
		select {
		case t.fresh <- struct{}{}:
		default:
		}
	}
}

func (a *Agent) task(id string) *task {
	for _, t := range a.tasks {
		if t.order.ID == id {
			return t
		}
	}
	return nil
}

// room makes some among the tasks by forgetting one that is over. a.mu is held.
func (a *Agent) room() bool {
	if len(a.tasks) < maxTasks {
		return true
	}
	for i, t := range a.tasks {
		if t.report.State.final() {
			a.tasks = slices.Delete(a.tasks, i, i+1)
			return true
		}
	}
	return false
}

// cancelled ends an order.
func (a *Agent) cancelled(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t := a.task(id); t != nil {
		t.cancel()
	}
}

// work carries an order out.
func (a *Agent) work(t *task, places chan struct{}) {
	defer t.cancel()
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
	case <-t.ctx.Done():
	}
	for n := 1; t.ctx.Err() == nil; n++ {
		err := a.attempt(t, n)
		need, refused := errors.AsType[*NeedCredentials](err)
		switch {
		case err == nil:
			a.end(t, Ready, nil)
			return
		case t.ctx.Err() != nil:
		case refused:
			n-- // it was not for want of trying
			if t.renewed() {
				continue
			}
			a.say(t, true, func(r *Report) {
				r.State, r.Error, r.Image, r.Challenge = Refused, err.Error(), need.Image, need.Challenge
			})
			t.wait(0)
		case errors.Is(err, ErrHopeless) || n == attempts:
			a.end(t, Failed, err)
			return
		default:
			a.say(t, true, func(r *Report) { r.Error = err.Error() })
			t.wait(time.Duration(n*n) * retryAfter)
		}
	}
	a.leave(t)
}

// leave ends a task that was withdrawn, whose time is over, or that the host's own end
// cuts short. The seeder knows of the first two, and is to tell us again after the third.
func (a *Agent) leave(t *task) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t.report.State = Failed
	for u := range a.uplinks {
		delete(u.news, t)
	}
}

// renewed tells whether there are credentials that the last attempt may not have had.
func (t *task) renewed() bool {
	select {
	case <-t.fresh:
		return true
	default:
		return false
	}
}

// wait returns when there are new credentials, or when a while is over that is not 0.
func (t *task) wait(long time.Duration) {
	var over <-chan time.Time
	if long > 0 {
		timer := time.NewTimer(long/2 + rand.N(long))
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-t.fresh:
	case <-over:
	case <-t.ctx.Done():
	}
}

func (a *Agent) attempt(t *task, n int) error {
	a.mu.Lock()
	order := t.order
	a.mu.Unlock()
	a.say(t, true, func(r *Report) { r.State, r.Attempts = Fetching, n })
	return a.Carry(t.ctx, order, func(p Progress) {
		a.say(t, p.State == Loading, func(r *Report) {
			first := r.FirstByteMS
			if first == 0 && p.BytesDone > 0 {
				first = max(1, time.Since(t.begun).Milliseconds())
			}
			p.Attempts, p.FirstByteMS, p.Error = n, first, r.Error
			r.Progress, r.Image, r.Challenge = p, "", ""
		})
	})
}

// say changes what the seeders are told of an order.
func (a *Agent) say(t *task, urgent bool, change func(*Report)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(&t.report)
	for u := range a.uplinks {
		u.changed(t, urgent)
	}
}

func (a *Agent) end(t *task, s State, err error) {
	took := time.Since(t.begun)
	a.say(t, true, func(r *Report) {
		r.State, r.TookMS, r.Error, r.Image, r.Challenge = s, max(1, took.Milliseconds()), "", "", ""
		if err != nil {
			r.Error = err.Error()
		}
	})
	a.mu.Lock()
	if a.results == nil {
		a.results = make(map[State]int64)
	}
	a.results[s]++
	t.order.Images = slices.Clone(t.order.Images)
	for i := range t.order.Images {
		t.order.Images[i].Authorization = "" // nobody needs it any more
	}
	a.mu.Unlock()
	if err != nil {
		a.Log.Warn("prefetch not carried out", "order", t.order.ID, "dur", took, "err", err)
		return
	}
	a.Log.Info("prefetch carried out", "order", t.order.ID, "dur", took)
}
