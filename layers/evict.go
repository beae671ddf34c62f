package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// pin keeps a blob from being evicted, if it is there.
func (s *Store) pin(d digest.Digest) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.blobs[d]
	if e == nil {
		return nil
	}
	e.pins++
	if e.elem != nil {
		s.idle.Remove(e.elem)
		e.elem = nil
	}
	return e
}

// unpin undoes a pin.
func (s *Store) unpin(e *entry) {
	s.mu.Lock()
	e.pins--
	if e.pins == 0 && !e.gone {
		s.newest, e.used = e, time.Now()
		if s.held[e.digest] == 0 && !e.shelved {
			e.elem = s.idle.PushFront(e)
		}
	}
	full := s.full()
	s.mu.Unlock()
	if full { // a client may wait for who unpins
		s.briefly(s.trim)
	}
}

// use notes that a blob has been used.
func (s *Store) use(e *entry) {
	now := time.Now()
	s.mu.Lock()
	e.used, s.newest = now, e
	if e.elem != nil {
		s.idle.MoveToFront(e.elem)
	}
	touch := !e.gone && !e.shelved && now.Sub(e.touched) >= touchInterval
	if touch {
		e.touched = now
	}
	s.mu.Unlock()
	if touch {
		s.briefly(func() {
			defer s.patience.call()()
			e.proof.touch(s.blobPath(e.digest), now)
		})
	}
}

// add puts a blob that has been given its name into the store, pinned once. arrived of
// its bytes were counted as arriving. s.names is held.
func (s *Store) add(d digest.Digest, size, arrived int64) *entry {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arriving -= arrived
	e := s.blobs[d]
	if e != nil && e.shelved { // from now on it is ours
		s.drop(e)
		e = nil
	}
	if e == nil {
		e = &entry{digest: d, size: size, touched: now}
		s.blobs[d] = e
		s.bytes += size
	}
	e.pins++
	if e.elem != nil {
		s.idle.Remove(e.elem)
		e.elem = nil
	}
	e.used, s.newest = now, e
	return e
}

// drop takes a blob out of the maps. s.names and s.mu are held.
func (s *Store) drop(e *entry) {
	delete(s.blobs, e.digest)
	if e.shelved {
		s.shelved -= e.size
		s.shelfLen--
	} else {
		s.bytes -= e.size
	}
	e.gone = true
	if e.elem != nil {
		s.idle.Remove(e.elem)
		e.elem = nil
	}
	if s.newest == e {
		s.newest = nil
	}
}

// unlink removes what the disk has of a blob that was dropped. s.names is held.
func (s *Store) unlink(d digest.Digest) error {
	if err := errors.Join(remove(s.torrentPath(d)), remove(s.blobPath(d))); err != nil {
		return err
	}
	s.index.remove(d)
	return nil
}

// forget drops a blob whose file somebody else has removed.
func (s *Store) forget(e *entry) {
	s.names.Lock()
	defer s.names.Unlock()
	if _, err := os.Lstat(s.blobPath(e.digest)); err == nil {
		return // it has come in again meanwhile
	}
	s.mu.Lock()
	gone := e.gone
	if !gone {
		s.drop(e)
	}
	s.mu.Unlock()
	if !gone {
		s.index.remove(e.digest)
	}
}

// grow counts n bytes more that have arrived, and makes room for them.
func (s *Store) grow(n int64) {
	s.mu.Lock()
	s.arriving += n
	full := s.full()
	s.mu.Unlock()
	if full {
		s.trim()
	}
}

const (
	// maxBlobs bounds the whole blobs, however small they are: each takes a file and some
	// 600 bytes of memory, and a registry can make up any number of them.
	maxBlobs = 1 << 18
	// maxRests bounds the arrivals that were left half done.
	maxRests = 4096
)

// full tells whether the limit is exceeded, or the disk short, or files are too many.
// s.mu is held.
func (s *Store) full() bool {
	return s.short > 0 || s.limit > 0 && s.bytes+s.arriving > s.limit || len(s.blobs)-s.shelfLen > s.maxBlobs || s.manyRests()
}

// manyRests tells whether those have to go before whole blobs. s.mu is held.
func (s *Store) manyRests() bool { return len(s.rests) > s.maxRests }

// trim evicts until the limit is kept, or nothing is left that may go. Others get at
// the names between two blobs.
func (s *Store) trim() {
	for more := true; more; {
		s.names.Lock()
		more = s.evict()
		s.names.Unlock()
	}
}

// tell tells the owner of evictions, until stop is closed. It has its own goroutine: a
// blob may be closed, or a piece arrive, with locks of the owner's held.
func (s *Store) tell() {
	for {
		select {
		case <-s.stop:
			return
		case <-s.told.ready:
		}
		for d, moved := range s.told.take() {
			// If it has come in again, what is held of it is as good as new.
			if _, back := s.Stat(d); !back || moved {
				s.onEvict(d)
			}
		}
	}
}

// evictions is the list of those that are still to be told of.
type evictions struct {
	ready chan struct{} // holds one token while the list is not empty

	mu   sync.Mutex             // guards list
	list map[digest.Digest]bool // whether it is on the shelf now
}

func (q *evictions) put(d digest.Digest, moved bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.list == nil {
		q.list = make(map[digest.Digest]bool)
	}
	q.list[d] = moved || q.list[d]
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

func (q *evictions) take() map[digest.Digest]bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := q.list
	q.list = nil
	return list
}

// evict removes the least recently used blob, or what rests of an arrival if that was
// left alone for longer. It returns false if there is nothing to remove, or no need.
// s.names is held.
func (s *Store) evict() bool {
	e, r := s.victim()
	var d digest.Digest
	var err error
	switch {
	case e != nil:
		d = e.digest
		err = s.unlink(d)
	case r != nil:
		d = r.digest
		err = s.unlinkPartial(d)
	default:
		return false
	}
	if err != nil {
		s.ail(fmt.Errorf("evict blob %s: %w", d, err))
		if e != nil {
			s.putBack(e)
		}
		return false // a disk that is read-only gives no room, however many are tried
	}
	s.log.Debug("evicted", "digest", d, "whole", e != nil)
	if e != nil && s.onEvict != nil {
		s.told.put(d, false)
	}
	return true
}

// putBack undoes victim for a blob that the disk does not let go of. Another is tried
// next time. s.names is held.
func (s *Store) putBack(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evictions--
	s.blobs[e.digest] = e
	s.bytes += e.size
	s.space.gained(-e.size)
	e.gone, e.elem = false, s.idle.PushFront(e)
}

// victim takes what is to be evicted next out of the maps: an entry, a rest, or
// neither. s.names is held.
func (s *Store) victim() (*entry, *rest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.full() {
		return nil, nil
	}
	var oldest *rest
	for _, r := range s.rests {
		if oldest == nil || r.since.Before(oldest.since) {
			oldest = r
		}
	}
	var e *entry
	// What others need of the disk goes before the newest blob.
	if back := s.idle.Back(); back != nil && (back.Value != s.newest || s.short > 0) {
		e = back.Value.(*entry)
	}
	if oldest != nil && (e == nil || s.manyRests() || oldest.since.Before(e.used)) {
		s.dropRest(oldest)
		s.freed(oldest.bytes)
		return nil, oldest
	}
	if e != nil {
		s.evictions++
		s.drop(e)
		s.freed(e.size)
	}
	return e, nil
}

// remove unlinks a file that may not be there.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}
