package layers

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
)

// hashesSuffix of files that hold the hashes of an arrival's first pieces.
const hashesSuffix = ".hashes"

// noteStep is how many bytes of the blob may have new hashes before these are written
// down: no more than this, and a piece, is fetched again after a crash.
const noteStep = 4 << 20

// errEarlier is why the torrent of a resumed arrival has no more hashes.
var errEarlier = errors.New("the rest of the hashes was not known before the restart")

// noted is the file of piece hashes beside an arrival: those that a torrent which still
// grew has told of, or that were made here of bytes that came in order. A later run
// keeps the pieces that match. A hash in it is no more than that: which bytes are the
// blob's is for the digest to say, and a piece that does not match, or has no hash here,
// is fetched again. So nothing depends on how a crash leaves the file, and it is written
// in place, without fsync.
//
// It has the blob's size in 8 bytes, the most significant one first, and then the hashes.
type noted struct {
	path string
	size int64

	mu     sync.Mutex // guards hashes, and the file
	hashes []byte     // in the file
}

// note writes down the hashes of the first pieces, if they say anything new: enough to
// be worth it, or anything at all.
func (n *noted) note(hashes []byte, anything bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	from := 0
	if has := min(len(hashes), len(n.hashes)); bytes.Equal(hashes[:has], n.hashes[:has]) {
		from = len(n.hashes)
	}
	fresh := int64(len(hashes)-from) / sha1.Size * PieceLength(n.size)
	if fresh <= 0 || !anything && fresh < noteStep {
		return nil
	}
	f, err := os.OpenFile(n.path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if from == 0 { // what is there, if anything, is wrong
		err = errors.Join(f.Truncate(0), writeAll(f, binary.BigEndian.AppendUint64(nil, uint64(n.size)), 0))
	}
	err = errors.Join(err, writeAll(f, hashes[from:], sizeBytes+int64(from)), f.Close())
	if err == nil {
		n.hashes = slices.Clone(hashes)
	}
	return err
}

// sizeBytes is the length of the size in front of the hashes.
const sizeBytes = 8

func writeAll(f *os.File, b []byte, off int64) error {
	_, err := f.WriteAt(b, off)
	return err
}

// readNoted returns the size and the hashes that are noted in the file at path, whatever
// is in there; none if nothing is.
func readNoted(path string) (size int64, hashes []byte) {
	f, err := os.Open(path)
	if err != nil {
		return 0, nil
	}
	defer f.Close()
	head := make([]byte, sizeBytes)
	if _, err := io.ReadFull(f, head); err != nil {
		return 0, nil
	}
	size = int64(binary.BigEndian.Uint64(head))
	if size < 0 || size > maxMetainfo*maxPieceLength {
		return 0, nil
	}
	hashes, err = io.ReadAll(io.LimitReader(f, int64(pieceCount(size))*sha1.Size))
	if err != nil {
		return 0, nil
	}
	return size, hashes[:len(hashes)/sha1.Size*sha1.Size]
}

// earlierTorrent returns what is known of a blob by hashes that an earlier run noted: a
// torrent that will never be complete, for the blob's digest may not have been seen.
func earlierTorrent(a *arrival, hashes []byte) *Torrent {
	t := NewTorrent(a.digest, a.size, InfoHash{})
	t.claimed = true
	if err := t.Add(hashes); err != nil {
		t.Fail(err)
	}
	t.Fail(errEarlier)
	return t
}

// note keeps what is known of the first pieces for a later run.
func (p *Partial) note(hashes []byte, anything bool) {
	if p.noted == nil {
		return
	}
	over := p.store.patience.call()
	err := p.noted.note(hashes, anything)
	over()
	if err != nil { // a restart would begin the blob anew
		p.store.ail(fmt.Errorf("note hashes of %s: %w", p.digest, err))
	}
}

// maxBehind is how many bytes the follower may be behind with hashing.
const maxBehind = 16 << 20

// bytes returns how many of the blob's bytes are in pieces whose hashes are noted.
func (n *noted) bytes() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return min(n.size, int64(len(n.hashes)/sha1.Size)*PieceLength(n.size))
}

// noteRest notes all that is known when the Partial has failed. It is for the follower.
func (p *Partial) noteRest() {
	for {
		next, _, _ := p.next()
		if !next.inOrder || next.n == 0 || next.n > 2*maxBehind || p.feed(next) != nil {
			break
		}
	}
	p.mu.Lock()
	hashes := p.sums
	if p.torrent != nil {
		hashes = p.torrent.known()
	}
	p.mu.Unlock()
	p.note(hashes, true)
}
