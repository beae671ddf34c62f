package proxy

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// suspects are blobs that came out wrong. Whether a seeder's metainfo or the
// registry was to blame cannot be told from here, so for a while the registry
// alone is asked for them: a sick seeder must not fail a pull twice.
type suspects struct {
	mu    sync.Mutex // guards until
	until map[digest.Digest]time.Time
}

const (
	suspectFor  = 10 * time.Minute
	maxSuspects = 1024
)

func (s *suspects) add(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil || len(s.until) >= maxSuspects {
		s.until = make(map[digest.Digest]time.Time)
	}
	s.until[d] = time.Now().Add(suspectFor)
}

func (s *suspects) has(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.until[d])
}
