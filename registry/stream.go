package registry

import (
	"context"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
)

// errDigest is the end of a stream whose bytes are not what was asked for.
var errDigest = errors.New("content does not match its digest")

// Stream is an [OpenBlob] that passes an upstream's body on without keeping
// it, for blobs that the cache cannot take. It can be read once.
type Stream struct {
	body     io.ReadCloser
	size     int64
	verifier digest.Verifier

	out  *io.PipeReader // nil before Section
	done chan struct{}
}

// Uncached is the error of a blob that cannot be kept, or not be shared with
// those who wait for it already: it is passed through instead, by a Stream that
// whoever gets the error has to close.
type Uncached struct {
	Stream *Stream
	Cause  error
}

func (u *Uncached) Error() string { return "blob is not cached: " + u.Cause.Error() }
func (u *Uncached) Unwrap() error { return u.Cause }

// Causes of an [Uncached].
var (
	ErrNoSize        = errors.New("the registry does not tell its size")
	ErrOtherRegistry = errors.New("it is arriving from another registry")
	ErrTooMany       = errors.New("too many blobs are arriving")
)

// PassThrough asks up for a blob and returns it as an [*Uncached], or the error.
// The stream outlives ctx, and goes on at the same byte when the answer breaks off.
func PassThrough(ctx context.Context, up Upstream, req Request, cause error) error {
	body, err := openResumed(context.WithoutCancel(ctx), 0, blobFrom(up, req))
	if err != nil {
		return err
	}
	return &Uncached{NewStream(body, body.size, req.Digest), cause}
}

// PassOn is PassThrough for who has asked already, from byte off on: body, which it takes
// over, begins the stream if it is all of the blob.
func PassOn(ctx context.Context, up Upstream, req Request, body io.ReadCloser, off, size int64, cause error) error {
	if off > 0 {
		body.Close()
		return PassThrough(ctx, up, req, cause)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	whole := &resumed{ctx: ctx, cancel: cancel, from: blobFrom(up, req), size: size, body: body}
	return &Uncached{NewStream(whole, size, req.Digest), cause}
}

// blobFrom asks up in the name of req's caller.
func blobFrom(up Upstream, req Request) asker {
	return func(ctx context.Context, off int64) (io.ReadCloser, int64, error) {
		return up.GetBlob(ctx, req.Repo, req.Digest, off, req.Authorization)
	}
}

// NewStream takes over body, which holds all of blob d; size in bytes is -1
// where the upstream does not tell it.
func NewStream(body io.ReadCloser, size int64, d digest.Digest) *Stream {
	return &Stream{body: body, size: size, verifier: d.Verifier()}
}

// Size implements [OpenBlob].
func (s *Stream) Size() int64 { return s.size }

// Close implements [OpenBlob].
func (s *Stream) Close() error {
	err := s.body.Close()
	if s.out != nil {
		s.out.Close()
		<-s.done
	}
	return err
}

// Section implements [OpenBlob]. What was read last is held back until all of
// the blob has been read and found right.
func (s *Stream) Section(_ context.Context, off, n int64) io.Reader {
	out, in := io.Pipe()
	s.out, s.done = out, make(chan struct{})
	go func() {
		defer close(s.done)
		in.CloseWithError(s.pass(in, off, n))
	}()
	return out
}

func (s *Stream) pass(w io.Writer, off, n int64) error {
	verified := io.TeeReader(s.body, s.verifier)
	if _, err := io.CopyN(io.Discard, verified, off); err != nil {
		return noEOF(err)
	}
	section := io.Reader(verified)
	if n >= 0 {
		section = io.LimitReader(verified, n)
	}
	last, err := copyAllButLast(w, section)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, verified); err != nil {
		return err
	}
	if !s.verifier.Verified() {
		return errDigest
	}
	_, err = w.Write(last)
	return err
}

// copyAllButLast copies src, but returns the last bytes that it read.
func copyAllButLast(w io.Writer, src io.Reader) (last []byte, err error) {
	var bufs [2][32 << 10]byte
	for i := 0; ; i ^= 1 {
		n, err := io.ReadFull(src, bufs[i][:])
		if n > 0 {
			if _, err := w.Write(last); err != nil {
				return nil, err
			}
			last = bufs[i][:n]
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return last, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
