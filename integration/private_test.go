package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
)

// Private images: murder holds no wider rights than the puller. In all of
// these the blobs lie in the mirror's and the seeder's caches already.

// guarded is a registry that wants credentials, in front of it a warm fleet,
// and the Authorization headers of its people.
type guarded struct {
	*fleet
	images *fixtures
	alice  string                                // may pull the private image
	others map[string]func(repo string) []string // who may not, and how they ask for a repository
}

// startGuarded starts a registry with htpasswd or tokens and lets alice pull
// the private image through mirror 0.
func startGuarded(t *testing.T, withTokens bool) *guarded {
	t.Helper()
	g := &guarded{images: loadFixtures(t)}
	cfg := registryConfig{Storage: g.images.Storage}
	if withTokens {
		cfg.Tokens = startTokenServer(t, map[string]user{
			"alice": {Password: "secret", Repositories: []string{privateRepo}},
			"bob":   {Password: "hunter2", Repositories: []string{otherRepo}},
		}, publicRepo)
	} else {
		cfg.Users = map[string]string{"alice": "secret"}
	}
	g.fleet = startFleet(t, fleetConfig{Registry: cfg, Mirrors: 2})
	nobody := func(string) []string { return nil }
	if withTokens {
		g.alice = g.token(t, "alice:secret", privateRepo)
		g.others = map[string]func(string) []string{
			"nobody":              nobody,
			"anonymous token":     func(repo string) []string { return []string{g.token(t, "", repo)} },
			"bob":                 func(repo string) []string { return []string{g.token(t, "bob:hunter2", repo)} },
			"bob's other token":   func(string) []string { return []string{g.token(t, "bob:hunter2", otherRepo)} },
			"a token of nonsense": func(string) []string { return []string{"Authorization: Bearer nonsense"} },
		}
	} else {
		g.alice = basic("alice:secret")
		g.others = map[string]func(string) []string{
			"nobody":         nobody,
			"wrong password": func(string) []string { return []string{basic("alice:wrong")} },
			"a stranger":     func(string) []string { return []string{basic("mallory:secret")} },
		}
	}
	if _, err := pullImage(t, g.Mirrors[0], g.Registry.Addr, privateRepo, fixtureTag, g.alice); err != nil {
		t.Fatalf("alice pulls: %v", err)
	}
	return g
}

// token gets a token to pull repo, as an engine does on the challenge.
func (g *guarded) token(t *testing.T, userPassword, repo string) string {
	t.Helper()
	a := get(t, "http://"+g.Registry.Addr+"/v2/"+repo+"/manifests/"+fixtureTag)
	return bearer(t, a.Header.Get("WWW-Authenticate"), userPassword)
}

// registryURL is the path and query of a daemon's URL, asked of the registry.
func (g *guarded) registryURL(url string, d *daemon) string {
	return "http://" + g.Registry.Addr + url[len(d.URL()):]
}

func TestPrivateImageIsPulled(t *testing.T) {
	for name, tokens := range map[string]bool{"htpasswd": false, "token": true} {
		t.Run(name, func(t *testing.T) {
			g := startGuarded(t, tokens)
			g.checkEachBlobOnce(t, allBlobs(t, g.images.Private)...)
			for i, m := range g.Mirrors { // a warm one and a cold one
				if _, err := pullImage(t, m, g.Registry.Addr, privateRepo, fixtureTag, g.alice); err != nil {
					t.Errorf("mirror %d: %v", i, err)
				}
			}
			g.checkEachBlobOnce(t, allBlobs(t, g.images.Private)...)
		})
	}
}

// TestPrivateImageIsRefused asks as each of those who may not, for all there
// is of the image, mirror and seeder alike. The answer is the registry's own:
// its status, its challenge.
func TestPrivateImageIsRefused(t *testing.T) {
	for name, tokens := range map[string]bool{"htpasswd": false, "token": true} {
		t.Run(name, func(t *testing.T) {
			g := startGuarded(t, tokens)
			for who, headers := range g.others {
				for role, d := range map[string]*daemon{"warm mirror": g.Mirrors[0], "cold mirror": g.Mirrors[1], "seeder": g.Seeder} {
					for what, url := range g.privateURLs(t, d) {
						g.checkRefused(t, fmt.Sprintf("%s asks the %s for %s", who, role, what), url, d, headers(privateRepo)...)
					}
				}
				g.checkNoTorrent(t, who, headers(privateRepo)...)
			}
		})
	}
}

// privateURLs is all that the private image consists of, at one daemon.
func (g *guarded) privateURLs(t *testing.T, d *daemon) map[string]string {
	t.Helper()
	manifest, err := g.images.Private.Digest()
	if err != nil {
		t.Fatal(err)
	}
	urls := map[string]string{
		"the tag":      d.Manifest(g.Registry.Addr, privateRepo, fixtureTag),
		"the manifest": d.Manifest(g.Registry.Addr, privateRepo, manifest.String()),
	}
	for i, b := range allBlobs(t, g.images.Private) {
		urls[fmt.Sprintf("blob %d", i)] = d.Blob(g.Registry.Addr, privateRepo, b.Digest)
	}
	return urls
}

func (g *guarded) checkRefused(t *testing.T, what, url string, d *daemon, headers ...string) {
	t.Helper()
	want := get(t, g.registryURL(url, d), headers...)
	if want.Status != http.StatusUnauthorized {
		t.Fatalf("%s: the registry itself answers %d, want 401", what, want.Status)
	}
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		got := ask(t, method, url, headers...)
		if got.Status != want.Status {
			t.Errorf("%s: %s = %d, want the registry's %d: %.200s", what, method, got.Status, want.Status, got.Body)
		}
		if got, want := got.Header.Get("WWW-Authenticate"), want.Header.Get("WWW-Authenticate"); got != want {
			t.Errorf("%s: challenge = %q, want the registry's %q", what, got, want)
		}
		if method == http.MethodGet {
			checkErrorBody(t, what, got, "UNAUTHORIZED")
		}
	}
}

// checkNoTorrent: metainfo gives away a blob's piece hashes and its swarm.
func (g *guarded) checkNoTorrent(t *testing.T, who string, headers ...string) {
	t.Helper()
	for _, b := range layerBlobs(t, g.images.Private) {
		a := get(t, g.Seeder.URL()+"/v1/torrents/"+b.Digest.String()+"?ns="+g.Registry.Addr+"&repo="+privateRepo, headers...)
		if a.Status != http.StatusUnauthorized {
			t.Errorf("%s asks for the metainfo of %s = %d, want 401", who, b.Digest, a.Status)
		}
	}
}

// TestPrivateBlobUnderPublicName asks for private blobs that are cached as if
// they were a public repository's, which everybody may read.
func TestPrivateBlobUnderPublicName(t *testing.T) {
	g := startGuarded(t, true)
	anonymous := g.token(t, "", publicRepo)
	for role, d := range map[string]*daemon{"warm mirror": g.Mirrors[0], "cold mirror": g.Mirrors[1], "seeder": g.Seeder} {
		if _, err := pullImage(t, d, g.Registry.Addr, publicRepo, fixtureTag, anonymous); err != nil {
			t.Fatalf("the %s refuses the public image: %v", role, err)
		}
		for _, b := range allBlobs(t, g.images.Private) {
			url := d.Blob(g.Registry.Addr, publicRepo, b.Digest)
			got, want := get(t, url, anonymous), get(t, g.registryURL(url, d), anonymous)
			if got.Status != want.Status || got.Status < 400 {
				t.Errorf("%s: private blob under a public name = %d with %d bytes, want the registry's %d", role, got.Status, len(got.Body), want.Status)
			}
		}
		manifest, err := g.images.Private.Digest()
		if err != nil {
			t.Fatal(err)
		}
		url := d.Manifest(g.Registry.Addr, publicRepo, manifest.String())
		if got := get(t, url, anonymous); got.Status < 400 {
			t.Errorf("%s: private manifest under a public name = %d", role, got.Status)
		}
	}
	torrent := g.Seeder.URL() + "/v1/torrents/" + layerBlobs(t, g.images.Private)[0].Digest.String()
	if got := get(t, torrent+"?ns="+g.Registry.Addr+"&repo="+publicRepo, anonymous); got.Status < 400 {
		t.Errorf("metainfo of a private blob under a public name = %d", got.Status)
	}
}

// TestEnginesPullPrivateImages lets the engines find the challenge and send
// their users' credentials to the mirror.
func TestEnginesPullPrivateImages(t *testing.T) {
	t.Run("containerd", func(t *testing.T) {
		g, c := startGuarded(t, true), startContainerd(t, debianContainerd(t))
		c.Mirror(t, g.Registry.Addr, g.Mirrors[0].Addr)
		ref := g.Registry.Addr + "/" + privateRepo + ":" + fixtureTag
		for user, want := range map[string]bool{"": false, "alice:wrong": false, "bob:hunter2": false, "alice:secret": true} {
			if err := c.Pull(t, ref, user); (err == nil) != want {
				t.Errorf("pull as %q = %v, want success %v", user, err, want)
			}
		}
		g.checkEachBlobOnce(t, allBlobs(t, g.images.Private)...)
	})
	t.Run("skopeo", func(t *testing.T) {
		g, s := startGuarded(t, true), newSkopeo(t)
		ref := g.Mirrors[0].Addr + "/" + privateRepo + ":" + fixtureTag
		for user, want := range map[string]bool{"": false, "alice:wrong": false, "bob:hunter2": false, "alice:secret": true} {
			flags := []string{"--src-no-creds"}
			if user != "" {
				flags = []string{"--src-creds", user}
			}
			if _, err := s.Copy(t, ref, flags...); (err == nil) != want {
				t.Errorf("copy as %q = %v, want success %v", user, err, want)
			}
		}
		g.checkEachBlobOnce(t, allBlobs(t, g.images.Private)...)
	})
	t.Run("docker", func(t *testing.T) {
		images := loadFixtures(t)
		f := startFleet(t, fleetConfig{Registry: registryConfig{Storage: images.Storage, Addr: hostAddr(t), Users: map[string]string{"alice": "secret"}}, Mirrors: 1})
		d := startDocker(t, dockerConfig{})
		_, port, _ := cutLast(f.Mirrors[0].Addr, ":")
		ref := "localhost:" + port + "/" + f.name() + "/" + privateRepo + ":" + fixtureTag
		if _, err := d.Run(t, "pull", ref); err == nil {
			t.Error("pulled without credentials")
		}
		d.Login(t, "localhost:"+port, "alice:secret")
		if _, err := d.Run(t, "pull", ref); err != nil {
			t.Errorf("pull as alice = %v", err)
		}
		f.checkEachBlobOnce(t, allBlobs(t, images.Private)...)
	})
	t.Run("podman", func(t *testing.T) {
		images, p := loadFixtures(t), newPodman(t)
		f := startFleet(t, fleetConfig{Registry: registryConfig{Storage: images.Storage, Addr: hostAddr(t), Users: map[string]string{"alice": "secret"}}, Mirrors: 1})
		p.Mirror(t, f.name(), f.Mirrors[0].Addr+"/"+f.name())
		ref := f.name() + "/" + privateRepo + ":" + fixtureTag
		if err := p.Pull(t, ref); err == nil {
			t.Error("pulled without credentials")
		}
		p.Login(t, map[string]string{f.Mirrors[0].Addr: "alice:secret", f.name(): "alice:secret"})
		if err := p.Pull(t, ref); err != nil {
			t.Errorf("pull as alice = %v", err)
		}
		checkBytesSent(t, f.Mirrors[0], sizeOf(layerBlobs(t, images.Private)))
	})
}

// TestCredentialsAreNotWrittenDown looks for alice's password in the logs and
// on the disks of a fleet that carried it.
func TestCredentialsAreNotWrittenDown(t *testing.T) {
	g := startGuarded(t, false)
	_, secret, _ := cutLast(g.alice, " ")
	for _, d := range append(g.Mirrors, g.Seeder) {
		for _, word := range []string{secret, "alice:secret"} {
			if found := contains(t, d.output.String(), d.DataDir, word); found != "" {
				t.Errorf("%s has %q in %s", d.name, word, found)
			}
		}
	}
}

// checkErrorBody fails the test unless an answer has the spec's JSON error
// with a code (any, when code is empty).
func checkErrorBody(t testing.TB, what string, a answer, code string) {
	t.Helper()
	var body struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if err := json.Unmarshal(a.Body, &body); err != nil || len(body.Errors) == 0 || body.Errors[0].Code == "" {
		t.Errorf("%s: status %d with the body %.200q, want the spec's JSON error", what, a.Status, a.Body)
		return
	}
	if code != "" && body.Errors[0].Code != code {
		t.Errorf("%s: error code = %s (%s), want %s", what, body.Errors[0].Code, body.Errors[0].Message, code)
	}
}
