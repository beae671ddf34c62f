package layers

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// believedFor is how long bytes of a whole blob are believed once they were found right.
// Disks rot slowly, and hashing costs a core a second for each GiB or so.
const believedFor = 24 * time.Hour

// proof is which pieces of a whole blob were found right, by this process and not long
// ago. What an earlier run has left counts for nothing before it has been read: a disk
// may rot, and people copy, restore and repair files. So does what was written to since,
// which the file's mtime tells.
type proof struct {
	strict bool // the file is not ours: any change of it counts, see stamp

	mu     sync.Mutex // guards all below
	file   stamp      // when it was looked at
	since  time.Time  // when the first of pieces was found right
	whole  bool       // all of them are
	came   bool       // all of them were as they came in, before the file had its name
	pieces bitset
	count  int       // of pieces
	hashed time.Time // when all were last hashed in one go
}

// found notes that the file that fi tells of has been found right, all of it.
func (p *proof) found(fi os.FileInfo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begin(fi)
	if p.strict && !isSettled(fi) {
		return
	}
	p.whole, p.hashed = true, p.since
}

// cameRight notes that all of the file that fi tells of was found right piece by piece, while
// others were written, when its mtime told nothing of what else was done to it. That is enough
// for peers, who hash what they are sent, and not for clients, who may not.
func (p *proof) cameRight(fi os.FileInfo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begin(fi)
	p.came, p.hashed = true, p.since
}

// begin believes nothing of the file that fi tells of. p.mu is held.
func (p *proof) begin(fi os.FileInfo) {
	p.file, p.since, p.whole, p.came, p.pieces, p.count = p.stamp(fi), time.Now(), false, false, nil, 0
}

// stamp returns by what the file that fi tells of is known again.
func (p *proof) stamp(fi os.FileInfo) stamp {
	if p.strict {
		return stampOf(fi)
	}
	return stamp{mtime: fi.ModTime().UnixNano()}
}

// lastHashed returns when all of the file was last hashed in one go, in this run.
func (p *proof) lastHashed() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hashed
}

// holds tells whether the pieces [first, last] of the file can be believed; first > last
// asks for all. by is who wants to know.
func (p *proof) holds(fi os.FileInfo, first, last int, by asker) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stamp(fi) != p.file || time.Since(p.since) > believedFor {
		p.begin(fi)
	}
	if p.came && by == peers {
		return true
	}
	if p.whole || first > last {
		return p.whole
	}
	for i := first; i <= last; i++ {
		if !p.pieces.has(i) {
			return false
		}
	}
	return true
}

// right notes that piece i of total, in the file that fi tells of, has been found right.
func (p *proof) right(fi os.FileInfo, i, total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.whole || p.stamp(fi) != p.file || p.strict && !isSettled(fi) {
		return
	}
	if p.pieces == nil {
		p.pieces = newBitset(total)
	}
	if !p.pieces.has(i) {
		p.pieces.set(i)
		p.count++
	}
	if p.count == total {
		p.whole, p.pieces = true, nil
	}
}

// touch sets the file's mtime without losing the proof of what is in it.
func (p *proof) touch(path string, at time.Time) {
	before, err := os.Lstat(path)
	if err != nil || os.Chtimes(path, at, at) != nil {
		return // on a read-only disk this costs the order after a restart
	}
	after, err := os.Lstat(path)
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stamp(before) == p.file {
		p.file = p.stamp(after)
	}
}

// asker is for whom bytes are looked at.
type asker bool

const (
	clients asker = false
	peers   asker = true
)

// Check returns nil if n bytes of the blob from off on are what they should be: the
// pieces they are in are hashed, unless that was done within a day. It is ErrMismatch if
// they are not, or cannot be read, and DiskFailed; then the blob has left the store, to be
// fetched anew.
func (b *Blob) Check(off, n int64) error {
	return b.store.check(b.entry, b.file, b.metainfo, off, n, clients)
}

// CheckForPeer is Check for bytes that a peer is sent, who hashes them: it is enough that
// they were right when they came.
func (b *Blob) CheckForPeer(off, n int64) error {
	return b.store.check(b.entry, b.file, b.metainfo, off, n, peers)
}

// CheckForPeer is Blob.CheckForPeer once the blob is whole and has its name; f is what
// OpenFile returned. Before that it returns nil: what is here then was found right when it came.
func (p *Partial) CheckForPeer(f *os.File, off, n int64) error { return p.checkFor(peers, f, off, n) }

func (p *Partial) checkFor(by asker, f *os.File, off, n int64) error {
	p.mu.Lock()
	e := p.named
	p.mu.Unlock()
	if e == nil {
		return nil
	}
	return p.store.check(e, f, func() (*Metainfo, error) { return p.Metainfo(), nil }, off, n, by)
}

// check is Check of the blob e that lies in f.
func (s *Store) check(e *entry, f *os.File, metainfo func() (*Metainfo, error), off, n int64, by asker) error {
	if n <= 0 {
		return nil
	}
	look := f.Stat
	if e.shelved { // by which time whoever changes it, be it only its name, has done so
		look = func() (os.FileInfo, error) { return settle(f) }
	}
	fi, err := look()
	if err != nil {
		return err
	}
	pl := PieceLength(e.size)
	first, last := int(off/pl), int((off+n-1)/pl)
	if e.proof.holds(fi, first, last, by) {
		return nil
	}
	m, err := metainfo()
	if err != nil { // gone from the cache, as another reader has found it rotten
		return fmt.Errorf("blob %s cannot be judged: %w", e.digest, errors.Join(errLost, err))
	}
	for i := first; i <= min(last, m.Pieces()-1); i++ {
		if e.proof.holds(fi, i, i, by) {
			continue
		}
		if err := checkPieceOf(f, m, i); err != nil {
			s.rotten(e, err)
			return fmt.Errorf("blob %s: %w", e.digest, errors.Join(errLost, err))
		}
		e.proof.right(fi, i, m.Pieces())
	}
	return nil
}

// stillRight tells whether what has just been read of the blob, n bytes from off, was what
// Check has found right before.
func (b *Blob) stillRight(off, n int64) bool {
	fi, err := b.file.Stat()
	pl := PieceLength(b.Size())
	return err == nil && b.entry.proof.holds(fi, int(off/pl), int((off+n-1)/pl), clients)
}

// metainfo returns what the blob's pieces are judged by.
func (b *Blob) metainfo() (*Metainfo, error) {
	b.metaOnce.Do(func() {
		if b.meta == nil {
			b.meta, b.metaErr = b.store.Metainfo(b.Digest())
		}
	})
	return b.meta, b.metaErr
}

// checkPieceOf returns ErrMismatch if f does not have piece i of m.
func checkPieceOf(f *os.File, m *Metainfo, i int) error {
	from, to := pieceSpan(m.Size(), i)
	sum, err := sumOf(f, from, to)
	if err != nil {
		return fmt.Errorf("piece %d: %w", i, errors.Join(ErrMismatch, err))
	}
	if sum != m.Piece(i) {
		return fmt.Errorf("piece %d: %w", i, ErrMismatch)
	}
	return nil
}

// rotten drops a whole blob that is not what its digest says. Its owner hears of it as of
// an eviction.
func (s *Store) rotten(e *entry, err error) {
	s.names.Lock()
	defer s.names.Unlock()
	s.mu.Lock()
	if e.gone {
		s.mu.Unlock()
		return
	}
	s.drop(e)
	s.rotted++
	s.mu.Unlock()
	s.read(err) // which may be why
	if e.shelved {
		s.shelf.distrust(e.digest)
	}
	s.log.Error("blob in the cache has rotted, it will be fetched anew", "digest", e.digest, "bytes", e.size, "shelf", e.shelved, "err", err)
	if err := s.unlink(e.digest); err != nil {
		s.log.Error("rotten blob could not be removed", "digest", e.digest, "err", err)
	}
	if s.onEvict != nil {
		s.told.put(e.digest, false)
	}
}

// checkedReader reads a section of a whole blob. Before a piece is handed out it is looked
// whether it can be believed, for each anew: a client may take hours over a blob, and the
// file may change in that time.
type checkedReader struct {
	blob *Blob
	off  int64
	end  int64
}

// Read implements io.Reader.
func (r *checkedReader) Read(b []byte) (int, error) {
	if r.off == r.end {
		return 0, io.EOF
	}
	n, err := r.blob.ReadAt(b[:min(int64(len(b)), r.end-r.off)], r.off)
	r.off += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// WriteTo implements io.WriterTo. It copies from a file, which a TCP connection takes by
// sendfile, unless that is not ours.
func (r *checkedReader) WriteTo(w io.Writer) (written int64, err error) {
	if r.blob.entry.shelved {
		return copyThrough(w, r)
	}
	for r.off < r.end {
		n := min(maxSpan, r.end-r.off)
		if err := r.blob.Check(r.off, n); err != nil {
			return written, err
		}
		if _, err := r.blob.file.Seek(r.off, io.SeekStart); err != nil {
			return written, err
		}
		got, err := copySome(w, r.blob.file, n)
		written += got
		r.off += got
		if err == nil && got < n {
			err = fmt.Errorf("read blob %s at %d: %w", r.blob.Digest(), r.off, errLost)
		}
		if err != nil {
			return written, r.blob.store.read(err)
		}
	}
	return written, nil
}
