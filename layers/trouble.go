package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"
)

// errLost: bytes that were on disk are not there any more.
var errLost = errors.New("bytes on disk are gone")

// errRotten: bytes on disk are not what they were.
var errRotten = fmt.Errorf("has rotted: %w", errLost)

// DiskFailed tells a failure of this host's disk, or of the folder on it, from one of the
// network or of what was sent.
func DiskFailed(err error) bool {
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*os.LinkError](err); ok {
		return true
	}
	for _, failure := range []error{errLost, ErrHangs, syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO, syscall.EFBIG, syscall.ESTALE} {
		if errors.Is(err, failure) {
			return true
		}
	}
	return false
}

// takesNothing tells a disk that is full or read-only, which may give what it has.
func takesNothing(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EROFS)
}

// calm is how long a disk has to go without a failure before what it takes counts as a
// recovery: one that is nearly full takes small blobs and refuses large ones in turn.
const calm = 10 * time.Second

// trouble is how a Store gets on with its disk.
type trouble struct {
	mu     sync.Mutex // guards all below
	errors int64      // failures since OpenStore
	since  time.Time  // when it began to fail; zero while it is well
	last   time.Time  // when it failed last
}

// ail notes that the disk has failed somebody, who does without it. The log says so once,
// until it is well again.
func (s *Store) ail(err error) {
	now := time.Now()
	s.trouble.mu.Lock()
	first := s.trouble.since.IsZero()
	s.trouble.errors++
	s.trouble.last = now
	if first {
		s.trouble.since = now
	}
	s.trouble.mu.Unlock()
	if first {
		s.log.Error("cache fails, what it does not take or give goes past it", "dir", s.dir, "err", err)
	} else {
		s.log.Debug("cache failed again", "err", err)
	}
}

// read notes if err, of a read of the store's own files, is the disk's failure, and returns it.
func (s *Store) read(err error) error {
	if DiskFailed(err) && !errors.Is(err, fs.ErrClosed) { // whoever had it open is done with it
		s.ail(err)
	}
	return err
}

// works notes that the disk has taken a blob.
func (s *Store) works() {
	s.trouble.mu.Lock()
	since, errors := s.trouble.since, s.trouble.errors
	well := !since.IsZero() && time.Since(s.trouble.last) > calm
	if well {
		s.trouble.since = time.Time{}
	}
	s.trouble.mu.Unlock()
	if well {
		s.log.Info("cache works again", "dir", s.dir, "dur", time.Since(since).Round(time.Millisecond), "errors", errors)
	}
}

func (s *Store) failures() int64 {
	s.trouble.mu.Lock()
	defer s.trouble.mu.Unlock()
	return s.trouble.errors
}
