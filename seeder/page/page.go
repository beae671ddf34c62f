// Package page is the seeder's live page at GET /: what the fleet pulls, from
// where, and what that has saved.
//
// It knows nothing of seeders. Once a second it asks its [Source], which the
// seeder implements, for a [View], and sends what has changed since to all who
// look: one question and one encoding whatever the number of viewers. While
// nobody looks only two numbers a second are asked for, from which the rates
// follow.
//
// Viewers are of two kinds. Whoever reaches the page sees numbers. Names (of
// repositories, images, hosts, zones, addresses and digests) are for who has the
// operator's right; see [View] for how a field is marked, and [Config].Operator.
//
// The browser's part is in assets: plain HTML, CSS and JavaScript without
// anything from elsewhere, under a Content-Security-Policy that lets nothing
// else run. GET /page/events is a stream of server-sent events: first "view",
// which is everything, then a "delta" every second, which is the heartbeat, too.
package page

import (
	"context"
	"net/http"
	"sync"
	"time"
)

const (
	// maxViewers bounds the viewers of either kind, so that strangers do not keep the
	// operator out. A viewer costs a connection and, with 2,000 hosts, some 10 to 100 KB
	// a second.
	maxViewers = 32
	// maxStream is for how long a viewer is sent events; then it comes back, and its
	// right is judged anew.
	maxStream = 10 * time.Minute
	// maxWrite is how long a viewer may take for one event.
	maxWrite = 10 * time.Second
	// smooth is over how many seconds a rate is taken: hosts report now and then.
	smooth = 5
)

// Config says what a [Page] shows to whom.
type Config struct {
	Source Source
	// Operator tells whether who asks may be told names; nil = nobody may. Its error is
	// sent: it is for who shows a token that is not right.
	Operator func(*http.Request) (bool, error)
	// Every is how often the Source is asked; 0 means each second.
	Every time.Duration
}

// Page is an http.Handler for GET / and below GET /page/.
type Page struct {
	cfg   Config
	mux   *http.ServeMux
	woken chan struct{} // has room for one: there is a first viewer
	ended chan struct{} // closed when Run ends

	mu        sync.Mutex // guards the rest
	rates     rates
	totals    []Totals // the latest, the oldest first
	audiences [2]*audience
}

// audience are the viewers that see the same.
type audience struct {
	names   bool
	viewers int
	frames  *frames       // nil: nobody looks, or nothing has been shown yet
	delta   []byte        // that led to the last View
	whole   []byte        // the last View; nil: not encoded yet
	at      time.Time     // of the last View
	turned  chan struct{} // closed when there is another
}

// New returns a page that shows nothing until Run runs.
func New(cfg Config) *Page {
	if cfg.Every <= 0 {
		cfg.Every = time.Second
	}
	if cfg.Operator == nil {
		cfg.Operator = func(*http.Request) (bool, error) { return false, nil }
	}
	p := &Page{cfg: cfg, woken: make(chan struct{}, 1), ended: make(chan struct{})}
	for i := range p.audiences {
		p.audiences[i] = &audience{names: i == 1, turned: make(chan struct{})}
	}
	p.mux = http.NewServeMux()
	p.mux.HandleFunc("GET /page/events", p.serveEvents)
	for path, a := range assets() {
		p.mux.Handle("GET "+path, a)
	}
	return p
}

// ServeHTTP implements http.Handler.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.mux.ServeHTTP(w, r) }

// Run asks the Source until ctx ends, when all streams end. It returns nil, and runs once.
func (p *Page) Run(ctx context.Context) error {
	defer close(p.ended)
	tick := time.NewTicker(p.cfg.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			p.sample()
			p.turn(func(*audience) bool { return true })
		case <-p.woken:
			p.turn(func(a *audience) bool { return time.Since(a.at) >= p.cfg.Every })
		}
	}
}

// sample takes the totals, from which the rates follow.
func (p *Page) sample() {
	t := p.cfg.Source.Totals()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.totals = append(p.totals, t)
	if len(p.totals) > smooth+1 {
		p.totals = p.totals[1:]
	}
	first, took := p.totals[0], p.cfg.Every*time.Duration(len(p.totals)-1)
	p.rates.add(rate(t.Fleet-first.Fleet, took), rate(t.Registry-first.Registry, took))
}

// rate is bytes a second; nothing where a count has begun anew.
func rate(n int64, took time.Duration) int64 {
	if took <= 0 || n < 0 {
		return 0
	}
	return int64(float64(n) / took.Seconds())
}

// turn has those audiences that are due see the fleet as it is now.
func (p *Page) turn(due func(*audience) bool) {
	var looking []*audience
	p.mu.Lock()
	for _, a := range p.audiences {
		if a.viewers > 0 && due(a) {
			looking = append(looking, a)
		}
	}
	p.mu.Unlock()
	if len(looking) == 0 {
		return
	}
	v := p.cfg.Source.View()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fill(&v.Now)
	for _, a := range looking {
		a.turn(v)
	}
}

// fill adds what the page knows. p.mu is held.
func (p *Page) fill(n *Now) {
	if i := len(p.totals) - 1; i >= 0 {
		n.Fleet, n.Registry = p.totals[i].Fleet, p.totals[i].Registry
		n.FleetRate, n.RegistryRate = p.rates.fleet[len(p.rates.fleet)-1], p.rates.registry[len(p.rates.registry)-1]
	}
}

// turn takes the next View. v's rows are shared, and not changed. The page's mu is held.
func (a *audience) turn(v View) {
	if a.frames == nil {
		a.frames = newFrames(a.names)
	}
	a.delta, a.whole, a.at = a.frames.turn(v), nil, time.Now()
	close(a.turned)
	a.turned = make(chan struct{})
}
