package artifact

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
)

// A disk that becomes full in the middle leaves the folder as it was, and is named.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount a disk")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	write(t, dir, "mine", "old", 0o644)
	before := list(t, dir)
	for name, p := range map[string]packed{
		"a file": hostile(fileLayer("small", "x"), fileLayer("mine", strings.Repeat("large", 1<<20))),
		"a tar":  hostile(tarLayer(".", reg("mine", 1), reg("zeros", 5<<20))),
	} {
		_, err := p.unpack(t, dir, StageOptions{Overwrite: true})
		if !errors.Is(err, ErrDiskFull) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: unpack = %v, want that the disk of %s is full", name, err, dir)
		}
		if got := list(t, dir); got != before {
			t.Errorf("%s: the folder has now\n%s", name, got)
		}
	}
	if _, err := hostile(fileLayer("mine", "new")).unpack(t, dir, StageOptions{Overwrite: true}); err != nil {
		t.Errorf("unpack of what fits = %v", err)
	}
}
