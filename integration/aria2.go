package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	digest "github.com/opencontainers/go-digest"
)

// aria2 is a BitTorrent client that is not ours, downloading one torrent and
// then seeding it until the test ends.
type aria2 struct {
	*process
	dir string // where it writes
}

// aria2Config says what to download.
type aria2Config struct {
	Metainfo []byte
	Tracker  string // announce URL
}

// startAria2 starts aria2c on loopback, without DHT and local discovery.
func startAria2(t testing.TB, cfg aria2Config) *aria2 {
	t.Helper()
	needs(t, "aria2c")
	root := newRoot(t)
	torrent := filepath.Join(root, "blob.torrent")
	writeFile(t, torrent, string(cfg.Metainfo))
	a := &aria2{dir: filepath.Join(root, "downloads")}
	a.process = startProcess(t, processConfig{Args: []string{program(t, "aria2c"), "--no-conf", "--dir", a.dir,
		"--listen-port=30000-60000", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false", "--enable-peer-exchange=false",
		"--bt-tracker=" + cfg.Tracker, "--bt-tracker-timeout=10", "--seed-ratio=0.0", "--file-allocation=none", "--disk-cache=0", "--check-integrity=true",
		"--summary-interval=0", "--enable-color=false", "--show-console-readout=false", "--console-log-level=error", "--log=-", "--log-level=info", torrent,
	}})
	return a
}

// waitDone waits until the file aria2 writes is the blob.
func (a *aria2) waitDone(t testing.TB, blob digest.Digest) {
	t.Helper()
	a.waitUntil(t, "the download's end", func() error {
		files, err := filepath.Glob(filepath.Join(a.dir, "sha256-*"))
		if err != nil || len(files) == 0 {
			return errors.Join(err, errNotYet)
		}
		content, err := os.ReadFile(files[0]) // a second one would be its control file
		if err == nil && digest.FromBytes(content) != blob {
			err = fmt.Errorf("%d bytes, not yet the blob: %w", len(content), errNotYet)
		}
		return err
	})
}
