package seeder_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/registry/registrytest"
	"github.com/murderp2p/murder/seeder"
	"github.com/murderp2p/murder/seeder/pushes"
)

// tell posts an event of a push to a repository of up, as the CNCF registry does.
func (s *testSeeder) tell(t testing.TB, host, end string, d digest.Digest, tag string) answer {
	t.Helper()
	return s.post(t, fmt.Sprintf(`{"events":[{"action":"push","target":{"digest":%q,"repository":"app","url":"http://%s/v2/app/%s/%s","tag":%q},"request":{"host":%q}}]}`,
		d, host, end, d, tag, host))
}

func (s *testSeeder) post(t testing.TB, body string) answer {
	t.Helper()
	resp, err := s.server.Client().Post(s.server.URL+"/v1/events", "application/vnd.docker.distribution.events.v1+json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	content := make([]byte, 1000)
	n, _ := resp.Body.Read(content)
	return answer{resp.StatusCode, resp.Header, content[:n], nil}
}

// counter is a metric's counter with that label value.
func (s *testSeeder) counter(t testing.TB, name, value string) (n float64) {
	t.Helper()
	families, err := s.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if family.GetName() == name && metric.GetLabel()[0].GetValue() == value {
				n = metric.GetCounter().GetValue()
			}
		}
	}
	return n
}

func (a answer) mustAccept(t testing.TB, accepted, ignored int) {
	t.Helper()
	if want := fmt.Sprintf("{\"accepted\":%d,\"ignored\":%d}\n", accepted, ignored); a.status != http.StatusAccepted || string(a.body) != want {
		t.Errorf("answer = %d %q, want 202 %q", a.status, clip(a.body), want)
	}
}

// ready waits until a blob's metainfo has been made.
func (s *testSeeder) ready(t testing.TB, blobs ...[]byte) {
	t.Helper()
	for _, b := range blobs {
		eventually(t, "blob is ready", func() bool {
			if _, ok := s.store.Stat(digest.FromBytes(b)); !ok {
				return false
			}
			_, err := s.store.Metainfo(digest.FromBytes(b))
			return err == nil
		})
	}
}

// What is pushed is here before anyone pulls it, and is fetched once.
func TestPushedImageIsReady(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	config, layer := random(1000, 1), random(3<<20, 2)
	manifest := up.PushImage(t, "app", "v1", config, layer)
	s := newSeeder(t, up)
	s.tell(t, up.Host, "blobs", digest.FromBytes(layer), "").mustAccept(t, 1, 0)
	s.tell(t, up.Host, "manifests", manifest, "v1").mustAccept(t, 1, 0)
	s.tell(t, up.Host, "manifests", manifest, "v1").mustAccept(t, 1, 0) // registries may tell twice
	s.ready(t, config, layer)
	s.request(t, "GET", torrentPath("app", digest.FromBytes(layer)), "").mustMetainfo(t, layer)
	for _, b := range [][]byte{config, layer} {
		if gets := up.Seen("GET", digest.FromBytes(b).String()); len(gets) != 1 && (len(gets) != 2 || gets[1].Ranges == "") {
			t.Errorf("the registry was asked for %v, want once, and for a proof at the most", gets)
		}
	}
}

// All platforms of an index are fetched; one that the registry lacks holds up no other.
// So are artifacts, which have no config to speak of.
func TestPushedIndexIsReady(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	first, second, artifact := random(1000, 3), random(2000, 4), random(3000, 5)
	empty := []byte("{}")
	child := func(d digest.Digest) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: up.ManifestSize(t, "app", d)}
	}
	gone := child(up.PushImage(t, "app", "", random(10, 22), random(10, 23)))
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{
		child(up.PushImage(t, "app", "", random(10, 6), first)), gone, child(up.PushImage(t, "app", "", random(10, 7), second)),
		child(up.PushImage(t, "app", "", empty, artifact)),
	}}
	d, _ := up.PushManifest(t, "app", "v1", index.MediaType, index)
	up.Fail(&registrytest.Fault{Method: "*", Path: gone.Digest.String(), Left: -1, Answer: http.NotFound})
	s := newSeeder(t, up)
	s.tell(t, up.Host, "manifests", d, "v1").mustAccept(t, 1, 0)
	s.ready(t, first, second, artifact, empty)
}

// Where one platform is wanted the layers of others are left to who pulls them, however
// the registry tells of them.
func TestPushedPlatforms(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	layers := map[string][]byte{"amd64": random(1000, 30), "arm64": random(2000, 31)}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	images := make(map[string]digest.Digest)
	for arch, layer := range layers {
		images[arch] = up.PushImage(t, "app", arch, fmt.Appendf(nil, `{"os":"linux","architecture":%q}`, arch), layer)
		index.Manifests = append(index.Manifests, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: images[arch],
			Size: up.ManifestSize(t, "app", images[arch]), Platform: &ocispec.Platform{OS: "linux", Architecture: arch}})
	}
	all, _ := up.PushManifest(t, "app", "v1", index.MediaType, index)
	for name, told := range map[string]func(s *testSeeder){
		"index": func(s *testSeeder) { s.tell(t, up.Host, "manifests", all, "v1").mustAccept(t, 1, 0) },
		"images": func(s *testSeeder) {
			s.tell(t, up.Host, "manifests", images["amd64"], "").mustAccept(t, 1, 0)
			s.tell(t, up.Host, "manifests", images["arm64"], "").mustAccept(t, 1, 0)
		},
		"blobs": func(s *testSeeder) {
			s.tell(t, up.Host, "blobs", digest.FromBytes(layers["arm64"]), "").mustAccept(t, 0, 1)
			s.tell(t, up.Host, "manifests", images["amd64"], "").mustAccept(t, 1, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSeederWith(t, t.TempDir(), func(cfg *seeder.Config) {
				cfg.WarmPlatforms = []v1.Platform{{OS: "linux", Architecture: "amd64"}}
			}, up)
			told(s)
			s.ready(t, layers["amd64"])
			done := map[string]float64{"index": 1, "images": 2, "blobs": 1}[name]
			eventually(t, "all has been looked at", func() bool { return s.counter(t, "murder_warmed_total", "ready") == done })
			if _, ok := s.store.Stat(digest.FromBytes(layers["arm64"])); ok {
				t.Error("a layer of another platform was fetched")
			}
		})
	}
}

// Where all seeders are told of a push each fetches its own blobs, and the registry sends
// each once.
func TestPushIsShared(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	const n = 3
	var told []*testSeeder
	for i := range n {
		told = append(told, newSeederWith(t, t.TempDir(), func(cfg *seeder.Config) {
			cfg.Mine = func(d digest.Digest) bool { return int(d.Encoded()[0])%n == i }
		}, up))
	}
	var blobs [][]byte
	for i := range uint64(6) {
		config, layer := random(100, 50+i), random(2000, 60+i)
		manifest := up.PushImage(t, "app", fmt.Sprint("v", i), config, layer)
		for _, s := range told {
			a := s.tell(t, up.Host, "blobs", digest.FromBytes(layer), "")
			if a.status != http.StatusAccepted {
				t.Errorf("answer = %d %q", a.status, clip(a.body))
			}
			s.tell(t, up.Host, "manifests", manifest, fmt.Sprint("v", i)).mustAccept(t, 1, 0)
		}
		blobs = append(blobs, config, layer)
	}
	for _, b := range blobs {
		told[int(digest.FromBytes(b).Encoded()[0])%n].ready(t, b)
	}
	for i, s := range told {
		eventually(t, "all pushes have been looked at", func() bool { return s.counter(t, "murder_warmed_total", "ready") >= 6 })
		for _, b := range blobs {
			d := digest.FromBytes(b)
			if _, ok := s.store.Stat(d); ok != (int(d.Encoded()[0])%n == i) {
				t.Errorf("seeder %d has %s: %v", i, d, ok)
			}
		}
	}
	for _, b := range blobs {
		if gets := up.Seen("GET", digest.FromBytes(b).String()); len(gets) != 1 {
			t.Errorf("the registry was asked for a blob %d times, want once: %v", len(gets), gets)
		}
	}
}

// What is private is fetched with the seeder's own credentials, which let in nobody else.
func TestPushedPrivateImage(t *testing.T) {
	t.Parallel()
	for name, bearer := range map[string]bool{"basic": false, "bearer": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := registrytest.New(t)
			layer := random(2<<20, 8)
			manifest := up.PushImage(t, "app", "v1", random(100, 9), layer)
			up.Push(t, "app", true, []byte("from now on it is private"))
			own := registrytest.Basic("murder")
			if up.Admit(own); bearer {
				up.AskForTokens()
				own = "Bearer for-murder"
				up.Admit(own)
			}
			var asked atomic.Int64
			self := func(_ context.Context, repo registry.Repository, challenge, refused string) (string, error) {
				asked.Add(1)
				if repo != (registry.Repository{Host: up.Host, Name: "app"}) || challenge != up.Challenge("app") || refused != "" {
					t.Errorf("asked for credentials for %v by %q, having tried %q", repo, challenge, refused)
				}
				return own, nil
			}
			s := newSeederWith(t, t.TempDir(), func(cfg *seeder.Config) { cfg.Self = self }, up)
			s.tell(t, up.Host, "manifests", manifest, "v1").mustAccept(t, 1, 0)
			s.ready(t, layer)
			if n := asked.Load(); n != 1 {
				t.Errorf("credentials were asked for %d times, want once", n)
			}
			d := digest.FromBytes(layer)
			s.pull(t, "app", d, "").mustRefuse(t, http.StatusUnauthorized, "UNAUTHORIZED")
			s.request(t, "GET", torrentPath("app", d), "").mustRefuse(t, http.StatusUnauthorized, "UNAUTHORIZED")
			s.request(t, "GET", "/v2/app/manifests/v1", registrytest.Basic("stranger")).mustRefuse(t, http.StatusUnauthorized, "UNAUTHORIZED")
			up.Admit(registrytest.Basic("friend"))
			s.pull(t, "app", d, registrytest.Basic("friend")).mustBe(t, layer)
		})
	}
}

// Without credentials, or with wrong ones, nothing private is fetched, nor is it tried
// again and again.
func TestPushedPrivateImageWithoutCredentials(t *testing.T) {
	t.Parallel()
	none := func(context.Context, registry.Repository, string, string) (string, error) {
		return "", errors.New("none")
	}
	wrong := func(context.Context, registry.Repository, string, string) (string, error) { return "Basic eDp5", nil }
	for name, self := range map[string]seeder.Self{"nobody": nil, "none": none, "wrong": wrong} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := registrytest.New(t)
			manifest := up.PushImage(t, "app", "v1", random(100, 10), random(1000, 11))
			up.Push(t, "app", true, []byte("private"))
			other := random(1000, 12)
			up.Push(t, "open", false, other)
			s := newSeederWith(t, t.TempDir(), func(cfg *seeder.Config) { cfg.Self = self }, up)
			s.tell(t, up.Host, "manifests", manifest, "v1").mustAccept(t, 1, 0)
			s.post(t, fmt.Sprintf(`{"events":[{"action":"push","target":{"digest":%q,"repository":"open"},"request":{"host":%q}}]}`, digest.FromBytes(other), up.Host)).mustAccept(t, 1, 0)
			s.ready(t, other)
			eventually(t, "refused", func() bool { return len(up.Seen("GET", manifest.String())) > 0 })
			if n := len(up.Seen("GET", manifest.String())); n > 2 {
				t.Errorf("the registry was asked %d times", n)
			}
			if n := s.store.Usage().Blobs; n != 1 {
				t.Errorf("%d blobs are here, want the public one alone", n)
			}
		})
	}
}

// A registry that is away for a while when it should be asked is asked again.
func TestPushedImageWhileTheRegistryIsAway(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	layer := random(2<<20, 13)
	manifest := up.PushImage(t, "app", "v1", random(100, 14), layer)
	s := newSeeder(t, up)
	up.Fail(&registrytest.Fault{Left: 2, Method: "*", Path: "/", Drop: true})
	s.tell(t, up.Host, "manifests", manifest, "v1").mustAccept(t, 1, 0)
	s.ready(t, layer)
}

// Of a registry that may not be asked nothing is fetched, whoever tells of it; and no
// event leads to where no pull may.
func TestEventsOfOthers(t *testing.T) {
	t.Parallel()
	up, other := registrytest.New(t), registrytest.New(t)
	layer := random(1000, 15)
	d := other.Push(t, "app", false, layer)
	s := newSeederWith(t, t.TempDir(), func(cfg *seeder.Config) { cfg.Allow = []string{up.Host} }, up, other)
	s.tell(t, other.Host, "blobs", d, "").mustAccept(t, 0, 1)
	s.tell(t, up.Host, "blobs", up.Push(t, "app", false, layer), "").mustAccept(t, 1, 0)
	s.ready(t, layer)
	if seen := other.Seen("GET", ""); len(seen) > 0 {
		t.Errorf("the other registry was asked for %v", seen)
	}

	var reached atomic.Int64
	victim := httptest.NewUnstartedServer(http.NotFoundHandler())
	victim.Config.ConnState = func(net.Conn, http.ConnState) { reached.Add(1) }
	victim.Start()
	defer victim.Close()
	bounded := newSeederWith(t, t.TempDir(), func(cfg *seeder.Config) { cfg.Upstream = registry.NewClient(registry.ClientConfig{}) }, up)
	bounded.tell(t, victim.Listener.Addr().String(), "blobs", d, "").mustAccept(t, 1, 0)
	bounded.tell(t, "169.254.169.254", "blobs", d, "").mustAccept(t, 1, 0)
	eventually(t, "both are refused", func() bool { return bounded.counter(t, "murder_warmed_total", "refused") == 2 })
	if reached.Load() > 0 {
		t.Error("an event has led to this machine")
	}
}

func TestBadEvents(t *testing.T) {
	t.Parallel()
	s := newSeeder(t, registrytest.New(t))
	for body, status := range map[string]int{"": 400, "{}": 400, "<html>": 400, strings.Repeat("x", pushes.MaxBody+1): 413} {
		s.post(t, body).mustRefuse(t, status, "UNSUPPORTED")
	}
	s.post(t, `{"events":[{"action":"pull"},{"action":"push"},8]}`).mustAccept(t, 0, 3)
	if a := s.request(t, "GET", "/v1/events", ""); a.status != http.StatusMethodNotAllowed {
		t.Errorf("GET = %d", a.status)
	}
}

// A tag that is watched is here soon after it has been pushed, and again when it moves.
func TestWatchedTagIsReady(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	first, second := random(1000, 16), random(2000, 17)
	up.PushImage(t, "app", "v1", random(100, 18), first)
	up.PushImage(t, "app", "other", random(100, 19), random(3000, 20))
	s := newSeederWith(t, t.TempDir(), func(cfg *seeder.Config) {
		cfg.Watch = []pushes.Pattern{{Repo: registry.Repository{Host: up.Host, Name: "app"}, Tags: "v*"}}
		cfg.WatchEvery, cfg.TagTTL = 20*time.Millisecond, 0
	}, up)
	s.ready(t, first)
	up.PushImage(t, "app", "v1", random(100, 21), second)
	s.ready(t, second)
	if _, ok := s.store.Stat(digest.FromBytes(random(3000, 20))); ok {
		t.Error("a tag that is not watched was fetched")
	}
}
