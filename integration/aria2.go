package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
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
		"--bt-tracker=" + cfg.Tracker, "--bt-tracker-timeout=10", "--seed-ratio=0.0", "--file-allocation=none", "--check-integrity=true",
		"--summary-interval=0", "--enable-color=false", "--console-log-level=notice", "--log=-", "--log-level=notice", torrent,
	}})
	return a
}

// aria2Done is what aria2c says once every piece is there and right.
var aria2Done = regexp.MustCompile(`(?i)download complete|Seeding`)

// waitDone waits for the download and returns its bytes.
func (a *aria2) waitDone(t testing.TB) []byte {
	t.Helper()
	a.waitLine(t, "the download's end", func(line string) bool {
		return aria2Done.MatchString(strings.ReplaceAll(line, "\r", ""))
	})
	files, err := filepath.Glob(filepath.Join(a.dir, "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("aria2 wrote %q, %v, want one file", files, err)
	}
	content, err := os.ReadFile(files[0]) // a second one would be its control file
	if err != nil {
		t.Fatal(err)
	}
	return content
}
