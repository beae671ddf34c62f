package layers

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
)

// smallDisk is a folder on a disk of its own of size bytes.
func smallDisk(t testing.TB, size string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can mount a disk")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

func mustFree(t testing.TB, dir string) int64 {
	t.Helper()
	free, err := diskFree(dir)
	if err != nil {
		t.Fatal(err)
	}
	return free
}

// The cache gives way to whoever fills the disk, down to the last idle blob, and takes
// nothing that would leave less free than it should.
func TestMinFree(t *testing.T) {
	const mib = 1 << 20
	dir := smallDisk(t, "16m")
	s := openStore(t, StoreConfig{Dir: dir + "/cache", MinFree: 4 * mib})
	for i := range 10 {
		put(t, s, content(uint64(i), 2*mib))
	}
	if free := mustFree(t, dir); free < 4*mib {
		t.Errorf("%d bytes are free, want %d", free, 4*mib)
	}
	if u := s.Usage(); u.Blobs < 4 {
		t.Errorf("%d blobs are left, though there is room for more", u.Blobs)
	}
	kept := put(t, s, content(99, mib))
	open, err := s.Open(kept)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()

	for i := 0; s.Usage().Blobs > 1; i++ {
		if err := os.WriteFile(fmt.Sprint(dir, "/other", i), make([]byte, 3*mib), 0o600); err != nil {
			t.Fatal(err)
		}
		eventually(t, "idle blobs give way", func() bool { return mustFree(t, dir) >= 4*mib || s.Usage().Blobs == 1 })
	}
	if err := os.WriteFile(dir+"/last", make([]byte, 3*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Stat(kept); !ok {
		t.Error("a blob that was open has gone")
	}
	b := content(100, mib)
	eventually(t, "a blob is refused", func() bool {
		p, err := s.Partial(sha256Of(b), mib, "registry.test")
		if err == nil {
			p.Fail(errors.New("given up"))
			<-p.atRest
		}
		return errors.Is(err, syscall.ENOSPC)
	})
	if err := os.Remove(dir + "/other0"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "blobs are taken again", func() bool {
		p, err := s.Partial(sha256Of(b), mib, "registry.test")
		if err != nil {
			return false
		}
		if err := p.Append(b); err != nil {
			t.Fatal(err)
		}
		await(t, p.Done())
		return p.Err() == nil
	})
}

// For a blob that would not fit anyway nothing is evicted.
func TestBlobAboveFreeSpace(t *testing.T) {
	const mib = 1 << 20
	dir := smallDisk(t, "8m")
	s := openStore(t, StoreConfig{Dir: dir, MinFree: mib})
	d := put(t, s, content(1, 2*mib))
	b := content(2, 16)
	if _, err := s.Partial(sha256Of(b), 64*mib, "registry.test"); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a blob larger than the disk: %v, want ENOSPC", err)
	}
	if _, ok := s.Stat(d); !ok {
		t.Error("a blob was evicted for nothing")
	}
}

// A store whose disk is unmounted fills not the disk below, and goes on when it is back,
// with what lies there.
func TestDiskIsUnmounted(t *testing.T) {
	dir := smallDisk(t, "16m")
	below := t.TempDir() // another mount of the disk, to look at it and to mount it again
	if err := syscall.Mount(dir, below, "", syscall.MS_BIND, ""); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(below, syscall.MNT_DETACH) })
	s, log := openLogged(t, StoreConfig{Dir: dir + "/cache"})
	d := put(t, s, content(1, 1000))
	if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the store notices", func() bool { return log.lines("cache fails") == 1 })
	b := content(2, 1000)
	if _, err := s.Partial(sha256Of(b), 1000, "registry.test"); !DiskFailed(err) {
		t.Errorf("Partial without a disk = %v", err)
	}
	if _, err := s.Open(d); !errors.Is(err, ErrNotFound) {
		t.Errorf("Open without a disk = %v", err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("the disk below has %v, %v", list, err)
	}
	if err := syscall.Mount(below, dir, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the store finds what it had", func() bool { _, ok := s.Stat(d); return ok })
	put(t, s, b)
}

// A disk that is read-only takes nothing, gives what it has, and costs nothing of it.
func TestReadOnlyDisk(t *testing.T) {
	dir := smallDisk(t, "16m")
	s, log := openLogged(t, StoreConfig{Dir: dir, Limit: 10_000})
	var kept []digest.Digest
	for i := range 5 {
		kept = append(kept, put(t, s, content(uint64(i), 1000)))
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	remount := func(flags uintptr) error { return syscall.Mount("", dir, "", syscall.MS_REMOUNT|flags, "size=16m") }
	eventually(t, "nothing is written any more", func() bool { return remount(syscall.MS_RDONLY) == nil })
	for i := range 20 {
		b := content(uint64(100+i), 1000)
		if _, err := s.Partial(sha256Of(b), 1000, "registry.test"); !errors.Is(err, syscall.EROFS) {
			t.Errorf("Partial on a read-only disk = %v", err)
		}
	}
	s.mu.Lock()
	s.limit = 1000 // as if more had come in
	s.mu.Unlock()
	s.trim()
	left := 0
	for _, d := range kept {
		if b, err := s.Open(d); err == nil {
			left++
			b.Close()
		}
	}
	if left < 4 {
		t.Errorf("%d of 5 blobs are left, though nothing can be removed", left)
	}
	if n := log.lines("level=ERROR"); n != 1 {
		t.Errorf("%d lines in the log, want one", n)
	}
	s.mu.Lock()
	s.limit = 10_000
	s.mu.Unlock()
	if err := remount(0); err != nil {
		t.Fatal(err)
	}
	put(t, s, content(200, 1000))
}

// A new store on a disk that takes nothing is one without blobs, and begins to keep them
// once the disk takes them.
func TestNewStoreOnDiskThatTakesNothing(t *testing.T) {
	remount := func(t *testing.T, dir string, flags uintptr, size string) {
		t.Helper()
		if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|flags, size); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name      string
		ill, well func(t *testing.T, disk string)
		cause     string
	}{
		{"read-only",
			func(t *testing.T, disk string) { remount(t, disk, syscall.MS_RDONLY, "size=16m") },
			func(t *testing.T, disk string) { remount(t, disk, 0, "size=16m") }, "read-only file system"},
		{"no file more",
			func(t *testing.T, disk string) { fillFiles(t, disk) },
			func(t *testing.T, disk string) { remount(t, disk, 0, "nr_inodes=1000") }, "no space left"},
		{"some files more",
			func(t *testing.T, disk string) {
				taken := fillFiles(t, disk)
				for _, name := range taken[:3] {
					if err := os.Remove(name); err != nil {
						t.Fatal(err)
					}
				}
			},
			func(t *testing.T, disk string) { remount(t, disk, 0, "nr_inodes=1000") }, "no space left"},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := smallDisk(t, "16m,nr_inodes=64")
			cfg := StoreConfig{Dir: disk + "/deep/cache"}
			c.ill(t, disk)
			s, log := openLogged(t, cfg)
			b := content(1, 1000)
			if _, err := s.Partial(sha256Of(b), 1000, "registry.test"); !DiskFailed(err) {
				t.Errorf("Partial = %v, want a failure of the disk", err)
			}
			if _, err := s.Open(sha256Of(b)); !errors.Is(err, ErrNotFound) {
				t.Errorf("Open = %v", err)
			}
			if n := log.lines("cache fails", c.cause); n != 1 || log.lines("level=ERROR") != 1 {
				t.Errorf("%d lines of the log name the cause, of %d errors", n, log.lines("level=ERROR"))
			}
			c.well(t, disk)
			eventually(t, "the disk's room is seen", func() bool {
				p, err := s.Partial(sha256Of(b), 1000, "registry.test")
				if err == nil {
					p.Fail(errors.New("only looking"))
				}
				return err == nil
			})
			put(t, s, b)
			if err := s.Sync(); err != nil {
				t.Errorf("sync: %v", err)
			}
			if _, err := OpenStore(cfg); !errors.Is(err, errLocked) {
				t.Errorf("another store in the same folder: %v", err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			wantBlob(t, openStore(t, cfg), sha256Of(b), b)
		})
	}
}

// fillFiles makes files in dir until the disk has room for no more.
func fillFiles(t *testing.T, dir string) (taken []string) {
	t.Helper()
	for {
		name := fmt.Sprint(dir, "/other", len(taken))
		if err := os.WriteFile(name, nil, 0o600); errors.Is(err, syscall.ENOSPC) {
			return taken
		} else if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, name)
	}
}

// A disk with room for bytes and for no more files, or only some: what a blob needs beside
// its own file is not there. Whoever reads it gets it whole or hears that the disk failed,
// and once there is room again it is kept.
func TestDiskWithoutRoomForFiles(t *testing.T) {
	const files = 64
	dir := smallDisk(t, fmt.Sprint("16m,nr_inodes=", files))
	b := content(101, 2<<20)
	m := metainfoOf(t, b)
	for left := range 8 {
		for _, inOrder := range []bool{true, false} {
			s := openStore(t, StoreConfig{Dir: dir + "/cache"})
			taken := fillFiles(t, dir)
			for _, name := range taken[len(taken)-left:] {
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
			}
			err := arrive(t, s, b, m, inOrder)
			if err != nil && !DiskFailed(err) {
				t.Errorf("%d files, in order %v: %v, want a failure of the disk", left, inOrder, err)
			}
			if err == nil && left == 0 {
				t.Errorf("in order %v: a blob was kept without a file", inOrder)
			}
			for _, name := range taken[:len(taken)-left] {
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
			}
			if _, ok := s.Stat(m.Digest()); !ok {
				if err := arrive(t, s, b, m, inOrder); err != nil {
					t.Errorf("%d files, in order %v, and then all: %v", left, inOrder, err)
				}
			}
			wantBlob(t, s, m.Digest(), b)
			if err := s.Remove(m.Digest()); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
	}
}

// arrive has a blob arrive, in order or by pieces, and tells why it is not in the store. A
// reader of it must get all of it, or an error.
func arrive(t *testing.T, s *Store, b []byte, m *Metainfo, inOrder bool) error {
	t.Helper()
	p, err := s.Partial(m.Digest(), m.Size(), "registry.test")
	if err != nil {
		return err
	}
	got := read(t.Context(), p, 0, m.Size())
	if inOrder {
		err = (&web{b: b}).fill(t, p)
	} else if err = p.SetTorrent(m.Torrent()); err == nil {
		for i := 0; i < m.Pieces() && err == nil; i++ {
			err = p.WritePiece(i, pieceOf(m, b, i))
		}
	}
	if err != nil {
		p.Fail(err)
	}
	r := end(t, got)
	if r.err == nil && !bytes.Equal(r.got, b) || r.err != nil && !DiskFailed(r.err) {
		t.Errorf("a reader got %d bytes and %v", len(r.got), r.err)
	}
	await(t, p.Done())
	<-p.atRest
	return p.Err()
}

// A blob that broke off keeps no more of the disk than has come: whoever can name a registry
// could have it promise all of the disk, and send nothing.
func TestBrokenOffBlobKeepsNoSpace(t *testing.T) {
	const mib = 1 << 20
	b := content(1, 20*mib)
	m := metainfoOf(t, b)
	for name, arrive := range map[string]func(p *Partial) int64{
		"nothing": func(p *Partial) int64 { return 0 },
		"in order": func(p *Partial) int64 {
			if err := p.Append(b[:mib+100]); err != nil {
				t.Error(err)
			}
			return mib + 100
		},
		"by pieces": func(p *Partial) (n int64) {
			if err := p.SetTorrent(m.Torrent()); err != nil {
				t.Error(err)
			}
			for _, i := range []int{1, 2, 30, 100} {
				if err := p.WritePiece(i, pieceOf(m, b, i)); err != nil {
					t.Error(err)
				}
				n += m.PieceLength()
			}
			if _, err := p.WriteAt(b[50*m.PieceLength():][:100], 50*m.PieceLength()); err != nil {
				t.Error(err)
			}
			return n
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := smallDisk(t, "32m")
			s := openStore(t, StoreConfig{Dir: dir + "/cache", MinFree: mib})
			p := partial(t, s, m.Digest(), len(b))
			await(t, p.Reserved())
			if free := mustFree(t, dir); free > 13*mib {
				t.Fatalf("%d bytes are free of those that were reserved", free)
			}
			has := arrive(p)
			p.Fail(os.ErrDeadlineExceeded)
			await(t, p.atRest)
			if free := mustFree(t, dir); free < 31*mib-has {
				t.Errorf("%d bytes are free, though no more than %d have come", free, has)
			}
			wantBlob(t, s, put(t, s, content(2, 25*mib)), content(2, 25*mib))

			p = partial(t, s, m.Digest(), len(b)) // which makes room
			if got := p.Received(); got != has {
				t.Errorf("%d bytes are left of %d", got, has)
			}
			w := &web{b: b}
			if err := w.fill(t, p); err != nil {
				t.Fatal(err)
			}
			await(t, p.Done())
			wantBlob(t, s, m.Digest(), b)
		})
	}
}

// What a crash has left counts for all that it takes of the disk.
func TestReservedBeforeACrash(t *testing.T) {
	const mib = 1 << 20
	dir := smallDisk(t, "32m") + "/cache"
	s := openStore(t, StoreConfig{Dir: dir})
	path := s.partialPath(sha256Of(content(1, 10)))
	s.Close()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(reserve(f, 0, 20*mib), f.Close()); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, StoreConfig{Dir: dir, MinFree: mib})
	if u := s.Usage(); u.Arriving != 20*mib {
		t.Errorf("%d bytes count as arriving, want all that are reserved", u.Arriving)
	}
	put(t, s, content(2, 25*mib)) // it goes for this
	if u := s.Usage(); u.Arriving != 0 {
		t.Errorf("usage is %+v", u)
	}
}
