// Package roster knows which seeders there are: an operator gives a name, and DNS says
// today who is behind it.
//
// A name may stand for one seeder, or by several addresses for several (a Kubernetes
// headless service), or by SRV records for hosts with names and ports of their own. It is
// looked up again while the daemon runs, so that seeders can be added, moved and taken
// away. When DNS does not answer, what it said last holds.
//
// DNS is believed about where seeders are, but not about who is one: with TLS, whoever is
// found must show a certificate for the name that the operator gave (RFC 9525, 6.1: never
// for a name that insecure DNS has led to).
package roster

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// every is how often names are looked up: what a new seeder waits for at the most.
	every = 10 * time.Second
	// soonest is the least time between two looks, whatever happens.
	soonest = time.Second
	// atStart bounds the first look: pulls go on without seeders when DNS is away.
	atStart = 2 * time.Second
	// lookTimeout bounds each of the others.
	lookTimeout = 5 * time.Second
	// maxSeeders bounds those behind one name. Each is announced to.
	maxSeeders = 64
)

// Seeder is one of those there are. It is comparable: the same seeder is equal from one
// look to the next.
type Seeder struct {
	// URL is where it is asked.
	URL string
	// Name is what its certificate must be for, if that is another than the host in URL.
	Name string
}

// Resolver looks names up. A [net.Resolver] is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupSRV(ctx context.Context, service, proto, name string) (cname string, records []*net.SRV, err error)
}

// Config says whom a [Roster] is about.
type Config struct {
	// Names are the operator's, see [Parse].
	Names []Name
	// Resolver is net.DefaultResolver if nil.
	Resolver Resolver
	Log      *slog.Logger
}

// Roster is safe for concurrent use.
type Roster struct {
	cfg  Config
	soon chan struct{} // has room for one: somebody wants a look

	mu      sync.Mutex // guards entries
	entries []entry
}

// entry is what is known of one name.
type entry struct {
	name    Name
	seeders []Seeder // the last answer, or what is to be made of the name without one
	known   bool     // there has been an answer
	silent  bool     // there was none the last time
}

// Open looks all names up, for two seconds at the most.
func Open(ctx context.Context, cfg Config) *Roster {
	if cfg.Resolver == nil {
		cfg.Resolver = net.DefaultResolver
	}
	r := &Roster{cfg: cfg, soon: make(chan struct{}, 1)}
	for _, name := range cfg.Names {
		r.entries = append(r.entries, entry{name: name, seeders: name.unresolved(), known: name.fixed})
	}
	ctx, cancel := context.WithTimeout(ctx, atStart)
	defer cancel()
	r.look(ctx)
	return r
}

// Seeders lists those there are now, each once, in an order that follows from them.
func (r *Roster) Seeders() []Seeder {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Seeder
	for _, e := range r.entries {
		all = append(all, e.seeders...)
	}
	slices.SortFunc(all, compare)
	return slices.Compact(all)
}

// Look has names looked up soon: a seeder that does not answer may be elsewhere by now.
func (r *Roster) Look() {
	select {
	case r.soon <- struct{}{}:
	default:
	}
}

// Run looks names up until ctx ends, and calls changed with those there are whenever they
// are others than before.
func (r *Roster) Run(ctx context.Context, changed func([]Seeder)) error {
	if !slices.ContainsFunc(r.entries, func(e entry) bool { return !e.name.fixed }) {
		<-ctx.Done()
		return nil
	}
	for {
		if !r.pause(ctx) {
			return nil
		}
		before := r.Seeders()
		late, cancel := context.WithTimeout(ctx, lookTimeout)
		r.look(late)
		cancel()
		if now := r.Seeders(); ctx.Err() == nil && !slices.Equal(before, now) {
			r.cfg.Log.Info("seeders have changed", "seeders", urls(now), "before", urls(before))
			changed(now)
		}
	}
}

// pause waits until the next look is due; false means that ctx has ended. No two hosts
// look together for long: all of them may want to when a seeder goes.
func (r *Roster) pause(ctx context.Context) bool {
	timer := time.NewTimer(soonest + rand.N(soonest))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	}
	wait := every - 2*soonest + rand.N(every/5)
	if r.lacks() {
		wait = soonest
	}
	timer.Reset(wait)
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-r.soon:
	}
	return true
}

// lacks tells whether a name has never been answered.
func (r *Roster) lacks() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.entries, func(e entry) bool { return !e.known })
}

// look asks for all names at once: one that is not answered holds up no other.
func (r *Roster) look(ctx context.Context) {
	var looking sync.WaitGroup
	for i := range r.entries {
		if name := r.entries[i].name; !name.fixed {
			looking.Go(func() {
				seeders, err := name.lookUp(ctx, r.cfg.Resolver)
				r.learn(i, seeders, err)
			})
		}
	}
	looking.Wait()
}

// learn takes an answer in. Without one the last holds.
func (r *Roster) learn(i int, seeders []Seeder, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := &r.entries[i]
	log := r.cfg.Log.With("name", e.name.String())
	switch {
	case err != nil && !e.silent:
		log.Warn("seeders cannot be looked up, those known are used", "seeders", urls(e.seeders), "err", err)
	case err == nil && e.silent:
		log.Info("seeders can be looked up again")
	}
	e.silent = err != nil
	if err != nil {
		return
	}
	slices.SortFunc(seeders, compare)
	seeders = slices.Compact(seeders)
	if len(seeders) > maxSeeders {
		if len(e.seeders) != maxSeeders {
			log.Warn("too many seeders behind one name, the first are used", "seeders", len(seeders), "used", maxSeeders)
		}
		seeders = seeders[:maxSeeders]
	}
	e.seeders, e.known = seeders, true
}

func compare(a, b Seeder) int {
	if a.URL != b.URL {
		return strings.Compare(a.URL, b.URL)
	}
	return strings.Compare(a.Name, b.Name)
}

func urls(seeders []Seeder) []string {
	texts := make([]string, len(seeders))
	for i, s := range seeders {
		texts[i] = s.URL
	}
	return texts
}

// errNobody is a name without anybody behind it: an answer, but one that is rather a
// mistake of the moment than meant.
func errNobody(name string) error { return fmt.Errorf("DNS names nobody for %s", name) }
