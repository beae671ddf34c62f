package layers

import (
	"crypto/sha1"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
)

// rest is an arrival that nobody works on.
type rest struct {
	digest  digest.Digest
	bytes   int64 // counted in Store.arriving
	since   time.Time
	arrival *arrival // nil when it is from an earlier run
}

// addRest keeps what rests of an arrival. Its bytes have been counted unless it is
// from an earlier run.
func (s *Store) addRest(r *rest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rests[r.digest] = r
	if r.arrival == nil {
		s.arriving += r.bytes
	}
}

// dropRest takes a rest out of the map. s.names and s.mu are held.
func (s *Store) dropRest(r *rest) {
	delete(s.rests, r.digest)
	s.arriving -= r.bytes
}

// dropStale removes rests that nobody has gone on with for long.
func (s *Store) dropStale() {
	defer s.patience.call()()
	s.names.Lock()
	defer s.names.Unlock()
	var stale []*rest
	s.mu.Lock()
	for _, r := range s.rests {
		if time.Since(r.since) > restKept {
			stale = append(stale, r)
			s.dropRest(r)
		}
	}
	s.mu.Unlock()
	for _, r := range stale {
		if err := s.unlinkPartial(r.digest); err != nil {
			s.log.Error("partial blob could not be removed", "digest", r.digest, "err", err)
		}
	}
}

// Begun returns how many of the blob's first bytes an earlier download from origin has
// left, so that Partial will go on behind them. It is a guess, made without opening what
// lies there: 0 also where pieces do.
func (s *Store) Begun(d digest.Digest, origin string) int64 {
	s.mu.Lock()
	r := s.rests[d]
	begun, known := int64(0), r == nil || r.arrival != nil
	if known && r != nil && r.arrival.origin == origin {
		begun = r.arrival.contiguous()
	}
	s.mu.Unlock() // the disk may hang
	if known {
		return begun
	}
	if from, err := readSmall(s.partialPath(d)+originSuffix, maxOrigin); err != nil || string(from) != origin {
		return 0
	}
	if _, err := os.Lstat(s.partialPath(d) + torrentSuffix); !errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	fi, err := os.Lstat(s.partialPath(d))
	if err != nil {
		return 0
	}
	size, hashes := readNoted(s.partialPath(d) + hashesSuffix)
	pl := PieceLength(size)
	return pl * min(fi.Size()/pl, int64(len(hashes)/sha1.Size))
}

// reopen goes on with a rest. It returns nil when that is of no use.
func (s *Store) reopen(r *rest, d digest.Digest, size int64, origin string) (*arrival, error) {
	if r == nil || r.arrival != nil && (r.arrival.size != size || r.arrival.origin != origin) {
		return nil, nil
	}
	if from, err := readSmall(s.partialPath(d)+originSuffix, maxOrigin); err != nil || string(from) != origin {
		return nil, nil
	}
	f, err := os.OpenFile(s.partialPath(d), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.makeSpaceFor(f, size); err != nil {
		f.Close()
		return nil, err
	}
	if r.arrival != nil {
		r.arrival.file = f
		return r.arrival, nil
	}
	a, err := loadArrival(d, size, f)
	if a == nil {
		f.Close()
		return nil, err
	}
	a.origin = origin
	return a, err
}

// loadArrival takes stock of a file from an earlier run. It returns nil when it cannot
// be gone on with.
func loadArrival(d digest.Digest, size int64, f *os.File) (*arrival, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() > size {
		return nil, nil
	}
	a := newArrival(d, size, f)
	if m := readMetainfo(f.Name()+torrentSuffix, d, size); m != nil {
		a.setPieces(m.Torrent())
	} else {
		was, hashes := readNoted(a.noted.path)
		if was != size || len(hashes) == 0 {
			return nil, nil
		}
		a.noted.hashes = hashes
		a.setPieces(earlierTorrent(a, hashes))
	}
	if err := a.findData(); err != nil {
		return nil, err
	}
	return a, nil
}

// findData marks the pieces that are on disk in full, and have a hash to be judged by, as
// unknown.
func (a *arrival) findData() error {
	pl := a.torrent.PieceLength()
	for off := int64(0); off < a.size; {
		from, to, ok, err := dataAfter(a.file, off)
		if err != nil {
			return fmt.Errorf("look for data: %w", err)
		}
		if !ok || to <= off {
			return nil
		}
		for i := int((from + pl - 1) / pl); i < a.torrent.Known(); i++ {
			if _, end := pieceSpan(a.size, i); end > to {
				break
			}
			a.unknown.set(i)
		}
		off = to
	}
	return nil
}

// giveBack frees what is reserved on disk for bytes that are not here. An arrival that
// nobody goes on with, as a registry has broken off that promised more than it has, would
// keep that from others for a day. It returns how many bytes that makes.
func (a *arrival) giveBack() (freed int64) {
	before, err := a.file.Stat()
	if err != nil {
		return 0
	}
	pl, end := PieceLength(a.size), int64(0)
	gap := func(to int64) {
		if to > end {
			_ = giveBack(a.file, end, to-end) // if not, eviction will
		}
	}
	if a.torrent == nil {
		end = a.prefix
	}
	for i := int(end / pl); i < pieceCount(a.size); i++ {
		if a.have.has(i) || a.unknown.has(i) || a.tail != nil && a.tail.piece == i {
			from, to := pieceSpan(a.size, i)
			gap(from)
			end = to
		}
	}
	gap(a.size)
	after, err := a.file.Stat()
	if err != nil {
		return 0
	}
	return taken(before) - taken(after)
}
