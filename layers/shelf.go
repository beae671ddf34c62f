package layers

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// Shelf is a folder of blobs that another program on this host keeps: a registry's
// storage, or an engine's content store. A Store looks into it, so that the host need not
// have a blob twice.
//
// It is only ever read: nothing is written, touched or removed there, and no symlink leads
// out of it. Nor is it trusted. Its owner may remove a blob at any moment, and anybody may
// have changed one: a blob is on offer once all of it has been hashed, and then every read
// is followed by a look whether the file is still the one that was hashed (see stamp). So
// nothing of it goes out by sendfile, for which the kernel reads later than one can look.
type Shelf struct {
	dir  string
	base string                     // below dir: what lies there are blobs only
	path func(digest.Digest) string // below base

	mu         sync.Mutex // guards all below
	distrusted map[digest.Digest]time.Time
	err        error // why it cannot be used; nil if it can
}

// RegistryShelf is the storage folder of a CNCF distribution registry ("docker-registry"),
// that is the rootdirectory of its filesystem driver.
func RegistryShelf(dir string) *Shelf {
	return &Shelf{dir: dir, base: "docker/registry/v2/blobs", path: func(d digest.Digest) string {
		return path.Join(d.Algorithm().String(), d.Encoded()[:2], d.Encoded(), "data")
	}}
}

// EngineShelf is containerd's content store (io.containerd.content.v1.content), or any
// other OCI image layout.
func EngineShelf(dir string) *Shelf {
	return &Shelf{dir: dir, base: "blobs", path: func(d digest.Digest) string {
		return path.Join(d.Algorithm().String(), d.Encoded())
	}}
}

// distrustFor is how long a blob that was not what it should be is not looked for again.
const distrustFor = 10 * time.Minute

// maxDistrusted bounds the blobs that are remembered for that.
const maxDistrusted = 4096

// distrust has d not looked for on the shelf for a while.
func (sh *Shelf) distrust(d digest.Digest) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.distrusted == nil || len(sh.distrusted) >= maxDistrusted {
		sh.distrusted = make(map[digest.Digest]time.Time)
	}
	sh.distrusted[d] = time.Now()
}

func (sh *Shelf) trusts(d digest.Digest) bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	at, ok := sh.distrusted[d]
	return !ok || time.Since(at) > distrustFor
}

// blobs opens the folder of all blobs, anew each time: it may be mounted, or made again.
func (sh *Shelf) blobs() (*os.Root, error) {
	root, err := os.OpenRoot(sh.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.OpenRoot(sh.base)
}

// open opens the file of a valid digest, and waits for it to be settled. The error is
// ErrNotFound also for what is no file.
func (sh *Shelf) open(d digest.Digest) (*os.File, fs.FileInfo, error) {
	root, err := sh.blobs()
	if err != nil {
		return nil, nil, notThere(d, err)
	}
	defer root.Close()
	if fi, err := root.Lstat(sh.path(d)); err != nil || !fi.Mode().IsRegular() {
		return nil, nil, notThere(d, err)
	}
	// Should it have become a pipe meanwhile, nobody waits for who writes to it.
	f, err := root.OpenFile(sh.path(d), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, notThere(d, err)
	}
	fi, err := settle(f)
	if err != nil {
		f.Close()
		return nil, nil, notThere(d, err)
	}
	return f, fi, nil
}

func notThere(d digest.Digest, err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", d, ErrNotFound)
	}
	return err
}

// stat calls f with the sizes of those of the blobs that are there.
func (sh *Shelf) stat(blobs []digest.Digest, f func(d digest.Digest, size int64)) error {
	root, err := sh.blobs()
	if err != nil {
		return err
	}
	defer root.Close()
	for _, d := range blobs {
		if fi, err := root.Lstat(sh.path(d)); err == nil && fi.Mode().IsRegular() {
			f(d, fi.Size())
		}
	}
	return nil
}

// probe finds out whether the shelf can be used: whether blobs lie where they should, and
// one of them, whichever comes first, can be opened.
func (sh *Shelf) probe() error {
	root, err := sh.blobs()
	if err != nil {
		return err
	}
	defer root.Close()
	name := "."
	for {
		f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		entries, err := f.ReadDir(1)
		f.Close()
		switch {
		case err == io.EOF:
			return nil // an empty folder
		case err != nil:
			return err
		case entries[0].IsDir():
			name = path.Join(name, entries[0].Name())
			continue
		case !entries[0].Type().IsRegular():
			return nil // nobody's blob
		}
		f, err = root.OpenFile(path.Join(name, entries[0].Name()), os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		f.Close()
		return nil
	}
}

// failure returns why the shelf cannot be used, or nil.
func (sh *Shelf) failure() error {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.err
}

// failed notes what probe has found, and tells whether that is new.
func (sh *Shelf) failed(err error) (news bool) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	news = (err == nil) != (sh.err == nil)
	sh.err = err
	return news
}

// stamp tells one state of a file from another. The kernel changes ctime before any byte
// changes, by whatever call, and no call sets it back.
type stamp struct {
	device, inode uint64
	size          int64
	mtime, ctime  int64 // nanoseconds
}

// clockTick is longer than the kernel's clock stands still between two ticks: a file that
// changed within it may change again without its times telling.
const clockTick = 20 * time.Millisecond

// isSettled tells whether a change of the file from now on would show in its stamp.
func isSettled(fi fs.FileInfo) bool {
	ctime := changedAt(fi)
	tick := clockTick
	if ctime.Nanosecond() == 0 {
		tick = 2 * time.Second // some file systems know no more than seconds
	}
	return time.Since(ctime) > tick
}

// errUnsettled is the error of a file that somebody is at work on.
var errUnsettled = errors.New("the file is being changed")

// settle waits until a file is settled, which takes some milliseconds at the most for one
// that has only just been given its name.
func settle(f *os.File) (fs.FileInfo, error) {
	for waited := time.Duration(0); waited < 3*time.Second; waited += clockTick {
		fi, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if !fi.Mode().IsRegular() {
			return nil, fs.ErrNotExist
		}
		if isSettled(fi) {
			return fi, nil
		}
		time.Sleep(clockTick)
	}
	return nil, errUnsettled
}

// unchanged returns an error unless f still is as was tells.
func unchanged(f *os.File, was stamp) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if stampOf(fi) != was {
		return fmt.Errorf("%w: %s has been changed by somebody", errLost, f.Name())
	}
	return nil
}

// readUnchanged reads what was in f when it was as was tells, or returns an error.
func readUnchanged(f *os.File, was stamp, b []byte, off int64) (int, error) {
	n, err := f.ReadAt(b, off)
	if err := unchanged(f, was); err != nil {
		return 0, err
	}
	return n, err
}

// copyThrough copies what r gives, and not a file that may be behind it, to w.
func copyThrough(w io.Writer, r io.Reader) (int64, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, *buf)
}
