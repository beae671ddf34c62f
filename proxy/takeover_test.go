package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/layers/swarm"
	"github.com/murderp2p/murder/registry/registrytest"
)

// newSeeders starts n seeders, and has hosts name them in different orders.
func newSeeders(t testing.TB, n int, up *registrytest.Upstream, cfg swarm.Config) (seeders map[string]*testSeeder, urls func(host int) []string) {
	t.Helper()
	seeders = make(map[string]*testSeeder)
	var list []string
	for range n {
		s := newSeederIn(t, t.TempDir(), cfg, up)
		seeders[s.server.URL] = s
		list = append(list, s.server.URL)
	}
	return seeders, func(host int) []string {
		turned := append([]string{}, list[host%n:]...)
		return append(turned, list[:host%n]...)
	}
}

// Many hosts pull many blobs at once from three seeders, which they name in different
// orders, and the registry sends each blob once.
func TestOneFetchABlob(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	_, urls := newSeeders(t, 3, up, swarm.Config{})
	var blobs [][]byte
	for i := range uint64(6) {
		blobs = append(blobs, random(big, 700+i), random(1000, 800+i))
	}
	for _, b := range blobs {
		up.Push(t, "app", false, b)
	}
	var pulling sync.WaitGroup
	for i := range 6 {
		m := newMirror(t, up, urls(i))
		for _, b := range blobs {
			pulling.Go(func() { m.mustPull(t, "app", b) })
		}
	}
	pulling.Wait()
	for _, b := range blobs {
		if gets := up.Seen("GET", digest.FromBytes(b).String()); len(gets) != 1 {
			t.Errorf("the registry was asked for a blob of %d bytes %d times, want once: %v", len(b), len(gets), gets)
		}
	}
}

// When the preferred seeder dies while it fetches a blob, the next takes over for all
// hosts: the registry sees one more request, and none of a host's.
func TestNextSeederTakesOverColdBlob(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 900)
	d := up.Push(t, "app", false, b)
	seeders, urls := newSeeders(t, 3, up, swarm.Config{})
	var mirrors []*testMirror
	for i := range 4 {
		mirrors = append(mirrors, newMirror(t, up, urls(i)))
	}
	pulls, hold := pullCold(t, up, d, mirrors)
	defer close(hold)
	seeders[mirrors[0].Preferred(d)].close()
	for _, p := range pulls {
		p.finish().mustBe(t, b)
		if r := p.mirror.settled(t, d); r.From[layers.FromUpstream] != 0 {
			t.Errorf("record = %+v, want nothing from the registry", r)
		}
	}
	if gets := up.Seen("GET", d.String()); len(gets) != 2 {
		t.Errorf("the registry was asked %d times, want once by each of two seeders: %v", len(gets), gets)
	}
	want := mirrors[0].mustMetainfo(t, d)
	for _, m := range mirrors[1:] {
		if got := m.mustMetainfo(t, d); got.InfoHash() != want.InfoHash() {
			t.Errorf("infohash %s on one host, %s on another", got.InfoHash(), want.InfoHash())
		}
	}
}

func (m *testMirror) mustMetainfo(t testing.TB, d digest.Digest) *layers.Metainfo {
	t.Helper()
	info, err := m.store.Metainfo(d)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// The same when the seeder has had all of the blob, so that hosts know all of its
// metainfo, and dies with pieces that no host has.
func TestNextSeederTakesOverWholeBlob(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 901)
	d := up.Push(t, "app", false, b)
	const rate = 512 << 10 // bytes a second that a seeder sends: there is time to die
	seeders, urls := newSeeders(t, 3, up, swarm.Config{Upload: layers.NewLimiter(rate)})
	var mirrors []*testMirror
	for i := range 3 {
		mirrors = append(mirrors, newMirror(t, up, urls(i)))
	}
	first := seeders[mirrors[0].Preferred(d)]
	first.mustPull(t, "app", b)

	var pulls []*coldPull
	for _, m := range mirrors {
		resp, err := m.open(t, "GET", blobPath("app", d), "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		begun := make([]byte, 64<<10)
		if _, err := io.ReadFull(resp.Body, begun); err != nil {
			t.Fatal(err)
		}
		pulls = append(pulls, &coldPull{m, resp.Body, begun})
	}
	first.close()
	for _, p := range pulls {
		p.finish().mustBe(t, b)
		if r := p.mirror.settled(t, d); r.From[layers.FromUpstream] != 0 {
			t.Errorf("record = %+v, want nothing from the registry", r)
		}
	}
	if gets := up.Seen("GET", d.String()); len(gets) > 2 { // or none was missing by then
		t.Errorf("the registry was asked %d times, want once by each of two seeders: %v", len(gets), gets)
	}
}

// A seeder that dies in the middle of a blob that is too small for a swarm is followed
// by the next at the same byte.
func TestNextSeederTakesOverSmallBlob(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	const size, after = layers.SmallBlob - 1, 60_000
	b := random(size, 902)
	d := up.Push(t, "app", false, b)
	cut := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	dying, well := middle(t, newSeeder(t, up), after, cut), newSeeder(t, up)
	m := newMirror(t, up, []string{dying, well.server.URL})
	for seed := uint64(903); m.Preferred(d) != dying; seed++ {
		b = random(size, seed)
		d = up.Push(t, "app", false, b)
	}
	m.mustPull(t, "app", b)
	if r := m.settled(t, d); r.From[layers.FromSeeder] != int64(len(b)) {
		t.Errorf("record = %+v, want all from seeders", r)
	}
}

// Seeders are added and taken away while blobs are on their way: those go on, and what
// comes next goes by who is there then.
func TestSeedersComeAndGo(t *testing.T) {
	t.Parallel()
	for _, dies := range []bool{false, true} {
		t.Run(fmt.Sprintf("dies %v", dies), func(t *testing.T) {
			t.Parallel()
			up := registrytest.New(t)
			b, next := random(big, 910), random(big, 911)
			d, nextDigest := up.Push(t, "app", false, b), up.Push(t, "app", false, next)
			before, after := newSeeder(t, up), newSeeder(t, up)
			mirrors := newMirrors(t, 3, up, before.server.URL)
			pulls, hold := pullCold(t, up, d, mirrors)
			for _, m := range mirrors {
				m.SetSeeders(clients(t, patience, []string{after.server.URL}))
			}
			if dies {
				before.close()
			}
			close(hold)
			for _, p := range pulls {
				p.finish().mustBe(t, b)
				if r := p.mirror.settled(t, d); r.From[layers.FromUpstream] != 0 {
					t.Errorf("record = %+v, want nothing from the registry", r)
				}
				p.mirror.mustPull(t, "app", next)
			}
			want := 1
			if dies {
				want = 2
			}
			if gets := up.Seen("GET", d.String()); len(gets) != want {
				t.Errorf("the registry was asked %d times, want %d: %v", len(gets), want, gets)
			}
			if gets := up.Seen("GET", nextDigest.String()); len(gets) != 1 {
				t.Errorf("the registry was asked %d times for the next blob, want once", len(gets))
			}
			if _, ok := after.store.Stat(nextDigest); !ok {
				t.Error("the new seeder has not been asked")
			}
			eventually(t, "announced to the new seeder's tracker alone", func() bool {
				return after.Tracker().Peers >= 2*len(mirrors) && before.Tracker().Peers == 0 || dies && after.Tracker().Peers >= 2*len(mirrors)
			})
			for _, m := range mirrors {
				if health := m.Seeders(); len(health) != 1 || health[0].URL != after.server.URL || !health[0].OK {
					t.Errorf("health = %+v", health)
				}
			}
			m := mirrors[0]
			m.SetSeeders(nil)
			alone := random(1000, 912)
			up.Push(t, "app", false, alone)
			m.mustPull(t, "app", alone)
			if r := m.settled(t, digest.FromBytes(alone)); r.From[layers.FromUpstream] != int64(len(alone)) {
				t.Errorf("record without seeders = %+v", r)
			}
		})
	}
}

// Hosts that have turned to the registry, as their only seeder died, come back to it when it
// is there again: the registry sends the rest to the seeder, not to each of them.
func TestSeederIsBack(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 904)
	d := up.Push(t, "app", false, b)
	var there atomic.Pointer[testSeeder]
	url := serveURL(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := there.Load()
		if s == nil {
			panic(http.ErrAbortHandler)
		}
		s.server.Config.Handler.ServeHTTP(w, r)
	}))
	dir := t.TempDir()
	first := newSeederIn(t, dir, swarm.Config{}, up)
	there.Store(first)
	mirrors := newMirrors(t, 3, up, url)
	pulls, hold := pullCold(t, up, d, mirrors)
	defer close(hold)

	up.Fail(&registrytest.Fault{Left: len(mirrors), At: coldAt + 100_000, Hold: hold})
	there.Store(nil)
	first.close()
	eventually(t, "all hosts ask the registry", func() bool { return len(up.Seen("GET", d.String())) == 1+len(mirrors) })
	there.Store(newSeederIn(t, dir, swarm.Config{}, up))
	for _, p := range pulls {
		p.finish().mustBe(t, b)
		if r := p.mirror.settled(t, d); r.From[layers.FromUpstream] > 1<<20 {
			t.Errorf("record = %+v, want the end from the swarm", r)
		}
	}
	if gets := up.Seen("GET", d.String()); len(gets) > 2+len(mirrors) {
		t.Errorf("the registry was asked %d times, want once more by the seeder: %v", len(gets), gets)
	}
}
