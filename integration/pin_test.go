package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// TestPinnedImageStays pins an image and pulls more than the cache holds. The pinned image
// outlives that, and a kill of the mirror; with registry and seeder dead it is pulled from
// the cache, by its tag too. Unpinned, it goes.
func TestPinnedImageStays(t *testing.T) {
	needs(t, "docker-registry")
	f := startFleet(t, fleetConfig{})
	dir := t.TempDir()
	const repo = "team/pinned"
	image, err := makeImage(dir, "pinned", 2<<20, 100)
	if err != nil {
		t.Fatal(err)
	}
	push(t, f.Registry.Addr, repo+":v1", image, nil)
	pulledSoFar := 0
	var m *daemon
	flood := func() { // twice what the cache holds
		t.Helper()
		for range 4 {
			other := fmt.Sprintf("team/other%d", pulledSoFar)
			pulledSoFar++
			filler, err := makeImage(dir, other, 3<<20)
			if err != nil {
				t.Fatal(err)
			}
			push(t, f.Registry.Addr, other+":v1", filler, nil)
			if _, err := pullImage(t, m, f.Registry.Addr, other, "v1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	ref := f.Registry.Addr + "/" + repo + ":v1"
	murder := func(want int, args ...string) string {
		t.Helper()
		stdout, stderr, code := runMurder(t, nil, append(args, "--mirror", m.URL())...)
		if code != want {
			t.Fatalf("murder %q exits %d, want %d\n%s%s", args, code, want, stdout, stderr)
		}
		return stdout + stderr
	}

	cfg := daemonConfig{Seeders: []string{f.Seeder.URL()}, Insecure: []string{f.name()}, Default: f.name(), DataDir: t.TempDir(),
		Flags: []string{"--cache-size", "6MiB", "--min-free", "0"}}
	m = startMirror(t, cfg)
	if out := murder(1, "pin", ref); !strings.Contains(out, "murder prefetch --pin "+ref) {
		t.Errorf("pin of what is not here gives no hint:\n%s", out)
	}
	if _, err := pullImage(t, m, f.Registry.Addr, repo, "v1"); err != nil {
		t.Fatal(err)
	}
	murder(0, "pin", ref)
	m.Kill()
	m = startMirror(t, cfg)
	flood()
	if out := murder(0, "status"); !strings.Contains(out, ref) || !strings.Contains(out, "all here") {
		t.Errorf("status does not show the pin:\n%s", out)
	}
	// Whoever asks now may read it for an hour from now on, whatever becomes of the registry.
	if _, err := pullImage(t, m, f.Registry.Addr, repo, "v1"); err != nil {
		t.Fatal(err)
	}
	flood()
	f.Registry.Die()
	f.Seeder.Kill()
	if _, err := pullImage(t, m, f.Registry.Addr, repo, "v1"); err != nil {
		t.Errorf("a pinned image, with registry and seeder dead: %v", err)
	}

	f.Registry.Revive(t)
	murder(0, "unpin", ref)
	flood()
	f.Registry.Die()
	layer := layerBlobs(t, image)[0]
	if a := get(t, m.Blob(f.Registry.Addr, repo, layer.Digest)); a.Status == http.StatusOK {
		t.Error("an image that was unpinned is still here after more than the cache holds")
	}
}
