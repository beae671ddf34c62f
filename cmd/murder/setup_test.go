package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A terminal that is closed ends `murder setup --hold` as SIGTERM does: the files are as they were.
func TestHoldEndsWithItsTerminal(t *testing.T) {
	root := t.TempDir()
	hosts := filepath.Join(root, "certs/reg.test/hosts.toml")
	ended := make(chan error, 1)
	go func() {
		ended <- run(t.Context(), []string{"murder", "setup", "containerd", "--hold", "--root=" + root, "--config-path=", "--certs-dir=/certs", "--registry=reg.test"},
			strings.NewReader(""), io.Discard, io.Discard)
	}()
	for _, err := os.Stat(hosts); err != nil; _, err = os.Stat(hosts) {
		select {
		case err := <-ended:
			t.Fatalf("setup --hold has ended: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(hosts); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", hosts, err)
	}
}
