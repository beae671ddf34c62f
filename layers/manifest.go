package layers

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/opencontainers/go-digest"
)

// Manifest returns a manifest that PutManifest stored, with the media type it had,
// or ErrNotFound. It counts as use.
func (s *Store) Manifest(d digest.Digest) (ocispec.Descriptor, []byte, error) {
	desc, ok := s.index.get(d)
	if !ok {
		return ocispec.Descriptor{}, nil, fmt.Errorf("manifest %s: %w", d, ErrNotFound)
	}
	content, err := s.readAll(d)
	if err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("manifest %w", err)
	}
	if int64(len(content)) == desc.Size && d.Algorithm().FromBytes(content) == d {
		return desc, content, nil
	}
	// Manifests are small enough to be looked at each time; a bad one is asked again.
	s.log.Error("stored manifest is damaged, removing it", "digest", d)
	if err := s.Remove(d); err != nil && !errors.Is(err, ErrNotFound) {
		return ocispec.Descriptor{}, nil, err
	}
	return ocispec.Descriptor{}, nil, fmt.Errorf("manifest %s: %w", d, ErrNotFound)
}

func (s *Store) readAll(d digest.Digest) ([]byte, error) {
	b, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return io.ReadAll(b.File())
}

// PutManifest stores a manifest and names it in index.json, under ref too when ref
// is not empty; an older manifest loses the ref then. ErrMismatch when content is
// not what desc says. index.json is written soon after, many changes at once; see
// Sync.
func (s *Store) PutManifest(desc ocispec.Descriptor, content []byte, ref string) error {
	if err := checkDigest(desc.Digest); err != nil {
		return err
	}
	if desc.Size != int64(len(content)) || desc.Digest.Algorithm().FromBytes(content) != desc.Digest {
		return fmt.Errorf("manifest %s: %w", desc.Digest, ErrMismatch)
	}
	if hangs, _, _ := s.patience.state(); hangs {
		return ErrHangs
	}
	e := s.pin(desc.Digest)
	if e != nil && e.shelved { // the layout has its manifests itself
		s.unpin(e)
		e = nil
	}
	if e == nil {
		var err error
		if e, err = s.putBlob(desc.Digest, content); err != nil {
			return fmt.Errorf("store manifest %s: %w", desc.Digest, err)
		}
	}
	s.use(e)
	// The pin keeps evictions out, and names a Remove: the index must not name a blob
	// that has gone.
	s.names.Lock()
	if s.has(e) {
		s.index.put(desc, ref)
	}
	s.names.Unlock()
	s.unpin(e)
	return nil
}

// NameManifest notes that ref stands for a manifest, if that is here. An older one loses
// the ref.
func (s *Store) NameManifest(d digest.Digest, ref string) {
	s.index.name(d, ref)
}

// Named returns the manifest that ref stood for last, as far as that is here.
func (s *Store) Named(ref string) (digest.Digest, bool) { return s.index.named(ref) }

// has tells whether an entry is still in the store.
func (s *Store) has(e *entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !e.gone
}

// putBlob stores a blob that is in memory and verified, and pins it.
func (s *Store) putBlob(d digest.Digest, content []byte) (*entry, error) {
	s.names.Lock()
	err := s.makeSpace(int64(len(content)))
	s.names.Unlock()
	if err != nil {
		s.ail(err)
		return nil, err
	}
	over := s.patience.call()
	temp, err := createTemp(s.partialDir(), content, func(f *os.File) error {
		over() // an fsync may take long
		return f.Sync()
	})
	over()
	if err != nil {
		s.ail(err)
		return nil, err
	}
	e, err := s.adopt(d, int64(len(content)), temp, 0)
	if err != nil {
		s.ail(err)
		os.Remove(temp)
	}
	return e, err
}

// adopt gives the file at path, which is on disk and verified, the blob's name, and
// pins the blob. arrived of its bytes were counted as arriving.
func (s *Store) adopt(d digest.Digest, size int64, path string, arrived int64) (*entry, error) {
	to := s.blobPath(d)
	dir := filepath.Dir(to)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	s.names.Lock()
	err := os.Rename(path, to)
	var e *entry
	if err == nil {
		e = s.add(d, size, arrived)
		if fi, err := os.Lstat(to); err == nil && arrived > 0 {
			e.proof.cameRight(fi)
		} else if err == nil { // it was written in one go
			e.proof.found(fi)
		}
	}
	s.names.Unlock()
	if err != nil {
		return nil, err
	}
	if err := syncDir(dir); err != nil {
		// The blob is there; a power failure now may cost it.
		s.ail(fmt.Errorf("name of blob %s may not be on disk: %w", d, err))
	}
	s.works()
	return e, nil
}

// Sync writes index.json if it has changed since it was last written.
func (s *Store) Sync() error { return s.index.write() }
