package integration

import (
	"fmt"
	"io"
	"net/http"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	digest "github.com/opencontainers/go-digest"
)

// What pulls do when parts of murder, or the registry, fail.

const failRepo = "failing/app"

// failFleet has an image of one layer of size bytes, named after the test.
func failFleet(t *testing.T, size int64, cfg fleetConfig) (*fleet, v1.Image, blobInfo) {
	t.Helper()
	needs(t, "docker-registry")
	image, err := makeImage(newRoot(t), "fail", size)
	if err != nil {
		t.Fatal(err)
	}
	f := startFleet(t, cfg)
	push(t, f.Registry.Addr, failRepo+":v1", image, nil)
	f.Registry.Forget()
	return f, image, layerBlobs(t, image)[0]
}

// checkFallback fails the test unless the mirror counted a fallback, which
// tells an operator why a pull was not peer-to-peer.
func checkFallback(t *testing.T, m *daemon) {
	t.Helper()
	got := m.Metrics(t)
	t.Logf("fallbacks: %s; received: %s", got.Series("murder_fallbacks_total"), got.Series("murder_received_bytes_total"))
	if got.Sum("murder_fallbacks_total") == 0 {
		t.Error("the mirror counted no fallback")
	}
}

// TestSeederDiesWhileItFetches kills the seeder when it has half of a blob
// from the registry and a client has some of that through a mirror. The
// client's download goes on at the same byte.
func TestSeederDiesWhileItFetches(t *testing.T) {
	f, _, blob := failFleet(t, 8<<20, fleetConfig{Mirrors: 1})
	held := f.Registry.Hold(blob.Digest, blob.Size/2)
	verifier := blob.Digest.Verifier()
	body, err := openBlob(t, f.Mirrors[0].Blob(f.Registry.Addr, failRepo, blob.Digest))
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if _, err := io.CopyN(verifier, body, onePiece); err != nil {
		t.Fatalf("the first bytes: %v", err)
	}
	held.wait(t)

	f.Seeder.Kill()
	done := logTime(t, "the rest, after the seeder's death,")
	if _, err := io.Copy(verifier, body); err != nil || !verifier.Verified() {
		t.Fatalf("the rest: %v, verified %v", err, verifier.Verified())
	}
	done()
	checkFallback(t, f.Mirrors[0])
}

// TestSeederDiesWhileItSeeds kills it when a mirror has part of a blob from
// the swarm.
func TestSeederDiesWhileItSeeds(t *testing.T) {
	f, _, blob := failFleet(t, 16<<20, fleetConfig{Mirrors: 2, SeederFlags: []string{"--upload-limit", "2MiB"}})
	f.warmSeeder(t, blob)
	pulls := make(chan error, len(f.Mirrors))
	for _, m := range f.Mirrors {
		go func() { pulls <- checkBlob(t, m.Blob(f.Registry.Addr, failRepo, blob.Digest), blob.Digest) }()
	}
	f.Mirrors[0].waitReceived(t, onePiece)
	f.Seeder.Kill()
	done := logTime(t, "the pulls, after the seeder's death,")
	for range f.Mirrors {
		if err := <-pulls; err != nil {
			t.Error(err)
		}
	}
	done()
	checkFallback(t, f.Mirrors[0])
}

// warmSeeder makes the seeder have a blob whole, and its metainfo.
func (f *fleet) warmSeeder(t *testing.T, blob blobInfo) {
	t.Helper()
	a := get(t, fmt.Sprintf("%s/v1/torrents/%s?ns=%s&repo=%s&wait=60s", f.Seeder.URL(), blob.Digest, f.Registry.Addr, failRepo))
	if a.Status != http.StatusOK {
		t.Fatalf("GET /v1/torrents = %d: %.200s", a.Status, a.Body)
	}
}

// waitReceived waits until a mirror has received more than n bytes.
func (d *daemon) waitReceived(t *testing.T, n float64) {
	t.Helper()
	d.waitUntil(t, "some bytes", func() error {
		if got := d.Metrics(t).Sum("murder_received_bytes_total"); got <= n {
			return fmt.Errorf("received %.0f bytes", got)
		}
		return nil
	})
}

// TestSeederHangs has seeders that take requests and never answer: a pull goes
// past them, and later pulls do not wait again.
func TestSeederHangs(t *testing.T) {
	hang := map[string]func(t *testing.T, f *fleet) *daemon{
		"stopped": func(t *testing.T, f *fleet) *daemon {
			m := f.addMirror(t)
			f.Seeder.Signal(t, syscall.SIGSTOP)
			return m
		},
		"deaf": func(t *testing.T, f *fleet) *daemon {
			return startMirror(t, daemonConfig{Seeders: []string{"http://" + openDeaf(t, nil, "127.0.0.1:0")}, Insecure: []string{f.Registry.Addr}})
		},
		"nobody there": func(t *testing.T, f *fleet) *daemon {
			return startMirror(t, daemonConfig{Seeders: []string{"http://" + freeAddr(t, "127.0.0.1")}, Insecure: []string{f.Registry.Addr}})
		},
	}
	for name, start := range hang {
		t.Run(name, func(t *testing.T) {
			f, image, _ := failFleet(t, 1<<20, fleetConfig{})
			m := start(t, f)
			for _, pull := range []string{"the first pull", "the second"} {
				done := logTime(t, pull)
				p, err := pullImage(t, m, f.Registry.Addr, failRepo, "v1")
				if err != nil {
					t.Fatal(err)
				}
				done()
				if want := sizeOf(allBlobs(t, image)); p.Bytes != want {
					t.Errorf("pulled %d bytes, want %d", p.Bytes, want)
				}
			}
			checkFallback(t, m)
		})
	}
}

// TestSeederHangsInTheMiddle stops the seeder when a mirror has part of a blob
// from it.
func TestSeederHangsInTheMiddle(t *testing.T) {
	f, _, blob := failFleet(t, 16<<20, fleetConfig{Mirrors: 1, SeederFlags: []string{"--upload-limit", "2MiB"}})
	f.warmSeeder(t, blob)
	pull := make(chan error, 1)
	go func() {
		pull <- checkBlob(t, f.Mirrors[0].Blob(f.Registry.Addr, failRepo, blob.Digest), blob.Digest)
	}()
	f.Mirrors[0].waitReceived(t, onePiece)
	f.Seeder.Signal(t, syscall.SIGSTOP)
	done := logTime(t, "the rest, after the seeder had stopped,")
	if err := <-pull; err != nil {
		t.Error(err)
	}
	done()
	checkFallback(t, f.Mirrors[0])
}

// TestRegistryDiesInTheMiddle cuts the registry off in the middle of a blob and
// lets it come back: the pull ends well, if need be when it is asked for again,
// and what had come does not come twice.
func TestRegistryDiesInTheMiddle(t *testing.T) {
	f, _, blob := failFleet(t, 8<<20, fleetConfig{Mirrors: 1})
	held := f.Registry.Hold(blob.Digest, blob.Size/2)
	pull := make(chan error, 1)
	go func() {
		pull <- checkBlob(t, f.Mirrors[0].Blob(f.Registry.Addr, failRepo, blob.Digest), blob.Digest)
	}()
	held.wait(t)
	f.Registry.Die()
	f.Registry.Revive(t) // a restart: the connection is cut, the next one works
	done := logTime(t, "the rest, after the registry's restart,")
	if err := <-pull; err != nil {
		// An engine asks again, and the bytes that came are not asked for again.
		t.Logf("the pull was cut: %v", err)
		if err := checkBlob(t, f.Mirrors[0].Blob(f.Registry.Addr, failRepo, blob.Digest), blob.Digest); err != nil {
			t.Error(err)
		}
	}
	done()
	if sent := f.Registry.BlobBytes(); sent > blob.Size+blob.Size/2+2<<20 {
		t.Errorf("the registry sent %d bytes of a blob of %d", sent, blob.Size)
	}
}

// TestRegistryDiesAfterSeederHasImage: a mirror that has nothing pulls the
// image while the registry is down.
func TestRegistryDiesAfterSeederHasImage(t *testing.T) {
	f, image, _ := failFleet(t, 4<<20, fleetConfig{Mirrors: 2})
	manifest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pullImage(t, f.Mirrors[0], f.Registry.Addr, failRepo, "v1"); err != nil {
		t.Fatal(err)
	}
	f.Registry.Die()
	for name, ref := range map[string]string{"digest": manifest.String(), "tag": "v1"} {
		done := logTime(t, "the pull by "+name)
		p, err := pullImage(t, f.Mirrors[1], f.Registry.Addr, failRepo, ref)
		if err != nil {
			t.Errorf("by %s: %v", name, err)
		} else if p.Manifest.String() != manifest.String() {
			t.Errorf("by %s: manifest %s, want %s", name, p.Manifest, manifest)
		}
		done()
	}
}

// TestBothDown: without seeder and registry a mirror serves what it has, says
// of the rest whose fault it is, and works again once they are back.
func TestBothDown(t *testing.T) {
	f, image, blob := failFleet(t, 2<<20, fleetConfig{Mirrors: 1})
	m := f.Mirrors[0]
	other, err := makeImage(newRoot(t), "fail-other", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	push(t, f.Registry.Addr, failRepo+":v2", other, nil)
	if _, err := pullImage(t, m, f.Registry.Addr, failRepo, "v1"); err != nil {
		t.Fatal(err)
	}
	f.Seeder.Kill()
	f.Registry.Die()

	for _, b := range allBlobs(t, image) {
		if err := checkBlob(t, m.Blob(f.Registry.Addr, failRepo, b.Digest), b.Digest); err != nil {
			t.Errorf("a cached blob: %v", err)
		}
	}
	manifest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := getManifest(t, m.Manifest(f.Registry.Addr, failRepo, manifest.String())); err != nil {
		t.Errorf("a cached manifest: %v", err)
	}
	for what, url := range map[string]string{
		"a blob":                       m.Blob(f.Registry.Addr, failRepo, layerBlobs(t, other)[0].Digest),
		"a tag":                        m.Manifest(f.Registry.Addr, failRepo, "v2"),
		"a blob of another repository": m.Blob(f.Registry.Addr, "unseen/app", blob.Digest),
	} {
		done := logTime(t, "the refusal of "+what)
		a := get(t, url)
		done()
		if a.Status != http.StatusBadGateway && a.Status != http.StatusServiceUnavailable {
			t.Errorf("%s with both down = %d, want 502 or 503: %.200s", what, a.Status, a.Body)
		}
		checkErrorBody(t, what, a, "")
	}

	f.Registry.Revive(t)
	waitUntil(t, "pulls work again", func() error {
		_, err := pullImage(t, m, f.Registry.Addr, failRepo, "v2")
		return err
	})
}

// TestMirrorIsKilledInMidPull kills a mirror with SIGKILL when it has part of
// a blob, and starts it again over the same folder. What was there is not
// fetched again, from the registry or from the swarm, but for the last 20 MiB and a
// piece, which may not have been hashed yet.
func TestMirrorIsKilledInMidPull(t *testing.T) {
	t.Run("from the registry", func(t *testing.T) {
		f, _, blob := failFleet(t, 64<<20, fleetConfig{})
		cfg := daemonConfig{Insecure: []string{f.Registry.Addr}, DataDir: newRoot(t) + "/mirror"}
		m := startMirror(t, cfg)
		held := f.Registry.Hold(blob.Digest, blob.Size/2)
		body, err := openBlob(t, m.Blob(f.Registry.Addr, failRepo, blob.Digest))
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		held.wait(t)
		m.waitReceived(t, float64(blob.Size/2-1)) // all that was sent before the hold
		m.Kill()
		held.Release()
		f.Registry.Forget()

		m = startMirror(t, cfg)
		if err := checkBlob(t, m.Blob(f.Registry.Addr, failRepo, blob.Digest), blob.Digest); err != nil {
			t.Fatal(err)
		}
		if sent := f.Registry.BlobBytes(); sent > blob.Size/2+21<<20 {
			t.Errorf("the registry sent %d bytes of %d again, though half was there", sent, blob.Size)
		}
	})
	t.Run("from the swarm", func(t *testing.T) {
		f, _, blob := failFleet(t, 16<<20, fleetConfig{SeederFlags: []string{"--upload-limit", "4MiB"}})
		f.warmSeeder(t, blob)
		cfg := daemonConfig{Seeders: []string{f.Seeder.URL()}, Insecure: []string{f.Registry.Addr}, DataDir: newRoot(t) + "/mirror"}
		m := startMirror(t, cfg)
		pull := make(chan error, 1)
		url := m.Blob(f.Registry.Addr, failRepo, blob.Digest)
		go func() { pull <- checkBlob(t, url, blob.Digest) }()
		m.waitReceived(t, float64(blob.Size/2))
		m.Kill()
		if err := <-pull; err == nil {
			t.Error("a pull from a killed mirror ended as if it were whole")
		}

		m = startMirror(t, cfg)
		if err := checkBlob(t, m.Blob(f.Registry.Addr, failRepo, blob.Digest), blob.Digest); err != nil {
			t.Fatal(err)
		}
		got := m.Metrics(t).Sum("murder_received_bytes_total")
		t.Logf("after the restart %.0f of %d bytes were received", got, blob.Size)
		if got > float64(blob.Size)*3/4 {
			t.Errorf("received %.0f of %d bytes after the restart, though half was there", got, blob.Size)
		}
	})
}

// TestBlobsAreRedirected has a registry that sends blobs from object storage,
// on another host, by 307: the puller's Authorization must not go there.
func TestBlobsAreRedirected(t *testing.T) {
	for name, withSeeder := range map[string]bool{"through a seeder": true, "by the mirror itself": false} {
		t.Run(name, func(t *testing.T) {
			images := loadFixtures(t)
			bucket := startRegistry(t, registryConfig{Storage: images.Storage})
			f := startFleet(t, fleetConfig{Registry: registryConfig{Storage: images.Storage, Users: map[string]string{"alice": "secret"}}})
			_, port, _ := cutLast(bucket.Addr, ":")
			f.Registry.Replace(redirectBlobs(f.Registry.gate, "http://localhost:"+port, ""))
			cfg := daemonConfig{Insecure: []string{f.Registry.Addr}}
			if withSeeder {
				cfg.Seeders = []string{f.Seeder.URL()}
			}
			m := startMirror(t, cfg)
			if _, err := pullImage(t, m, f.Registry.Addr, privateRepo, fixtureTag, basic("alice:secret")); err != nil {
				t.Fatal(err)
			}
			blobs := allBlobs(t, images.Private)
			got := bucket.BlobGets()
			for _, b := range blobs {
				if got[b.Digest] != 1 {
					t.Errorf("the bucket sent %s %d times, want once", b.Digest, got[b.Digest])
				}
			}
			if n := bucket.Count(func(r request) bool { return r.Authed }); n != 0 {
				t.Errorf("%d requests to the bucket had an Authorization header", n)
			}
		})
	}
}

// redirectBlobs answers GETs for blobs with 307 to another host, once the
// registry has let the caller in.
func redirectBlobs(g *gate, to, query string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || digestOf(r.URL.Path) == "" {
			g.Forward(w, r)
			return
		}
		g.Forward(&redirector{ResponseWriter: w, to: to + r.URL.Path + query}, r)
	}
}

// redirector turns a 200 into a redirect and drops its body.
type redirector struct {
	http.ResponseWriter
	to      string
	dropped bool
}

func (w *redirector) WriteHeader(status int) {
	if status < 300 {
		status, w.dropped = http.StatusTemporaryRedirect, true
		w.Header().Del("Content-Length")
		w.Header().Del("Docker-Content-Digest")
		w.Header().Set("Location", w.to)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *redirector) Write(b []byte) (int, error) {
	if w.dropped {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

// digestOf is the digest at the end of a blob's path, or "".
func digestOf(path string) digest.Digest {
	_, ref, _ := cutLast(path, "/blobs/")
	return digest.Digest(ref)
}
