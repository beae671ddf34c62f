package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/layers/swarm"
	"github.com/murderp2p/murder/proxy"
	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/registry/registrytest"
)

// withAndWithoutSeeder runs a test of a mirror that asks a seeder, and of one
// that asks the registry itself.
func withAndWithoutSeeder(t *testing.T, test func(t *testing.T, up *registrytest.Upstream, m *testMirror)) {
	t.Parallel()
	for _, name := range []string{"no seeder", "seeder"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := registrytest.New(t)
			var seeders []string
			if name == "seeder" {
				seeders = []string{newSeeder(t, up).server.URL}
			}
			test(t, up, newMirror(t, up, seeders))
		})
	}
}

// A registry that cuts a body in the middle is asked for the rest, from that
// very byte on; and one without ranges for all of it.
func TestRegistryCutsBody(t *testing.T) {
	const at = 2<<20 + 77
	withAndWithoutSeeder(t, func(t *testing.T, up *registrytest.Upstream, m *testMirror) {
		for _, noRange := range []bool{false, true} {
			b := random(big, 30)
			if noRange {
				b = random(big, 31)
			}
			d := up.Push(t, "app", false, b)
			up.Fail(&registrytest.Fault{Left: 1, At: at, Cut: true}, &registrytest.Fault{Left: -1, NoRange: noRange, At: big})
			m.mustPull(t, "app", b)
			gets := up.Seen("GET", d.String())
			if len(gets) != 2 || gets[1].Ranges != fmt.Sprintf("bytes=%d-", at) {
				t.Errorf("registry without ranges: %v; requests for the blob: %v", noRange, gets)
			}
		}
	})
}

// Wrong bytes never end politely, are not cached, and do not spoil the next try.
func TestRegistrySendsWrongBytes(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *registrytest.Upstream, m *testMirror) {
		for i, wrong := range []struct{ size, at int }{{1, 0}, {1000, 0}, {1000, 999}, {big, 0}, {big, big - 1}} {
			b := random(wrong.size, uint64(40+i))
			d := up.Push(t, "app", false, b)
			up.Fail(&registrytest.Fault{Left: -1, At: int64(wrong.at), Flip: true})
			m.pull(t, "app", d).mustBeCut(t)
			m.settled(t, d)
			if _, ok := m.store.Stat(d); ok {
				t.Errorf("%+v: cached", wrong)
			}
			up.Mend()
			m.mustPull(t, "app", b)
			m.settled(t, d)
		}
	})
}

// A range is not given out before it is known to be right, either.
func TestRangeOfWrongBytes(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 50)
	d := up.Push(t, "app", false, b)
	m := newMirror(t, up, nil)
	up.Fail(&registrytest.Fault{Left: -1, At: 100, Flip: true})
	a := m.request(t, "GET", blobPath("app", d), "", "Range", "bytes=50-149")
	a.mustBeCut(t)
}

// A blob whose size the registry never tells cannot be kept, but pulled.
func TestNoSize(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *registrytest.Upstream, m *testMirror) {
		b := random(big, 51)
		d := up.Push(t, "app", false, b)
		up.Fail(&registrytest.Fault{Method: "*", Left: -1, At: big, NoSize: true, NoRange: true})
		m.mustPull(t, "app", b)
		up.Fail(&registrytest.Fault{Method: "*", Left: -1, At: 3 << 20, NoSize: true, NoRange: true, Flip: true})
		m.pull(t, "app", d).mustBeCut(t)
		up.Fail(&registrytest.Fault{Method: "*", Left: -1, At: 3 << 20, NoSize: true, NoRange: true, Cut: true})
		m.pull(t, "app", d).mustBeCut(t)
		if n := m.counter(t, "murder_fallbacks_total", "cache unusable"); n != 3 {
			t.Errorf("%v fallbacks counted, want 3", n)
		}
	})
}

// One whose size is only in the answer to HEAD is kept, and the registry sends it once.
func TestSizeByHead(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *registrytest.Upstream, m *testMirror) {
		b := random(big, 52)
		d := up.Push(t, "app", false, b)
		up.Fail(&registrytest.Fault{Left: -1, At: big, NoSize: true})
		m.mustPull(t, "app", b)
		m.mustPull(t, "app", b)
		if n := len(up.Seen("GET", d.String())); n != 1 {
			t.Errorf("the registry sent the blob %d times", n)
		}
	})
}

// What the disk does not take is pulled past the cache.
func TestStoreFails(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *registrytest.Upstream, m *testMirror) {
		b := random(big, 52)
		d := up.Push(t, "app", false, b)
		if err := m.store.Close(); err != nil {
			t.Fatal(err)
		}
		m.mustPull(t, "app", b)
		a := m.request(t, "GET", blobPath("app", d), "", "Range", "bytes=1000000-1999999")
		if a.status != http.StatusPartialContent {
			t.Errorf("range past the cache = %d", a.status)
		}
		a.status = http.StatusOK
		a.mustBe(t, b[1_000_000:2_000_000])
	})
}

// A store that fails in the middle of a blob costs this pull, not the next.
func TestStoreFailsInMidBlob(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *registrytest.Upstream, m *testMirror) {
		b := random(big, 53)
		d := up.Push(t, "app", false, b)
		hold := make(chan struct{})
		up.Fail(&registrytest.Fault{Left: 1, At: 2 << 20, Hold: hold})
		resp, err := m.open(t, "GET", blobPath("app", d), "")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := m.store.Close(); err != nil {
			t.Fatal(err)
		}
		close(hold)
		body, err := io.ReadAll(resp.Body)
		answer{resp.StatusCode, resp.Header, body, err}.mustBeCut(t)
		m.mustPull(t, "app", b)
	})
}

// A blob that is in the cache but cannot be read is pulled past it.
func TestUnreadableBlob(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 54)
	d := up.Push(t, "app", false, b)
	dir := t.TempDir()
	m := newMirrorIn(t, dir, up, nil)
	m.mustPull(t, "app", b)
	m.settled(t, d)
	path := filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded())
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, path); err != nil { // opens for nobody, not even root
		t.Fatal(err)
	}
	m.mustPull(t, "app", b)
}

// With the registry away what is cached is served to those who were admitted,
// the rest is refused, and all is well when it is back.
func TestRegistryAway(t *testing.T) {
	for _, name := range []string{"no seeder", "seeder"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := registrytest.New(t)
			var seeders []string
			if name == "seeder" {
				seeders = []string{newSeeder(t, up).server.URL}
			}
			m := newMirror(t, up, seeders, authTTL(time.Nanosecond)) // the grace alone holds
			b := random(big, 55)
			d := up.Push(t, "app", false, b)
			manifest := up.PushImage(t, "app", "v1", random(100, 56), b)
			if a := m.request(t, "GET", "/v2/app/manifests/v1", ""); a.status != 200 {
				t.Fatalf("manifest = %d %q", a.status, clip(a.body))
			}
			m.mustPull(t, "app", b)
			m.settled(t, d)

			up.Away()
			m.mustPull(t, "app", b)
			for _, ref := range []string{"v1", manifest.String()} {
				if a := m.request(t, "GET", "/v2/app/manifests/"+ref, ""); a.status != 200 || digest.FromBytes(a.body) != manifest {
					t.Errorf("manifest %s = %d %q", ref, a.status, clip(a.body))
				}
			}
			m.request(t, "GET", blobPath("app", d), registrytest.Basic("stranger")).mustRefuse(t, http.StatusBadGateway, "UNAVAILABLE")
			m.request(t, "GET", blobPath("other", d), "").mustRefuse(t, http.StatusBadGateway, "UNAVAILABLE")
			m.pull(t, "app", digest.FromBytes(random(100, 56))).mustRefuse(t, http.StatusBadGateway, "UNAVAILABLE")
			m.request(t, "GET", "/v2/app/manifests/v2", "").mustRefuse(t, http.StatusBadGateway, "UNAVAILABLE")
			m.request(t, "GET", "/v2/app/tags/list", "").mustRefuse(t, http.StatusBadGateway, "UNAVAILABLE")
			if a := m.request(t, "HEAD", blobPath("app", d), ""); a.status != http.StatusOK {
				t.Errorf("HEAD of what is cached = %d", a.status)
			}

			up.Mend()
			m.mustPull(t, "app", random(100, 56))
			if a := m.request(t, "GET", "/v2/app/tags/list", ""); a.status != 200 {
				t.Errorf("tags = %d %q", a.status, clip(a.body))
			}
		})
	}
}

// A registry that is away for a moment ends no pull.
func TestRegistryRestarts(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *registrytest.Upstream, m *testMirror) {
		b := random(big, 57)
		d := up.Push(t, "app", false, b)
		up.Fail(&registrytest.Fault{Left: 1, At: 2 << 20, Cut: true}, &registrytest.Fault{Left: 3, Drop: true})
		m.mustPull(t, "app", b)
		if n := len(up.Seen("GET", d.String())); n > 6 {
			t.Errorf("the registry saw %d requests", n)
		}
	})
}

// All who ask for the same at the same moment hear of one failure, instead of
// waiting for the registry one after the other.
func TestFailuresAreShared(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *registrytest.Upstream, m *testMirror) {
		d := up.Push(t, "app", false, random(1000, 65))
		held, hold := make(chan struct{}), make(chan struct{})
		var once sync.Once
		up.Fail(&registrytest.Fault{Left: -1, Answer: func(w http.ResponseWriter, _ *http.Request) {
			once.Do(func() { close(held) })
			<-hold
			http.Error(w, "busy", http.StatusServiceUnavailable)
		}})
		var pulls sync.WaitGroup
		for range 8 {
			pulls.Go(func() { m.pull(t, "app", d).mustRefuse(t, http.StatusBadGateway, "UNAVAILABLE") })
		}
		wait(t, "registry asked", held)
		eventually(t, "all clients in", func() bool { return m.requests.Load() == 8 })
		close(hold)
		pulls.Wait()
		if n := len(up.Seen("GET", d.String())); n > 6 { // the seeder asks twice and the mirror once, and a late client may
			t.Errorf("the registry was asked %d times", n)
		}
		if n := m.counter(t, "murder_pull_errors_total", "unavailable"); n != 8 {
			t.Errorf("%v errors counted, want 8", n)
		}
	})
}

// The challenge at /v2/ is the registry's own. While it is away it is what it
// was, and soon asked for again.
// hangingPings is a registry's answer that does not come.
type hangingPings struct {
	registry.Upstream
	asking atomic.Int64
	end    chan struct{}
}

func (p *hangingPings) Ping(context.Context, string, string) error {
	p.asking.Add(1)
	<-p.end
	return nil
}

// Who asks for /v2/ of ever new registries that hang has no number of them asked.
func TestPingsAreBounded(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	hanging := &hangingPings{end: make(chan struct{})}
	m := newMirror(t, up, nil, func(cfg *proxy.Config) {
		hanging.Upstream = cfg.Registries
		cfg.Registries = hanging
	})
	defer close(hanging.end)
	var asking sync.WaitGroup
	for i := range 400 {
		asking.Go(func() {
			if a := m.request(t, "GET", fmt.Sprintf("/v2/?ns=r%d.test", i), ""); a.status != 200 {
				t.Errorf("GET /v2/ = %d, %v", a.status, a.err)
			}
		})
	}
	asking.Wait()
	if n := hanging.asking.Load(); n > 256 {
		t.Errorf("%d registries are being asked", n)
	}
}

func TestPing(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	m := newMirror(t, up, nil)
	up.Away()
	if a := m.request(t, "GET", "/v2/", ""); a.status != http.StatusOK {
		t.Errorf("GET /v2/ with the registry away = %d", a.status)
	}
	up.Fail(&registrytest.Fault{Path: "/v2/", Left: -1, Answer: func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Www-Authenticate", up.Challenge("secret"))
		registrytest.Refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "the upstream's own words")
	}})
	eventually(t, "the registry's challenge", func() bool {
		a := m.request(t, "GET", "/v2/", "")
		return a.status == http.StatusUnauthorized && a.header.Get("Www-Authenticate") == up.Challenge("secret")
	})
	up.Away()
	if a := m.request(t, "GET", "/v2/", ""); a.status != http.StatusUnauthorized {
		t.Errorf("GET /v2/ with the registry away again = %d", a.status)
	}
}

// A registry that stays away in mid-blob is not asked for ever, nor often.
func TestRegistryGoesInMidBlob(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *registrytest.Upstream, m *testMirror) {
		b := random(big, 58)
		d := up.Push(t, "app", false, b)
		up.Fail(&registrytest.Fault{Left: 1, At: 2 << 20, Cut: true}, &registrytest.Fault{Method: "*", Path: "/", Left: -1, Drop: true})
		m.pull(t, "app", d).mustBeCut(t)
		r := m.settled(t, d)
		if r.State != "failed" {
			t.Errorf("record = %+v", r)
		}
		if n := len(up.Seen("GET", d.String())); n > 30 { // net/http itself asks up to twice
			t.Errorf("the registry saw %d requests", n)
		}
		up.Mend()
		m.mustPull(t, "app", b)
		gets := up.Seen("GET", d.String())
		if last := gets[len(gets)-1]; !strings.HasPrefix(last.Ranges, "bytes=2097152-") {
			t.Errorf("the next pull began at %q, not where the last one stopped", last.Ranges)
		}
	})
}

// When the daemon's context ends in mid-download all comes to rest, and the
// next daemon goes on where this one stopped.
func TestStopsAndResumes(t *testing.T) { // not parallel: it counts goroutines
	for _, name := range []string{"no seeder", "seeder"} {
		t.Run(name, func(t *testing.T) {
			up := registrytest.New(t)
			var seeders []string
			var origin *testSeeder
			originDir, dir := t.TempDir(), t.TempDir()
			start := func() *testMirror {
				if name == "seeder" {
					origin = newSeederIn(t, originDir, swarm.Config{}, up)
					seeders = []string{origin.server.URL}
				}
				return newMirrorIn(t, dir, up, seeders)
			}
			stop := func(m *testMirror) {
				m.close()
				if origin != nil {
					origin.close()
				}
			}
			b := random(big, 59)
			d := up.Push(t, "app", false, b)
			const at = 2<<20 + 99
			up.Fail(&registrytest.Fault{Left: 1, At: at, Hold: make(chan struct{})})
			m := start()
			resp, err := m.open(t, "GET", blobPath("app", d), "")
			if err != nil {
				t.Fatal(err)
			}
			came := int64(at - 1)
			if name == "seeder" {
				came = 2 << 20 // whole pieces
			}
			if _, err := io.CopyN(io.Discard, resp.Body, came); err != nil {
				t.Fatal(err)
			}
			stopped := make(chan struct{})
			go func() {
				defer close(stopped)
				stop(m)
			}()
			wait(t, "all at rest", stopped)
			if _, err := io.Copy(io.Discard, resp.Body); err == nil {
				t.Error("a body ended politely when the daemon stopped")
			}
			resp.Body.Close()
			eventually(t, "no goroutines left", func() bool { return ours() == "" })

			m = start()
			m.mustPull(t, "app", b)
			gets := up.Seen("GET", d.String())
			kept := at / layers.PieceLength(big) * layers.PieceLength(big)
			if last := gets[len(gets)-1]; last.Ranges != fmt.Sprintf("bytes=%d-", kept) {
				t.Errorf("requests for the blob: %v; want the last from byte %d on", gets, kept)
			}
			r := m.settled(t, d)
			if got := r.From[layers.FromUpstream] + r.From[layers.FromSeeder] + r.From[layers.FromPeer]; got > int64(len(b))-kept+1 && name != "seeder" {
				t.Errorf("%d bytes were fetched again: %+v", got-(int64(len(b))-kept), r)
			}
			stop(m)
		})
	}
}

// ours returns the stacks of goroutines that run the daemons' code.
func ours() string {
	buf := make([]byte, 4<<20)
	var b strings.Builder
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		daemons := strings.Contains(stack, "murder/proxy.") || strings.Contains(stack, "murder/seeder.")
		if daemons && !strings.Contains(stack, "testing.tRunner") {
			b.WriteString(stack + "\n\n")
		}
	}
	return b.String()
}
