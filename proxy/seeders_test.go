package proxy_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/layers/swarm"
	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/registry/registrytest"
)

// A pull that the registry could serve succeeds, whatever is at the seeder's
// address.
func TestNoUseOfASeeder(t *testing.T) {
	t.Parallel()
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<html>It works!</html>")
	})
	for name, seeder := range map[string]func(testing.TB) string{
		"refuses": func(t testing.TB) string { return refusing(t) },
		"404":     func(t testing.TB) string { return serveURL(t, http.NotFoundHandler()) },
		"page":    func(t testing.TB) string { return serveURL(t, page) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := registrytest.New(t)
			manifest := up.PushImage(t, "app", "v1", random(1000, 10), random(big, 11))
			m := newMirror(t, up, []string{seeder(t)})
			if a := m.request(t, "GET", "/v2/app/manifests/v1", ""); a.status != 200 || digest.FromBytes(a.body) != manifest {
				t.Errorf("manifest = %d %q", a.status, clip(a.body))
			}
			m.mustPull(t, "app", random(1000, 10))
			m.mustPull(t, "app", random(big, 11))
			for _, b := range [][]byte{random(1000, 10), random(big, 11)} {
				if r := m.settled(t, digest.FromBytes(b)); r.Way != "upstream" || !strings.HasPrefix(r.Why, "seeder ") || r.From[layers.FromUpstream] != int64(len(b)) {
					t.Errorf("record = %+v, want all from upstream", r)
				}
			}
			if a := m.request(t, "GET", "/v2/app/tags/list", ""); a.status != 200 || !strings.Contains(string(a.body), "v1") {
				t.Errorf("tags = %d %q", a.status, clip(a.body))
			}
			if m.counter(t, "murder_fallbacks_total", "seeder unreachable") == 0 {
				t.Error("no fallback was counted")
			}
		})
	}
}

// A seeder that hangs costs one pull a moment, and the next none.
func TestMuteSeeder(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	up.PushImage(t, "app", "v1", random(1000, 12), random(big, 13))
	hung := newMute(t)
	m := newMirror(t, up, nil, impatient(t, hung.url))
	begun := time.Now()
	if a := m.request(t, "GET", "/v2/app/manifests/v1", ""); a.status != 200 {
		t.Errorf("manifest = %d %q", a.status, clip(a.body))
	}
	m.mustPull(t, "app", random(1000, 12))
	m.mustPull(t, "app", random(big, 13))
	// One connection for the question, and one a second for /livez.
	if n, most := hung.accepted.Load(), int64(time.Since(begun)/time.Second)+2; n > most {
		t.Errorf("%d connections to a seeder that hangs, want at most %d", n, most)
	}
	if health := m.Seeders(); len(health) != 1 || health[0].OK || health[0].Error == "" {
		t.Errorf("health = %+v", health)
	}
}

// A seeder is asked again when it is well again.
func TestSeederComesBack(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	origin := newSeeder(t, up)
	var away atomic.Bool
	m := newMirror(t, up, []string{serveURL(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away.Load() {
			panic(http.ErrAbortHandler)
		}
		origin.server.Config.Handler.ServeHTTP(w, r)
	}))})
	away.Store(true)
	b := random(big, 14)
	d := up.Push(t, "app", false, b)
	m.mustPull(t, "app", b)
	if r := m.settled(t, d); r.Way != "upstream" {
		t.Errorf("way without the seeder = %+v", r)
	}
	away.Store(false)
	eventually(t, "seeder is well", func() bool { return m.Seeders()[0].OK })
	b = random(big, 15)
	d = up.Push(t, "app", false, b)
	m.mustPull(t, "app", b)
	if r := m.settled(t, d); r.From[layers.FromUpstream] != 0 {
		t.Errorf("record with the seeder back = %+v", r)
	}
}

// The next seeder is asked before the registry.
func TestSecondSeeder(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	manifest := up.PushImage(t, "app", "v1", random(1000, 22), random(big, 23))
	m := newMirror(t, up, []string{refusing(t), newSeeder(t, up).server.URL})
	m.mustPull(t, "app", random(big, 23))
	if a := m.request(t, "GET", "/v2/app/manifests/v1", ""); a.status != 200 || digest.FromBytes(a.body) != manifest {
		t.Errorf("manifest = %d %q", a.status, clip(a.body))
	}
	if r := m.settled(t, digest.FromBytes(random(big, 23))); r.From[layers.FromUpstream] != 0 {
		t.Errorf("record = %+v, want nothing from upstream", r)
	}
}

// Of two seeders each fetches some blobs, and no blob is fetched by both, in whatever
// order the hosts name them. When one dies the other takes its part.
func TestSeedersShareTheBlobs(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	a, b := newSeeder(t, up), newSeeder(t, up)
	urls := []string{a.server.URL, b.server.URL}
	hosts := []*testMirror{newMirror(t, up, urls), newMirror(t, up, []string{urls[1], urls[0]})}
	const blobs = 24 // all at one seeder by chance: once in 2^23 runs
	for i := range blobs {
		blob := random(1000, 500+uint64(i))
		d := up.Push(t, "app", false, blob)
		for _, m := range hosts {
			m.mustPull(t, "app", blob)
		}
		if n := len(up.Seen("GET", d.String())); n != 1 {
			t.Errorf("%s was asked for %d times", d, n)
		}
	}
	here := func(s *testSeeder) int { return s.store.Usage().Blobs }
	eventually(t, "all are in the seeders' caches", func() bool { return here(a)+here(b) == blobs })
	if here(a) == 0 || here(b) == 0 {
		t.Errorf("seeders have %d and %d blobs", here(a), here(b))
	}

	blob := random(1000, 499)
	for i := uint64(0); hosts[0].Preferred(digest.FromBytes(blob)) != urls[1]; i++ {
		blob = random(1000, 600+i)
	}
	b.server.Close()
	up.Push(t, "app", false, blob)
	before := here(a)
	hosts[0].mustPull(t, "app", blob)
	eventually(t, "the seeder that is left has the blob of the one that died", func() bool { return here(a) == before+1 })
}

// middle is a server before a seeder that begins to fail in the middle of a
// blob.
func middle(t testing.TB, origin *testSeeder, after int64, fail func(w http.ResponseWriter, r *http.Request)) string {
	var ill atomic.Bool
	return serveURL(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ill.Load() {
			fail(w, r)
		}
		if r.Method == "GET" && strings.Contains(r.URL.Path, "sha256:") {
			w = &failingWriter{ResponseWriter: w, left: after, fail: func() {
				ill.Store(true)
				fail(w, r)
			}}
		}
		origin.server.Config.Handler.ServeHTTP(w, r)
	}))
}

type failingWriter struct {
	http.ResponseWriter
	left int64
	fail func()
}

func (w *failingWriter) Write(b []byte) (int, error) {
	if int64(len(b)) > w.left {
		w.ResponseWriter.Write(b[:w.left])
		http.NewResponseController(w.ResponseWriter).Flush()
		w.fail()
	}
	n, err := w.ResponseWriter.Write(b)
	w.left -= int64(n)
	return n, err
}

// A seeder that dies or hangs in the middle of a small blob is left for the
// registry, at the byte where it stopped. For larger ones see cold_test.go.
func TestSeederFailsInMidBlob(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(w http.ResponseWriter, r *http.Request){
		"dies":  func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"hangs": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done(); panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := registrytest.New(t)
			const size, after = layers.SmallBlob - 1, 60_000
			b := random(size, 16)
			d := up.Push(t, "app", false, b)
			front := middle(t, newSeeder(t, up), after, fail)
			m := newMirror(t, up, []string{front})
			if name == "hangs" {
				m = newMirror(t, up, nil, impatient(t, front))
			}
			resp, err := m.open(t, "GET", blobPath("app", d), "")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			answer{resp.StatusCode, resp.Header, body, err}.mustBe(t, b)
			// On a busy machine it may be given up for dead a little too soon.
			r := m.settled(t, d)
			came := r.From[layers.FromSeeder]
			if came > after || name == "dies" && came < after || r.From[layers.FromUpstream] != size-came {
				t.Errorf("record = %+v, want %d bytes from the seeder and the rest from upstream", r, after)
			}
			rest := func(a registrytest.Asked) bool { return a.Ranges == fmt.Sprintf("bytes=%d-", came) }
			if gets := up.Seen("GET", d.String()); came > 0 && !slices.ContainsFunc(gets, rest) {
				t.Errorf("the registry was asked for %v, want the rest", gets)
			}
		})
	}
}

// lie makes the metainfo of wrong bytes under a blob's digest.
func lie(t testing.TB, d digest.Digest, wrong []byte) *layers.Metainfo {
	t.Helper()
	store, err := layers.OpenStore(layers.StoreConfig{Dir: t.TempDir(), Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	other := digest.FromBytes(wrong)
	p, err := store.Partial(other, int64(len(wrong)), "registry.test")
	if err == nil {
		err = p.Append(wrong)
	}
	if err != nil {
		t.Fatal(err)
	}
	wait(t, "wrong bytes stored", p.Done())
	truth, err := store.Metainfo(other)
	if err != nil {
		t.Fatal(err)
	}
	m, err := layers.ParseMetainfo(bytes.Replace(truth.Bytes(), []byte(other.Encoded()), []byte(d.Encoded()), 1))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// corrupt makes a seeder whose cache holds wrong bytes under a digest, and
// metainfo that fits them.
func corrupt(t testing.TB, up *registrytest.Upstream, d digest.Digest, wrong []byte) (*testSeeder, *layers.Metainfo) {
	t.Helper()
	dir, m := t.TempDir(), lie(t, d, wrong)
	for path, content := range map[string][]byte{
		filepath.Join("blobs", d.Algorithm().String(), d.Encoded()):                  wrong,
		filepath.Join("torrents", d.Algorithm().String()+"-"+d.Encoded()+".torrent"): m.Bytes(),
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return newSeederIn(t, dir, swarm.Config{}, up), m
}

// A seeder whose metainfo and bytes are wrong cannot fail a pull twice, nor
// have a wrong byte end politely.
func TestLyingSeeder(t *testing.T) {
	t.Parallel()
	for name, sizes := range map[string][2]int{"large": {big, big}, "small": {1000, 1000}, "short": {big, big - 1000}, "long": {big, big + 1000}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := registrytest.New(t)
			b := random(sizes[0], 18)
			d := up.Push(t, "app", false, b)
			liar, lie := corrupt(t, up, d, random(sizes[1], 19))
			// Let in by the registry, for the test's sake, whatever it asks.
			m := newMirror(t, up, []string{believed(t, up, liar)})
			m.SetStall(time.Second)
			if a := m.pull(t, "app", d); a.err == nil {
				a.mustBe(t, b)
			} else {
				m.settled(t, d)
				m.mustPull(t, "app", b)
			}
			m.settled(t, d)
			m.mustPull(t, "app", b)
			want, err := m.store.Metainfo(d)
			if err != nil {
				t.Fatal(err)
			}
			if len(b) >= layers.SmallBlob {
				eventually(t, "right blob shared, wrong one left", func() bool {
					return m.Shares(want.InfoHash()) && !m.Shares(lie.InfoHash()) && m.swarm.Stats().Active == 1
				})
			}
		})
	}
}

func sendMetainfo(w http.ResponseWriter, m *layers.Metainfo) {
	w.Header().Set("Content-Type", "application/x-bittorrent")
	w.Write(m.Bytes())
}

// believed answers for a seeder that asks no registry before it hands out a
// blob, as one that was let in before its disk went bad.
func believed(t testing.TB, up *registrytest.Upstream, s *testSeeder) string {
	return serveURL(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(registry.SeederHeader, "1")
		dir, d, _ := strings.Cut(r.URL.Path[1:], "sha256:")
		parsed := digest.Digest("sha256:" + d)
		switch {
		case dir == "v1/torrents/":
			m, err := s.store.Metainfo(parsed)
			if err != nil {
				t.Error(err)
				return
			}
			sendMetainfo(w, m)
		case strings.HasSuffix(dir, "/blobs/"):
			blob, err := s.store.Open(parsed)
			if err != nil {
				t.Error(err)
				return
			}
			defer blob.Close()
			http.ServeContent(w, r, "", time.Time{}, blob.File())
		default:
			s.server.Config.Handler.ServeHTTP(w, r)
		}
	}))
}

// A seeder whose metainfo alone is a lie is found out as soon as the registry
// contradicts it, and left out of the next pull.
func TestLyingMetainfo(t *testing.T) {
	t.Parallel()
	// Those of another size have the right bytes, as far as they go.
	for name, wrong := range map[string][]byte{"hashes": random(big, 21), "long": random(big+1000, 20), "short": random(big-1000, 20)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := registrytest.New(t)
			b := random(big, 20)
			d := up.Push(t, "app", false, b)
			lie := lie(t, d, wrong)
			m := newMirror(t, up, []string{serveURL(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set(registry.SeederHeader, "1")
				switch {
				case strings.HasPrefix(r.URL.Path, "/v1/torrents/"):
					sendMetainfo(w, lie)
				case r.URL.Path != "/livez":
					http.NotFound(w, r)
				}
			}))})
			m.SetStall(time.Second)
			m.pull(t, "app", d).mustBeCut(t)
			m.settled(t, d)
			if n := len(up.Seen("GET", d.String())); n != 1 {
				t.Errorf("the registry was asked %d times before the lie was found out, want once", n)
			}
			m.mustPull(t, "app", b)
		})
	}
}
