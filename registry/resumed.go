package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// asker asks an upstream for a blob from byte off on; size in bytes is that of all of
// the blob, or -1 where the upstream does not tell it.
type asker func(ctx context.Context, off int64) (body io.ReadCloser, size int64, err error)

// resumed is a blob's body that goes on at the same byte, by another question, when an
// answer breaks off. Nobody else can: what is passed on is kept nowhere.
type resumed struct {
	ctx    context.Context // ends at Close
	cancel context.CancelFunc
	from   asker
	size   int64 // of the blob in bytes; -1 = unknown
	at     int64 // the next byte
	tries  int   // since bytes came last

	mu     sync.Mutex // guards the two below: Close comes from elsewhere
	body   io.ReadCloser
	closed bool
}

// resumeTries is how often in a row a blob is asked for anew without a byte of it.
const resumeTries = 3

// openResumed asks for a blob from byte off on.
func openResumed(ctx context.Context, off int64, from asker) (*resumed, error) {
	ctx, cancel := context.WithCancel(ctx)
	body, size, err := from(ctx, off)
	if err != nil {
		cancel()
		return nil, err
	}
	return &resumed{ctx: ctx, cancel: cancel, from: from, size: size, at: off, body: body}, nil
}

// Read implements io.Reader.
func (r *resumed) Read(b []byte) (int, error) {
	for {
		body, err := r.current()
		if err != nil {
			return 0, err
		}
		n, err := body.Read(b)
		r.at += int64(n)
		switch {
		case n > 0:
			r.tries = 0
			return n, nil // the error comes again
		case err == nil:
			return 0, nil
		case r.size >= 0 && r.at >= r.size, r.size < 0 && err == io.EOF:
			return 0, io.EOF
		}
		if err := r.again(noEOF(err)); err != nil {
			return 0, err
		}
	}
}

// again asks for the rest. The error is cause, of what came before, where that does not help.
func (r *resumed) again(cause error) error {
	for {
		if r.tries == resumeTries {
			return cause
		}
		select {
		case <-time.After(time.Duration(r.tries) * 200 * time.Millisecond):
		case <-r.ctx.Done():
			return cause
		}
		r.tries++
		body, size, err := r.from(r.ctx, r.at)
		switch {
		case err == nil && size >= 0 && r.size >= 0 && size != r.size:
			body.Close()
			return fmt.Errorf("%w; asked again: %d bytes, not %d", cause, size, r.size)
		case err == nil:
			return r.take(body)
		case Refused(err):
			return fmt.Errorf("%w; asked again: %w", cause, err)
		}
	}
}

// take goes on with another body.
func (r *resumed) take(body io.ReadCloser) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.Join(os.ErrClosed, body.Close())
	}
	r.body.Close() // it has failed before
	r.body = body
	return nil
}

func (r *resumed) current() (io.Reader, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, os.ErrClosed
	}
	return r.body, nil
}

// Close implements io.Closer. It may be called while Read waits.
func (r *resumed) Close() error {
	r.cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return r.body.Close()
}
