package layers

import (
	"bytes"
	"crypto/sha1"
	"errors"
	"fmt"
	"os"
)

// WritePiece stores piece i, all of it, once its SHA-1 is found right. It returns
// ErrMismatch when it is not, ErrHashUnknown when nobody can tell yet, nil when the piece is here already, and errors as
// Append does.
func (p *Partial) WritePiece(i int, b []byte) error {
	t := p.Torrent()
	want, err := pieceHash(t, i)
	if err != nil {
		return err
	}
	sum := sumPiece(b)
	if from, to := pieceSpan(p.size, i); int64(len(b)) != to-from || sum.SHA1 != want {
		return fmt.Errorf("piece %d of blob %s: %w", i, p.digest, ErrMismatch)
	}
	return p.onPiece(t, i, sum.CRC, func(from int64) error { return p.overwrite(i, b, from) })
}

// PieceDone marks piece i as here. All of it has been written, no WriteAt on it is under
// way, and sum is that of what was: ErrMismatch if that is not right, ErrHashUnknown while
// nobody can tell.
func (p *Partial) PieceDone(i int, sum PieceSum) error {
	t := p.Torrent()
	want, err := pieceHash(t, i)
	if err != nil {
		return err
	}
	if sum.SHA1 != want {
		return fmt.Errorf("piece %d of blob %s: %w", i, p.digest, ErrMismatch)
	}
	return p.onPiece(t, i, sum.CRC, func(int64) error { return nil })
}

// checkPiece refuses pieces that are none.
func checkPiece(t *Torrent, i int) error {
	if t == nil {
		return errors.New("no torrent, no pieces")
	}
	if i < 0 || i >= t.Pieces() {
		return fmt.Errorf("no piece %d among %d", i, t.Pieces())
	}
	return nil
}

// pieceHash returns what the SHA-1 of piece i must be.
func pieceHash(t *Torrent, i int) (sum [sha1.Size]byte, err error) {
	if err := checkPiece(t, i); err != nil {
		return sum, err
	}
	sum, known := t.Piece(i)
	if !known {
		return sum, fmt.Errorf("piece %d of blob %s: %w", i, t.Digest(), ErrHashUnknown)
	}
	return sum, nil
}

// onPiece has piece i of t, which crc is of, brought in by put, which is told where it lies
// and has it to itself, and marks it. It does nothing when the piece is here.
func (p *Partial) onPiece(t *Torrent, i int, crc uint32, put func(from int64) error) error {
	if err := p.enterPiece(i); err != nil {
		return noError(err)
	}
	defer p.work.Done()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.take(i)
	defer p.leave(i)
	if here, err := p.isHere(t, i); here || err != nil {
		return err
	}
	from, _ := pieceSpan(p.size, i)
	p.mu.Unlock()
	err := put(from)
	p.mu.Lock()
	if err != nil {
		return err
	}
	p.crcs.put(i, crc, t.Pieces())
	p.arrived(i)
	return nil
}

// errTurned is told to who brings pieces of a torrent that p does not go by any more.
var errTurned = errors.New("blob arrives by another torrent, or by none")

// isHere tells whether piece i of t is here. p.mu is held.
func (p *Partial) isHere(t *Torrent, i int) (bool, error) {
	switch {
	case p.torrent != nil && p.have.has(i):
		return true, nil
	case p.torrent != t:
		return false, fmt.Errorf("piece %d of %s: %w", i, p.digest, errTurned)
	}
	return false, nil
}

// noError makes no error of it that a Partial has all it needs.
func noError(err error) error {
	if errors.Is(err, errShut) {
		return nil
	}
	return err
}

// enterPiece enters, and sees to it that piece i is not unknown.
func (p *Partial) enterPiece(i int) error {
	p.mu.Lock()
	err, unknown := p.enter(), p.unknown.has(i)
	p.mu.Unlock()
	if err == nil && unknown {
		p.check(i)
	}
	return err
}

// arrived marks piece i as here and verified. p.mu is held, and let go meanwhile.
func (p *Partial) arrived(i int) {
	n := p.mark(i)
	p.tell()
	p.moved.fire()
	p.progress.fire()
	p.mu.Unlock()
	p.store.grow(n)
	p.mu.Lock()
}

// take waits until nobody is at work on piece i, and keeps others away from it until
// leave. p.mu is held, and let go meanwhile.
func (p *Partial) take(i int) {
	for p.busy[i] != 0 || p.turning {
		p.free.Wait()
	}
	p.busy[i] = -1
}

// join waits until nobody has piece i to himself, and keeps it so until leave. p.mu is
// held, and let go meanwhile.
func (p *Partial) join(i int) {
	for p.busy[i] < 0 || p.turning {
		p.free.Wait()
	}
	p.busy[i]++
}

// leave undoes take or join. p.mu is held.
func (p *Partial) leave(i int) {
	if p.busy[i] > 1 {
		p.busy[i]--
	} else {
		delete(p.busy, i)
	}
	p.free.Broadcast()
}

// WriteAt implements io.WriterAt for bytes of pieces that are not verified yet. No
// reader sees them before PieceDone. What lies in pieces that are here already is
// ignored and reported as written.
func (p *Partial) WriteAt(b []byte, off int64) (int, error) {
	t := p.Torrent()
	if t == nil || off < 0 || int64(len(b)) > p.size-off {
		return 0, fmt.Errorf("write %d bytes at %d of blob %s: not within its pieces", len(b), off, p.digest)
	}
	done := 0
	for done < len(b) {
		at := off + int64(done)
		i := int(at / t.PieceLength())
		_, end := pieceSpan(p.size, i)
		part := b[done:min(int64(len(b)), int64(done)+end-at)]
		if err := p.writePart(t, i, part, at); err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, nil
}

// writePart writes b, which is part of piece i of t, at off, unless the piece is here.
func (p *Partial) writePart(t *Torrent, i int, b []byte, off int64) error {
	if err := p.enterPiece(i); err != nil {
		return noError(err)
	}
	defer p.work.Done()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.join(i)
	defer p.leave(i)
	if here, err := p.isHere(t, i); here || err != nil {
		return err
	}
	p.mu.Unlock()
	err := p.overwrite(i, b, off)
	p.mu.Lock()
	p.progress.fire()
	return err
}

// overwrite writes b, which is part of piece i, at off. Readers who have been given what
// is here of the piece unjudged, and the follower who has hashed it, go on from it only
// as long as nobody brings other bytes for it: were it overwritten unseen, who reads it
// at this moment would get bytes that nothing ever checks. The caller is at work on the
// piece.
func (p *Partial) overwrite(i int, b []byte, off int64) error {
	p.mu.Lock()
	from, to := p.unjudged(i)
	p.mu.Unlock()
	if from < to {
		same, err := p.agrees(from, to, b, off)
		if err != nil {
			return err
		}
		if !same {
			p.mu.Lock()
			p.disown(i)
			p.mu.Unlock()
		}
	}
	over := p.store.patience.call()
	_, err := p.file.WriteAt(b, off)
	over()
	if err != nil {
		return fmt.Errorf("write at %d of blob %s: %w", off, p.digest, err)
	}
	return nil
}

// disown gives up what is here of piece i unjudged. p.mu is held.
func (p *Partial) disown(i int) {
	if from, to := p.unjudged(i); from < to {
		p.wrong(from, to)
	}
	p.unknown.clear(i)
	if p.tail != nil && p.tail.piece == i {
		p.tail = nil
	}
}

// agrees tells whether b at off has the bytes that the file has there in [from, to).
func (p *Partial) agrees(from, to int64, b []byte, off int64) (bool, error) {
	from, to = max(from, off), min(to, off+int64(len(b)))
	if from >= to {
		return true, nil
	}
	has := make([]byte, to-from)
	if _, err := p.file.ReadAt(has, from); err != nil {
		return false, fmt.Errorf("read back blob %s: %w", p.digest, err)
	}
	return bytes.Equal(has, b[from-off:to-off]), nil
}

// ReadAt implements io.ReaderAt over what is on disk, verified or not: only for who
// hashes pieces or knows from PieceHave that they are right. It works on after Done
// as long as the store has the blob.
func (p *Partial) ReadAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	err := p.enter()
	p.mu.Unlock()
	if err == nil {
		defer p.work.Done()
		return p.file.ReadAt(b, off)
	}
	if !errors.Is(err, errShut) {
		return 0, err
	}
	<-p.done
	if err := p.Err(); err != nil {
		return 0, err
	}
	blob, err := p.store.Open(p.digest)
	if err != nil {
		return 0, err
	}
	defer blob.Close()
	return blob.ReadAt(b, off)
}

// OpenFile returns a read-only file of the blob, the caller's own to read at offsets he
// names (its offset is nobody else's) and to close. What lies there is as for ReadAt. It
// stays readable when the blob gets its name in the store, and when it is evicted.
func (p *Partial) OpenFile() (*os.File, error) {
	f, blob, err := p.openFile()
	if blob != nil {
		blob.Unpin()
	}
	return f, err
}

// openFile opens the file of the blob. As long as the Partial can be entered, what lies
// under the file's name is this Partial's; after that the blob has its own, and is
// returned with its file.
func (p *Partial) openFile() (*os.File, *Blob, error) {
	p.mu.Lock()
	err := p.enter()
	p.mu.Unlock()
	if err == nil {
		defer p.work.Done()
		if p.shelved != nil {
			f, err := p.openShelvedAgain()
			return f, nil, err
		}
		f, err := os.Open(p.file.Name())
		return f, nil, err
	}
	if !errors.Is(err, errShut) {
		return nil, nil, err
	}
	if p.shelved == nil { // its fsync may take long
		if f, err := os.Open(p.store.partialPath(p.digest)); err == nil {
			return f, nil, nil
		}
		if blob, err := p.store.Open(p.digest); err == nil {
			return blob.File(), blob, nil
		}
	}
	<-p.done
	if err := p.Err(); err != nil {
		return nil, nil, err
	}
	blob, err := p.store.Open(p.digest)
	if err != nil {
		return nil, nil, err
	}
	return blob.File(), blob, nil
}
