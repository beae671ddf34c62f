package registry

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
)

// Readable is an [OpenBlob] that can tell again what its section has given out.
type Readable interface {
	OpenBlob
	// ReadAt reads bytes of the blob that Section has given out, the very same ones, or
	// returns an error.
	io.ReaderAt
}

// Carried is a blob out of the cache that goes on when the cache fails in mid-answer: the
// client is given the rest from an upstream, from the byte where it stands. The digest is
// checked over all bytes, those that it has been given and those before its section too,
// and the last ones are held back until that is found right.
type Carried struct {
	Readable
	Digest digest.Digest
	// Lost tells whether the error of a section is the cache's fault.
	Lost func(err error) bool
	// From asks an upstream for the blob from byte off on, in the client's name.
	From func(ctx context.Context, off int64) (body io.ReadCloser, size int64, err error)
	// OnCarry, if not nil, is told why the cache was left.
	OnCarry func(err error)

	rest *Stream // what the client is given instead; nil = the cache works
}

// Section implements [OpenBlob]. It is called once.
func (c *Carried) Section(ctx context.Context, off, n int64) io.Reader {
	return &carrying{Carried: c, ctx: ctx, own: c.Readable.Section(ctx, off, n), start: off, at: off, end: off + n}
}

// Close implements [OpenBlob].
func (c *Carried) Close() error {
	err := c.Readable.Close()
	if c.rest != nil {
		err = errors.Join(err, c.rest.Close())
	}
	return err
}

// Over tells whether an upstream had to stand in.
func (c *Carried) Over() bool { return c.rest != nil }

// carrying is the section of a Carried.
type carrying struct {
	*Carried
	ctx            context.Context // of the one request that this reader is part of
	own            io.Reader       // the cache's section
	instead        io.Reader       // the upstream's; nil = the cache works
	start, at, end int64
}

// Read implements io.Reader.
func (r *carrying) Read(b []byte) (int, error) {
	if r.instead != nil {
		return r.instead.Read(b)
	}
	n, err := r.own.Read(b)
	r.at += int64(n)
	if n > 0 || !r.lost(err) {
		return n, err
	}
	if err := r.carry(err); err != nil {
		return 0, err
	}
	return r.instead.Read(b)
}

// WriteTo implements io.WriterTo: the cache's own way to sendfile stays open.
func (r *carrying) WriteTo(w io.Writer) (written int64, err error) {
	if r.instead == nil {
		written, err = io.Copy(w, r.own)
		r.at += written
		if err == nil {
			err = io.EOF
		}
		if !r.lost(err) {
			return written, noErrorAtEnd(err)
		}
		if err := r.carry(err); err != nil {
			return written, err
		}
	}
	n, err := io.Copy(w, r.instead)
	return written + n, err
}

func noErrorAtEnd(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// lost tells whether the cache has failed: by an error, or by an end too early.
func (r *carrying) lost(err error) bool {
	return r.at < r.end && r.ctx.Err() == nil && (err == io.EOF || err != nil && r.Lost(err))
}

// carry takes the rest from an upstream.
func (r *carrying) carry(cause error) error {
	if r.OnCarry != nil {
		r.OnCarry(cause)
	}
	verifier := r.Digest.Verifier()
	if err := r.before(verifier); err != nil {
		return fmt.Errorf("%w; from an upstream: %w", cause, err)
	}
	given := io.NewSectionReader(r.Readable, r.start, r.at-r.start)
	if _, err := io.CopyN(verifier, given, r.at-r.start); err != nil {
		return fmt.Errorf("%w; what has been sent cannot be read again: %w", cause, err)
	}
	body, err := r.open(r.at)
	if err != nil {
		return fmt.Errorf("%w; from an upstream: %w", cause, err)
	}
	r.rest = &Stream{body: body, size: r.Size() - r.at, verifier: verifier}
	r.instead = r.rest.Section(r.ctx, 0, r.end-r.at)
	return nil
}

// before hashes what comes before the section.
func (r *carrying) before(verifier io.Writer) error {
	if r.start == 0 {
		return nil
	}
	body, err := r.open(0)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.CopyN(verifier, body, r.start)
	return noEOF(err)
}

func (r *carrying) open(off int64) (io.ReadCloser, error) {
	body, err := openResumed(r.ctx, off, r.From)
	if err != nil {
		return nil, err
	}
	if body.size >= 0 && body.size != r.Size() {
		body.Close()
		return nil, fmt.Errorf("%d bytes there, %d promised", body.size, r.Size())
	}
	body.size = r.Size()
	return body, nil
}
