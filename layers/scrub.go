package layers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/time/rate"
)

const (
	// scrubTurn is how long a blob goes without being read and hashed by the scrub.
	scrubTurn = 7 * 24 * time.Hour
	// scrubPause is between two looks at what is due, and before the first: a daemon that
	// has just been started has better to do.
	scrubPause = 10 * time.Minute
)

// scrub reads whole blobs again, at ScrubRate and each once in scrubTurn, and drops what
// has rotted. When a blob was last found right is kept as the mtime of its metainfo, so a
// restart costs no more than the blob under way.
func (s *Store) scrub(ctx context.Context, pace *rate.Limiter) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(scrubPause):
		}
		for _, e := range s.due(time.Now().Add(-scrubTurn)) {
			if err := s.rehash(ctx, e, pace); err != nil && ctx.Err() == nil {
				s.log.Warn("blob could not be verified", "digest", e.digest, "err", err)
			}
			if ctx.Err() != nil {
				return
			}
		}
	}
}

// due lists the blobs that were last found right before a time, or never, the longest ago
// first.
func (s *Store) due(before time.Time) []*entry {
	type item struct {
		e  *entry
		at time.Time
	}
	s.mu.Lock()
	items := make([]item, 0, len(s.blobs))
	for _, e := range s.blobs {
		items = append(items, item{e: e})
	}
	s.mu.Unlock()
	now := time.Now()
	for i := range items {
		at := items[i].e.proof.lastHashed() // where the disk takes no mtime
		// What is to come was noted by a clock that was ahead, and says nothing.
		if fi, err := os.Lstat(s.torrentPath(items[i].e.digest)); err == nil && fi.ModTime().After(at) && !fi.ModTime().After(now) {
			at = fi.ModTime()
		}
		items[i].at = at
	}
	items = slices.DeleteFunc(items, func(it item) bool { return it.at.After(before) })
	slices.SortFunc(items, func(a, b item) int { return a.at.Compare(b.at) })
	list := make([]*entry, len(items))
	for i, it := range items {
		list[i] = it.e
	}
	return list
}

// rehash reads a whole blob, and notes that it is right or drops it. That is no use of
// it: neither its place in the order of eviction changes nor what the page cache holds.
func (s *Store) rehash(ctx context.Context, e *entry, pace *rate.Limiter) error {
	f, err := s.openQuietly(e)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNotFound) {
		return nil // evicted meanwhile; if not, who opens it finds out
	}
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	m, err := makeMetainfo(e.digest, e.size, &pacedReader{ctx: ctx, store: s, entry: e, file: f, pace: pace})
	switch {
	case ctx.Err() != nil, errors.Is(err, errEvicted):
		return nil
	case err != nil: // also a disk that cannot read it any more
		s.rotten(e, fmt.Errorf("rehash: %w", err))
		return nil
	}
	if e.shelved && unchanged(f, stampOf(fi)) != nil {
		return nil // the next reader looks
	}
	e.proof.found(fi)
	return s.noteRight(e, m)
}

func (s *Store) openQuietly(e *entry) (*os.File, error) {
	if e.shelved {
		return s.openBlob(e)
	}
	return openQuietly(s.blobPath(e.digest))
}

// noteRight keeps when a blob was found right.
func (s *Store) noteRight(e *entry, m *Metainfo) error {
	s.names.Lock()
	defer s.names.Unlock()
	if !s.has(e) {
		return nil
	}
	path := s.torrentPath(e.digest)
	if saved := readMetainfo(path, e.digest, e.size); saved == nil || saved.InfoHash() != m.InfoHash() {
		return replaceFile(s.partialDir(), path, m.Bytes()) // names are not held for an fsync
	}
	now := time.Now()
	return os.Chtimes(path, now, now)
}

// errEvicted ends the reading of a blob that has left the store: its space is wanted.
var errEvicted = errors.New("blob has been evicted")

// pacedReader reads the file of a blob at a rate, and leaves nothing of it in the page
// cache.
type pacedReader struct {
	ctx   context.Context
	store *Store
	entry *entry
	file  *os.File
	pace  *rate.Limiter
	off   int64
}

// Read implements io.Reader.
func (r *pacedReader) Read(b []byte) (int, error) {
	if !r.store.has(r.entry) {
		return 0, errEvicted
	}
	n, err := r.file.ReadAt(b[:min(len(b), r.pace.Burst())], r.off)
	if n == 0 {
		return 0, err
	}
	forgetCached(r.file, r.off, int64(n))
	r.off += int64(n)
	return n, r.pace.WaitN(r.ctx, n)
}

// startScrub begins the scrub, if there is to be one.
func (s *Store) startScrub(bytesPerSecond int64) {
	if bytesPerSecond <= 0 {
		return
	}
	pace := rate.NewLimiter(rate.Limit(bytesPerSecond), 1<<20)
	s.goWith(func(ctx context.Context) { s.scrub(ctx, pace) })
}

// goWith runs f with a context that ends at Close.
func (s *Store) goWith(f func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	s.running.Go(func() {
		defer cancel()
		<-s.stop
	})
	s.running.Go(func() { f(ctx) })
}
