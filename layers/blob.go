package layers

import (
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// Blob is a whole blob, open for reading through a file descriptor of its own.
type Blob struct {
	store    *Store
	entry    *entry
	file     *os.File
	unpinned atomic.Bool

	metaOnce sync.Once // sets the two below
	meta     *Metainfo // what its pieces are judged by
	metaErr  error
}

// Digest returns the blob's digest.
func (b *Blob) Digest() digest.Digest { return b.entry.digest }

// Size returns the blob's length in bytes.
func (b *Blob) Size() int64 { return b.entry.size }

// File returns the open file, at offset 0 when the blob was opened. It is the
// caller's alone, so that its offset may move (sendfile does that); Close closes it. What
// is read from it has to be checked; see Check.
func (b *Blob) File() *os.File { return b.file }

// ReadAt implements io.ReaderAt. What it reads has been checked; see Check.
func (b *Blob) ReadAt(buf []byte, off int64) (int, error) {
	if off >= 0 && off < b.Size() {
		if err := b.Check(off, min(int64(len(buf)), b.Size()-off)); err != nil {
			return 0, err
		}
	}
	n, err := b.file.ReadAt(buf, off)
	if !b.entry.shelved {
		return n, b.store.read(err)
	}
	if n > 0 && !b.stillRight(off, int64(n)) {
		return 0, fmt.Errorf("blob %s at %d: %w", b.Digest(), off, errLost)
	}
	return n, err
}

// Copied returns b if its bytes must be read and then sent, and nil if File may be given
// to the kernel to send: on the Shelf somebody might change it before the kernel reads.
func (b *Blob) Copied() io.ReaderAt {
	if b.entry.shelved {
		return b
	}
	return nil
}

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
