package layers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
)

// What a Store does with its shelf. A blob on it becomes one of the store's in one of two
// ways: somebody asks for it, and it is hashed while it is handed out as if it arrived (see
// Shelved); or its owner has got it too, and the store's own copy goes (see retire).

// Shelved is a blob as it lies on the shelf, open, and not verified.
type Shelved struct {
	store  *Store
	digest digest.Digest
	file   *os.File
	as     stamp
}

// OnShelf opens a blob that lies on the shelf and is not in the store, or returns nil.
func (s *Store) OnShelf(d digest.Digest) *Shelved {
	if s.shelf == nil || checkDigest(d) != nil || !s.shelf.trusts(d) {
		return nil
	}
	f, fi, err := s.shelf.open(d)
	if err != nil {
		if !errors.Is(err, ErrNotFound) {
			s.log.Debug("blob on the shelf cannot be used", "digest", d, "err", err)
		}
		return nil
	}
	return &Shelved{store: s, digest: d, file: f, as: stampOf(fi)}
}

// Size returns the file's length in bytes.
func (h *Shelved) Size() int64 { return h.as.size }

// ReadAt reads what lies there, right or not.
func (h *Shelved) ReadAt(b []byte, off int64) (int, error) {
	return readUnchanged(h.file, h.as, b, off)
}

// Close closes the file, unless Partial has taken it over.
func (h *Shelved) Close() error { return h.file.Close() }

// Partial returns the blob as one that arrives: all of its bytes are here, and become
// verified one after the other. When all are right it is in the store, and stays where it
// lies. Where that was found out before, the error is ErrWhole: use Open, which has pieces
// hashed as they are read. The Shelved is used up either way. The caller has seen to it
// that origin vouches for whoever asks; see Store.Partial.
func (h *Shelved) Partial(origin string) (*Partial, error) {
	s := h.store
	v, err, _ := s.opening.Do(string(h.digest), func() (any, error) { return s.openShelved(h, origin) })
	if err != nil {
		h.file.Close()
		return nil, err
	}
	if p := v.(*Partial); p.shelved == &h.as {
		return p, nil
	}
	h.file.Close()
	return nil, fmt.Errorf("%s: %w", h.digest, ErrSize)
}

func (s *Store) openShelved(h *Shelved, origin string) (*Partial, error) {
	s.mu.Lock()
	p, whole := s.partials[h.digest], s.blobs[h.digest] != nil
	s.mu.Unlock()
	switch {
	case whole:
		return nil, fmt.Errorf("%s: %w", h.digest, ErrWhole)
	case p != nil:
		return nil, fmt.Errorf("%s: %w", h.digest, ErrSize)
	case readMetainfo(s.torrentPath(h.digest), h.digest, h.Size()) != nil:
		s.unpin(s.shelve(h.digest, h.Size()))
		return nil, fmt.Errorf("%s: %w", h.digest, ErrWhole)
	}
	a := newArrival(h.digest, h.Size(), h.file)
	a.origin, a.noted, a.shelved = origin, nil, &h.as
	a.prefix, a.received = a.size, a.size
	return s.startPartial(a)
}

// shelve takes a blob into the store that stays on the shelf, and pins it.
func (s *Store) shelve(d digest.Digest, size int64) *entry {
	s.names.Lock()
	defer s.names.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.blobs[d]
	if e == nil {
		e = s.addShelved(d, size)
	}
	e.pins++
	if e.elem != nil {
		s.idle.Remove(e.elem)
		e.elem = nil
	}
	return e
}

// addShelved puts a blob of the shelf into the maps. s.names and s.mu are held.
func (s *Store) addShelved(d digest.Digest, size int64) *entry {
	now := time.Now()
	e := &entry{digest: d, size: size, shelved: true, used: now, touched: now}
	e.proof.strict = true
	s.blobs[d] = e
	s.shelved += size
	s.shelfLen++
	return e
}

// openShelvedAgain opens the file of the blob for one more reader, if it still lies there.
func (p *Partial) openShelvedAgain() (*os.File, error) {
	f, fi, err := p.store.shelf.open(p.digest)
	if err != nil {
		return nil, errors.Join(errLost, err)
	}
	if stampOf(fi) != *p.shelved {
		return nil, errors.Join(fmt.Errorf("%w: %s has been changed by somebody", errLost, f.Name()), f.Close())
	}
	return f, nil
}

// Copied returns what the bytes of the blob must be read from before they are sent, if it
// lies on the Shelf; see Blob.Copied. f is what OpenFile returned.
func (p *Partial) Copied(f *os.File) io.ReaderAt {
	if p.shelved == nil {
		return nil
	}
	return unchangedFile{p, f}
}

// unchangedFile reads what was in the file of a Partial on the shelf when that began. If it
// has changed since, whoever shares the blob had better open it anew.
type unchangedFile struct {
	p    *Partial
	file *os.File
}

// ReadAt implements io.ReaderAt.
func (u unchangedFile) ReadAt(b []byte, off int64) (int, error) {
	n, err := readUnchanged(u.file, *u.p.shelved, b, off)
	if s := u.p.store; err != nil && s.onEvict != nil {
		s.told.put(u.p.digest, true)
	}
	return n, err
}

// commitShelved brings a blob whose digest is right into the store, where it lies. p.file
// is open still.
func (p *Partial) commitShelved() error {
	s := p.store
	fi, err := p.file.Stat()
	if err != nil {
		return err
	}
	p.close()
	if err := writeFile(s.partialDir(), s.torrentPath(p.digest), p.Metainfo().Bytes()); err != nil {
		return fmt.Errorf("save metainfo of %s: %w", p.digest, err)
	}
	e := s.shelve(p.digest, p.size)
	if e.shelved && stampOf(fi) == *p.shelved {
		e.proof.found(fi)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pin, p.named = e, e
	return nil
}

// releaseShelved takes a Partial of the shelf that has ended with err out of the store.
// Nothing of it is left, and after an error the blob is not looked for there again soon.
func (s *Store) releaseShelved(p *Partial, err error) {
	if err != nil && !errors.Is(err, ErrClosed) {
		s.shelf.distrust(p.digest)
		s.log.Error("blob on the shelf is not what it should be, it will be fetched", "digest", p.digest, "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.partials, p.digest)
}

// openBlob opens the file of a blob.
func (s *Store) openBlob(e *entry) (*os.File, error) {
	if !e.shelved {
		return os.Open(s.blobPath(e.digest))
	}
	f, fi, err := s.shelf.open(e.digest)
	if err == nil && fi.Size() != e.size {
		return nil, errors.Join(fmt.Errorf("%s has %d bytes now, not %d: %w", e.digest, fi.Size(), e.size, ErrNotFound), f.Close())
	}
	return f, err
}

// unshelve forgets a blob of the shelf that cannot be had from there any more. Its
// metainfo stays, in case it comes back.
func (s *Store) unshelve(e *entry, err error) {
	s.names.Lock()
	s.mu.Lock()
	gone := e.gone
	if !gone {
		s.drop(e)
	}
	s.mu.Unlock()
	s.names.Unlock()
	if gone {
		return
	}
	s.log.Info("blob is not on the shelf any more", "digest", e.digest, "bytes", e.size, "err", err)
	if s.onEvict != nil {
		s.told.put(e.digest, false)
	}
}

const (
	// shelfEvery is how often a Store looks at its shelf for what has come and gone. Who
	// asks for a blob notices at once; it is the swarm's open files that wait for this, and
	// the disk's space behind them.
	shelfEvery = 10 * time.Second
	// retireAfter is how long nobody may have asked for a blob before its copy goes, and
	// retireWithin for how long after that the shelf is looked at for it: an engine
	// has it moments after it has pulled it, or not at all.
	retireAfter  = 10 * time.Second
	retireWithin = 5 * time.Minute
	// retireRate is how many bytes a second of the shelf are hashed before that, while an
	// engine has better use for the disk and the processor.
	retireRate = 64 << 20
)

// watchShelf looks at the shelf for what has gone, until ctx ends.
func (s *Store) watchShelf(ctx context.Context) { again(ctx, s.forgetGone) }

// retireCopies looks at the shelf for what has come, until ctx ends. The hashing takes its
// time, and what has gone is not to wait for it.
func (s *Store) retireCopies(ctx context.Context) {
	pace := NewLimiter(retireRate)
	again(ctx, func() { s.retireIdle(ctx, retireAfter, pace) })
}

// again calls look until ctx ends, with pauses in which a look at some 100,000 blobs does
// not show.
func again(ctx context.Context, look func()) {
	for {
		begun := time.Now()
		look()
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(max(shelfEvery, 10*time.Since(begun)), time.Minute)):
		}
	}
}

// forgetGone forgets blobs that have gone from the shelf.
func (s *Store) forgetGone() {
	s.probeShelf()
	var shelved []*entry
	s.mu.Lock()
	for _, e := range s.blobs {
		if e.shelved {
			shelved = append(shelved, e)
		}
	}
	s.mu.Unlock()
	there := s.sizesOnShelf(shelved)
	for _, e := range shelved {
		if size, ok := there[e.digest]; !ok || size != e.size {
			s.unshelve(e, ErrNotFound)
		}
	}
}

// retireIdle drops copies of what is on the shelf and nobody has asked for within calm.
func (s *Store) retireIdle(ctx context.Context, calm time.Duration, pace *Limiter) {
	idle := s.retirable(calm)
	there := s.sizesOnShelf(idle)
	for _, e := range idle {
		if s.busy != nil && s.busy(e.digest) {
			continue
		}
		s.mu.Lock()
		e.looked = time.Now()
		s.mu.Unlock()
		if size, ok := there[e.digest]; !ok || size != e.size || !s.shelf.trusts(e.digest) {
			continue
		}
		if err := s.retire(ctx, e, pace); err != nil && ctx.Err() == nil {
			s.log.Warn("blob on the shelf is not what it should be, the copy in the cache stays", "digest", e.digest, "err", err)
			s.shelf.distrust(e.digest)
		}
	}
}

// sizesOnShelf returns the sizes of those of the blobs that are on the shelf.
func (s *Store) sizesOnShelf(entries []*entry) map[digest.Digest]int64 {
	list := make([]digest.Digest, 0, len(entries))
	for _, e := range entries {
		list = append(list, e.digest)
	}
	there := make(map[digest.Digest]int64)
	if err := s.shelf.stat(list, func(d digest.Digest, size int64) { there[d] = size }); err != nil {
		s.log.Debug("shelf cannot be looked at", "err", err)
	}
	return there
}

// probeShelf says in the log when the shelf cannot be used, and when it can again.
func (s *Store) probeShelf() {
	err := s.shelf.probe()
	switch news := s.shelf.failed(err); {
	case news && err != nil:
		s.log.Error("folder of the registry's or engine's blobs cannot be used, murder keeps its own copies", "dir", s.shelf.dir, "err", err)
	case news:
		s.log.Info("folder of the registry's or engine's blobs can be used", "dir", s.shelf.dir)
	}
}

// retirable lists blobs that may be on the shelf by now and of which no copy is needed
// then. What pins keep is not among these: nobody can keep the shelf's owner from removing
// a blob. Nor are manifests, which the layout's index names.
func (s *Store) retirable(calm time.Duration) (list []*entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for d, e := range s.blobs {
		if e.shelved || e.pins > 0 || s.held[d] > 0 || now.Sub(e.used) < calm || e.looked.After(e.used.Add(retireWithin)) {
			continue
		}
		if _, manifest := s.index.get(d); !manifest {
			list = append(list, e)
		}
	}
	return list
}

// retire drops the store's copy of a blob that lies on the shelf, once the one there has
// been found right. An error says that it was not.
func (s *Store) retire(ctx context.Context, e *entry, pace *Limiter) error {
	f, fi, err := s.shelf.open(e.digest)
	if err != nil {
		return nil // it is gone again
	}
	defer f.Close()
	verifier := e.digest.Verifier()
	if n, err := copyThrough(verifier, Limited(ctx, f, pace)); err != nil || n != e.size || !verifier.Verified() {
		return errors.Join(fmt.Errorf("%d bytes on the shelf, %d here: %w", n, e.size, ErrMismatch), err)
	}
	if err := unchanged(f, stampOf(fi)); err != nil {
		return err
	}
	s.names.Lock()
	defer s.names.Unlock()
	if own, err := os.Lstat(s.blobPath(e.digest)); err != nil || os.SameFile(own, fi) {
		return nil // it is no copy: somebody has mounted or linked the one here there
	}
	s.mu.Lock()
	stays := e.gone || e.pins > 0 || s.held[e.digest] > 0
	s.mu.Unlock()
	if _, manifest := s.index.get(e.digest); stays || manifest {
		return nil
	}
	if err := remove(s.blobPath(e.digest)); err != nil {
		s.ail(fmt.Errorf("drop copy of %s: %w", e.digest, err))
		return nil
	}
	s.mu.Lock()
	used := e.used
	s.drop(e) // who has it open goes on reading what he has
	there := s.addShelved(e.digest, e.size)
	there.used = used
	there.proof.found(fi)
	s.mu.Unlock()
	s.log.Info("blob is on the shelf too, its copy in the cache is gone", "digest", e.digest, "bytes", e.size)
	if s.onEvict != nil {
		s.told.put(e.digest, true)
	}
	return nil
}

// copyShelved makes the store's own copies of those of the blobs that are on the shelf.
func (s *Store) copyShelved(blobs []digest.Digest) error {
	for _, d := range blobs {
		s.mu.Lock()
		e := s.blobs[d]
		s.mu.Unlock()
		if e == nil || !e.shelved {
			continue
		}
		if err := s.copyIn(d); err != nil {
			return fmt.Errorf("copy %s from %s: %w", d, s.shelf.dir, err)
		}
	}
	return nil
}

func (s *Store) copyIn(d digest.Digest) error {
	b, err := s.Open(d)
	if err != nil {
		return err
	}
	defer b.Close()
	p, err := s.Partial(d, b.Size(), "shelf")
	if err != nil {
		return err
	}
	if _, err := copyThrough(appender{p}, &checkedReader{b, p.Prefix(), b.Size()}); err != nil {
		p.Fail(err)
	}
	<-p.Done()
	return p.Err()
}

// appender appends what is written to it.
type appender struct{ *Partial }

// Write implements io.Writer.
func (a appender) Write(b []byte) (int, error) {
	if err := a.Append(b); err != nil {
		return 0, err
	}
	return len(b), nil
}
