package main

import (
	"syscall"
	"testing"
)

// A share of the disk is one of the disk that the cache lies on, not of the one above.
func TestCacheSizeOfMountedDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	for text, want := range map[string]int64{"80%": 64 << 20 * 8 / 10, "100%": 64 << 20, "10MiB": 10 << 20} {
		size, err := parseCacheSize(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := size.limit(dir + "/not/yet"); err != nil || got != want {
			t.Errorf("limit of %s on a disk of 64 MiB = %d, %v; want %d", text, got, err, want)
		}
	}
}
