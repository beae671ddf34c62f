package layers

import (
	"fmt"
	"sync"
	"syscall"
	"time"
)

// watchEvery is how often a Store looks after its disk, which others fill and mend:
// soon enough for them, and one system call or two.
const watchEvery = time.Second

// space is what the disk has left. The figure is read now and then; in between, the
// store's own doings count. What it unlinks is free only when the swarm has let go of
// it: if every look decided anew, one blob too many would cost the whole cache.
type space struct {
	dir  string
	keep int64 // bytes to be left free

	mu   sync.Mutex // guards all below
	free int64      // bytes, an estimate; meaningless before the first look
	at   time.Time  // of the last look
}

func newSpace(dir string, keep int64) *space { return &space{dir: dir, keep: keep} }

// lacks returns how many bytes have to go before n more leave enough. A disk that
// cannot be asked lacks nothing: it says itself what is wrong with it.
func (sp *space) lacks(n int64) int64 {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if time.Since(sp.at) >= watchEvery {
		sp.mu.Unlock() // the disk may hang
		free, err := diskFree(sp.dir)
		sp.mu.Lock()
		if err != nil {
			return 0
		}
		sp.free, sp.at = free, time.Now()
	}
	return max(0, sp.keep+n-sp.free)
}

// gained counts n bytes that have been freed, or taken if n is negative.
func (sp *space) gained(n int64) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.free += n
}

// freed counts n bytes that are evicted. s.mu is held.
func (s *Store) freed(n int64) {
	s.short = max(0, s.short-n)
	s.space.gained(n)
}

// makeSpace evicts until n more bytes leave enough of the disk free, or returns an
// ENOSPC: then nothing is evicted for a blob that would not fit anyway. s.names is held.
func (s *Store) makeSpace(n int64) error {
	lacks := s.space.lacks(n)
	if lacks == 0 {
		return nil
	}
	s.mu.Lock()
	idle := s.idleBytes(lacks)
	if idle < lacks {
		s.mu.Unlock()
		return fmt.Errorf("%d bytes would leave less than %d of the disk free: %w", n, s.space.keep, syscall.ENOSPC)
	}
	s.short = max(s.short, lacks)
	s.mu.Unlock()
	for s.evict() {
	}
	return nil
}

// fits returns ErrFull if a blob of n bytes would take the store above its limit together
// with those that are arriving. One at a time may in any case: the limit is kept to within
// one blob.
func (s *Store) fits(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.limit == 0 || s.takeAll || len(s.partials) == 0 {
		return nil
	}
	over := s.bytes + n - s.limit
	for _, p := range s.partials {
		if p.shelved == nil {
			over += p.size
		}
	}
	if over > 0 && s.idleBytes(over) < over {
		return fmt.Errorf("%w: no room for %d bytes within %d", ErrFull, n, s.limit)
	}
	return nil
}

// idleBytes returns how many bytes could be evicted, counting no further than enough.
// s.mu is held.
func (s *Store) idleBytes(enough int64) (n int64) {
	for _, r := range s.rests {
		n += r.bytes
	}
	for e := s.idle.Back(); e != nil && n < enough; e = e.Prev() {
		n += e.Value.(*entry).size
	}
	return n
}

// watch looks after the disk until stop is closed.
func (s *Store) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		s.restore()
		lacks := s.space.lacks(0)
		s.mu.Lock()
		s.short = lacks
		s.mu.Unlock()
		s.trim()
	}
}
