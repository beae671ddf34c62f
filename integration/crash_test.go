package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// What is on disk when a daemon is killed, and what the next one makes of it.

// crashRounds is how often TestKilledAtAnyMoment kills.
const crashRounds = 12

// TestKilledAtAnyMoment kills mirror and seeder by SIGKILL, at random moments while blobs
// are pulled through a cache that is too small for them. After each kill every whole blob
// on disk has the right digest, none that the seeder had is lost, and after the restart
// every pull is right. CRASH_SEED replays a run.
func TestKilledAtAnyMoment(t *testing.T) {
	needs(t, "docker-registry")
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("CRASH_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("CRASH_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	image, err := makeImage(newRoot(t), "crash", 6<<20, 5<<20, 3<<20, 2<<20, 1<<20+5, 300<<10, 70<<10, 1000)
	if err != nil {
		t.Fatal(err)
	}
	registry := startRegistry(t, registryConfig{})
	push(t, registry.Addr, failRepo+":v1", image, nil)
	blobs := layerBlobs(t, image)
	root := newRoot(t)
	mirrorDir, seederDir := filepath.Join(root, "mirror"), filepath.Join(root, "seeder")
	start := func() (s, m *daemon) {
		s = startSeeder(t, daemonConfig{Insecure: []string{registry.Addr}, DataDir: seederDir})
		m = startMirror(t, daemonConfig{Insecure: []string{registry.Addr}, DataDir: mirrorDir, Seeders: []string{s.URL()},
			Flags: []string{"--cache-size", "12MiB", "--min-free", "0", "--download-limit", "40MiB"}})
		return s, m
	}
	for round := range crashRounds {
		seeder, mirror := start()
		order := r.Perm(len(blobs))
		moment := time.Duration(r.IntN(int(700 * time.Millisecond)))
		begun := time.Now()
		var pulls sync.WaitGroup
		for _, i := range order[:4] {
			pulls.Go(func() { // most are cut
				if body, err := openBlob(t, mirror.Blob(registry.Addr, failRepo, blobs[i].Digest)); err == nil {
					_, _ = io.Copy(io.Discard, body)
					body.Close()
				}
			})
		}
		time.Sleep(time.Until(begun.Add(moment)))
		had := wholeBlobs(t, seederDir)
		seeder.Kill()
		mirror.Kill()
		pulls.Wait()
		checkWhole(t, mirrorDir)
		has := checkWhole(t, seederDir)
		for d := range had {
			if !has[d] {
				t.Errorf("round %d: %s was whole before the kill, and is lost", round, d)
			}
		}
		if t.Failed() {
			return
		}
	}
	_, mirror := start()
	for _, b := range blobs {
		if err := checkBlob(t, mirror.Blob(registry.Addr, failRepo, b.Digest), b.Digest); err != nil {
			t.Errorf("after %d kills: %v", crashRounds, err)
		}
	}
}

// wholeBlobs lists the blobs that have their names in a data folder.
func wholeBlobs(t *testing.T, dir string) map[string]bool {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "blobs", "sha256"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, e := range entries {
		names[e.Name()] = true
	}
	return names
}

// checkWhole fails the test unless each blob in a data folder has the digest that is its
// name, and lists them.
func checkWhole(t *testing.T, dir string) map[string]bool {
	t.Helper()
	names := wholeBlobs(t, dir)
	for name := range names {
		b, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", name))
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != name {
			t.Errorf("blob %s of %d bytes is another", name, len(b))
		}
	}
	return names
}

// TestBytesTwiceAfterCrash kills a mirror that has more than half of a blob, and counts what
// it fetches again once it is back: from a warm swarm, from that of a seeder which is
// itself held up in the middle, and over HTTP from the registry; and what the seeder does.
func TestBytesTwiceAfterCrash(t *testing.T) {
	const size = 96 << 20
	const most = 4<<20 + 64<<10 + 1<<20 // a note, a piece, and what was on the wire
	const ordered = most + 16<<20       // and what had not been hashed
	received := func(d *daemon) int64 { return int64(d.Metrics(t).Sum("murder_received_bytes_total")) }
	for _, way := range []string{"warm swarm", "cold swarm", "seeder", "registry"} {
		t.Run(way, func(t *testing.T) {
			cfg := fleetConfig{}
			if way == "warm swarm" {
				cfg.SeederFlags = []string{"--upload-limit", "32MiB"}
			}
			f, _, blob := failFleet(t, size, cfg)
			root := newRoot(t)
			mirror := daemonConfig{Insecure: []string{f.name()}, DataDir: filepath.Join(root, "mirror")}
			if way != "registry" {
				mirror.Seeders = []string{f.Seeder.URL()}
			}
			var held *hold
			if way == "warm swarm" {
				f.warmSeeder(t, blob)
			} else {
				held = f.Registry.Hold(blob.Digest, blob.Size*6/10)
				defer held.Release()
			}
			m := startMirror(t, mirror)
			body, err := openBlob(t, m.Blob(f.Registry.Addr, failRepo, blob.Digest))
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			half := blob.Size / 2
			if way != "warm swarm" {
				half = blob.Size*6/10 - 256<<10
			}
			m.waitReceived(t, float64(half))
			before := received(m)
			m.Kill()
			sent := f.Registry.BlobBytes()
			if way == "seeder" {
				f.Seeder.Kill()
				f.Seeder = startSeeder(t, daemonConfig{Insecure: []string{f.name()}, DataDir: f.Seeder.DataDir})
				mirror.Seeders = []string{f.Seeder.URL()}
			}
			if held != nil {
				held.Release()
			}
			m = startMirror(t, mirror)
			if err := checkBlob(t, m.Blob(f.Registry.Addr, failRepo, blob.Digest), blob.Digest); err != nil {
				t.Fatal(err)
			}
			bound := int64(most)
			if way == "registry" || way == "seeder" {
				bound = ordered
			}
			twice := before + received(m) - blob.Size
			t.Logf("%s: killed at %d of %d bytes, fetched twice %d (%.2f %%); the registry sent %d before and %d after",
				way, before, blob.Size, twice, 100*float64(twice)/float64(blob.Size), sent, f.Registry.BlobBytes()-sent)
			if twice > bound {
				t.Errorf("%d bytes were fetched twice, want at most %d", twice, bound)
			}
			if over := f.Registry.BlobBytes() - blob.Size; over > bound {
				t.Errorf("the registry sent %d bytes twice", over)
			}
		})
	}
}

// TestFlippedByteOfRunningMirror flips a bit of each blob in the cache of a mirror that runs:
// who pulls them gets the right bytes all the same, from the first pull on.
func TestFlippedByteOfRunningMirror(t *testing.T) {
	f, _, blob := failFleet(t, 8<<20, fleetConfig{Mirrors: 1})
	m := f.Mirrors[0]
	url := m.Blob(f.Registry.Addr, failRepo, blob.Digest)
	for _, restarted := range []bool{false, true} {
		if err := checkBlob(t, url, blob.Digest); err != nil {
			t.Fatal(err)
		}
		waitUntil(t, "the blob has its name", func() error {
			_, err := os.Stat(blobFile(m, blob.Digest))
			return err
		})
		if restarted {
			m.Stop(t)
		}
		flipBit(t, blobFile(m, blob.Digest), 5<<20)
		if restarted {
			m = startMirror(t, daemonConfig{Insecure: []string{f.name()}, Seeders: []string{f.Seeder.URL()}, DataDir: m.DataDir})
			url = m.Blob(f.Registry.Addr, failRepo, blob.Digest)
		}
		if err := checkBlob(t, url, blob.Digest); err != nil {
			t.Errorf("restarted %v: %v", restarted, err)
		}
		if got := m.Metrics(t).Sum("murder_cache_rotten_total"); got != 1 {
			t.Errorf("restarted %v: murder_cache_rotten_total is %v, want 1", restarted, got)
		}
	}
}

func blobFile(d *daemon, of digest.Digest) string {
	return filepath.Join(d.DataDir, "blobs", of.Algorithm().String(), of.Encoded())
}

func flipBit(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// TestBenchStart measures how soon a mirror with 50,000 cached blobs is ready and has served
// the first of them: each of 2 MiB and with metainfo, so that it would be shared.
func TestBenchStart(t *testing.T) {
	needsBench(t)
	const cached = 50000
	f, _, blob := failFleet(t, 2<<20, fleetConfig{Mirrors: 1})
	m := f.Mirrors[0]
	if err := checkBlob(t, m.Blob(f.Registry.Addr, failRepo, blob.Digest), blob.Digest); err != nil {
		t.Fatal(err)
	}
	m.Stop(t)
	addBlobs(t, m.DataDir, blob, cached)
	cfg := daemonConfig{Insecure: []string{f.name()}, Seeders: []string{f.Seeder.URL()}, DataDir: m.DataDir, Flags: []string{"--cache-size", "0"}}
	for _, which := range []string{"first", "again"} {
		begun := time.Now()
		m = startMirror(t, cfg)
		if a := get(t, m.URL()+"/readyz"); a.Status != 200 {
			t.Fatalf("GET /readyz = %d", a.Status)
		}
		ready := time.Since(begun)
		if err := checkBlob(t, m.Blob(f.Registry.Addr, failRepo, blob.Digest), blob.Digest); err != nil {
			t.Fatal(err)
		}
		served := time.Since(begun)
		time.Sleep(10 * time.Second)
		report(t, "%s: %d cached blobs: ready after %.2f s, first blob served after %.2f s (wanted under 2); 10 s later %.0f swarms, %.0f MiB, %.1f CPU s",
			which, cached, ready.Seconds(), served.Seconds(), m.Metrics(t).Sum("murder_torrents_active"), residentMiB(t, m.PID(), "VmRSS"), cpuSeconds(t, m.PID()))
		m.Stop(t)
	}
}

// addBlobs adds n sparse blobs to a data folder, with the metainfo of one that is there, but
// for the name. Nobody reads them.
func addBlobs(t *testing.T, dir string, like blobInfo, n int) {
	t.Helper()
	torrent, err := os.ReadFile(filepath.Join(dir, "torrents", "sha256-"+like.Digest.Encoded()+".torrent"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		sum := sha256.Sum256(fmt.Append(nil, i))
		name := hex.EncodeToString(sum[:])
		file := filepath.Join(dir, "blobs", "sha256", name)
		err := os.WriteFile(file, nil, 0o644)
		if err == nil {
			err = os.Truncate(file, like.Size)
		}
		if err == nil {
			content := bytes.ReplaceAll(torrent, []byte(like.Digest.Encoded()), []byte(name))
			err = os.WriteFile(filepath.Join(dir, "torrents", "sha256-"+name+".torrent"), content, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
