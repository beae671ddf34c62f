package proxy_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/registry/registrytest"
)

// A disk that others have filled since the store looked at it costs no pull: what it
// does not take goes past it.
func TestDiskFillsBeforeAPull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	up := registrytest.New(t)
	small, blob := random(2<<20, 1), random(30<<20, 2)
	up.Push(t, "lib/a", false, small)
	up.Push(t, "lib/a", false, blob)
	m := newMirrorIn(t, filepath.Join(dir, "mirror"), up, nil)
	m.mustPull(t, "lib/a", small)
	if err := os.WriteFile(filepath.Join(dir, "other"), make([]byte, 40<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	m.mustPull(t, "lib/a", blob)
}

// A disk that others fill while a blob arrives cuts no client, and the log says so once.
func TestDiskFillsInMidBlob(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	up := registrytest.New(t)
	blob := random(30<<20, 2)
	d := up.Push(t, "lib/a", false, blob)
	m := newMirrorIn(t, filepath.Join(dir, "mirror"), up, nil)
	held, hold := make(chan struct{}), make(chan struct{})
	up.Fail(&registrytest.Fault{Left: 1, At: 8 << 20, Held: held, Hold: hold})
	resp, err := m.open(t, "GET", blobPath("lib/a", d), "")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	wait(t, "registry waits", held)
	p, err := m.store.Partial(d, int64(len(blob)), up.Host)
	if err != nil {
		t.Fatal(err)
	}
	wait(t, "space is reserved", p.Reserved())
	eventually(t, "what has been sent is here", func() bool { return p.Prefix() == 8<<20 })
	// What is reserved is given back, as if the file system could not reserve ...
	if err := os.Truncate(filepath.Join(dir, "mirror", "partial", d.Algorithm().String()+"-"+d.Encoded()), 8<<20); err != nil {
		t.Fatal(err)
	}
	// ... and others take it.
	other, err := os.Create(filepath.Join(dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for err == nil {
		_, err = other.Write(make([]byte, 1<<20))
	}
	close(hold)
	body, err := io.ReadAll(resp.Body)
	answer{resp.StatusCode, resp.Header, body, err}.mustBe(t, blob)
	if err := p.Err(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the blob's arrival ended with %v, want no space", err)
	}
	if err := os.Remove(other.Name()); err != nil {
		t.Fatal(err)
	}
	other.Close()
	// Not at once: how much is free is looked at now and then.
	var pulled []digest.Digest
	eventually(t, "blobs are cached again", func() bool {
		small := random(2<<20, 3+uint64(len(pulled)))
		pulled = append(pulled, up.Push(t, "lib/a", false, small))
		m.mustPull(t, "lib/a", small)
		return slices.ContainsFunc(pulled, func(d digest.Digest) bool { _, ok := m.store.Stat(d); return ok })
	})
}
