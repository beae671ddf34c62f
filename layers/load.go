package layers

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// restKept is how long a partial blob that nobody goes on with is kept. An image that
// is still wanted is asked for again sooner, by the engine's own retries.
const restKept = 24 * time.Hour

// load reads the layout, or makes it. On a disk that takes nothing it is made later: a
// host whose disk is full when it starts must be able to pull all the same.
func (s *Store) load() error {
	switch err := s.makeLayout(); {
	case takesNothing(err):
		s.ail(err)
		s.vanished = true // see restore
	case err != nil:
		return err
	}
	if err := s.lockDir(); err != nil {
		return err
	}
	if err := s.loadBlobs(); err != nil {
		return err
	}
	if err := s.loadPartials(); err != nil {
		return err
	}
	if err := s.tidyTorrents(); err != nil {
		return err
	}
	var err error
	s.index, err = openIndex(filepath.Join(s.dir, ocispec.ImageIndexFile), s.partialDir(), s.log,
		func(d digest.Digest) bool { e, ok := s.blobs[d]; return ok && !e.shelved })
	return err
}

// errLocked is the error of a folder that another store has open.
var errLocked = errors.New("in use by another process")

// lockDir keeps a second daemon from evicting under this one.
func (s *Store) lockDir() error {
	f, err := os.Open(s.dir)
	if s.vanished && errors.Is(err, fs.ErrNotExist) {
		return nil // once it is there
	}
	if err != nil {
		return err
	}
	if err := lock(f); err != nil {
		return fmt.Errorf("%s: %w", s.dir, errors.Join(err, f.Close()))
	}
	s.locked = f
	return nil
}

// makeLayout makes what a layout has besides blobs, as far as it is missing: on a full
// or read-only disk a store with all it needs can still be opened.
func (s *Store) makeLayout() error {
	// What is cached may be private: who may read it on this host is up to the owner
	// of Dir, and by default only murder.
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	for _, sub := range []string{"blobs/sha256", "partial", "torrents"} {
		if err := os.MkdirAll(filepath.Join(s.dir, sub), 0o755); err != nil {
			return err
		}
	}
	path := filepath.Join(s.dir, ocispec.ImageLayoutFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return writeFile(s.partialDir(), path, []byte(`{"imageLayoutVersion":"`+ocispec.ImageLayoutVersion+`"}`))
	}
	if err != nil {
		return err
	}
	var layout ocispec.ImageLayout
	if err := json.Unmarshal(b, &layout); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if layout.Version != ocispec.ImageLayoutVersion {
		return fmt.Errorf("read %s: image layout version %q is not %s", path, layout.Version, ocispec.ImageLayoutVersion)
	}
	return nil
}

// loadBlobs lists the whole blobs and puts them in the order of their last use.
func (s *Store) loadBlobs() error {
	var list []*entry
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		dir := filepath.Join(s.dir, ocispec.ImageBlobsDir, alg.String())
		err := eachFile(dir, func(fi fs.FileInfo) error {
			if d, ok := blobOf(alg, fi); ok {
				list = append(list, &entry{digest: d, size: fi.Size(), used: lastUse(fi), touched: lastUse(fi)})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	slices.SortFunc(list, func(a, b *entry) int { return a.used.Compare(b.used) })
	for _, e := range list {
		s.blobs[e.digest] = e
		s.bytes += e.size
		e.elem = s.idle.PushFront(e)
		s.newest = e
	}
	return nil
}

// blobOf returns which blob a file is by its name, if it can be one. A broken disk empties
// files, and of an empty one nothing would be left to be hashed.
func blobOf(alg digest.Algorithm, fi fs.FileInfo) (d digest.Digest, ok bool) {
	d = digest.NewDigestFromEncoded(alg, fi.Name())
	return d, checkDigest(d) == nil && fi.Mode().IsRegular() && (fi.Size() > 0 || d == alg.FromBytes(nil))
}

// loadPartials lists what arrived but for the end, and removes what is of no use.
func (s *Store) loadPartials() error {
	err := eachFile(s.partialDir(), func(fi fs.FileInfo) error {
		name := fi.Name()
		if strings.HasPrefix(name, tempPrefix) {
			return remove(filepath.Join(s.partialDir(), name))
		}
		name, beside := cutBeside(name)
		d, err := parseFileName(name)
		switch {
		case err != nil:
			return nil // not ours
		case beside:
			return s.tidyBeside(d)
		case s.blobs[d] != nil || time.Since(fi.ModTime()) > restKept:
			return s.unlinkPartial(d)
		}
		s.addRest(&rest{digest: d, bytes: taken(fi), since: fi.ModTime()})
		return nil
	})
	return err
}

// cutBeside returns the name of the arrival that a file lies beside, if it does.
func cutBeside(name string) (arrival string, beside bool) {
	for _, suffix := range besideSuffixes {
		if arrival, ok := strings.CutSuffix(name, suffix); ok {
			return arrival, true
		}
	}
	return name, false
}

// tidyBeside removes what lies beside a partial blob that is not there.
func (s *Store) tidyBeside(d digest.Digest) error {
	_, err := os.Lstat(s.partialPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return s.unlinkPartial(d)
	}
	return err
}

// tidyTorrents removes the metainfo of blobs that are neither here nor on the shelf. What
// lies there is taken in like what lies here: it is hashed when it is read.
func (s *Store) tidyTorrents() error {
	dir := filepath.Join(s.dir, "torrents")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var without []digest.Digest
	for _, e := range entries {
		d, err := parseFileName(strings.TrimSuffix(e.Name(), torrentSuffix))
		if err == nil && s.blobs[d] == nil {
			without = append(without, d)
		}
	}
	if s.shelf != nil {
		// If it cannot be looked at, what lies there is hashed again when it can.
		_ = s.shelf.stat(without, func(d digest.Digest, size int64) { s.addShelved(d, size) })
	}
	for _, d := range without {
		if s.blobs[d] != nil {
			continue
		}
		if err := remove(s.torrentPath(d)); err != nil {
			return err
		}
	}
	return nil
}

// eachFile calls f with each file in dir, which need not exist.
func eachFile(dir string, f func(fs.FileInfo) error) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed as we looked
		}
		if err != nil {
			return err
		}
		if err := f(fi); err != nil {
			return err
		}
	}
	return nil
}

// lastUse is when a blob was used, by its file's time. That may come from a clock that was
// ahead, and the blob would be the last to go for as long as it was.
func lastUse(fi fs.FileInfo) time.Time {
	if now := time.Now(); fi.ModTime().After(now) {
		return now
	}
	return fi.ModTime()
}
