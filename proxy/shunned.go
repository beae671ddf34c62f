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
	until map[origin]time.Time
}

// origin is a blob as one registry has it. Anybody can run a registry that fails for the
// digests of others, and what fails there says nothing of it elsewhere.
type origin struct {
	registry string // HOST or HOST:PORT
	blob     digest.Digest
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

func (s *shunned) add(o origin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil || len(s.until) >= maxShunned {
		s.until = make(map[origin]time.Time)
	}
	s.until[o] = time.Now().Add(s.long)
}

func (s *shunned) has(o origin) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.until[o])
}

// errCacheFailed is why a blob goes past the cache.
var errCacheFailed = errors.New("the disk did not take it a moment ago")
