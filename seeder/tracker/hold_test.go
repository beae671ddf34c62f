package tracker

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// eventually waits until ok is true, looking again and again.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatalf("%s: not so", what)
		}
	}
}

func TestHeldUntilSomebodyComes(t *testing.T) {
	tr, u := start(t, Config{})
	answered := make(chan map[string]any)
	go func() { answered <- get(t, u+queryOf("first", 1001, "&numwant=10&wait=25")) }()
	eventually(t, "the first is held", func() bool { return tr.held.Load() == 1 })

	second := get(t, u+queryOf("second", 1002, "&numwant=10&wait=25"))
	if got := second["peers"].(string); got != "\x7f\x00\x00\x01\x03\xe9" {
		t.Errorf("the second was told of %q, want the first", got)
	}
	if got := (<-answered)["peers"].(string); got != "\x7f\x00\x00\x01\x03\xea" {
		t.Errorf("the first was told of %q, want the second", got)
	}
	if n := tr.held.Load(); n != 0 {
		t.Errorf("%d answers are held", n)
	}
}

func TestHeldEndsWithTheClient(t *testing.T) {
	tr, u := start(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u+queryOf("first", 1001, "&wait=25"), nil)
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan error)
	go func() {
		_, err := http.DefaultClient.Do(req)
		gone <- err
	}()
	eventually(t, "it is held", func() bool { return tr.held.Load() == 1 })
	cancel()
	if err := <-gone; err == nil {
		t.Error("answered")
	}
	eventually(t, "it is not held any more", func() bool { return tr.held.Load() == 0 })
}

// waiting is an announce of a leecher at port that would wait.
func waiting(port uint16, wait time.Duration) *request {
	return &request{announce: announce{peerID: id("x"), addrs: at("10.0.0.1", port), left: 1, want: 10, wait: wait}}
}

func TestHeldAsLongAsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(Config{})
		tr.mustList(t, &announce{peerID: id("other"), addrs: at("10.0.0.2", 1), left: 1})
		tr.mustList(t, &announce{peerID: id("x"), addrs: at("10.0.0.1", 1), left: 1, want: 10})
		begin, req := time.Now(), waiting(1, 7*time.Second)
		if err := tr.announced(t.Context(), req, nil); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took != 7*time.Second {
			t.Errorf("held for %v, want 7 s", took)
		}
		if len(req.answer.peers) != 1 || req.answer.incomplete != 2 {
			t.Errorf("answer = %+v, want the peer it was told of before", req.answer)
		}
	})
}

func TestHeldEndsWithTheTracker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(Config{})
		ctx, cancel := context.WithCancel(t.Context())
		go tr.Run(ctx)
		req := waiting(1, maxWait)
		time.AfterFunc(time.Second, cancel)
		begin := time.Now()
		if err := tr.announced(t.Context(), req, nil); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took != time.Second || tr.held.Load() != 0 {
			t.Errorf("held for %v, want until the tracker ended after 1 s", took)
		}
	})
}

func TestNotHeld(t *testing.T) {
	self := netip.MustParseAddrPort("10.0.0.9:7071")
	tr := New(Config{
		Has:  func(ih [20]byte) bool { return ih == testHash },
		Self: func(net.Addr) (netip.AddrPort, bool) { return self, true },
	})
	ask := func(change func(*request)) answer {
		t.Helper()
		req := waiting(1, maxWait)
		change(req)
		if err := tr.announced(t.Context(), req, nil); err != nil {
			t.Fatal(err)
		}
		return req.answer
	}
	ask(func(r *request) { r.left = 0 })
	ask(func(r *request) { r.want = 0 })
	ask(func(r *request) { r.event = eventStopped })
	if an := ask(func(r *request) { r.infohash = testHash }); len(an.peers) != 1 || an.peers[0].Addr != self {
		t.Errorf("who can be told of the seeder was told of %v", an.peers)
	}
	tr.held.Store(maxHeld)
	ask(func(*request) {})
	tr.held.Store(0)
	full := New(Config{MaxPeers: 1})
	full.mustList(t, &announce{peerID: id("other"), addrs: at("10.0.0.2", 1), left: 0})
	ask(func(r *request) { tr = full })
}

func TestEveryProcessHasAnotherName(t *testing.T) {
	_, u := start(t, Config{})
	_, again := start(t, Config{})
	first := get(t, u+queryOf("x", 1, ""))["tracker id"].(string)
	if first == "" || first != get(t, u+queryOf("x", 1, ""))["tracker id"] {
		t.Error("a tracker has no name, or another each time")
	}
	if first == get(t, again+queryOf("x", 1, ""))["tracker id"] {
		t.Error("two trackers have one name")
	}
}

// The answer is what the library's encoder would make of it.
func TestAnswerIsCanonical(t *testing.T) {
	an := answer{tracker: "ABC", holds: true, interval: 30 * time.Second, complete: 1, incomplete: 2}
	got := string(an.encode(nil, &announce{compact: true}))
	if want := "d8:completei1e10:incompletei2e8:intervali30e12:min intervali5e5:peers0:10:tracker id3:ABC4:waiti25ee"; got != want {
		t.Errorf("answer = %s, want %s", got, want)
	}
	if got := string(an.encode(nil, &announce{})); !strings.Contains(got, "5:peersle10:") {
		t.Errorf("answer = %s, want an empty list", got)
	}
}
