package layers

import (
	"context"
	"fmt"
	"io"
)

// fillBuffer is the bytes read at once where there are no pieces: large enough
// that the disk's and the follower's wake-ups do not count.
const fillBuffer = 256 << 10

// Fill brings what p lacks by bodies that open returns: the blob from byte off
// on, as an HTTP range request yields it. It returns nil when nothing is
// missing any more, ErrPieces when a torrent came while bytes were taken in
// order (p is then better filled by pieces), else the first error of open, of
// a body, or of p. Bodies that end early are io.ErrUnexpectedEOF.
//
// Pieces are checked by p's torrent as far as it knows their hashes. Where it
// does not, p goes on without it: nobody can tell how soon they would come.
//
// download, if not nil, holds the bodies to a rate. received, if not nil, is
// told of bytes as they come in. When ctx ends the body at hand is closed.
func Fill(ctx context.Context, p *Partial, open func(ctx context.Context, off int64) (io.ReadCloser, error), download *Limiter, received func(n int)) error {
	if received == nil {
		received = func(int) {}
	}
	for {
		if err := judged(ctx, p); err != nil {
			return err
		}
		off, n, ok := p.Gap(0)
		if !ok {
			if done, err := p.settled(); done || err != nil {
				return err
			}
			continue
		}
		if t := p.Torrent(); t != nil && !t.knows(off) {
			if err := p.trust(t); err != nil {
				return err
			}
			continue
		}
		body, err := open(ctx, off)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { body.Close() }) // it may have been opened in another's name
		err = take(p, Limited(ctx, body, download), off, off+n, received)
		stop()
		body.Close()
		if err != nil {
			return fmt.Errorf("blob from byte %d: %w", off, err)
		}
	}
}

// judged waits until it is known which pieces on disk are good.
func judged(ctx context.Context, p *Partial) error {
	if p.Torrent() == nil {
		return nil
	}
	select {
	case <-p.Checked():
		return nil
	case <-p.Done():
		return p.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// take takes what body has from off to end, or less if what was here turns out wrong.
func take(p *Partial, body io.Reader, off, end int64, received func(int)) error {
	var buf []byte
	for off < end {
		t := p.Torrent()
		if t == nil {
			n, err := takeInOrder(p, &buf, body, off, end, received)
			if err != nil || n < 0 {
				return err
			}
			off += n
			continue
		}
		if !t.knows(off) {
			if err := p.trust(t); err != nil {
				return err
			}
			continue
		}
		i := int(off / t.PieceLength())
		piece := grown(&buf, t.PieceSize(i))
		if _, err := io.ReadFull(body, piece); err != nil {
			return noEOF(err)
		}
		received(len(piece))
		if err := p.WritePiece(i, piece); err != nil {
			return err
		}
		off += int64(len(piece))
	}
	return nil
}

// takeInOrder appends the next n bytes of body, which is at off. n is -1 if bytes before
// off are missing, so that body is of no use.
func takeInOrder(p *Partial, buf *[]byte, body io.Reader, off, end int64, received func(int)) (n int64, err error) {
	b := grown(buf, fillBuffer)
	if end < p.Size() { // else the blob's end is the body's, or the registry has to be told off
		b = b[:min(fillBuffer, end-off)]
	}
	got, err := body.Read(b)
	received(got)
	n = int64(got)
	here := p.Prefix() - off // bytes from off on that have been here before
	if here < 0 {
		return -1, nil
	}
	if n > here {
		if err := p.Append(b[here:n]); err != nil {
			return n, err
		}
	}
	if err == io.EOF {
		err = nil
		if off+n < end {
			err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

// grown returns n bytes of buf, which it makes longer if need be.
func grown(buf *[]byte, n int64) []byte {
	if int64(len(*buf)) < n {
		*buf = make([]byte, n)
	}
	return (*buf)[:n]
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
