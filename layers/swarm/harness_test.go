package swarm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anacrolix/torrent/bencode"
	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
)

// patience bounds every wait of these tests.
const patience = 60 * time.Second

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// eventually waits until ok is true, looking again and again.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// testBlob makes size bytes that follow from seed, and their digest.
// chunky is the size of a blob whose pieces have several chunks.
const chunky = 32<<20 + 12345

func testBlob(size int, seed uint64) ([]byte, digest.Digest) {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b, digest.FromBytes(b)
}

func testStore(t testing.TB) *layers.Store {
	t.Helper()
	s, err := layers.OpenStore(layers.StoreConfig{Dir: t.TempDir(), Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return s
}

// fill puts a blob into a store and returns its metainfo.
func fill(t testing.TB, s *layers.Store, b []byte) *layers.Metainfo {
	t.Helper()
	d := digest.FromBytes(b)
	p, err := s.Partial(d, int64(len(b)), "registry.test")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Append(b); err != nil {
		t.Fatal(err)
	}
	wait(t, "blob in the store", p.Done())
	m, err := s.Metainfo(d)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func wait(t testing.TB, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s: not within %v", what, patience)
	}
}

// host is a store and its client.
type host struct {
	*Client
	store *layers.Store
}

func newHost(t testing.TB, cfg Config) *host {
	t.Helper()
	store := testStore(t)
	if cfg.Listener = testListener(t); cfg.Log == nil {
		cfg.Log = testLog(t)
	}
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeInTime(t, c) })
	return &host{c, store}
}

func testListener(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func closeInTime(t testing.TB, c *Client) {
	t.Helper()
	begin := time.Now()
	if err := c.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("Close took %v, want at most 3 s", took)
	}
}

// share puts a blob into h's store and offers it.
func (h *host) share(t testing.TB, b []byte, trackers ...string) *layers.Metainfo {
	t.Helper()
	m := fill(t, h.store, b)
	blob, err := h.store.Open(m.Digest())
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Share(t.Context(), m, blob, trackers); err != nil {
		t.Fatal(err)
	}
	return m
}

func (h *host) partial(t testing.TB, m *layers.Metainfo) *layers.Partial {
	t.Helper()
	p, err := h.store.Partial(m.Digest(), m.Size(), "registry.test")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// fetch fetches m's blob and reads it from the store.
func (h *host) fetch(t testing.TB, m *layers.Metainfo, trackers ...string) []byte {
	t.Helper()
	p := h.partial(t, m)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := h.Fetch(ctx, m.Torrent(), p, trackers); err != nil {
		t.Errorf("Fetch = %v", err)
		return nil
	}
	return h.read(t, p)
}

// read waits for an arriving blob and returns it from the store.
func (h *host) read(t testing.TB, p *layers.Partial) []byte {
	t.Helper()
	wait(t, "blob in the store", p.Done())
	if err := p.Err(); err != nil {
		t.Errorf("partial failed: %v", err)
		return nil
	}
	blob, err := h.store.Open(p.Digest())
	if err != nil {
		t.Errorf("open: %v", err)
		return nil
	}
	defer blob.Close()
	b, err := io.ReadAll(io.NewSectionReader(blob, 0, blob.Size()))
	if err != nil {
		t.Errorf("read: %v", err)
	}
	return b
}

func mustEqual(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes that are not the blob's %d", what, len(got), len(want))
	}
}

// testTracker is a tracker of a few lines: it lists everybody who has not stopped.
type testTracker struct {
	url string

	mu     sync.Mutex
	swarms map[string]map[netip.AddrPort]bool
	events []string
}

func newTracker(t testing.TB) *testTracker {
	tr := &testTracker{swarms: make(map[string]map[netip.AddrPort]bool)}
	srv := httptest.NewServer(tr)
	t.Cleanup(srv.Close)
	tr.url = srv.URL + "/announce"
	return tr
}

func (tr *testTracker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	port, err2 := strconv.ParseUint(q.Get("port"), 10, 16)
	if err := errors.Join(err, err2); err != nil || len(q.Get("info_hash")) != 20 {
		http.Error(w, "bad announce", http.StatusBadRequest)
		return
	}
	peers := tr.announced(q.Get("info_hash"), netip.AddrPortFrom(from.Addr(), uint16(port)), q.Get("event"))
	_ = bencode.NewEncoder(w).Encode(map[string]any{"interval": 1, "peers": peers})
}

func (tr *testTracker) announced(ih string, peer netip.AddrPort, event string) (peers []byte) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.events = append(tr.events, event)
	swarm := tr.swarms[ih]
	if swarm == nil {
		swarm = make(map[netip.AddrPort]bool)
		tr.swarms[ih] = swarm
	}
	peers = []byte{}
	for other := range swarm {
		if other != peer {
			ip := other.Addr().As4()
			peers = binary.BigEndian.AppendUint16(append(peers, ip[:]...), other.Port())
		}
	}
	if event == eventStopped {
		delete(swarm, peer)
	} else {
		swarm[peer] = true
	}
	return peers
}

// listed counts the peers of a swarm.
func (tr *testTracker) listed(ih layers.InfoHash) int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return len(tr.swarms[string(ih[:])])
}

// ours counts goroutines that run this package's code on nobody's behalf but its own.
func ours() (n int, stacks string) {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	for _, g := range strings.Split(string(buf), "\n\n") {
		if strings.Contains(g, "created by github.com/murderp2p/murder/layers/swarm.") &&
			!strings.Contains(g, "testing.tRunner") && !strings.Contains(g, "_test.go") {
			n++
			stacks += g + "\n\n"
		}
	}
	return n, stacks
}

// noGoroutinesLeft waits until none of this package is left.
func noGoroutinesLeft(t *testing.T) {
	t.Helper()
	var stacks string
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(stacks)
		}
	})
	eventually(t, "no goroutines left", func() bool {
		var n int
		n, stacks = ours()
		return n == 0
	})
}
