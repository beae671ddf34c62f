package layers

import (
	"bytes"
	"crypto/sha1"
	"errors"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Torrent is what a swarm goes by: a blob's piece hashes. All of them are known from
// the start, or, while a seeder is still fetching the blob, they become known in the
// order of the blob. It is safe for concurrent use.
type Torrent struct {
	digest   digest.Digest
	size     int64
	draft    InfoHash
	hasDraft bool
	named    bool // draft is the infohash of the metainfo
	claimed  bool // nobody vouches for the hashes: all of them are no metainfo

	done chan struct{} // closed when meta or err is set

	mu      sync.Mutex // guards all below
	hashes  []byte     // of the pieces [0, Known); appended to, never changed
	meta    *Metainfo  // once all are known
	err     error      // why they never will be
	changed signal
}

// Torrent returns m as a torrent whose hashes are all known.
func (m *Metainfo) Torrent() *Torrent {
	t := &Torrent{digest: m.digest, size: m.size, hashes: m.hashes, meta: m, done: make(chan struct{})}
	close(t.done)
	return t
}

// NewTorrent returns a torrent of which no hash is known yet (but that of the empty
// blob, which has none, is complete). d must be valid and size not negative. draft is
// the swarm's name until the metainfo is complete.
func NewTorrent(d digest.Digest, size int64, draft InfoHash) *Torrent {
	t := &Torrent{digest: d, size: size, draft: draft, hasDraft: true, done: make(chan struct{})}
	if t.Pieces() == 0 {
		t.complete()
	}
	return t
}

// NamedTorrent returns the torrent that ih, its metainfo's infohash, names, as a magnet
// link does: no hash is known yet, but what SetInfo is given can be verified. d must be
// valid and size not negative.
func NamedTorrent(d digest.Digest, size int64, ih InfoHash) *Torrent {
	t := NewTorrent(d, size, ih)
	t.named = true
	return t
}

// Named tells whether SetInfo can complete the torrent.
func (t *Torrent) Named() bool { return t.named }

// InfoSize returns the length in bytes of the info dictionary of the metainfo.
func (t *Torrent) InfoSize() int {
	return len(infoHead(t.digest, t.size)) + t.Pieces()*sha1.Size + len(infoTail)
}

// SetInfo completes a torrent that is Named by its info dictionary, wherever that comes
// from. It is an error, and changes nothing, if it is not the one that was named. Where
// all is known already nothing is looked at.
func (t *Torrent) SetInfo(info []byte) error {
	if t.Metainfo() != nil {
		return nil
	}
	head := infoHead(t.digest, t.size)
	switch {
	case !t.named:
		return fmt.Errorf("the torrent of %s has no name yet", t.digest)
	case len(info) != t.InfoSize() || !bytes.HasPrefix(info, head) || !bytes.HasSuffix(info, []byte(infoTail)):
		return fmt.Errorf("not the info of %s: %w", t.digest, ErrMismatch)
	case sha1.Sum(info) != t.draft:
		return fmt.Errorf("not the info that %s names: %w", t.draft, ErrMismatch)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil || t.meta != nil {
		return t.err
	}
	t.hashes = info[len(head) : len(info)-len(infoTail)]
	t.complete()
	t.changed.fire()
	return nil
}

// Digest returns the digest of the blob.
func (t *Torrent) Digest() digest.Digest { return t.digest }

// Size returns the blob's length in bytes.
func (t *Torrent) Size() int64 { return t.size }

// Pieces returns how many pieces there are, known or not; 0 for the empty blob.
func (t *Torrent) Pieces() int { return pieceCount(t.size) }

// PieceLength returns the length in bytes of all pieces but the last.
func (t *Torrent) PieceLength() int64 { return PieceLength(t.size) }

// PieceSize returns the length in bytes of piece i.
func (t *Torrent) PieceSize(i int) int64 {
	from, to := pieceSpan(t.size, i)
	return to - from
}

// Draft returns the swarm's name while the metainfo was not complete; ok is false if
// it always was.
func (t *Torrent) Draft() (ih InfoHash, ok bool) { return t.draft, t.hasDraft }

// Metainfo returns the torrent file's content once all hashes are known, or nil.
func (t *Torrent) Metainfo() *Metainfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.meta
}

// Known returns how many hashes are known: those of the pieces [0, Known).
func (t *Torrent) Known() int { return len(t.known()) / sha1.Size }

// known returns the hashes that are known. They must not be changed.
func (t *Torrent) known() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hashes
}

// Piece returns the SHA-1 of piece i, if it is known.
func (t *Torrent) Piece(i int) (sum [20]byte, known bool) {
	hashes := t.known()
	if i < 0 || i >= len(hashes)/sha1.Size {
		return sum, false
	}
	return [sha1.Size]byte(hashes[i*sha1.Size:]), true
}

// knows tells whether the hash of the piece that has the byte at off is known.
func (t *Torrent) knows(off int64) bool {
	_, known := t.Piece(int(off / t.PieceLength()))
	return known
}

// Add makes the next hashes known, 20 bytes each. After the last one the torrent is
// complete. More than there are pieces, and parts of one, are an error, which adds
// nothing; so is adding to a torrent that has failed.
func (t *Torrent) Add(hashes []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.err != nil:
		return t.err
	case len(hashes)%sha1.Size != 0:
		return fmt.Errorf("%d bytes are no piece hashes", len(hashes))
	case len(hashes) > t.Pieces()*sha1.Size-len(t.hashes):
		return fmt.Errorf("more piece hashes than the %d of blob %s", t.Pieces(), t.digest)
	case len(hashes) == 0:
		return nil
	}
	t.hashes = append(t.hashes, hashes...)
	if len(t.hashes) == t.Pieces()*sha1.Size && !t.claimed {
		t.complete()
	}
	t.changed.fire()
	return nil
}

// complete makes the metainfo. t.mu is held, or nobody else has t yet.
func (t *Torrent) complete() {
	t.meta = newMetainfo(t.digest, t.size, t.hashes)
	t.hashes = t.meta.hashes
	close(t.done)
}

// Fail says that the torrent will never be complete. It does nothing when it is, or
// has failed already.
func (t *Torrent) Fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.meta != nil || t.err != nil {
		return
	}
	t.err = err
	close(t.done)
	t.changed.fire()
}

// Done is closed when all hashes are known, or never will be.
func (t *Torrent) Done() <-chan struct{} { return t.done }

// Err returns what Fail was called with, or nil.
func (t *Torrent) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// Changed is closed at the next change of Known, Metainfo or Err.
func (t *Torrent) Changed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed.wait()
}

// agrees tells whether t and other do not contradict each other: they are of one blob,
// and the hashes that both know are the same.
func (t *Torrent) agrees(other *Torrent) bool {
	if t == other {
		return true
	}
	a, b := t.known(), other.known()
	n := min(len(a), len(b))
	return t.digest == other.digest && t.size == other.size && bytes.Equal(a[:n], b[:n])
}

// ErrHashUnknown: the hash of a piece is not known yet, so nobody can tell whether the
// piece is right. Torrent.Changed tells when to try again.
var ErrHashUnknown = errors.New("piece hash is not known yet")
