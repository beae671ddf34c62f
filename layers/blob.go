package layers

import (
	"os"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// Blob is a whole blob, open for reading through a file descriptor of its own.
type Blob struct {
	store    *Store
	entry    *entry
	file     *os.File
	unpinned atomic.Bool
}

// Digest returns the blob's digest.
func (b *Blob) Digest() digest.Digest { return b.entry.digest }

// Size returns the blob's length in bytes.
func (b *Blob) Size() int64 { return b.entry.size }

// File returns the open file, at offset 0 when the blob was opened. It is the
// caller's alone, so that its offset may move (sendfile does that); Close closes it.
func (b *Blob) File() *os.File { return b.file }

// ReadAt implements io.ReaderAt.
func (b *Blob) ReadAt(buf []byte, off int64) (int, error) { return b.file.ReadAt(buf, off) }

// Unpin lets the store evict the blob although it is open; it stays readable, and
// its space is freed at Close. A swarm does this with what it shares, or the store
// could never evict a shared blob; StoreConfig.OnEvict tells when to let go.
func (b *Blob) Unpin() {
	if b.unpinned.CompareAndSwap(false, true) {
		b.store.unpin(b.entry)
	}
}

// Touch counts as use of the blob, as opening it does.
func (b *Blob) Touch() { b.store.use(b.entry) }

// Close closes the file and lets the store evict the blob. It may be called twice.
func (b *Blob) Close() error {
	err := b.file.Close()
	if b.unpinned.CompareAndSwap(false, true) {
		b.store.unpin(b.entry)
		return err
	}
	return nil
}
