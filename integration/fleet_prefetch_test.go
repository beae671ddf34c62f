package integration

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	orders "github.com/murderp2p/murder/seeder/fleet"
)

// fleetResult is the document of `murder prefetch --fleet --output json`.
type fleetResult struct {
	OK     bool       `json:"ok"`
	Needed int        `json:"needed"`
	Job    orders.Job `json:"job"`

	stderr string
	code   int
}

// prefetchFleet runs `murder prefetch --fleet` at the fleet's seeder.
func (f *fleetOf) prefetch(t testing.TB, env []string, args ...string) (r fleetResult) {
	t.Helper()
	args = append([]string{"prefetch", "--fleet", "--seeder", f.Seeder.URL(), "--output", "json"}, args...)
	if f.certs != nil {
		args = append(args, f.certs.flags()...)
	}
	stdout, stderr, code := runMurder(t, env, args...)
	if stdout != "" {
		if err := json.Unmarshal([]byte(stdout), &r); err != nil {
			t.Fatalf("stdout is no JSON document: %v\n%s%s", err, stdout, stderr)
		}
	}
	r.stderr, r.code = stderr, code
	return r
}

// must fails the test unless the command has exited with code and so many hosts were ready.
func (r fleetResult) must(t testing.TB, what string, code, ready int) {
	t.Helper()
	if r.code != code || r.OK != (code == 0) || r.Job.Ready != ready {
		t.Errorf("%s: exit %d with %d of %d hosts ready, want exit %d with %d\n%s", what, r.code, r.Job.Ready, r.Job.Hosts, code, ready, r.stderr)
	}
}

// fleetOf is a fleet whose mirrors have names: m0, m1 and so on.
type fleetOf struct {
	*fleet
	dirs []string // of the mirrors
}

// startFleetOf starts a fleet of n mirrors that all hold a link; the even ones are in zone a and have disks.
func startFleetOf(t testing.TB, n int, cfg fleetConfig) *fleetOf {
	t.Helper()
	f := &fleetOf{fleet: startFleet(t, cfg)}
	for i := range n {
		f.dirs = append(f.dirs, filepath.Join(newRoot(t), "mirror"))
		f.Mirrors = append(f.Mirrors, f.mirror(t, i))
	}
	f.waitLinked(t, n)
	return f
}

// mirror starts the mirror of a name, once more if need be.
func (f *fleetOf) mirror(t testing.TB, i int) *daemon {
	t.Helper()
	flags := []string{"--host-name", fmt.Sprintf("m%d", i), "--zone", []string{"a", "b"}[i%2], "--label", "disk=" + []string{"ssd", "none"}[i%2]}
	return startMirror(t, daemonConfig{Seeders: []string{f.Seeder.URL()}, Insecure: []string{f.name()}, Default: f.name(),
		Certs: f.certs, DataDir: f.dirs[i], Flags: flags})
}

// waitLinked waits until the seeder has so many hosts.
func (f *fleetOf) waitLinked(t testing.TB, n int) {
	t.Helper()
	f.Seeder.waitUntil(t, fmt.Sprintf("%d hosts", n), func() error {
		if have := f.Seeder.Metrics(t).Sum("murder_fleet_hosts", `state="connected"`); have != float64(n) {
			return fmt.Errorf("it has %.0f", have)
		}
		return nil
	})
}

// TestFleetPrefetch has eight mirrors fetch images by way of the seeder, and then takes seeder and registry away.
func TestFleetPrefetch(t *testing.T) {
	images := loadFixtures(t)
	f := startFleetOf(t, 8, fleetConfig{Registry: registryConfig{Storage: images.Storage}})
	ref := f.Registry.Addr + "/" + publicRepo + ":" + fixtureTag

	r := f.prefetch(t, nil, "--zone", "a", "--percent", "50", ref)
	r.must(t, "half of zone a", 0, 2)
	for _, target := range r.Job.Targets {
		if target.Zone != "a" {
			t.Errorf("half of zone a: %s of zone %s has it", target.Host, target.Zone)
		}
	}
	f.prefetch(t, nil, "--label", "disk=ssd", ref).must(t, "hosts with disks", 0, 4)
	f.prefetch(t, nil, "--hosts", "m1,m3", ref).must(t, "two hosts by name", 0, 2)
	r = f.prefetch(t, nil, "--pin", ref)
	r.must(t, "all hosts", 0, 8)
	digest, err := images.Public.Digest()
	if err != nil || len(r.Job.Images) != 1 || r.Job.Images[0].Digest.String() != digest.String() {
		t.Errorf("the job is for %+v, want %s (%v)", r.Job.Images, digest, err)
	}
	f.checkEachBlobOnce(t, allBlobs(t, images.Public)...)

	gone := f.prefetch(t, nil, f.Registry.Addr+"/"+publicRepo+":no-such-tag")
	if gone.code != 1 || !strings.Contains(gone.stderr, "no-such-tag") || gone.Job.ID != "" {
		t.Errorf("an image that is not there: exit %d, %s; want 1, its name, and no order", gone.code, gone.stderr)
	}
	if none := f.prefetch(t, nil, "--zone", "c", ref); none.code != 1 || !strings.Contains(none.stderr, "no host") {
		t.Errorf("a zone without hosts: exit %d, %s", none.code, none.stderr)
	}
	if load := f.prefetch(t, nil, "--load", ref); load.code != 1 || load.Job.Failed == 0 {
		t.Errorf("--load without an engine: exit %d with %d failed, want 1", load.code, load.Job.Failed)
	}

	f.Mirrors[7].Kill()
	f.waitLinked(t, 7)
	late := f.prefetch(t, nil, "--timeout", "3s", ref)
	late.must(t, "one host away", 3, 7)
	if late.Job.Away != 1 || len(late.Job.Missing) != 1 || late.Job.Missing[0].Host != "m7" {
		t.Errorf("the job does not name the host that is away: %+v", late.Job)
	}
	f.prefetch(t, nil, "--ready", "85%", ref).must(t, "one host away, 85% wanted", 0, 7)

	f.Seeder.Kill()
	f.Registry.Die()
	for i, m := range f.Mirrors[:7] { // the order was for anybody, and so is what it brought
		if _, err := pullImage(t, m, f.Registry.Addr, publicRepo, digest.String()); err != nil {
			t.Errorf("mirror %d pulls, all else down: %v", i, err)
		}
	}
}

// TestFleetPrefetchThroughRestarts holds a blob back, and restarts the seeder and one mirror meanwhile.
func TestFleetPrefetchThroughRestarts(t *testing.T) {
	images := loadFixtures(t)
	f := startFleetOf(t, 3, fleetConfig{Registry: registryConfig{Storage: images.Storage}})
	held := f.Registry.Hold(layerBlobs(t, images.Public)[0].Digest, 1000)
	f.Mirrors[2].Kill()
	f.waitLinked(t, 2)
	done := make(chan fleetResult, 1)
	go func() {
		done <- f.prefetch(t, nil, "--hosts", "m0,m1,m2", "--timeout", "3m", f.Registry.Addr+"/"+publicRepo+":"+fixtureTag)
	}()
	held.wait(t)
	f.Seeder.Kill()
	f.Seeder = startSeeder(t, daemonConfig{Listen: f.Seeder.Addr, DataDir: f.Seeder.DataDir, Insecure: []string{f.name()}, Default: f.name()})
	f.waitLinked(t, 2)
	f.Mirrors[2] = f.mirror(t, 2)
	f.waitLinked(t, 3)
	f.Registry.ReleaseAll()
	r := <-done
	r.must(t, "through restarts", 0, 3)
}

// TestFleetPrefetchPrivate: an order for a private image goes to hosts that have certificates, in the name of who ordered it; without
// certificates it is refused, as whoever reaches the seeder could be told the credentials.
func TestFleetPrefetchPrivate(t *testing.T) {
	images := loadFixtures(t)
	tokens := startTokenServer(t, map[string]user{
		"alice": {Password: "secret", Repositories: []string{privateRepo}},
		"bob":   {Password: "hunter2", Repositories: []string{otherRepo}},
	}, publicRepo)
	registry := registryConfig{Storage: images.Storage, Tokens: tokens}
	f := startFleetOf(t, 2, fleetConfig{Registry: registry, Certs: newCerts(t)})
	ref := f.Registry.Addr + "/" + privateRepo + ":" + fixtureTag
	alice := dockerLogin(t, f.Registry.Addr, "alice:secret")
	for who, env := range map[string][]string{"bob": dockerLogin(t, f.Registry.Addr, "bob:hunter2"), "nobody": {"DOCKER_CONFIG=" + newRoot(t)}} {
		if r := f.prefetch(t, env, ref); r.code != 1 || r.Job.ID != "" {
			t.Errorf("%s: exit %d with %+v, want 1 and no order\n%s", who, r.code, r.Job, r.stderr)
		}
	}
	r := f.prefetch(t, alice, ref)
	r.must(t, "alice", 0, 2)
	f.checkEachBlobOnce(t, allBlobs(t, images.Private)...)
	manifest, err := images.Private.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range f.Mirrors { // it is there, and private still
		if _, err := pullImage(t, m, f.Registry.Addr, privateRepo, manifest.String()); err == nil {
			t.Errorf("mirror %d gave a private image to nobody", i)
		}
	}

	open := startFleetOf(t, 1, fleetConfig{Registry: registry})
	r = open.prefetch(t, dockerLogin(t, open.Registry.Addr, "alice:secret"), open.Registry.Addr+"/"+privateRepo+":"+fixtureTag)
	if r.code != 1 || !strings.Contains(r.stderr, "--tls-ca") || r.Job.ID != "" {
		t.Errorf("without TLS: exit %d, %s; want 1 and what to do", r.code, r.stderr)
	}
	open.prefetch(t, nil, open.Registry.Addr+"/"+publicRepo+":"+fixtureTag).must(t, "a public image without TLS", 0, 1)
}
