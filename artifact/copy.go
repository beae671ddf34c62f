package artifact

import (
	"bufio"
	"context"
	"io"
	"sync"
)

const bufferSize = 256 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

func newWriter(w io.Writer) *bufio.Writer { return bufio.NewWriterSize(w, bufferSize) }

// copyTo copies r to w until its end or that of ctx, and tells count, which may be nil, of what it has copied.
func copyTo(ctx context.Context, w io.Writer, r io.Reader, count func(n int)) (total int64, err error) {
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	for {
		if ctx.Err() != nil {
			return total, context.Cause(ctx)
		}
		n, readErr := r.Read(*b)
		if n > 0 {
			if _, err := w.Write((*b)[:n]); err != nil {
				return total, err
			}
			total += int64(n)
			if count != nil {
				count(n)
			}
		}
		if readErr == io.EOF {
			return total, nil
		}
		if readErr != nil {
			return total, readErr
		}
	}
}
