package layers

import (
	"bytes"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// run is the Partial's life: it follows what comes in, and at the end gives the blob
// its name, or leaves what is here to the next.
func (p *Partial) run() {
	err := p.follow()
	if err == nil {
		err = p.commit()
	}
	p.settle(err)
}

// follow hashes the blob from its start as the bytes come in, reading them back from
// the page cache, until the whole digest has been found right; then it returns nil. It
// returns the Partial's error when that ends before.
func (p *Partial) follow() error {
	for {
		next, moved, err := p.next()
		switch {
		case err != nil:
			return err
		case next.off == p.size:
			if done, err := p.judgeWhole(); done {
				return err
			}
		case next.n > 0:
			if err := p.feed(next); err != nil {
				p.Fail(err)
			}
		default:
			<-moved
		}
	}
}

// section is n bytes at off that were found to be here at some turn of the Partial.
type section struct {
	off, n  int64
	turn    int
	inOrder bool
}

// next returns what can be hashed next, and what to wait for if it is empty.
func (p *Partial) next() (section, <-chan struct{}, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rewind || p.outOfStep() {
		p.rewind = false
		p.hashed, p.fed = 0, 0
		p.digester.Reset()
		p.pieces, p.sums = newPieceHasher(p.size), nil
	}
	here := p.contiguous()
	next := section{off: p.hashed, n: max(0, here-p.hashed), turn: p.turn, inOrder: p.torrent == nil}
	if here < p.hashed {
		next.off = here // all was hashed, but the tail has still to be verified
	}
	return next, p.moved.wait(), p.err
}

// outOfStep tells whether the metainfo has to be made here and its hashes have not kept
// up, since there was a torrent for a while. p.mu is held.
func (p *Partial) outOfStep() bool { return p.torrent == nil && p.pieces.at() != p.hashed }

// feed hashes the section, or as much of it as fits the buffer.
func (p *Partial) feed(next section) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	b := (*buf)[:min(next.n, int64(len(*buf)))]
	if n, err := p.file.ReadAt(b, next.off); n < len(b) {
		if err == io.EOF {
			err = errLost
		}
		return fmt.Errorf("read back blob %s at %d: %w", p.digest, next.off, err)
	}
	p.mu.Lock()
	if p.turn != next.turn {
		// There is another torrent, or none, and something may have been written
		// over what was being read.
		p.mu.Unlock()
		return nil
	}
	p.fed = next.off + int64(len(b))
	p.mu.Unlock()
	p.digester.Write(b)
	if next.inOrder { // else the torrent has the hashes
		p.pieces.Write(b)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hashed = p.fed
	p.followed.fire()
	if p.rewind {
		return nil
	}
	p.sums = p.pieces.sums
	p.tell()
	if next.inOrder {
		p.mu.Unlock()
		p.note(p.pieces.sums, false)
		p.mu.Lock()
	}
	return nil
}

// Hashes returns a torrent that grows as the blob's first pieces come in and are hashed,
// for who offers the blob while it arrives: draft names the swarm until it is whole. The
// last piece's hash, and with it the metainfo, is known when the whole digest has been
// found right; the torrent fails when the Partial does. It is the same one for all who
// ask.
func (p *Partial) Hashes(draft InfoHash) *Torrent {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.made == nil {
		p.made = NewTorrent(p.digest, p.size, draft)
		p.tell()
		if p.err != nil {
			p.made.Fail(p.err)
		}
	}
	return p.made
}

// tell makes known to Hashes what has been hashed. p.mu is held.
func (p *Partial) tell() {
	t := p.made
	if t == nil {
		return
	}
	has, hashes := t.known(), p.firstHashes()
	if n := min(len(has), len(hashes)); !bytes.Equal(has[:n], hashes[:n]) {
		t.Fail(fmt.Errorf("blob %s was hashed to something else before: %w", p.digest, ErrMismatch))
		return
	}
	if !p.whole {
		hashes = hashes[:min(len(hashes), max(0, t.Pieces()-1)*sha1.Size)]
	}
	if len(hashes) > len(has) {
		t.Add(hashes[len(has):]) // fails only if t has failed, as readers of t know by now
	}
}

// firstHashes returns those of the pieces that are here from the first on. p.mu is held.
func (p *Partial) firstHashes() []byte {
	if p.torrent == nil {
		return p.sums
	}
	return p.torrent.known()[:p.arrival.run*sha1.Size]
}

// judgeWhole compares the digest, once all has been hashed. done is false if there is
// more to hash after all.
func (p *Partial) judgeWhole() (done bool, err error) {
	d := digest.NewDigest(p.digest.Algorithm(), p.digester)
	var rotten error
	if d != p.digest {
		rotten = p.rotten()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.err != nil:
		return true, p.err
	case p.rewind || p.outOfStep() || p.contiguous() < p.size:
		return false, nil
	case rotten != nil:
		p.end(fmt.Errorf("blob %s, before it was whole: %w", p.digest, rotten))
		return true, p.err
	case d != p.digest:
		p.end(fmt.Errorf("blob %s is %s: %w", p.digest, d, ErrMismatch))
		return true, p.err
	}
	p.becomeWhole()
	return true, nil
}

// rotten tells of a piece that was right when it came and is not any more: then our disk
// is to blame for a wrong digest, and not who sent the blob. It is for the follower.
func (p *Partial) rotten() error {
	p.mu.Lock()
	t, have := p.torrent, slices.Clone(p.have)
	p.mu.Unlock()
	if t == nil {
		return nil
	}
	for i := range t.Pieces() {
		want, known := t.Piece(i)
		if !known || !have.has(i) {
			continue
		}
		from, to := pieceSpan(p.size, i)
		sum, err := p.sum(from, to)
		if err == nil && sum != want {
			err = errRotten
		}
		if err != nil {
			return fmt.Errorf("piece %d: %w", i, err)
		}
	}
	return nil
}

// becomeWhole notes that the digest is right. p.mu is held.
func (p *Partial) becomeWhole() {
	p.whole = true
	if t := p.torrent; t == nil || t.Metainfo() == nil {
		var hashes []byte
		if t == nil {
			hashes = p.pieces.finish()
		} else { // noted by an earlier run, and now vouched for
			hashes = t.known()
		}
		p.setPieces(newMetainfo(p.digest, p.size, hashes).Torrent())
		for i := range p.torrent.Pieces() {
			p.mark(i)
		}
	}
	p.tell()
	p.allChecked()
	close(p.verified)
	p.moved.fire()
	p.progress.fire()
}

// commit brings a blob whose digest is right into the store.
func (p *Partial) commit() error {
	if p.shelved != nil {
		return p.commitShelved()
	}
	if err := p.file.Sync(); err != nil {
		return fmt.Errorf("sync blob %s: %w", p.digest, err)
	}
	p.close()
	s := p.store
	if err := writeFile(s.partialDir(), s.torrentPath(p.digest), p.Metainfo().Bytes()); err != nil {
		return fmt.Errorf("save metainfo of %s: %w", p.digest, err)
	}
	e, err := s.adopt(p.digest, p.size, s.partialPath(p.digest), p.size)
	if err != nil {
		return fmt.Errorf("name blob %s: %w", p.digest, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pin, p.named = e, e
	return nil
}

// close waits until nobody uses the file, and closes it. The Partial has failed or is
// whole, so nobody enters from now on.
func (p *Partial) close() {
	p.mu.Lock()
	shut, left := p.shut, p.err != nil && p.shelved == nil && !p.isUseless(p.err)
	p.shut = true
	p.mu.Unlock()
	if !shut {
		p.work.Wait()
		if left {
			p.store.space.gained(p.giveBack())
		}
		p.file.Close()
	}
}

// settle ends the Partial, with the blob in the store if err is nil. What is left of it
// otherwise is kept for the next, or removed if it is known to be wrong.
func (p *Partial) settle(err error) {
	if err != nil && !errors.Is(err, ErrMismatch) && p.shelved == nil {
		p.noteRest()
	}
	p.close()
	p.store.release(p, p.leaveArrival(), err)
	p.store.trim()
	p.mu.Lock()
	p.end(err)
	pin := p.takePin()
	p.mu.Unlock()
	if pin != nil {
		p.store.unpin(pin)
	}
	close(p.atRest)
}

// leaveArrival gives the arrival up. What it was remains for those who still ask this
// Partial.
func (p *Partial) leaveArrival() *arrival {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.arrival
	p.arrival = a.clone()
	return a
}

// release takes a Partial that has ended with err out of the store.
func (s *Store) release(p *Partial, a *arrival, err error) {
	s.names.Lock()
	defer s.names.Unlock()
	var unlinkErr error
	switch {
	case p.shelved != nil:
		s.releaseShelved(p, err)
		return
	case err == nil:
		unlinkErr = s.unlinkBeside(p.digest)
	case p.isUseless(err):
		unlinkErr = s.unlinkPartial(p.digest)
	}
	if unlinkErr != nil && !DiskFailed(err) {
		s.log.Error("partial blob could not be removed", "digest", p.digest, "err", unlinkErr)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.partials, p.digest)
	if errors.Is(err, errRotten) {
		s.rotted++
	}
	switch {
	case p.isUseless(err):
		s.arriving -= a.received
	case err != nil:
		s.rests[p.digest] = &rest{digest: p.digest, bytes: a.received, since: time.Now(), arrival: a}
	}
}

// isUseless tells whether nobody should go on with what is left by a Partial that ended
// with err: it is wrong, or the disk did not take all of it. That makes room on a full disk,
// and leaves the bytes as they are for those who still read the file.
func (p *Partial) isUseless(err error) bool {
	select {
	case <-p.verified:
		return errors.Is(err, ErrMismatch)
	default:
		return errors.Is(err, ErrMismatch) || DiskFailed(err)
	}
}
