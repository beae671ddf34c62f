package proxy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/murderp2p/murder/registry"
)

// A seeder that was found ill is asked whether it is well again each
// probeInterval. Until then no pull asks it, and none loses time by it. One that
// says so and is found ill again within relapse is asked after twice as long each
// time, up to maxInterval: it may answer this question and no other.
const (
	probeInterval = time.Second
	maxInterval   = 30 * time.Second
	relapse       = time.Minute
)

// seeders are the seeders of a mirror, with what is known of their health.
type seeders struct {
	ctx     context.Context
	running *sync.WaitGroup
	log     *slog.Logger
	onIll   func() // nil = nobody wants to know

	mu        sync.Mutex // guards all below
	list      []Seeder   // replaced, never changed
	ill       map[Seeder]SeederHealth
	recovered map[Seeder]recovery
}

// recovery is when a seeder was last well again, and after how long a wait.
type recovery struct {
	at   time.Time
	wait time.Duration
}

// SeederHealth tells whether a seeder answers.
type SeederHealth struct {
	URL     string    `json:"url"`
	OK      bool      `json:"ok"`
	Error   string    `json:"error"`
	Checked time.Time `json:"checked"`
}

func newSeeders(ctx context.Context, running *sync.WaitGroup, list []Seeder, log *slog.Logger) *seeders {
	return &seeders{ctx: ctx, running: running, log: log, list: list, ill: make(map[Seeder]SeederHealth), recovered: make(map[Seeder]recovery)}
}

// set replaces the seeders. Who is in the middle of a blob with one that is gone goes on
// with it as long as it answers.
func (s *seeders) set(list []Seeder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = slices.Clone(list)
	gone := func(seeder Seeder) bool { return !slices.Contains(s.list, seeder) }
	maps.DeleteFunc(s.ill, func(seeder Seeder, _ SeederHealth) bool { return gone(seeder) })
	maps.DeleteFunc(s.recovered, func(seeder Seeder, _ recovery) bool { return gone(seeder) })
}

// all returns the seeders there are.
func (s *seeders) all() []Seeder {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list
}

// well returns the seeders that can be asked about key, a digest or what else names
// content, in the order to ask them. Every host has the same order for a key, another
// for each, so that no two seeders fetch one blob, and each has its share of them:
// rendezvous hashing, by which a seeder that comes or goes moves only what is its own.
func (s *seeders) well(key string) (list []Seeder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, seeder := range s.list {
		if _, ill := s.ill[seeder]; !ill {
			list = append(list, seeder)
		}
	}
	if len(list) > 1 {
		slices.SortStableFunc(list, func(a, b Seeder) int { return cmp.Compare(Weight(b.URL(), key), Weight(a.URL(), key)) })
	}
	return list
}

// Weight is how much the seeder at a URL is to be asked about key, a digest or what else
// names content, rather than others.
func Weight(url, key string) uint64 {
	sum := sha256.Sum256([]byte(url + " " + key))
	return binary.BigEndian.Uint64(sum[:])
}

// failed is told of an error that a seeder's answer gave, and decides whether
// the seeder is ill. ctx is the asker's: leaving is not the seeder's fault.
func (s *seeders) failed(ctx context.Context, seeder Seeder, err error) (ill bool) {
	if !errors.Is(err, registry.ErrUnreachable) || ctx.Err() != nil {
		return false
	}
	s.mu.Lock()
	_, known := s.ill[seeder]
	s.ill[seeder] = SeederHealth{URL: seeder.URL(), Error: err.Error(), Checked: time.Now()}
	member := slices.Contains(s.list, seeder) // of one that was taken away nobody else will ask
	s.mu.Unlock()
	if !known && member {
		s.log.Warn("seeder is ill, pulls go on without it", "seeder", seeder.URL(), "err", err)
		s.running.Go(func() { s.await(seeder) })
		if s.onIll != nil {
			s.onIll()
		}
	}
	return true
}

// await asks until the seeder is well again.
func (s *seeders) await(seeder Seeder) {
	wait := s.wait(seeder)
	tick := time.NewTicker(wait)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		if !s.isIll(seeder) {
			return // it was taken away
		}
		if seeder.Alive(s.ctx) == nil {
			break
		}
	}
	s.mu.Lock()
	delete(s.ill, seeder)
	s.recovered[seeder] = recovery{time.Now(), wait}
	s.mu.Unlock()
	s.log.Info("seeder is well again", "seeder", seeder.URL())
}

// wait is how long a seeder that has just been found ill is left alone.
func (s *seeders) wait(seeder Seeder) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, ok := s.recovered[seeder]
	if !ok || time.Since(last.at) > relapse {
		return probeInterval
	}
	return min(2*last.wait, maxInterval)
}

// isIll tells whether a seeder is known not to answer.
func (s *seeders) isIll(seeder Seeder) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ill := s.ill[seeder]
	return ill
}

// aloneLost and lostAfter are the silence of a swarm after which its seeder is asked
// whether it lives: soon where another can take over.
const (
	aloneLost = time.Second
	lostAfter = 400 * time.Millisecond // less than watchEvery: at its first tick
)

func (s *seeders) lostAfter() time.Duration {
	if len(s.all()) > 1 {
		return lostAfter
	}
	return aloneLost
}

// trackers are those beside the seeders.
func (s *seeders) trackers() []string {
	urls := []string{}
	for _, seeder := range s.all() {
		urls = append(urls, seeder.Announce())
	}
	return urls
}

// health is what is known of each of the listed.
func (s *seeders) health(list []Seeder) []SeederHealth {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := make([]SeederHealth, 0, len(list))
	for _, seeder := range list {
		health, ill := s.ill[seeder]
		if !ill {
			health = SeederHealth{URL: seeder.URL(), OK: true, Checked: time.Now()}
		}
		known = append(known, health)
	}
	return known
}
