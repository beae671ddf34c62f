package layers

import (
	"errors"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Errors of a Store and of its Partials; ask with errors.Is.
var (
	// ErrNotFound: the store has no such whole blob or manifest.
	ErrNotFound = errors.New("blob not found")
	// ErrMismatch: bytes are not what their digest, or their piece's hash, says.
	ErrMismatch = errors.New("content does not match its digest")
	// ErrWhole: Partial was asked for a blob that is whole already; use Open.
	ErrWhole = errors.New("blob is whole already")
	// ErrSize: the blob is arriving under the same digest with another size.
	ErrSize = errors.New("blob is arriving with another size")
	// ErrPieces: Append was called after SetMetainfo; WritePiece from now on.
	ErrPieces = errors.New("blob arrives by pieces")
	// ErrClosed: the store has been closed.
	ErrClosed = errors.New("store is closed")
)

// StoreConfig says where a Store lives and how large it may grow.
type StoreConfig struct {
	// Dir is the root of the OCI image layout. It is made if it is missing.
	Dir string
	// Limit is how many bytes of blobs are kept; 0 is no limit. The least
	// recently used goes first, and never one that is open. What arrives counts
	// too, and the limit is kept to within one blob.
	Limit int64
	// Log is where the store reports; nil is slog.Default().
	Log *slog.Logger
	// OnEvict is told of each blob that went to make room, after it has gone,
	// so that its owner can leave the swarm. It is called without locks held,
	// one blob at a time, and may call the store. Remove does not call it.
	// May be nil.
	OnEvict func(d digest.Digest)
}

// Store is whole blobs on disk under their digests, and the Partials of those
// that are arriving. It is safe for concurrent use by one process.
type Store struct {
}

// OpenStore opens the layout under cfg.Dir or begins one. What lies there is
// believed, not hashed again; stale temporary files, and partial blobs that
// nobody has touched for a day, are removed.
func OpenStore(cfg StoreConfig) (*Store, error) { panic("not yet") }

// Open opens a whole blob, which counts as use, or returns ErrNotFound. The blob
// is not evicted before Close or Unpin.
func (s *Store) Open(d digest.Digest) (*Blob, error) { panic("not yet") }

// Stat returns the size in bytes of a whole blob. It does not count as use.
func (s *Store) Stat(d digest.Digest) (size int64, ok bool) { panic("not yet") }

// Remove removes a whole blob, its metainfo and its place in the index; blobs
// that are open stay readable. It returns ErrNotFound when there is none.
func (s *Store) Remove(d digest.Digest) error { panic("not yet") }

// Partial returns the arriving blob d of size bytes: the same pointer to all who
// ask while it lives. One that was left half done, by a Partial that failed or by
// an earlier run, is gone on with where it stood.
//
// It returns ErrWhole when the blob is in the store, ErrSize when it is arriving
// with another size, and otherwise the disk's error as it is (ENOSPC, EROFS, ...):
// then nothing is left behind, and the caller had best stream past the store.
func (s *Store) Partial(d digest.Digest, size int64) (*Partial, error) { panic("not yet") }

// Manifest returns a manifest that PutManifest stored, with the media type it had,
// or ErrNotFound. It counts as use.
func (s *Store) Manifest(d digest.Digest) (ocispec.Descriptor, []byte, error) { panic("not yet") }

// PutManifest stores a manifest and names it in index.json, under ref too when ref
// is not empty; an older manifest loses the ref then. ErrMismatch when content is
// not what desc says. index.json is written soon after, many changes at once; see
// Sync.
func (s *Store) PutManifest(desc ocispec.Descriptor, content []byte, ref string) error {
	panic("not yet")
}

// Sync writes index.json if it has changed since it was last written.
func (s *Store) Sync() error { panic("not yet") }

// Metainfo returns the metainfo of a whole blob, made from its bytes if it is not
// saved (as slow as reading the blob), or ErrNotFound.
func (s *Store) Metainfo(d digest.Digest) (*Metainfo, error) { panic("not yet") }

// Blobs lists the whole blobs, the most recently used first.
func (s *Store) Blobs() []BlobInfo { panic("not yet") }

// Usage returns what the store holds now.
func (s *Store) Usage() Usage { panic("not yet") }

// Close fails what is arriving with ErrClosed (it can be resumed by the next
// OpenStore), writes index.json and waits until all is at rest. It may be called
// twice. Blobs that are open stay readable.
func (s *Store) Close() error { panic("not yet") }

// BlobInfo is one whole blob in a Store.
type BlobInfo struct {
	Digest digest.Digest
	Size   int64     // bytes
	Used   time.Time // last opened; over a restart, exact to a minute
}

// Usage is how full a Store is.
type Usage struct {
	Bytes     int64 // of whole blobs
	Arriving  int64 // bytes of blobs that are not whole yet
	Limit     int64 // bytes; 0 is no limit
	Blobs     int   // whole blobs
	Evictions int64 // blobs removed to make room since OpenStore
}
