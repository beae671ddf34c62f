package integration

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// faultyDisk is a disk that can be made to fail, and to be well again with what it had: each
// read and write of it ends with EIO meanwhile, made by the kernel's block layer. It exists in
// the mounts of a process of its own, and is gone with that.
type faultyDisk struct {
	holder *process
	image  string // of the lower disk
	dir    string // where the disk is mounted, among the holder's mounts
}

// faultyMounts makes the disk below the folder $1. It is a loop device over a file on a lower
// disk, another loop device. When that one is cut short, what lies behind its new end can
// neither be read nor written, and the upper device, whose size does not change, fails. So
// nothing of the lower one may be allocated or changed but the file's own blocks, and no page
// cache may lie between. Neither has a journal, which would be shut down for good.
const faultyMounts = `
set -e
cd "$1"
mkdir lower disk
truncate -s 128M image
mkfs.ext4 -q -O ^has_journal image
mount -o loop,errors=continue,noatime,lazytime image lower
dd if=/dev/zero of=lower/disk bs=1M count=96 status=none
mkfs.ext4 -q -O ^has_journal -E nodiscard lower/disk
sync -f lower
loop=$(losetup --find --show --direct-io=on lower/disk)
mount -o errors=continue "$loop" disk && losetup -d "$loop" # when it is not mounted any more
`

// newFaultyDisk skips the test where such a disk cannot be had.
func newFaultyDisk(t *testing.T) *faultyDisk {
	t.Helper()
	needs(t, "losetup", "mkfs.ext4", "nsenter", "fsfreeze")
	needsRoot(t)
	root := newRoot(t)
	d := &faultyDisk{image: filepath.Join(root, "image"), dir: filepath.Join(root, "disk")}
	d.holder = startProcess(t, processConfig{Name: "the faulty disk", OwnMounts: true, Args: []string{
		"sh", "-c", `sh -c "$0" sh "$1" && echo made || echo failed; exec sleep infinity`, faultyMounts, root}})
	made := d.holder.waitLine(t, "its mounts", func(line string) bool { return line == "made" || line == "failed" })
	if made != "made" {
		t.Skipf("no disk that fails can be had here: %s", d.holder.output.String())
	}
	return d
}

// fail makes the disk fail from now on.
func (d *faultyDisk) fail(t *testing.T) { d.cut(t, 4096) }

// mend makes it well again.
func (d *faultyDisk) mend(t *testing.T) { d.cut(t, 0) }

// cut limits the lower disk to size bytes; 0 is no limit.
func (d *faultyDisk) cut(t *testing.T, size uint64) {
	t.Helper()
	backings, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is right
	for _, file := range backings {
		if backing, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(backing)) != d.image {
			continue
		}
		loop, err := os.Open("/dev/" + strings.Split(file, "/")[3])
		if err != nil {
			t.Fatal(err)
		}
		defer loop.Close()
		info, err := unix.IoctlLoopGetStatus64(int(loop.Fd()))
		if err == nil {
			info.Sizelimit = size
			err = unix.IoctlLoopSetStatus64(int(loop.Fd()), info)
		}
		if err != nil {
			t.Fatalf("limit %s to %d bytes: %v", loop.Name(), size, err)
		}
		return
	}
	t.Fatalf("no loop device has %s", d.image)
}

// fifreeze, from linux/fs.h, is what a snapshot of the disk begins with.
const fifreeze = 0xC0045877

// freeze makes all who would change something on the disk wait until the function that it
// returns is called, or the test ends, be it by a signal: what waits cannot be killed.
func (d *faultyDisk) freeze(t *testing.T) (thaw func()) {
	t.Helper()
	root, err := os.Open(fmt.Sprintf("/proc/%d/root%s", d.holder.PID(), d.dir))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	guard := exec.Command(program(t, "sh"), "-c", "read -r _; exec fsfreeze --unfreeze /proc/self/fd/3")
	guard.ExtraFiles = []*os.File{root}
	end, err := guard.StdinPipe()
	if err == nil {
		err = guard.Start()
	}
	if err == nil {
		err = unix.IoctlSetInt(int(root.Fd()), fifreeze, 0)
	}
	if err != nil {
		t.Fatal("freeze the disk:", err)
	}
	thaw = sync.OnceFunc(func() {
		end.Close()
		if err := guard.Wait(); err != nil {
			t.Error("thaw the disk:", err)
		}
	})
	t.Cleanup(thaw)
	return thaw
}

// uncached opens a file of the disk and has the kernel forget its content, so that who reads it reads the disk.
func (d *faultyDisk) uncached(path string) (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/root%s", d.holder.PID(), path))
	if err != nil {
		return nil, err
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// faultyFleet is a mirror whose data are on a disk that can be made to fail, and the layers, of 4 MiB
// each, that it can pull.
func faultyFleet(t *testing.T, layers int, flags ...string) (*faultyDisk, *fleet, []blobInfo) {
	t.Helper()
	disk := newFaultyDisk(t)
	image, err := makeImage(newRoot(t), "faulty", slices.Repeat([]int64{4 << 20}, layers)...)
	if err != nil {
		t.Fatal(err)
	}
	f := startFleet(t, fleetConfig{})
	push(t, f.Registry.Addr, failRepo+":v1", image, nil)
	f.Mirrors = append(f.Mirrors, startMirror(t, disk.daemon(t, daemonConfig{
		Seeders: []string{f.Seeder.URL()}, Insecure: []string{f.name()}, Flags: flags})))
	return disk, f, layerBlobs(t, image)
}

// pullHalf begins to pull b through the first mirror, and has the registry stop in its middle.
func (f *fleet) pullHalf(t *testing.T, b blobInfo) (io.ReadCloser, digest.Verifier, *hold) {
	t.Helper()
	held := f.Registry.Hold(b.Digest, 2<<20)
	body, err := openBlob(t, f.Mirrors[0].Blob(f.Registry.Addr, failRepo, b.Digest))
	if err != nil {
		t.Fatal(err)
	}
	verifier := b.Digest.Verifier()
	if _, err := io.CopyN(verifier, body, 1<<20); err != nil {
		t.Fatal(err)
	}
	held.wait(t)
	return body, verifier, held
}

// TestDiskFails has a mirror's disk answer EIO in the middle of a pull. That pull ends right, so
// do those of what the cache has and of what it has not; the log says so once. When the disk is
// well again, so is the cache, without a restart.
func TestDiskFails(t *testing.T) {
	needs(t, "docker-registry")
	disk, f, blobs := faultyFleet(t, 6, "--cache-size", "9MiB") // of three blobs, pulled in turns, none is still there
	m := f.Mirrors[0]
	has, comes, new, spare := blobs[0], blobs[1], blobs[2], blobs[3:]
	pull := func(b blobInfo) error { return checkBlob(t, m.Blob(f.Registry.Addr, failRepo, b.Digest), b.Digest) }
	file := func(b blobInfo) string { return filepath.Join(m.DataDir, "blobs", "sha256", b.Digest.Encoded()) }

	if err := pull(has); err != nil {
		t.Fatal(err)
	}
	f.waitCached(t, has)
	cached, err := disk.uncached(file(has))
	if err != nil {
		t.Fatal(err)
	}
	defer cached.Close()
	body, verifier, held := f.pullHalf(t, comes)
	defer body.Close()

	disk.fail(t)
	if _, err := cached.ReadAt(make([]byte, 1), 1<<20); !errors.Is(err, unix.EIO) {
		t.Fatalf("a read of the faulty disk: %v, want %v", err, unix.EIO)
	}
	failures := func() float64 { return m.Metrics(t).Sum("murder_cache_errors_total") }
	if err := pull(has); err != nil {
		t.Errorf("a cached blob, from a disk that fails: %v", err)
	}
	if failures() == 0 {
		t.Error("a cached blob could not be read, and no failure of the disk is counted")
	}
	held.Release()
	if _, err := io.Copy(verifier, body); err != nil || !verifier.Verified() {
		t.Errorf("the pull in whose middle the disk failed: right %v, %v", verifier.Verified(), err)
	}
	if err := pull(new); err != nil {
		t.Errorf("a blob that is not cached, with a disk that fails: %v", err)
	}
	m.waitUntil(t, "failures to write", func() error { // which end no pull, and come when it is over
		if n := failures(); n < 3 {
			return fmt.Errorf("%.0f failures are counted", n)
		}
		return nil
	})
	if log := m.output.String(); strings.Count(log, `"cache fails`) != 1 || !strings.Contains(log, unix.EIO.Error()) {
		t.Errorf("the log has %d lines of the disk's failure, want 1 that names it", strings.Count(log, `"cache fails`))
	}

	disk.mend(t)
	done := logTime(t, "the cache, after the disk was well,")
	var last blobInfo
	m.waitUntil(t, "the cache works again", func() error {
		last, spare = spare[0], append(spare[1:], spare[0])
		if err := pull(last); err != nil {
			return permanentError{err}
		}
		if !strings.Contains(m.output.String(), `"cache works again"`) {
			return errNotYet
		}
		return nil
	})
	done()
	f.waitCached(t, last)
	again, err := disk.uncached(file(last))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got, err := digest.FromReader(again); err != nil || got != last.Digest {
		t.Errorf("what the disk has taken since is %s, %v; want %s", got, err, last.Digest)
	}
}

// TestDiskHangs freezes a mirror's disk in the middle of a pull, as a snapshot does that takes
// for ever. That pull ends right, so do those that come later, of what the cache has and of what
// it has not; when the disk is thawed, the cache is as it was, without a restart.
func TestDiskHangs(t *testing.T) {
	needs(t, "docker-registry")
	disk, f, blobs := faultyFleet(t, 5)
	m := f.Mirrors[0]
	has, comes, new, spare := blobs[0], blobs[1], blobs[2], blobs[3:]
	pull := func(b blobInfo) error { return checkBlob(t, m.Blob(f.Registry.Addr, failRepo, b.Digest), b.Digest) }
	if err := pull(has); err != nil {
		t.Fatal(err)
	}
	f.waitCached(t, has)
	body, verifier, held := f.pullHalf(t, comes)
	defer body.Close()

	thaw := disk.freeze(t)
	held.Release()
	done := logTime(t, "the pull whose disk began to hang")
	if _, err := io.Copy(verifier, body); err != nil || !verifier.Verified() {
		t.Errorf("the pull in whose middle the disk began to hang: right %v, %v", verifier.Verified(), err)
	}
	done()
	for what, b := range map[string]blobInfo{"that was arriving": comes, "that is cached": has, "that is not cached": new} {
		if err := pull(b); err != nil {
			t.Errorf("a blob %s, with a disk that hangs: %v", what, err)
		}
	}
	if log := m.output.String(); strings.Count(log, `"cache fails`) != 1 || !strings.Contains(log, "disk hangs") {
		t.Errorf("the log has %d lines of the disk's failure, want 1 that names it", strings.Count(log, `"cache fails`))
	}

	thaw()
	last := spare[0]
	m.waitUntil(t, "the cache takes blobs again", func() error {
		if err := pull(last); err != nil {
			return permanentError{err}
		}
		if a := get(t, m.URL()+"/v1/status?digest="+last.Digest.String()); !strings.Contains(string(a.Body), `"state": "whole"`) {
			return errNotYet
		}
		return nil
	})
	if err := pull(has); err != nil {
		t.Errorf("what was cached before the disk hung: %v", err)
	}
}
