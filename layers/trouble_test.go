package layers

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// eventually waits until ok is true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(timeout); !ok(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within %v", what, timeout)
		}
	}
}

// logged is a store's log.
type logged struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// lines returns how many lines have all of the texts.
func (l *logged) lines(texts ...string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.SplitSeq(l.buf.String(), "\n") {
		has := true
		for _, text := range texts {
			has = has && strings.Contains(line, text)
		}
		if has {
			n++
		}
	}
	return n
}

func openLogged(t testing.TB, cfg StoreConfig) (*Store, *logged) {
	t.Helper()
	log := &logged{}
	cfg.Log = slog.New(slog.NewTextHandler(io.MultiWriter(log, t.Output()), nil))
	s, err := OpenStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, log
}

func TestDiskFailed(t *testing.T) {
	_, noFile := os.Open(filepath.Join(t.TempDir(), "none"))
	for _, err := range []error{noFile, os.Rename("/none/a", "/none/b"), os.NewSyscallError("fallocate", syscall.ENOSPC),
		&net.OpError{Op: "readfrom", Err: os.NewSyscallError("sendfile", syscall.EIO)}, fmt.Errorf("x: %w", errLost)} {
		if !DiskFailed(fmt.Errorf("wrapped: %w", err)) {
			t.Errorf("DiskFailed(%v) = false", err)
		}
	}
	for _, err := range []error{nil, io.ErrUnexpectedEOF, ErrMismatch, ErrClosed, net.ErrClosed, fs.ErrNotExist,
		&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, os.NewSyscallError("write", syscall.EPIPE)} {
		if DiskFailed(err) {
			t.Errorf("DiskFailed(%v) = true", err)
		}
	}
}

// However many blobs a disk fails, the log says so once; each is counted.
func TestTroubleIsLoggedOnce(t *testing.T) {
	s, log := openLogged(t, StoreConfig{Dir: t.TempDir()})
	for i := range 50 {
		b := content(uint64(i), 1000)
		p := partial(t, s, sha256Of(b), len(b))
		p.Fail(fmt.Errorf("write: %w", syscall.EROFS))
		<-p.atRest
	}
	if n := log.lines("level=ERROR"); n != 1 || log.lines("cache fails", "read-only file system") != 1 {
		t.Errorf("%d lines in the log", n)
	}
	if n := s.Usage().Failures; n != 50 {
		t.Errorf("%d failures counted", n)
	}
}

// What has been given out of a blob that the disk fails can be read again, but nothing of
// it is left for the next to go on with.
func TestGivenIsReadAgain(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 3<<20)
	p := partial(t, s, sha256Of(b), len(b))
	if err := p.Append(b[:2<<20]); err != nil {
		t.Fatal(err)
	}
	c := p.Content()
	defer c.Close()
	got := make([]byte, 1<<20)
	section := c.Section(t.Context(), 0, int64(len(b)))
	if _, err := io.ReadFull(section, got); err != nil {
		t.Fatal(err)
	}
	p.Fail(syscall.ENOSPC)
	<-p.atRest
	if _, err := section.Read(got); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Read after the disk has failed = %v", err)
	}
	again := make([]byte, 1<<20)
	if _, err := c.ReadAt(again, 0); err != nil || !bytes.Equal(again, b[:1<<20]) {
		t.Errorf("ReadAt = %v", err)
	}
	// The next one comes into a file of its own.
	p = partial(t, s, p.digest, len(b))
	if n := p.Prefix(); n != 0 {
		t.Errorf("%d bytes are left", n)
	}
	if err := p.Append(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadAt(again, 0); err != nil || !bytes.Equal(again, b[:1<<20]) {
		t.Errorf("ReadAt once others arrive = %v", err)
	}
}

// A folder that is deleted under a running store, or emptied, is made again; what is open
// stays readable, and pins stand.
func TestFolderVanishes(t *testing.T) {
	for name, vanish := range map[string]func(dir string) error{
		"deleted": os.RemoveAll,
		"emptied": func(dir string) error {
			list, err := filepath.Glob(dir + "/*")
			for _, path := range list {
				err = errors.Join(err, os.RemoveAll(path))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "cache")
			told := make(evictees, 10)
			s := openStore(t, StoreConfig{Dir: dir, Limit: 2000, OnEvict: func(d digest.Digest) { told <- d }})
			pinned := put(t, s, content(1, 1000))
			mustPin(t, s, pinOf("a:1", pinned))
			open, err := s.Open(pinned)
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()
			if err := vanish(dir); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the folder is made again", func() bool {
				_, err := os.Stat(filepath.Join(dir, pinsFile))
				return err == nil
			})
			got := make([]byte, 1000)
			if _, err := open.ReadAt(got, 0); err != nil || !bytes.Equal(got, content(1, 1000)) {
				t.Errorf("what was open: %v", err)
			}
			if d := told.next(t); d != pinned {
				t.Errorf("told of %s", d)
			}
			if u := s.Usage(); u.Blobs != 0 || u.Bytes != 0 {
				t.Errorf("Usage = %+v", u)
			}
			put(t, s, content(1, 1000))
			for i := range 3 {
				put(t, s, content(uint64(10+i), 1000))
			}
			if _, ok := s.Stat(pinned); !ok {
				t.Error("the pin has been lost with the folder")
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(dir, "index.json")); err != nil {
				t.Error(err)
			}
			s = openStore(t, StoreConfig{Dir: dir, Limit: 2000})
			if n := len(s.Pins()); n != 1 {
				t.Errorf("%d pins after a restart", n)
			}
		})
	}
}

// A folder that is swapped for another one under a running store, as when a backup is put
// in its place: what the store knew of the old files is not believed of the new ones.
func TestFolderIsSwapped(t *testing.T) {
	right, wrong := content(1, 300<<10), content(2, 300<<10)
	d := sha256Of(right)
	dir := t.TempDir()
	other := openStore(t, StoreConfig{Dir: dir + "/other"})
	put(t, other, right)
	only := put(t, other, content(3, 1000))
	emptied := put(t, other, content(5, 1000))
	if err := os.Truncate(other.blobPath(emptied), 0); err != nil { // by a disk that is broken
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	path := other.blobPath(d)

	s := openStore(t, StoreConfig{Dir: dir + "/cache"})
	put(t, s, right)
	gone := put(t, s, content(4, 1000))
	open, err := s.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := os.WriteFile(path, wrong, 0o600); err != nil { // it has rotted there
		t.Fatal(err)
	}
	later := time.Now().Add(time.Second)
	if err := errors.Join(os.Chtimes(path, later, later), os.Rename(s.dir, dir+"/old"), os.Rename(other.dir, s.dir)); err != nil {
		t.Fatal(err)
	}
	if got, err := serve(t, s, d, 0, int64(len(right)), false); err == nil || len(got) > 0 && !bytes.HasPrefix(right, got) {
		t.Errorf("%d bytes and %v of a blob that is another in the new folder", len(got), err)
	}
	got := make([]byte, len(right))
	if _, err := open.ReadAt(got, 0); err == nil && !bytes.Equal(got, right) || err != nil && !DiskFailed(err) {
		t.Errorf("what was open: %v, want what it was or a failure of the disk", err)
	}
	eventually(t, "the new folder is known", func() bool {
		_, there := s.Stat(only)
		_, still := s.Stat(gone)
		return there && !still
	})
	wantBlob(t, s, only, content(3, 1000))
	if size, ok := s.Stat(emptied); ok {
		t.Errorf("an emptied file is taken for a blob of %d bytes", size)
	}
	put(t, s, right)
	wantBlob(t, s, d, right)
}
