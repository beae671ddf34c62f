package layers

import (
	"context"
	"crypto/sha1"
	"fmt"
	"io"
	"os"
)

// maxSpan is how much a reader hands to sendfile at once: little enough for what has been
// found right to be sent soon after, and for the end of its context to be noticed; enough
// for the calls not to show.
const maxSpan = 256 << 10

// NewReader returns a reader of the n bytes from off, in order; Read blocks until
// some are here. Verified bytes flow at once. Bytes appended without metainfo flow
// too, but the last byte of the section is held back until all of it is verified,
// and the last byte of the blob until the whole digest is: so whoever gets io.EOF
// has the right bytes, and whoever was given a wrong byte gets an error.
//
// Read returns the Partial's error when it fails, ErrMismatch when bytes it gave out
// were found wrong, and ctx's error when ctx ends. The reader implements io.WriterTo
// and lets a TCP connection take the bytes by sendfile. It must be closed; while it
// is open the blob, once whole, is not evicted.
func (p *Partial) NewReader(ctx context.Context, off, n int64) io.ReadCloser {
	return p.newReader(ctx, off, n)
}

func (p *Partial) newReader(ctx context.Context, off, n int64) *reader {
	r := &reader{p: p, ctx: ctx, start: off, off: off, end: off + n, seen: off}
	p.mu.Lock()
	defer p.mu.Unlock()
	if off < 0 || n < 0 || n > p.size-off {
		r.err = fmt.Errorf("read %d bytes at %d of blob %s, which has %d", n, off, p.digest, p.size)
	}
	p.readers[r] = struct{}{}
	return r
}

// reader reads a section of a Partial. One goroutine at a time calls it, but the
// Partial looks at and changes what p.mu guards.
type reader struct {
	p     *Partial
	ctx   context.Context // of the one request that this reader is part of
	start int64
	end   int64
	file  *os.File // its own, so that sendfile may move its offset
	blob  *Blob    // what file is of, if it was whole already
	sound int64    // bytes before it have been looked at, see check

	// Guarded by p.mu.
	off     int64
	seen    int64 // bytes before it may have been given out
	waiting bool
	closed  bool
	err     error // why it may not go on
}

// Read implements io.Reader.
func (r *reader) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := r.wait(int64(len(b)))
	if err == nil {
		err = r.check(n)
	}
	if err != nil {
		return 0, err
	}
	got, err := r.readFile(b[:n], r.off)
	if got == 0 {
		return 0, r.readError(err)
	}
	r.advance(int64(got))
	return got, nil
}

// WriteTo implements io.WriterTo. It copies from a file, which a TCP connection takes
// by sendfile.
func (r *reader) WriteTo(w io.Writer) (written int64, err error) {
	for {
		n, err := r.wait(maxSpan)
		if err == io.EOF {
			return written, nil
		}
		if err == nil {
			err = r.check(n)
		}
		if err != nil {
			return written, err
		}
		if r.p.shelved != nil || r.blob != nil && r.blob.entry.shelved {
			got, err := copyThrough(w, r)
			return written + got, err
		}
		if _, err := r.file.Seek(r.off, io.SeekStart); err != nil {
			return written, r.readError(err)
		}
		got, err := copySome(w, r.file, n)
		written += got
		r.advance(got)
		if err == nil && got < n {
			err = r.readError(io.EOF)
		}
		if err != nil {
			return written, r.p.store.read(err)
		}
	}
}

// check returns nil if the next n bytes are what they were when they came. Somebody may have
// damaged the file since they were hashed, be it for the blob's digest, which no other way
// tells: as long as the file is written to, its mtime is that of our own writes.
func (r *reader) check(n int64) error {
	p, pl := r.p, PieceLength(r.p.size)
	for p.shelved == nil && r.sound < r.off+n {
		i := int(max(r.off, r.sound) / pl)
		want, turn, known := p.knows(i)
		if !known {
			break
		}
		from, to := pieceSpan(p.size, i)
		same, err := want.matches(r.file, from, to)
		if err != nil {
			return p.store.read(fmt.Errorf("read back blob %s: %w", p.digest, err))
		}
		if !same {
			if _, now, _ := p.knows(i); now != turn {
				continue // by another torrent it may be right
			}
			err := fmt.Errorf("blob %s, as it arrives: piece %d: %w", p.digest, i, errRotten)
			p.Fail(err)
			return err
		}
		r.sound = to
	}
	return p.checkFor(clients, r.file, r.off, n)
}

// knows returns what piece i was if it is here and verified, or at least hashed, and the
// blob has no name yet; turn changes when that does.
func (p *Partial) knows(i int) (was checksum, turn int, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.named != nil:
	case p.torrent == nil:
		if known = (i+1)*sha1.Size <= len(p.sums); known {
			was.sha1 = [sha1.Size]byte(p.sums[i*sha1.Size:])
		}
	case p.have.has(i):
		was.sha1, known = p.torrent.Piece(i)
		was.crc, was.quick = p.crcs.get(i)
	}
	return was, p.turn, known
}

// copySome copies n bytes of f to w, or up to the end of f.
func copySome(w io.Writer, f *os.File, n int64) (int64, error) {
	some := &io.LimitedReader{R: f, N: n} // the form in which net knows a file
	if to, ok := w.(io.ReaderFrom); ok {
		return to.ReadFrom(some)
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	return io.CopyBuffer(w, some, *buf)
}

// ReadAt reads again what has been given out, also when the Partial has failed. It returns
// ErrMismatch once some of that was found wrong: then other bytes may lie there now.
func (r *reader) ReadAt(b []byte, off int64) (int, error) {
	if r.file == nil {
		return 0, r.readError(io.EOF)
	}
	n, err := r.readFile(b, off)
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	if r.err != nil {
		return 0, r.err
	}
	return n, err
}

// readFile reads from the file, which if it is the shelf's must still be as it was.
func (r *reader) readFile(b []byte, off int64) (int, error) {
	if r.p.shelved != nil {
		return readUnchanged(r.file, *r.p.shelved, b, off)
	}
	if r.blob != nil && r.blob.entry.shelved {
		return r.blob.ReadAt(b, off)
	}
	n, err := r.file.ReadAt(b, off)
	return n, r.p.store.read(err)
}

// advance notes that n bytes have been given out.
func (r *reader) advance(n int64) {
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	r.off += n
}

// readError is what a failed read from the file ends with.
func (r *reader) readError(err error) error {
	if err == nil || err == io.EOF {
		err = errLost
	}
	return fmt.Errorf("read blob %s at %d: %w", r.p.digest, r.off, err)
}

// wait returns how many bytes from r.off on, at most limit, may be given out now, once
// there are some, with r.file open. At the end of the section it returns io.EOF.
func (r *reader) wait(limit int64) (int64, error) {
	for {
		n, moved, err := r.ready(limit)
		if n > 0 && r.file == nil {
			r.file, r.blob, err = r.p.openFile()
		}
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-moved:
		case <-r.ctx.Done():
		}
	}
}

// ready returns how many bytes may be given out, and if none, what to wait for.
func (r *reader) ready(limit int64) (n int64, moved <-chan struct{}, err error) {
	p := r.p
	p.mu.Lock()
	defer p.mu.Unlock()
	n, err = r.allowed(limit)
	r.want(n == 0 && err == nil)
	if n == 0 && err == nil {
		moved = p.moved.wait()
	}
	return n, moved, err
}

// allowed returns how many bytes may be given out. p.mu is held.
func (r *reader) allowed(limit int64) (int64, error) {
	p := r.p
	left := min(limit, r.end-r.off)
	switch {
	case r.closed:
		return 0, os.ErrClosed
	case r.err != nil:
		return 0, r.err
	case r.off == r.end:
		return 0, io.EOF
	case r.ctx.Err() != nil:
		return 0, r.ctx.Err()
	case p.whole:
		return left, nil
	case p.err != nil:
		return 0, p.err
	case p.torrent == nil:
		// Nothing is verified, so the last byte stays here.
		n := max(0, min(left, p.prefix-r.off, r.end-1-r.off))
		r.seen = max(r.seen, r.off+n)
		return n, nil
	}
	n := min(left, p.verifiedFrom(r.off, left))
	if n > 0 && r.off+n == r.end && (r.end == p.size || !p.vouchedFor(r.start, r.seen)) {
		n--
	}
	r.seen = max(r.seen, r.off+n) // the torrent may be replaced by one that disagrees
	return n, nil
}

// verifiedFrom returns how many bytes from off on are in verified pieces, counting no
// further than limit needs. p.mu is held.
func (p *Partial) verifiedFrom(off, limit int64) int64 {
	pl := p.torrent.PieceLength()
	end := off
	for i := int(off / pl); end < off+limit && i < p.torrent.Pieces() && p.have.has(i); i++ {
		_, end = pieceSpan(p.size, i)
	}
	return end - off
}

// vouchedFor tells whether all of [from, to) is in pieces verified by a torrent that is
// complete. As long as one grows, who makes it has not seen the whole digest himself.
// p.mu is held.
func (p *Partial) vouchedFor(from, to int64) bool {
	return p.torrent.Metainfo() != nil && p.verifiedFrom(from, to-from) >= to-from
}

// want notes whether the reader waits at r.off. p.mu is held.
func (r *reader) want(waiting bool) {
	if r.waiting != waiting {
		r.waiting = waiting
		r.p.wants.fire()
	}
}

// Close implements io.Closer. It may be called twice.
func (r *reader) Close() error {
	p := r.p
	p.mu.Lock()
	closed := r.closed
	r.closed = true
	r.want(false)
	delete(p.readers, r)
	pin := p.takePin()
	p.mu.Unlock()
	if pin != nil {
		p.store.unpin(pin)
	}
	switch {
	case closed:
		return nil
	case r.blob != nil:
		return r.blob.Close()
	case r.file != nil:
		return r.file.Close()
	}
	return nil
}

// takePin returns the pin on the whole blob when no reader needs it any more. p.mu is
// held.
func (p *Partial) takePin() *entry {
	if len(p.readers) > 0 {
		return nil
	}
	pin := p.pin
	p.pin = nil
	return pin
}
