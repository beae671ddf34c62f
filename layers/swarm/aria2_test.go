package swarm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/murderp2p/murder/layers"
)

// aria2 runs a BitTorrent client that is not ours on a torrent file, with its
// download in dir, and seeds until the test ends. It returns the file it writes.
func aria2(t *testing.T, m *layers.Metainfo, tracker, dir string) (file string) {
	t.Helper()
	path, err := exec.LookPath("aria2c")
	if err != nil {
		t.Skip("aria2c is not installed")
	}
	torrentFile := filepath.Join(dir, "blob.torrent")
	if err := os.WriteFile(torrentFile, m.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, "--no-conf", "--dir="+dir, "--bt-tracker="+tracker,
		"--enable-dht=false", "--bt-enable-lpd=false", "--enable-peer-exchange=false",
		"--listen-port=20000-40000", "--seed-ratio=0", "--seed-time=60",
		"--file-allocation=none", "--bt-max-peers=10", "--summary-interval=0",
		"--interface=127.0.0.1", torrentFile)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed
	})
	d := m.Digest()
	return filepath.Join(dir, fmt.Sprintf("%s-%s", d.Algorithm(), d.Encoded()))
}

func TestAria2DownloadsAndServesOn(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(chunky, 20)
	seeder := newHost(t, Config{Seeder: true})
	m := seeder.share(t, blob, tr.url)

	file := aria2(t, m, tr.url, t.TempDir())
	eventually(t, "aria2 has announced", func() bool { return tr.listed(m.InfoHash()) == 2 })
	eventually(t, "aria2 has it all", func() bool {
		got, _ := os.ReadFile(file)
		return string(got) == string(blob)
	})
	closeInTime(t, seeder.Client)

	leecher := newHost(t, Config{})
	mustEqual(t, "leecher", leecher.fetch(t, m, tr.url), blob)
	if peers, seeders := leecher.Received(m.Digest()); peers < m.Size() || seeders != 0 {
		t.Errorf("received %d from aria2 and %d from a seeder that is gone", peers, seeders)
	}
}

// A client that is not ours, and has the torrent from elsewhere, comes before the blob is
// whole at the seeder, whose swarm has no name yet that it could know. It gets the blob as
// soon as there is one, and passes it on.
func TestAria2ComesWhileTheBlobArrives(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(9<<20+321, 21)
	m := fill(t, testStore(t), blob)
	seeder := newHost(t, Config{Seeder: true})
	a := seeder.fetchFromRegistry(t, m, tr.url)
	const half = 4 << 20
	if err := a.partial.Append(blob[:half]); err != nil {
		t.Fatal(err)
	}
	mirror := newHost(t, Config{})
	p := mirror.partial(t, m)
	fetched := make(chan error, 1)
	go func() { fetched <- mirror.Fetch(t.Context(), mirrorOf(t.Context(), a.torrent), p, []string{tr.url}) }()
	eventually(t, "the mirror has the first half", func() bool { return p.Prefix() == half })

	file := aria2(t, m, tr.url, t.TempDir())
	eventually(t, "aria2 has announced", func() bool { return tr.listed(m.InfoHash()) == 1 })
	if err := a.partial.Append(blob[half:]); err != nil {
		t.Fatal(err)
	}
	if err := <-fetched; err != nil {
		t.Fatalf("Fetch = %v", err)
	}
	mustEqual(t, "mirror", mirror.read(t, p), blob)
	eventually(t, "aria2 has it all", func() bool {
		got, _ := os.ReadFile(file)
		return string(got) == string(blob)
	})
	closeInTime(t, seeder.Client)
	closeInTime(t, mirror.Client)
	late := newHost(t, Config{})
	mustEqual(t, "late host", late.fetch(t, m, tr.url), blob)
}
