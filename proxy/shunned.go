package proxy

import (
	"errors"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// shunned are blobs that one way of bringing them has failed for. For a while
// it is not tried again, or an engine's next try would fail like its last.
type shunned struct {
	long time.Duration

	mu    sync.Mutex // guards until
	until map[digest.Digest]time.Time
}

const (
	// suspectFor is how long the seeders are left out for a blob that came out
	// wrong. Whether a seeder's metainfo or the registry was to blame cannot be
	// told from here.
	suspectFor = 10 * time.Minute
	// uncachedFor is how long a blob that the disk did not take goes past it.
	uncachedFor = time.Minute
	maxShunned  = 1024
)

func (s *shunned) add(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil || len(s.until) >= maxShunned {
		s.until = make(map[digest.Digest]time.Time)
	}
	s.until[d] = time.Now().Add(s.long)
}

func (s *shunned) has(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.until[d])
}

// errCacheFailed is why a blob goes past the cache.
var errCacheFailed = errors.New("the disk did not take it a moment ago")
