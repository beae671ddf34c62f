package swarm

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/murderp2p/murder/layers"
	origin "github.com/murderp2p/murder/seeder/tracker" // whose name is taken here
)

// wanting is a member that lacks a blob and wants so many peers.
type wanting struct {
	mu    sync.Mutex
	whole bool
	n     int
	met   []netip.AddrPort
}

func (m *wanting) lacks() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.whole {
		return 0
	}
	return 1000
}

func (m *wanting) wants() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(0, m.n-len(m.met))
}

func (m *wanting) meet(_ string, addrs []netip.AddrPort, _ int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range addrs {
		if !slices.Contains(m.met, a) {
			m.met = append(m.met, a)
		}
	}
}

func (m *wanting) knows() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.met)
}

// realTracker is the seeder's tracker. What it is asked is counted, and it can be
// replaced by a new one.
type realTracker struct {
	url       string
	server    *httptest.Server
	now       atomic.Pointer[origin.Tracker]
	held, all atomic.Int64
}

func newRealTracker(t *testing.T) *realTracker {
	tr := &realTracker{}
	tr.restart(t)
	tr.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tr.all.Add(1)
		if r.URL.Query().Get("wait") != "" {
			tr.held.Add(1)
			defer tr.held.Add(-1)
		}
		tr.now.Load().ServeAnnounce(w, r)
	}))
	t.Cleanup(tr.server.Close)
	tr.url = tr.server.URL + "/announce"
	return tr
}

// restart begins with a new tracker and ends the old one.
func (tr *realTracker) restart(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	now := origin.New(origin.Config{Log: testLog(t)})
	tr.now.Store(now)
	ended := make(chan struct{})
	go func() { _ = now.Run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
}

func (tr *realTracker) peers() int { return tr.now.Load().Stats().Peers }

// announcing starts the announcers of a host that listens on port.
func announcing(t *testing.T, port uint16) *announcers {
	t.Helper()
	a := newAnnouncers(Config{Log: testLog(t)}, port, [20]byte{byte(port), byte(port >> 8)})
	t.Cleanup(func() { a.close(time.Second) })
	return a
}

// in enters m into the swarm of that name until the test ends.
func (all *announcers) in(t *testing.T, m member, name byte, url string) *post {
	t.Helper()
	p := all.of(url).add(m, layers.InfoHash{name})
	t.Cleanup(p.remove)
	return p
}

func TestTheFirstHearsOfAllWhoCome(t *testing.T) {
	tr := newRealTracker(t)
	const hosts = 6
	var members []*wanting
	for port := range uint16(hosts) {
		m := &wanting{n: 20}
		members = append(members, m)
		announcing(t, 1000+port).in(t, m, 1, tr.url)
		eventually(t, "held", func() bool { return tr.held.Load() == int64(len(members)) })
	}
	// Long before the interval of 30 s or the five of a poll are over.
	eventually(t, "everybody knows everybody", func() bool {
		return !slices.ContainsFunc(members, func(m *wanting) bool { return m.knows() < hosts-1 })
	})
}

func TestHeldAnnouncesLeaveRoomForOthers(t *testing.T) {
	tr := newRealTracker(t)
	a := announcing(t, 1000)
	for name := range byte(holds + announces) {
		a.in(t, &wanting{n: 20}, name, tr.url)
	}
	eventually(t, "as many are held as may", func() bool { return tr.held.Load() == holds })
	m := &wanting{whole: true}
	a.in(t, m, 200, tr.url)
	eventually(t, "another is announced", func() bool { return tr.now.Load().Stats().Swarms == holds+announces+1 })
}

func TestWhatIsUrgentCutsAHeldAnnounce(t *testing.T) {
	tr := newRealTracker(t)
	a, m := announcing(t, 1000), &wanting{n: 20}
	p := a.in(t, m, 1, tr.url)
	eventually(t, "held", func() bool { return tr.held.Load() == 1 })
	before := tr.all.Load()
	p.need()
	eventually(t, "asked again, not held", func() bool { return tr.all.Load() > before })
	eventually(t, "held again", func() bool { return tr.held.Load() == 1 })

	m.mu.Lock()
	m.whole = true
	m.mu.Unlock()
	p.completed()
	complete := func() bool {
		return tr.scrape(t, 1) == "d5:filesd20:"+string(nameOf(1))+"d8:completei1e10:downloadedi1e10:incompletei0eeee"
	}
	eventually(t, "complete", complete)
	p.remove()
	eventually(t, "left", func() bool { return tr.peers() == 0 })
}

func nameOf(name byte) []byte {
	ih := layers.InfoHash{name}
	return ih[:]
}

func (tr *realTracker) scrape(t *testing.T, name byte) string {
	t.Helper()
	w := httptest.NewRecorder()
	q := "/scrape?info_hash="
	for _, b := range nameOf(name) {
		q += "%" + string("0123456789abcdef"[b>>4]) + string("0123456789abcdef"[b&15])
	}
	tr.now.Load().ServeScrape(w, httptest.NewRequest(http.MethodGet, q, nil))
	return w.Body.String()
}

func TestANewTrackerIsToldOfAllSwarmsSoon(t *testing.T) {
	tr := newRealTracker(t)
	a := announcing(t, 1000)
	const idle = 20
	for name := range byte(idle) {
		a.in(t, &wanting{whole: true}, name, tr.url) // to be announced again in five minutes
	}
	p := a.in(t, &wanting{n: 0}, 100, tr.url)
	eventually(t, "all announced", func() bool { return tr.peers() == idle+1 })
	tr.restart(t)
	p.need() // any answer will do
	eventually(t, "all announced to the new one", func() bool { return tr.peers() == idle+1 })
}

func TestABrokenHeldAnnounceIsMadeAgain(t *testing.T) {
	tr := newRealTracker(t)
	announcing(t, 1000).in(t, &wanting{n: 20}, 1, tr.url)
	eventually(t, "held", func() bool { return tr.held.Load() == 1 })
	tr.restart(t)
	tr.server.CloseClientConnections()
	eventually(t, "the new one knows us", func() bool { return tr.peers() == 1 })
}

func TestATrackerThatDoesNotHoldIsNotAskedTo(t *testing.T) {
	asked := make(chan string, 100)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Query().Get("wait")
		_, _ = w.Write([]byte("d8:intervali1e5:peers0:e"))
	}))
	defer srv.Close()
	announcing(t, 1000).in(t, &wanting{n: 20}, 1, srv.URL)
	for range 3 {
		if wait := <-asked; wait != "" {
			t.Errorf("asked to wait for %s s", wait)
		}
	}
}

func TestWhoLacksABlobNeedNotWaitForAFullCache(t *testing.T) {
	var before atomic.Int64
	asked := make(chan int64, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("left") != "0" {
			asked <- before.Load()
		}
		before.Add(1)
		_, _ = w.Write([]byte("d8:intervali300e5:peers0:e"))
	}))
	defer srv.Close()
	a := announcing(t, 1000)
	const cached = 2000
	for i := range cached {
		p := a.of(srv.URL).add(&wanting{whole: true}, layers.InfoHash{1, byte(i), byte(i >> 8)})
		defer p.remove()
	}
	a.in(t, &wanting{n: 5}, 2, srv.URL)
	if n := <-asked; n > cached/2 {
		t.Errorf("announced after %d blobs that are only shared", n)
	}
}

func TestATrackerThatHangsHoldsUpNoOther(t *testing.T) {
	release := make(chan struct{})
	var hanging atomic.Int64
	hangs := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		hanging.Add(1)
		<-release
	}))
	defer hangs.Close()
	defer close(release)
	tr := newRealTracker(t)
	a := announcing(t, 1000)
	const swarms = 5 * announces
	for name := range byte(swarms) {
		a.in(t, &wanting{}, name, hangs.URL)
	}
	eventually(t, "one hangs", func() bool { return hanging.Load() == announces })
	for name := range byte(swarms) {
		a.in(t, &wanting{}, name, tr.url)
	}
	eventually(t, "the other knows all", func() bool { return tr.peers() == swarms })
	if n := hanging.Load(); n > 2*announces {
		t.Errorf("%d announces were made to the tracker that hangs meanwhile", n)
	}
}

// A host that was told of dead ones asks for others while it still tries those.
func TestDeadPeersAreNotWaitedFor(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(1<<20, 76)
	m := fill(t, testStore(t), blob)
	for k := range enoughPeers {
		tr.announced(hashString(m), netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(k)}), 9), eventStarted)
	}
	refused := make(chan struct{}, 100)
	h := newHost(t, Config{Dial: func(context.Context, netip.AddrPort) (net.Conn, error) {
		refused <- struct{}{}
		return nil, syscall.ECONNREFUSED
	}})
	h.begun(t, m, tr.url)
	for range enoughPeers {
		<-refused
	}
	x := h.lookup(m.Digest())
	eventually(t, "others are asked for while those are tried", func() bool {
		wants := x.wants()
		x.mu.Lock()
		defer x.mu.Unlock()
		return wants == enoughPeers && len(x.candidates) == enoughPeers
	})
}
