package tracker

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anacrolix/torrent/bencode"
	client "github.com/anacrolix/torrent/tracker"
	"github.com/anacrolix/torrent/types/infohash"
)

// start serves a tracker on loopback and returns it with its announce URL.
func start(t *testing.T, cfg Config) (*Tracker, string) {
	t.Helper()
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	tr := New(cfg)
	srv := httptest.NewServer(tr.mux())
	t.Cleanup(srv.Close)
	return tr, srv.URL + "/announce"
}

func (t *Tracker) mux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /announce", t.ServeAnnounce)
	mux.HandleFunc("GET /scrape", t.ServeScrape)
	return mux
}

var testHash = [20]byte([]byte("\x00\x01 +&;%abcdefghijk\xfe\xff"))

func id(name string) [20]byte {
	var id [20]byte
	copy(id[:], name)
	return id
}

// announceAs announces with the library's client.
func announceAs(t *testing.T, trackerURL, name string, port int, left int64, event client.AnnounceEvent) client.AnnounceResponse {
	t.Helper()
	res, err := client.Announce{
		TrackerUrl: trackerURL,
		Context:    t.Context(),
		Request: client.AnnounceRequest{
			InfoHash: testHash, PeerId: id(name), Port: uint16(port), Left: left, Event: event, NumWant: -1,
		},
	}.Do()
	if err != nil {
		t.Fatalf("announce %s: %v", name, err)
	}
	return res
}

func ports(peers []client.Peer) map[int]bool {
	m := make(map[int]bool)
	for _, p := range peers {
		m[p.Port] = true
	}
	return m
}

func TestLibraryClientFindsOthers(t *testing.T) {
	tr, u := start(t, Config{Interval: 7 * time.Second})
	if res := announceAs(t, u, "first", 1001, 10, client.Started); len(res.Peers) != 0 || res.Interval != 7 {
		t.Fatalf("first answer = %+v, want no peers and interval 7", res)
	}
	res := announceAs(t, u, "second", 1002, 0, client.Started)
	if got := ports(res.Peers); len(got) != 1 || !got[1001] {
		t.Fatalf("second was given %v, want the first only", got)
	}
	if res.Interval != 70 {
		t.Errorf("a complete peer is to wait %d s, want ten times the interval", res.Interval)
	}
	if ip := res.Peers[0].IP.String(); ip != "127.0.0.1" {
		t.Errorf("first is listed at %s, want where its request came from", ip)
	}
	if res.Seeders != 1 || res.Leechers != 1 {
		t.Errorf("counts %d/%d, want 1/1", res.Seeders, res.Leechers)
	}
	if got := tr.Stats(); got != (Stats{Swarms: 1, Peers: 2, Announces: 2}) {
		t.Errorf("Stats = %+v", got)
	}

	announceAs(t, u, "first", 1001, 0, client.Completed)
	if res := announceAs(t, u, "third", 1003, 0, client.None); len(res.Peers) != 0 {
		t.Errorf("a complete peer was given complete ones: %v", res.Peers)
	}
	announceAs(t, u, "first", 1001, 0, client.Stopped)
	if res := announceAs(t, u, "fourth", 1004, 5, client.None); len(res.Peers) != 2 || ports(res.Peers)[1001] {
		t.Errorf("after the first left: %v", res.Peers)
	}
}

func TestLibraryClientScrapes(t *testing.T) {
	_, u := start(t, Config{Has: func(ih [20]byte) bool { return ih == testHash }})
	announceAs(t, u, "first", 1001, 10, client.Started)
	announceAs(t, u, "second", 1002, 0, client.Completed)
	c, err := client.NewClient(u, client.NewClientOpts{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	res, err := c.Scrape(t.Context(), []infohash.T{testHash, infohash.T(id("nobody"))})
	if err != nil {
		t.Fatal(err)
	}
	if got := res[0]; got.Seeders != 2 || got.Leechers != 1 || got.Completed != 1 {
		t.Errorf("scrape = %+v, want 2 complete (one is the seeder), 1 incomplete, 1 completed", got)
	}
	if got := res[1]; got.Seeders != 0 || got.Leechers != 0 {
		t.Errorf("scrape of a swarm that is not there = %+v", got)
	}
}

func TestListsTheSeederWhereItWasReached(t *testing.T) {
	_, u := start(t, Config{
		Has: func(ih [20]byte) bool { return ih == testHash },
		Self: func(local net.Addr) (netip.AddrPort, bool) {
			host := local.(*net.TCPAddr).AddrPort().Addr()
			return netip.AddrPortFrom(host, 7071), true
		},
	})
	res := announceAs(t, u, "leecher", 1001, 10, client.Started)
	if len(res.Peers) != 1 || res.Peers[0].Port != 7071 || res.Peers[0].IP.String() != "127.0.0.1" {
		t.Fatalf("peers = %v, want the seeder at 127.0.0.1:7071", res.Peers)
	}
	if res.Seeders != 1 {
		t.Errorf("seeders = %d, want the seeder counted", res.Seeders)
	}
	if res := announceAs(t, u, "complete", 1002, 0, client.Started); ports(res.Peers)[7071] {
		t.Error("the seeder was given to a complete peer")
	}
	for port := 2000; port < 2100; port++ {
		announceAs(t, u, fmt.Sprint(port), port, 10, client.Started)
	}
	res = announceAs(t, u, "leecher", 1001, 10, client.None)
	if len(res.Peers) != maxWant || !ports(res.Peers)[7071] {
		t.Errorf("of a large swarm: %d peers, want %d with the seeder among them", len(res.Peers), maxWant)
	}
}

// get sends a raw query and returns the decoded answer.
func get(t *testing.T, rawURL string) map[string]any {
	t.Helper()
	res, err := http.Get(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("GET %s = %s, %v", rawURL, res.Status, err)
	}
	var m map[string]any
	if err := bencode.Unmarshal(b, &m); err != nil {
		t.Fatalf("answer %q: %v", b, err)
	}
	return m
}

// queryOf is an announce's query with extra appended.
func queryOf(name string, port int, extra string) string {
	ih, pid := testHash, id(name)
	return fmt.Sprintf("?info_hash=%s&peer_id=%s&port=%d&left=1%s",
		url.QueryEscape(string(ih[:])), url.QueryEscape(string(pid[:])), port, extra)
}

func TestForms(t *testing.T) {
	_, u := start(t, Config{})
	get(t, u+queryOf("v4", 1001, "&ip=10.1.2.3"))
	get(t, u+queryOf("v6", 1002, "&ip=2001:db8::1"))
	get(t, u+queryOf("both", 1003, "&ipv6=2001:db8::2"))

	m := get(t, u+queryOf("asker", 9, "&compact=1"))
	if peers := m["peers"].(string); len(peers) != 2*6 || !strings.Contains(peers, "\x0a\x01\x02\x03\x03\xe9") {
		t.Errorf("peers = %q, want 10.1.2.3:1001 and one more", peers)
	}
	if peers6 := m["peers6"].(string); len(peers6) != 2*18 {
		t.Errorf("peers6 = %q, want two", peers6)
	}

	list := get(t, u+queryOf("asker", 9, "&compact=0"))["peers"].([]any)
	if len(list) != 4 {
		t.Fatalf("list = %v, want both versions in it", list)
	}
	for _, p := range list {
		if len(p.(map[string]any)["peer id"].(string)) != 20 {
			t.Errorf("peer %v has no id", p)
		}
	}
	list = get(t, u+queryOf("asker", 9, "&compact=0&no_peer_id=1"))["peers"].([]any)
	if _, there := list[0].(map[string]any)["peer id"]; there {
		t.Errorf("peer id though not wanted: %v", list[0])
	}
	if m := get(t, u+queryOf("asker", 9, "&numwant=0")); m["peers"] != "" {
		t.Errorf("numwant=0 gave %q", m["peers"])
	}
	if m := get(t, u+queryOf("asker", 9, "&numwant=1&ip=10.9.9.9")); len(m["peers"].(string)) > 6 {
		t.Errorf("numwant=1 gave %q", m["peers"])
	}
}

func TestRefusals(t *testing.T) {
	tr, u := start(t, Config{})
	good := queryOf("x", 1, "")
	for name, q := range map[string]string{
		"no query":         "",
		"short infohash":   "?info_hash=abc&peer_id=aaaaaaaaaaaaaaaaaaaa&port=1",
		"no peer_id":       strings.Replace(good, "peer_id", "peerid", 1),
		"port 0":           queryOf("x", 0, ""),
		"port too large":   strings.Replace(good, "port=1", "port=65536", 1),
		"port not decimal": strings.Replace(good, "port=1", "port=0x11", 1),
		"event":            good + "&event=exploded",
		"left":             strings.Replace(good, "left=1", "left=some", 1),
		"numwant":          good + "&numwant=lots",
		"long zone":        good + "&zone=" + strings.Repeat("z", maxZone+1),
		"long query":       good + "&x=" + strings.Repeat("x", maxQuery),
		"bad escape":       strings.Replace(good, "info_hash=%00", "info_hash=%0g", 1),
		"wait":             good + "&wait=long",
	} {
		if m := get(t, u+q); m["failure reason"] == nil {
			t.Errorf("%s: answer %v, want a failure reason", name, m)
		}
	}
	scrape := strings.Replace(u, "announce", "scrape", 1)
	for _, q := range []string{"", "?info_hash=short", "?" + strings.Repeat("info_hash=aaaaaaaaaaaaaaaaaaaa&", maxScrape+1)} {
		if m := get(t, scrape+q); m["failure reason"] == nil {
			t.Errorf("scrape%.40s: answer %v, want a failure reason", q, m)
		}
	}
	if got := tr.Stats(); got != (Stats{}) {
		t.Errorf("refused announces left %+v", got)
	}
}

func TestBounds(t *testing.T) {
	tr := New(Config{MaxPeers: 3, MaxSwarms: 1})
	for port := range 10 {
		answer := tr.mustList(t, &announce{peerID: id(fmt.Sprint(port)), addrs: at("10.0.0.1", uint16(port+1)), left: 1, want: 50})
		if port > 3 && len(answer.peers) != 3 {
			t.Errorf("peer %d of a full swarm was given %d peers, want 3", port, len(answer.peers))
		}
	}
	if got := tr.Stats().Peers; got != 3 {
		t.Errorf("%d peers listed, want 3", got)
	}
	other := &announce{infohash: [20]byte{shards}, addrs: at("10.0.0.1", 1), left: 1}
	if err := tr.announced(t.Context(), &request{announce: *other}, nil); err != errFull {
		t.Errorf("one swarm too many: %v, want %v", err, errFull)
	}
}

func at(ip string, port uint16) []netip.AddrPort {
	return []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr(ip), port)}
}

func (t *Tracker) mustList(tb testing.TB, a *announce) answer {
	tb.Helper()
	req := &request{announce: *a}
	if err := t.announced(tb.Context(), req, nil); err != nil {
		tb.Fatal(err)
	}
	return req.answer
}

func TestZonesFirst(t *testing.T) {
	tr := New(Config{})
	for i := range 200 {
		zone := []string{"a", "b", "c", ""}[i%4]
		tr.mustList(t, &announce{peerID: id(fmt.Sprint(i)), addrs: at("10.0.0.1", uint16(i+1)), zone: zone, left: 1})
	}
	own := func(zone string, want int) (n, all int) {
		answer := tr.mustList(t, &announce{peerID: id("asker"), addrs: at("10.0.0.2", 1), zone: zone, left: 1, want: want})
		seen := make(map[netip.AddrPort]bool)
		for _, p := range answer.peers {
			seen[p.Addr] = true
			if int(p.Addr.Port()-1)%4 == strings.Index("abc", zone) {
				n++
			}
		}
		return n, len(seen)
	}
	if n, all := own("a", 10); n != 8 || all != 10 {
		t.Errorf("%d of %d from the own zone, want 8 of 10", n, all)
	}
	if n, all := own("z", 10); n != 0 || all != 10 {
		t.Errorf("a zone of its own was given %d peers of %d there, want 10", all, n)
	}
	if n, all := own("b", 50); n != 40 || all != 50 {
		t.Errorf("%d of %d from the own zone, want 40 of 50", n, all)
	}
}

func TestOwnZoneFillsUp(t *testing.T) {
	tr := New(Config{})
	for i := range 60 {
		tr.mustList(t, &announce{peerID: id(fmt.Sprint(i)), addrs: at("10.0.0.1", uint16(i+1)), zone: "a", left: 1})
	}
	answer := tr.mustList(t, &announce{peerID: id("asker"), addrs: at("10.0.0.2", 1), zone: "a", left: 1, want: 50})
	seen := make(map[netip.AddrPort]bool)
	for _, p := range answer.peers {
		seen[p.Addr] = true
	}
	if len(seen) != 50 {
		t.Errorf("%d different peers, want 50", len(seen))
	}
}

func TestALateGoodbyeDoesNotRemoveTheSuccessor(t *testing.T) {
	tr := New(Config{})
	addr := at("10.0.0.1", 7081)
	tr.mustList(t, &announce{peerID: id("old"), addrs: addr, left: 1})
	tr.mustList(t, &announce{peerID: id("new"), addrs: addr, left: 1})
	tr.mustList(t, &announce{peerID: id("old"), addrs: addr, event: eventStopped})
	if got := tr.Stats().Peers; got != 1 {
		t.Errorf("%d peers, want the restarted one to stay", got)
	}
	tr.mustList(t, &announce{peerID: id("new"), addrs: addr, event: eventStopped})
	if got := tr.Stats(); got.Peers != 0 || got.Swarms != 0 {
		t.Errorf("after both left: %+v", got)
	}
}

func TestSilentPeersAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(Config{Interval: time.Minute})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- tr.Run(ctx) }()

		tr.mustList(t, &announce{peerID: id("silent"), addrs: at("10.0.0.1", 1), left: 1})
		for range 3 {
			time.Sleep(time.Minute)
			tr.mustList(t, &announce{peerID: id("loyal"), addrs: at("10.0.0.1", 2), left: 1})
		}
		synctest.Wait()
		if got := tr.Stats().Peers; got != 1 {
			t.Errorf("%d peers after three intervals, want the loyal one", got)
		}
		time.Sleep(4 * time.Minute)
		synctest.Wait()
		if got := tr.Stats(); got.Swarms != 0 {
			t.Errorf("an empty swarm stays: %+v", got)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
}

func TestAddresses(t *testing.T) {
	for _, tc := range []struct {
		query, remote, want string
	}{
		{"", "10.0.0.1", "[10.0.0.1:7]"},
		{"", "::ffff:10.0.0.1", "[10.0.0.1:7]"},
		{"", "fe80::1%eth0", "[[fe80::1]:7]"},
		{"ip=10.0.0.2", "10.0.0.1", "[10.0.0.2:7]"},
		{"ip=10.0.0.2", "fd00::1", "[10.0.0.2:7]"},
		{"ip=example.org", "10.0.0.1", "[10.0.0.1:7]"},
		{"ip=127.0.0.1", "10.0.0.1", "[10.0.0.1:7]"},
		{"ip=169.254.169.254", "10.0.0.1", "[10.0.0.1:7]"},
		{"ip=fe80::2", "fe80::1", "[[fe80::2]:7]"},
		{"ip=127.0.0.2", "127.0.0.1", "[127.0.0.2:7]"},
		{"ip=0.0.0.0&ip=224.0.0.1", "10.0.0.1", "[10.0.0.1:7]"},
		{"ipv6=fd00::1", "10.0.0.1", "[10.0.0.1:7 [fd00::1]:7]"},
		{"ipv4=10.0.0.9&ipv6=fd00::1", "fd00::2", "[[fd00::2]:7 10.0.0.9:7]"},
	} {
		var a announce
		err := a.parseAddrs(query(tc.query), netip.MustParseAddr(tc.remote), 7)
		if err != nil || fmt.Sprint(a.addrs) != tc.want {
			t.Errorf("parseAddrs(%s from %s) = %v, %v, want %s", tc.query, tc.remote, a.addrs, err, tc.want)
		}
	}
}

func FuzzParseAnnounce(f *testing.F) {
	f.Add(queryOf("x", 1, "&event=started&numwant=50&compact=1&zone=a")[1:])
	f.Add(queryOf("x", 65535, "&ip=10.0.0.1&ipv6=fd00::1&left=-1&numwant=-1&no_peer_id=1")[1:])
	f.Add("info_hash=%00&peer_id=%ff&port=x;&&=&left=99999999999999999999")
	remote := netip.MustParseAddr("10.0.0.1")
	f.Fuzz(func(t *testing.T, q string) {
		var req request
		a := &req.announce
		if err := a.parse(q, remote); err != nil {
			return
		}
		if len(a.addrs) < 1 || len(a.addrs) > 2 || a.want < 0 || a.want > maxWant || a.wait > maxWait || len(a.zone) > maxZone {
			t.Errorf("parse(%q) = %+v", q, a)
		}
		for _, addr := range a.addrs {
			if !addr.IsValid() || addr.Addr().Is4In6() || addr.Addr().IsLoopback() {
				t.Errorf("parse(%q) lists %v", q, addr)
			}
		}
		a.wait = 0
		tr := New(Config{})
		if err := tr.announced(t.Context(), &req, nil); err != nil {
			t.Fatal(err)
		}
		var wire map[string]any
		if err := bencode.Unmarshal(req.answer.encode(nil, a), &wire); err != nil {
			t.Errorf("the answer to %q: %v", q, err)
		}
	})
}

// silent is an http.ResponseWriter that forgets.
type silent struct{ header http.Header }

func (s silent) Header() http.Header         { return s.header }
func (s silent) Write(b []byte) (int, error) { return len(b), nil }
func (s silent) WriteHeader(int)             {}

func BenchmarkServeAnnounce(b *testing.B) {
	tr := New(Config{Log: slog.New(slog.DiscardHandler)})
	requests := make([]*http.Request, 10_000)
	for i := range requests {
		requests[i] = httptest.NewRequest(http.MethodGet, "/announce"+queryOf(fmt.Sprint(i), 7081, fmt.Sprintf("&numwant=10&ip=10.0.%d.%d", i>>8, i&255)), nil)
	}
	w := silent{make(http.Header)}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		tr.ServeAnnounce(w, requests[i%len(requests)])
	}
}
