package proxy

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/murderp2p/murder/registry"
)

// probeInterval is how often a seeder that was found ill is asked whether it
// is well again. Until then no pull asks it, and none loses time by it.
const probeInterval = time.Second

// seeders are the seeders of a mirror, with what is known of their health.
type seeders struct {
	ctx     context.Context
	running *sync.WaitGroup
	log     *slog.Logger
	list    []Seeder

	mu  sync.Mutex // guards ill
	ill map[Seeder]SeederHealth
}

// SeederHealth tells whether a seeder answers.
type SeederHealth struct {
	URL     string    `json:"url"`
	OK      bool      `json:"ok"`
	Error   string    `json:"error"`
	Checked time.Time `json:"checked"`
}

func newSeeders(ctx context.Context, running *sync.WaitGroup, list []Seeder, log *slog.Logger) *seeders {
	return &seeders{ctx: ctx, running: running, log: log, list: list, ill: make(map[Seeder]SeederHealth)}
}

// well returns the seeders that can be asked, in order.
func (s *seeders) well() (list []Seeder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, seeder := range s.list {
		if _, ill := s.ill[seeder]; !ill {
			list = append(list, seeder)
		}
	}
	return list
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
	s.mu.Unlock()
	if !known {
		s.log.Warn("seeder is ill, pulls go on without it", "seeder", seeder.URL(), "err", err)
		s.running.Go(func() { s.await(seeder) })
	}
	return true
}

// await asks until the seeder is well again.
func (s *seeders) await(seeder Seeder) {
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		if seeder.Alive(s.ctx) == nil {
			break
		}
	}
	s.mu.Lock()
	delete(s.ill, seeder)
	s.mu.Unlock()
	s.log.Info("seeder is well again", "seeder", seeder.URL())
}

// isIll tells whether a seeder is known not to answer.
func (s *seeders) isIll(seeder Seeder) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ill := s.ill[seeder]
	return ill
}

func (s *seeders) trackers() []string {
	var urls []string
	for _, seeder := range s.list {
		urls = append(urls, seeder.Announce())
	}
	return urls
}

func (s *seeders) health() []SeederHealth {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]SeederHealth, 0, len(s.list))
	for _, seeder := range s.list {
		health, ill := s.ill[seeder]
		if !ill {
			health = SeederHealth{URL: seeder.URL(), OK: true, Checked: time.Now()}
		}
		list = append(list, health)
	}
	return list
}
