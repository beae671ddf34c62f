package main

import (
	"os"
	"path/filepath"
	"testing"
)

// Keys are for their owner alone, also in a folder and under a umask that let all in.
func TestCertsAreTheirOwners(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := runMurder(t, t.Context(), "certs", "--dir", dir, "--host", "h"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{"ca.key": 0o600, "h.key": 0o600, "ca.crt": 0o644, "h.crt": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		} else if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), want)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 4 {
		t.Errorf("%d files in the folder, want 4: %v, %v", len(left), left, err)
	}
}
