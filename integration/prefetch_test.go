package integration

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestPrefetchFleet warms three mirrors with a private image, with the
// credentials of the user's own Docker login, and then takes the registry and
// the seeder away.
func TestPrefetchFleet(t *testing.T) {
	g := startGuarded(t, true)
	mirrors := append(g.Mirrors[:1:1], g.addMirror(t), g.addMirror(t))
	ref := g.Registry.Addr + "/" + privateRepo + ":" + fixtureTag
	args := []string{"prefetch"}
	for _, m := range mirrors {
		args = append(args, "--mirror", m.URL())
	}
	args = append(args, ref)

	stdout, stderr, code := runMurder(t, dockerLogin(t, g.Registry.Addr, "alice:wrong"), args...)
	if code != 1 {
		t.Errorf("prefetch with a wrong password exits %d, want 1\n%s%s", code, stdout, stderr)
	}
	for _, m := range mirrors {
		if !strings.Contains(stdout+stderr, m.Addr) {
			t.Errorf("prefetch with a wrong password does not name %s:\n%s%s", m.Addr, stdout, stderr)
		}
	}
	stdout, stderr, code = runMurder(t, dockerLogin(t, g.Registry.Addr, "alice:secret"), args...)
	if code != 0 {
		t.Fatalf("prefetch exits %d, want 0\n%s%s", code, stdout, stderr)
	}
	g.checkEachBlobOnce(t, allBlobs(t, g.images.Private)...)

	token := g.token(t, "alice:secret", privateRepo)
	manifest, err := g.images.Private.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range mirrors { // the registry is asked once whether alice may
		if _, err := pullImage(t, m, g.Registry.Addr, privateRepo, manifest.String(), token); err != nil {
			t.Errorf("mirror %d, registry up: %v", i, err)
		}
	}
	g.Seeder.Kill()
	g.Registry.Die()
	for i, m := range mirrors {
		if _, err := pullImage(t, m, g.Registry.Addr, privateRepo, manifest.String(), token); err != nil {
			t.Errorf("mirror %d, everything else down: %v", i, err)
		}
	}
}

// TestPrefetchPlatforms fetches another platform's layers, and by default the
// host's own only.
func TestPrefetchPlatforms(t *testing.T) {
	images := loadFixtures(t)
	f := startFleet(t, fleetConfig{Registry: registryConfig{Storage: images.Storage}, Mirrors: 1})
	ref := f.Registry.Addr + "/" + bigRepo + ":" + fixtureTag
	run := func(args ...string) {
		t.Helper()
		stdout, stderr, code := runMurder(t, nil, append(append([]string{"prefetch", "--mirror", f.Mirrors[0].URL()}, args...), ref)...)
		if code != 0 {
			t.Fatalf("prefetch %q exits %d\n%s%s", args, code, stdout, stderr)
		}
	}
	run("--platform", "linux/amd64")
	f.checkEachBlobOnce(t, allBlobs(t, images.Big.Images["linux/amd64"])...)
	run("--platform", "all", "--output", "json")
	both := map[blobInfo]bool{}
	var blobs []blobInfo
	for _, image := range images.Big.Images {
		for _, b := range allBlobs(t, image) {
			if !both[b] {
				both[b] = true
				blobs = append(blobs, b)
			}
		}
	}
	f.checkEachBlobOnce(t, blobs...)
}

// TestPrefetchNamesTheHostAtFault: one of two mirrors is not there.
func TestPrefetchNamesTheHostAtFault(t *testing.T) {
	images := loadFixtures(t)
	f := startFleet(t, fleetConfig{Registry: registryConfig{Storage: images.Storage}, Mirrors: 1})
	gone := freeAddr(t, "127.0.0.1")
	stdout, stderr, code := runMurder(t, nil, "prefetch", "--mirror", f.Mirrors[0].URL(), "--mirror", "http://"+gone,
		f.Registry.Addr+"/"+publicRepo+":"+fixtureTag)
	if code != 1 || !strings.Contains(stdout+stderr, gone) {
		t.Errorf("prefetch exits %d, want 1 and the name of %s:\n%s%s", code, gone, stdout, stderr)
	}
	f.checkEachBlobOnce(t, allBlobs(t, images.Public)...) // the other has it all the same
}

// dockerLogin is the environment of a user who has logged in.
func dockerLogin(t testing.TB, registry, userPassword string) []string {
	t.Helper()
	dir := newRoot(t)
	writeFile(t, filepath.Join(dir, "config.json"), authFile(t, map[string]string{registry: userPassword}))
	return []string{"DOCKER_CONFIG=" + dir}
}
