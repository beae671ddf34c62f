// Package fleet is the seeder's list of its hosts, and what it has them do: bring
// images ahead of a rollout.
//
// A mirror holds one connection to each of its seeders, and says who it is
// ([Agent]); nothing listens on the host. A [Fleet] is the seeder's side. It is
// given orders over HTTP (api.go), tells each host of those meant for it (link.go),
// and takes in how far they are (job.go). Seeders need not know each other: an
// order given to one reaches all hosts, since all hold a connection to it, and a
// host that is told of the same order by two carries it out once.
//
// An order holds for its lifetime: a host that is away gets it when it comes, and
// so does one that nobody knew. Orders, who is done with them and the hosts survive
// the seeder in a small file (file.go), without credentials, which are kept in
// memory only: whoever waits for the order says it again, and a host that needs
// them asks.
package fleet

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// forgetAfter is how long a host that is away counts as one of the fleet. One
	// that comes later is given the orders that hold all the same; but what never
	// comes again must not keep orders from being done.
	forgetAfter = 10 * time.Minute
	// keepJobs is how long an order that is over can be looked at.
	keepJobs = time.Hour

	maxHosts     = 20_000 // with those that are away
	maxPerIP     = 1024   // links of one address
	maxJobs      = 64     // with those that are over
	maxReporting = 1000   // reports a second of all hosts together, as they are asked to hold to
)

// Config says what a [Fleet] works with.
type Config struct {
	// Resolve asks the registry, in the name of whoever gives an order, for the digest
	// of an image. Its error is the order's refusal; a [*Refusal] has the registry's
	// challenge.
	Resolve func(ctx context.Context, image RequestImage) (digest.Digest, error)
	// Credentials tells whether orders may have some: only where nobody can call
	// itself a host who is none.
	Credentials bool
	// File is where orders outlive the process; "" = nowhere.
	File string
	Log  *slog.Logger
}

// Fleet is safe for concurrent use.
type Fleet struct {
	cfg  Config
	over chan struct{} // closed when Run ends

	watching chan struct{} // a place for each who watches a job

	mu    sync.Mutex // guards what follows
	hosts map[string]*host
	jobs  map[string]*job
	perIP map[string]int
	moved Moved
	rev   uint64 // counts changes, for those who watch
	dirty bool   // something has changed that the file has
	ended bool
	links sync.WaitGroup
}

// New returns a Fleet that knows what the file does. Run keeps it.
func New(cfg Config) *Fleet {
	f := &Fleet{
		cfg: cfg, over: make(chan struct{}), watching: make(chan struct{}, maxWatching),
		hosts: make(map[string]*host), jobs: make(map[string]*job), perIP: make(map[string]int),
	}
	f.load()
	return f
}

// Run ends what is over its time and keeps the file, until ctx ends; then it parts
// with all hosts.
func (f *Fleet) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case now := <-tick.C:
			f.expire(now)
		}
		f.save()
	}
	f.end()
	return nil
}

// end parts with all hosts.
func (f *Fleet) end() {
	close(f.over)
	f.mu.Lock()
	f.ended = true
	for _, h := range f.hosts {
		if h.link != nil {
			h.link.conn.Close()
		}
	}
	f.mu.Unlock()
	f.links.Wait()
}

// expire ends orders whose lifetime is over, and forgets what is long past.
func (f *Fleet) expire(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, j := range f.jobs {
		switch over := now.After(j.expires); {
		case over && j.state == Running:
			f.endJob(j, Expired, now)
		case over && j.state == Done:
			j.forgetCredentials()
		}
		if j.state != Running && now.Sub(j.ended) > keepJobs {
			delete(f.jobs, j.order.ID)
			f.changed()
		}
	}
	for name, h := range f.hosts {
		if h.link == nil && now.Sub(h.since) > forgetAfter {
			delete(f.hosts, name)
			f.changed()
		}
	}
}

// changed notes that something the file has is another. f.mu is held.
func (f *Fleet) changed() {
	f.rev++
	f.dirty = true
}

// Snapshot is the fleet at one moment.
type Snapshot struct {
	Hosts []Host `json:"hosts"` // by name
	Jobs  []Job  `json:"jobs"`  // the newest first, without Targets
}

// Host is one host of the fleet.
type Host struct {
	Name    string            `json:"name"`
	Zone    string            `json:"zone,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Address string            `json:"address,omitempty"` // that the link came from
	Version string            `json:"version,omitempty"` // of murder there
	// State is "connected" or "away".
	State string    `json:"state"`
	Since time.Time `json:"since"` // when it came, or went
	// Job is the order it is at work on, if any, and how far it is.
	Job       string `json:"job,omitempty"`
	JobState  State  `json:"job_state,omitempty"`
	Bytes     int64  `json:"bytes,omitempty"`
	BytesDone int64  `json:"bytes_done,omitempty"`
	// Account is its last; it is not part of the API.
	Account Account `json:"-"`
}

// The states of a [Host].
const (
	Connected = "connected"
	Away      = "away"
)

// Snapshot tells how the fleet is now.
func (f *Fleet) Snapshot() Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	jobs := slices.SortedFunc(maps.Values(f.jobs), newestFirst)
	s := Snapshot{Hosts: make([]Host, 0, len(f.hosts)), Jobs: make([]Job, 0, len(jobs))}
	for _, h := range f.hosts {
		s.Hosts = append(s.Hosts, h.public(jobs))
	}
	slices.SortFunc(s.Hosts, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	for _, j := range jobs {
		s.Jobs = append(s.Jobs, f.public(j, false))
	}
	return s
}

// Changes counts changes: as long as it stays, Snapshot does.
func (f *Fleet) Changes() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rev
}

// Counts are the fleet's figures for metrics.
type Counts struct{ Connected, Away, Running int }

// Counts tells how many hosts there are, and orders that hold.
func (f *Fleet) Counts() (c Counts) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.hosts {
		if h.link != nil {
			c.Connected++
		} else {
			c.Away++
		}
	}
	for _, j := range f.jobs {
		if j.state == Running {
			c.Running++
		}
	}
	return c
}
