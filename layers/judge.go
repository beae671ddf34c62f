package layers

import (
	"crypto/sha1"
	"fmt"
	"hash"
	"io"
	"os"
)

// SetTorrent begins the arrival by pieces. What was appended is judged by t, as far as
// its hashes are known and as they become known: a piece that is whole and right is
// kept, all else is missing again; a reader that was given bytes which turn out wrong
// ends with ErrMismatch, others go on. The complete metainfo is saved, so that pieces
// can be told right from wrong after a crash.
//
// A torrent that is complete stays: setting one that agrees with it is no error, and
// another is ErrMismatch. One that may still grow, or has failed, is replaced, and what
// it had verified is judged anew. A torrent of another blob is ErrMismatch.
func (p *Partial) SetTorrent(t *Torrent) error {
	if t.Digest() != p.digest || t.Size() != p.size {
		return fmt.Errorf("torrent of %s, %d bytes, for %s, %d bytes: %w", t.Digest(), t.Size(), p.digest, p.size, ErrMismatch)
	}
	p.appending.Lock()
	defer p.appending.Unlock()
	if done, err := p.goesBy(t); done {
		return err
	}
	p.mu.Lock()
	err := p.enter()
	p.mu.Unlock()
	if err != nil {
		return err
	}
	defer p.work.Done()
	return p.usePieces(t)
}

// goesBy tells whether p goes by t already, or by one that t may not replace.
func (p *Partial) goesBy(t *Torrent) (bool, error) {
	has := p.Torrent()
	switch {
	case has == nil:
		return false, nil
	case has == t:
		return true, nil
	case has.Metainfo() == nil:
		return false, nil
	case !has.agrees(t):
		return true, fmt.Errorf("two torrents of %s: %w", p.digest, ErrMismatch)
	}
	return true, nil
}

// usePieces makes the change to pieces. p.appending is held and the caller has entered.
func (p *Partial) usePieces(t *Torrent) error {
	grows := t.Metainfo() == nil // then it is saved later
	if !grows {
		if err := p.save(t.Metainfo()); err != nil {
			return err
		}
	}
	if done, err := p.goesBy(t); done { // the follower has reached the end meanwhile
		return err
	}
	p.mu.Lock()
	p.leaveTorrent()
	if p.err != nil || p.torrent != nil {
		defer p.mu.Unlock()
		return p.err
	}
	before := p.received
	p.turn++
	p.judge(t, p.wrong)
	select {
	case <-p.checked:
		p.checked = make(chan struct{})
	default:
	}
	n, turn := p.received-before, p.turn
	p.moved.fire()
	p.progress.fire()
	p.work.Go(func() { p.goBy(t, turn, grows) })
	p.mu.Unlock()
	p.store.grow(n)
	return nil
}

// trust goes on without t, unless t is complete: no more hashes may come, or not soon
// enough. What is here stays, judged or not, and the rest is taken in order: then
// nothing counts as verified before the whole digest is.
func (p *Partial) trust(t *Torrent) error {
	p.appending.Lock()
	defer p.appending.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.torrent == t {
		p.leaveTorrent()
	}
	return p.err
}

// leaveTorrent goes by no torrent any more, if there is one that is not complete.
// p.appending is held; so is p.mu, and let go meanwhile.
func (p *Partial) leaveTorrent() {
	p.turning = true // who is writing to a piece might otherwise write over what is appended next
	for len(p.busy) > 0 {
		p.free.Wait()
	}
	p.turning = false
	p.free.Broadcast()
	if t := p.torrent; t == nil || t.Metainfo() != nil || p.err != nil {
		return
	}
	before := p.received
	p.turn++
	p.takeOnTrust(p.wrong)
	n := p.received - before
	p.allChecked()
	p.moved.fire()
	p.progress.fire()
	p.mu.Unlock()
	p.store.grow(n)
	p.mu.Lock()
}

// save keeps the metainfo for a later run, beside the file.
func (p *Partial) save(m *Metainfo) error {
	defer p.store.patience.call()()
	if err := replaceFile(p.store.partialDir(), p.file.Name()+torrentSuffix, m.Bytes()); err != nil {
		return fmt.Errorf("save metainfo of %s: %w", p.digest, err)
	}
	return nil
}

// wrong deals with bytes [from, to) that were here unverified and are not, or may not
// be, the blob's: whoever was given some of them may not go on. p.mu is held.
func (p *Partial) wrong(from, to int64) {
	for r := range p.readers {
		if r.start < to && r.seen > from && r.err == nil {
			r.err = fmt.Errorf("blob %s at byte %d: %w", p.digest, from, ErrMismatch)
		}
	}
	if p.fed > from {
		p.rewind = true
		p.sums = nil
	}
}

// goBy finds out which pieces on disk are right, as their hashes become known, notes these,
// and saves the metainfo when it is complete, for as long as p goes by t. grows says that it was not
// when p began to. It runs on work.
func (p *Partial) goBy(t *Torrent, turn int, grows bool) {
	for known := 0; ; {
		changed := t.Changed()
		for ; known < t.Known(); known++ {
			if p.isUnknown(known) {
				p.check(known)
			}
		}
		if !p.stillBy(turn) {
			return
		}
		p.note(t.known(), false)
		if t.Err() != nil {
			return
		}
		if known == t.Pieces() {
			break
		}
		select {
		case <-changed:
		case <-p.verified:
			return
		case <-p.done:
			return
		}
	}
	if !grows {
		return
	}
	p.mu.Lock()
	p.moved.fire() // the end of a range waits for this, see vouchedFor
	p.mu.Unlock()
	if err := p.save(t.Metainfo()); err != nil {
		p.store.ail(err)
	}
}

// stillBy tells whether the torrent is that of turn and is still needed, and if so that
// all that could be judged by it has been.
func (p *Partial) stillBy(turn int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.turn != turn || p.err != nil || p.whole {
		return false
	}
	p.allChecked()
	return true
}

func (p *Partial) isUnknown(i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err == nil && p.unknown.has(i)
}

// allChecked closes checked, once. p.mu is held.
func (p *Partial) allChecked() {
	select {
	case <-p.checked:
	default:
		close(p.checked)
	}
}

// check finds out whether piece i, if unknown, is right, as soon as its hash is known.
// The caller has entered.
func (p *Partial) check(i int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.take(i)
	defer p.leave(i)
	want, err := pieceHash(p.torrent, i)
	if !p.unknown.has(i) || err != nil {
		return
	}
	from, to := pieceSpan(p.size, i)
	p.mu.Unlock()
	sum, err := p.sum(from, to)
	p.mu.Lock()
	if err == nil && sum == want {
		p.arrived(i)
		return
	}
	p.unknown.clear(i)
	p.wrong(from, to)
	p.moved.fire()
	p.progress.fire()
}

// settled tells whether nothing is missing and nothing unjudged. What is unjudged it has
// judged, or, where the hashes are not known, taken on trust.
func (p *Partial) settled() (bool, error) {
	p.mu.Lock()
	t, err, rest := p.torrent, p.err, p.unknown.list()
	if t == nil || err != nil || len(rest) == 0 {
		defer p.mu.Unlock()
		return true, err
	}
	if err := p.enter(); err != nil {
		p.mu.Unlock()
		return true, noError(err)
	}
	p.mu.Unlock()
	defer p.work.Done()
	for _, i := range rest {
		if _, known := t.Piece(i); !known {
			return false, p.trust(t)
		}
		p.check(i)
	}
	return false, nil
}

// sum returns the SHA-1 of [from, to) as it lies in the file. The caller has entered.
func (p *Partial) sum(from, to int64) (sum [sha1.Size]byte, err error) {
	if sum, err = sumOf(p.file, from, to); err != nil {
		err = fmt.Errorf("read back blob %s: %w", p.digest, err)
	}
	return sum, err
}

// sumOf returns the SHA-1 of [from, to) of f.
func sumOf(f *os.File, from, to int64) (sum [sha1.Size]byte, err error) {
	h := sha1.New()
	if err := hashOf(h, f, from, to); err != nil {
		return sum, err
	}
	return [sha1.Size]byte(h.Sum(nil)), nil
}

// hashOf feeds [from, to) of f to h.
func hashOf(h hash.Hash, f *os.File, from, to int64) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	_, err := io.CopyBuffer(h, struct{ io.Reader }{io.NewSectionReader(f, from, to-from)}, *buf)
	return err
}
