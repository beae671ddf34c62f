package layers

import (
	"context"
	"io"
)

// Content is a blob being served to one client, whole or still arriving.
type Content struct {
	// Limit holds what is served to a rate; nil does not.
	Limit *Limiter

	size    int64
	section func(ctx context.Context, off, n int64) io.Reader
	given   io.ReaderAt // what section has given out
	closers []io.Closer
}

// Content serves b, and closes it in the end.
func (b *Blob) Content() *Content {
	return &Content{size: b.Size(), given: b, closers: []io.Closer{b}, section: func(_ context.Context, off, n int64) io.Reader {
		return &checkedReader{b, off, off + n}
	}}
}

// Content serves p while it arrives.
func (p *Partial) Content() *Content {
	c := &Content{size: p.Size()}
	c.section = func(ctx context.Context, off, n int64) io.Reader {
		r := p.newReader(ctx, off, n)
		c.closers = append(c.closers, r)
		c.given = r
		return r
	}
	return c
}

// Size returns the blob's length in bytes.
func (c *Content) Size() int64 { return c.size }

// Section returns the n bytes from off on, for one goroutine at a time.
func (c *Content) Section(ctx context.Context, off, n int64) io.Reader {
	return Limited(ctx, c.section(ctx, off, n), c.Limit)
}

// ReadAt reads again what the latest Section has given out: the very same bytes, or an error.
func (c *Content) ReadAt(b []byte, off int64) (int, error) { return c.given.ReadAt(b, off) }

// Close ends the serving.
func (c *Content) Close() error {
	for _, closer := range c.closers {
		closer.Close()
	}
	return nil
}
