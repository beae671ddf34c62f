package layers

import (
	"os"

	"github.com/opencontainers/go-digest"
)

// Blob is a whole blob, open for reading through a file descriptor of its own.
type Blob struct {
}

// Digest returns the blob's digest.
func (b *Blob) Digest() digest.Digest { panic("not yet") }

// Size returns the blob's length in bytes.
func (b *Blob) Size() int64 { panic("not yet") }

// File returns the open file, at offset 0 when the blob was opened. It is the
// caller's alone, so that its offset may move (sendfile does that); Close closes it.
func (b *Blob) File() *os.File { panic("not yet") }

// ReadAt implements io.ReaderAt.
func (b *Blob) ReadAt(buf []byte, off int64) (int, error) { panic("not yet") }

// Unpin lets the store evict the blob although it is open; it stays readable, and
// its space is freed at Close. A swarm does this with what it shares, or the store
// could never evict a shared blob; StoreConfig.OnEvict tells when to let go.
func (b *Blob) Unpin() { panic("not yet") }

// Touch counts as use of the blob, as opening it does.
func (b *Blob) Touch() { panic("not yet") }

// Close closes the file and lets the store evict the blob. It may be called twice.
func (b *Blob) Close() error { panic("not yet") }
