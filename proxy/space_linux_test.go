package proxy_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

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
