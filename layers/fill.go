package layers

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/time/rate"
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
// download, if not nil, holds the bodies to a rate. received, if not nil, is told of bytes as they come in. When ctx ends, open's
// bodies must fail.
func Fill(ctx context.Context, p *Partial, open func(ctx context.Context, off int64) (io.ReadCloser, error), download *rate.Limiter, received func(n int)) error {
	if received == nil {
		received = func(int) {}
	}
	if err := judged(ctx, p); err != nil {
		return err
	}
	for {
		off, n, ok := p.Gap(0)
		if !ok {
			return nil
		}
		body, err := open(ctx, off)
		if err != nil {
			return err
		}
		limited := Limited(ctx, body, download)
		if t := p.Torrent(); t != nil {
			err = takePieces(p, t, limited, off, n, received)
		} else {
			err = takeInOrder(p, limited, received)
		}
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

func takeInOrder(p *Partial, body io.Reader, received func(int)) error {
	buf := make([]byte, fillBuffer)
	for p.Prefix() < p.Size() {
		n, err := body.Read(buf)
		received(n)
		if n > 0 {
			if err := p.Append(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF && p.Prefix() < p.Size() {
			return io.ErrUnexpectedEOF
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// takePieces takes the pieces of the n bytes from off, the start of a piece.
func takePieces(p *Partial, t *Torrent, body io.Reader, off, n int64, received func(int)) error {
	buf := make([]byte, min(t.PieceLength(), n))
	for end := off + n; off < end; {
		i := int(off / t.PieceLength())
		piece := buf[:t.PieceSize(i)]
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

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
