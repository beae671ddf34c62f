package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What happens when the layout's folder goes away under a running store: somebody deletes
// it, or unmounts its disk. What is open stays readable, and what arrives goes past the
// store, until the folder is there again. A deleted one the store makes again itself; but
// where a disk was mounted it does not fill the one below.

// mountOf returns the mount point that dir lies on, or would if it were made.
func mountOf(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	for err == nil {
		var is string
		if is, err = filepath.EvalSymlinks(dir); err == nil {
			dir = is
			break
		}
		if errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
			dir, err = filepath.Dir(dir), nil
		}
	}
	for err == nil && dir != filepath.Dir(dir) {
		var crosses bool
		if crosses, err = isMount(dir); crosses {
			break
		}
		dir = filepath.Dir(dir)
	}
	return dir, err
}

// isMount tells whether dir is on another device than the folder above it.
func isMount(dir string) (bool, error) {
	has, err := device(dir)
	if err != nil || dir == filepath.Dir(dir) {
		return err == nil, err
	}
	above, err := device(filepath.Dir(dir))
	return has != above, err
}

// stands tells whether the layout's folders are there.
func (s *Store) stands() bool {
	if !s.sameDir() {
		return false
	}
	for _, dir := range []string{s.partialDir(), filepath.Dir(s.torrentPath(digest.Canonical.FromString(""))), filepath.Join(s.dir, ocispec.ImageBlobsDir)} {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
}

// sameDir tells whether the layout's folder is the one that has been locked, as far as
// that can be told.
func (s *Store) sameDir() bool {
	if s.locked == nil {
		return false
	}
	is, err := os.Stat(s.dir)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	was, err := s.locked.Stat()
	return err != nil || os.SameFile(is, was)
}

// restore sees to it that the layout's folder is there and agrees with what is known of
// it. It is called again and again, by one goroutine.
func (s *Store) restore() {
	if s.stands() && !s.vanished {
		return
	}
	if err := s.remake(); err != nil {
		if !s.vanished {
			s.ail(fmt.Errorf("folder of the cache is gone: %w", err))
		}
		s.vanished = true
		return
	}
	s.vanished = false
	s.log.Warn("folder of the cache was gone and has been made again", "dir", s.dir, "blobs", s.Usage().Blobs)
}

var errUnmounted = errors.New("its disk is not mounted")

func (s *Store) remake() error {
	if mounted, err := isMount(s.mount); err != nil || !mounted {
		return errors.Join(errUnmounted, err)
	}
	if err := s.makeLayout(); err != nil {
		return err
	}
	if !s.sameDir() {
		old := s.locked
		if err := s.lockDir(); err != nil {
			return err
		}
		if old != nil {
			old.Close()
		}
	}
	s.recount()
	s.pinning.Lock()
	defer s.pinning.Unlock()
	if len(s.pins) > 0 {
		if err := s.writePins(s.pins); err != nil {
			return err
		}
	}
	s.index.again()
	return nil
}

// recount forgets blobs that are not on disk, and learns of those that are.
func (s *Store) recount() {
	for _, info := range s.Blobs() {
		if info.Shelved {
			continue
		}
		if _, err := os.Lstat(s.blobPath(info.Digest)); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		s.mu.Lock()
		e := s.blobs[info.Digest]
		s.mu.Unlock()
		if e == nil {
			continue
		}
		s.forget(e)
		if s.onEvict != nil {
			s.told.put(info.Digest, false) // whoever has it open keeps its bytes on the disk
		}
	}
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		eachFile(filepath.Join(s.dir, ocispec.ImageBlobsDir, alg.String()), func(fi fs.FileInfo) error {
			if d, ok := blobOf(alg, fi); ok {
				s.learn(d, fi)
			}
			return nil
		})
	}
}

// learn takes a blob that lies on disk under its name into the maps, unless it is there.
func (s *Store) learn(d digest.Digest, fi fs.FileInfo) {
	s.names.Lock()
	defer s.names.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blobs[d] != nil {
		return
	}
	e := &entry{digest: d, size: fi.Size(), used: lastUse(fi), touched: lastUse(fi)}
	s.blobs[d] = e
	s.bytes += e.size
	if s.held[d] == 0 {
		s.idleAgain(e)
	}
}
