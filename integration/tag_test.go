package integration

import (
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// TestMovedTagIsSeenAtOnce moves a tag that everybody has pulled. A mirror
// sees it within the seeder's --tag-ttl, and one without a seeder at once.
func TestMovedTagIsSeenAtOnce(t *testing.T) {
	needs(t, "docker-registry")
	dir := newRoot(t)
	before, err := makeImage(dir, "before", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	after, err := makeImage(dir, "after", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	f := startFleet(t, fleetConfig{Mirrors: 1})
	alone := startMirror(t, daemonConfig{Insecure: []string{f.Registry.Addr}})
	resolve := func(m *daemon) digest.Digest {
		t.Helper()
		p, err := pullImage(t, m, f.Registry.Addr, "moving/app", "latest")
		if err != nil {
			t.Fatal(err)
		}
		return p.Manifest
	}
	push(t, f.Registry.Addr, "moving/app:latest", before, nil)
	first := resolve(f.Mirrors[0])
	if got := resolve(alone); got != first {
		t.Fatalf("the two mirrors resolve the tag to %s and %s", first, got)
	}

	push(t, f.Registry.Addr, "moving/app:latest", after, nil)
	moved := time.Now()
	want, err := after.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if got := resolve(alone); got.String() != want.String() {
		t.Errorf("a mirror without a seeder resolves the moved tag to %s, want %s", got, want)
	}
	waitUntil(t, "the mirror sees the moved tag", func() error {
		if got := resolve(f.Mirrors[0]); got.String() != want.String() {
			return errNotYet
		}
		return nil
	})
	t.Logf("the moved tag was seen after %v (--tag-ttl is 2s)", time.Since(moved).Round(time.Millisecond))
}
