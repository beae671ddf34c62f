package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/metainfo"

	"github.com/murderp2p/murder/layers"
)

func TestSeederFillsThreeLeechers(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(chunky, 1)
	seeder := newHost(t, Config{Seeder: true, Zone: "a"})
	m := seeder.share(t, blob, tr.url)

	var all sync.WaitGroup
	var hosts [3]*host
	for i := range hosts {
		hosts[i] = newHost(t, Config{Zone: []string{"a", "b", "b"}[i]})
		all.Go(func() { mustEqual(t, fmt.Sprintf("host %d", i), hosts[i].fetch(t, m, tr.url), blob) })
	}
	all.Wait()

	var got layers.Stats
	for i, h := range hosts {
		peers, seeders := h.Received(m.Digest())
		st := h.Stats()
		if peers+seeders < m.Size() {
			t.Errorf("host %d counted %d bytes of %d", i, peers+seeders, m.Size())
		}
		if st.FromPeers != peers || st.FromSeeder != seeders {
			t.Errorf("host %d: totals %+v, of the swarm %d and %d", i, st, peers, seeders)
		}
		got.FromPeers += peers
		got.FromSeeder += seeders
		got.Sent += st.Sent
	}
	if got.FromPeers == 0 || got.FromSeeder == 0 {
		t.Errorf("received %d bytes from peers and %d from the seeder, want some of both", got.FromPeers, got.FromSeeder)
	}
	if sent := seeder.Stats().Sent; sent < got.FromSeeder {
		t.Errorf("the seeder counted %d bytes sent, the hosts %d received", sent, got.FromSeeder)
	}
	if got.Sent < got.FromPeers {
		t.Errorf("the hosts counted %d bytes sent, and %d received from each other", got.Sent, got.FromPeers)
	}
	if hosts[1].Stats().CrossZone == 0 {
		t.Error("no bytes crossed zones, but the seeder stands in another")
	}
}

func TestSharesOnAfterFetch(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(3<<20, 2)
	seeder := newHost(t, Config{Seeder: true})
	m := seeder.share(t, blob, tr.url)
	first := newHost(t, Config{})
	mustEqual(t, "first", first.fetch(t, m, tr.url), blob)
	closeInTime(t, seeder.Client)

	second := newHost(t, Config{})
	mustEqual(t, "second", second.fetch(t, m, tr.url), blob)
	if peers, seeders := second.Received(m.Digest()); peers < m.Size() || seeders != 0 {
		t.Errorf("second received %d from peers and %d from seeders", peers, seeders)
	}
}

func TestResumesWithWhatIsThere(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(8<<20, 4)
	seeder := newHost(t, Config{Seeder: true})
	m := seeder.share(t, blob, tr.url)
	leecher := newHost(t, Config{})
	p := leecher.partial(t, m)
	if err := p.SetTorrent(m.Torrent()); err != nil {
		t.Fatal(err)
	}
	var here int64
	for i := 0; i < m.Pieces(); i += 2 {
		from := int64(i) * m.PieceLength()
		if err := p.WritePiece(i, blob[from:from+m.PieceSize(i)]); err != nil {
			t.Fatal(err)
		}
		here += m.PieceSize(i)
	}
	mustEqual(t, "leecher", leecher.fetch(t, m, tr.url), blob)
	peers, seeders := leecher.Received(m.Digest())
	if want := m.Size() - here; peers+seeders != want {
		t.Errorf("received %d bytes, want the %d that were missing", peers+seeders, want)
	}
}

func TestPiecesFromElsewhereEndTheFetch(t *testing.T) {
	blob, _ := testBlob(4<<20, 5)
	m := fill(t, testStore(t), blob)
	leecher := newHost(t, Config{})
	p := leecher.partial(t, m)
	fetched := make(chan error, 1)
	go func() { fetched <- leecher.Fetch(t.Context(), m.Torrent(), p, nil) }()
	eventually(t, "swarm joined", func() bool { return leecher.Stats().Active == 1 })
	for i := range m.Pieces() {
		from := int64(i) * m.PieceLength()
		if err := p.WritePiece(i, blob[from:from+m.PieceSize(i)]); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-fetched; err != nil {
		t.Errorf("Fetch = %v, want nil", err)
	}
	mustEqual(t, "leecher", leecher.read(t, p), blob)
	if n := leecher.lookup(m.Digest()).lacks(); n != 0 {
		t.Errorf("the swarm is told that %d bytes are missing", n)
	}
}

// badPeer starts a client that claims to have m's blob and sends something else.
func badPeer(t *testing.T, m *layers.Metainfo) netip.AddrPort {
	t.Helper()
	cfg := torrent.TestingConfig(t)
	cfg.Seed, cfg.DisableUTP, cfg.DisableIPv6 = true, true, true
	cfg.MaxAllocPeerRequestDataPerConn = 1 << 20
	cfg.Slogger = testLog(t)
	cl, err := torrent.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	cl.AddTorrentOpt(torrent.AddTorrentOpts{
		InfoHash: metainfo.Hash(m.InfoHash()), InfoBytes: m.InfoBytes(),
		Storage: badContent{}, DisableInitialPieceCheck: true,
	})
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(cl.LocalPort()))
}

func TestCorruptPeerIsBannedAndHonestOneServes(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(6<<20, 6)
	m := fill(t, testStore(t), blob)
	tr.announced(hashString(m), badPeer(t, m), eventStarted)

	leecher := newHost(t, Config{})
	p := leecher.partial(t, m)
	r := p.NewReader(t.Context(), 0, m.Size())
	defer r.Close()
	fetched := make(chan error, 1)
	go func() { fetched <- leecher.Fetch(t.Context(), m.Torrent(), p, []string{tr.url}) }()
	eventually(t, "bad peer banned", func() bool { return leecher.bans.count() > 0 })
	if have, _ := p.Pieces(); have != 0 {
		t.Fatalf("%d pieces from a peer that has not one right byte", have)
	}

	// From the very IP that was banned.
	seeder := newHost(t, Config{Seeder: true})
	seeder.share(t, blob, tr.url)
	if err := <-fetched; err != nil {
		t.Errorf("Fetch = %v", err)
	}
	got, err := io.ReadAll(r)
	if err != nil {
		t.Errorf("read: %v", err)
	}
	mustEqual(t, "reader", got, blob)
	if _, seeders := leecher.Received(m.Digest()); seeders < m.Size() {
		t.Errorf("the honest seeder sent %d bytes of %d", seeders, m.Size())
	}
}

// One who spoils what others send is found out, and they are not taken for him.
func TestCorruptPeerAmongHonestOnes(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(8<<20, 15)
	var m *layers.Metainfo
	honest := map[[20]byte]bool{}
	for range 2 {
		h := newHost(t, Config{Upload: layers.NewLimiter(2 << 20)})
		m = h.share(t, blob, tr.url)
		honest[h.id] = true
	}
	tr.announced(hashString(m), badPeer(t, m), eventStarted)
	eventually(t, "honest ones announced", func() bool { return tr.listed(m.InfoHash()) == 3 })
	leecher := newHost(t, Config{})
	mustEqual(t, "leecher", leecher.fetch(t, m, tr.url), blob)
	leecher.bans.mu.Lock()
	defer leecher.bans.mu.Unlock()
	for id := range leecher.bans.ids {
		if honest[id.id] {
			t.Error("an honest peer is banned")
		}
	}
	if len(leecher.bans.ids) != 1 {
		t.Errorf("%d peers banned, want the one", len(leecher.bans.ids))
	}
}

func hashString(m *layers.Metainfo) string {
	ih := m.InfoHash()
	return string(ih[:])
}

func TestCancelledFetchLeaves(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(1<<20, 7)
	m := fill(t, testStore(t), blob)
	leecher := newHost(t, Config{})
	p := leecher.partial(t, m)

	ctx, cancel := context.WithCancel(t.Context())
	other, stop := context.WithCancel(t.Context())
	fetched := make(chan error, 2)
	go func() { fetched <- leecher.Fetch(ctx, m.Torrent(), p, []string{tr.url}) }()
	eventually(t, "announced", func() bool { return tr.listed(m.InfoHash()) == 1 })
	go func() { fetched <- leecher.Fetch(other, m.Torrent(), p, []string{tr.url}) }()
	j := leecher.lookup(m.Digest())
	eventually(t, "both there", func() bool {
		leecher.mu.Lock()
		defer leecher.mu.Unlock()
		return j.fetches == 2
	})

	cancel()
	if err := <-fetched; !errors.Is(err, context.Canceled) {
		t.Errorf("Fetch = %v, want %v", err, context.Canceled)
	}
	if leecher.lookup(m.Digest()) != j {
		t.Fatal("left the swarm although another fetch is under way")
	}
	stop()
	if err := <-fetched; !errors.Is(err, context.Canceled) {
		t.Errorf("Fetch = %v, want %v", err, context.Canceled)
	}
	if n := leecher.Stats().Active; n != 0 {
		t.Errorf("%d swarms after the fetch was cancelled", n)
	}
	eventually(t, "goodbye said", func() bool { return tr.listed(m.InfoHash()) == 0 })
}

func TestFailedPartialEndsFetch(t *testing.T) {
	blob, _ := testBlob(1<<20, 8)
	m := fill(t, testStore(t), blob)
	leecher := newHost(t, Config{})
	p := leecher.partial(t, m)
	fetched := make(chan error, 1)
	go func() { fetched <- leecher.Fetch(t.Context(), m.Torrent(), p, nil) }()
	eventually(t, "swarm joined", func() bool { return leecher.Stats().Active == 1 })
	broken := errors.New("disk on fire")
	p.Fail(broken)
	if err := <-fetched; !errors.Is(err, broken) {
		t.Errorf("Fetch = %v, want %v", err, broken)
	}
	if n := leecher.Stats().Active; n != 0 {
		t.Errorf("%d swarms after the fetch failed", n)
	}
}

func TestReaderIsServedFirst(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(8<<20, 9)
	seeder := newHost(t, Config{Seeder: true, Upload: layers.NewLimiter(4 << 20)})
	m := seeder.share(t, blob, tr.url)
	leecher := newHost(t, Config{})
	p := leecher.partial(t, m)
	off := m.Size() - 3*m.PieceLength()
	r := p.NewReader(t.Context(), off, 1000)
	defer r.Close()
	fetched := make(chan error, 1)
	go func() { fetched <- leecher.Fetch(t.Context(), m.Torrent(), p, []string{tr.url}) }()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	mustEqual(t, "range", got, blob[off:off+1000])
	if have, total := p.Pieces(); have > total/2 {
		t.Errorf("the piece a reader waited for came as number %d of %d", have, total)
	}
	if err := <-fetched; err != nil {
		t.Errorf("Fetch = %v", err)
	}
}

func TestPeersTellWhoIsThere(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(8<<20, 10)
	seeder := newHost(t, Config{Seeder: true, Zone: "rack 1 & 2", Version: "1.2", Upload: layers.NewLimiter(2 << 20)})
	m := seeder.share(t, blob, tr.url)
	leecher := newHost(t, Config{})
	p := leecher.partial(t, m)
	ctx, cancel := context.WithCancel(t.Context())
	fetched := make(chan error, 1)
	go func() { fetched <- leecher.Fetch(ctx, m.Torrent(), p, []string{tr.url}) }()
	var peers []layers.Peer
	eventually(t, "bytes from the seeder", func() bool {
		peers = leecher.Peers(m.Digest())
		return len(peers) == 1 && peers[0].Received > 0
	})
	want := layers.Peer{
		Addr: netip.MustParseAddrPort(seeder.Addr().String()), Zone: "rack 1 & 2", Seeder: true,
		Complete: true, Have: m.Pieces(), Pieces: m.Pieces(), Received: peers[0].Received,
	}
	if peers[0] != want {
		t.Errorf("Peers = %+v, want %+v", peers[0], want)
	}
	eventually(t, "leecher seen by the seeder", func() bool {
		peers = seeder.Peers(m.Digest())
		return len(peers) == 1 && peers[0].Sent > 0
	})
	if got := peers[0]; got.Seeder || got.Complete || got.Addr.String() != leecher.Addr().String() {
		t.Errorf("the seeder sees %+v", got)
	}
	cancel()
	<-fetched
}

func TestDropAndCloseLeaveNothing(t *testing.T) {
	noGoroutinesLeft(t)
	tr := newTracker(t)
	blob, _ := testBlob(2<<20, 11)
	h, err := Open(Config{Listener: testListener(t), Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	seeder := &host{h, testStore(t)}
	m := seeder.share(t, blob, tr.url)
	again, err := seeder.store.Open(m.Digest())
	if err != nil {
		t.Fatal(err)
	}
	if err := seeder.Share(t.Context(), m, again, []string{tr.url}); err != nil {
		t.Errorf("Share a second time = %v", err)
	}
	if n := seeder.Stats().Active; n != 1 {
		t.Errorf("%d swarms, want one", n)
	}
	leecher := newHost(t, Config{})
	mustEqual(t, "leecher", leecher.fetch(t, m, tr.url), blob)
	closeInTime(t, leecher.Client)

	seeder.Drop(m.Digest())
	seeder.Drop(m.Digest())
	if peers, seeders := seeder.Received(m.Digest()); peers != 0 || seeders != 0 {
		t.Error("counts outlive Drop")
	}
	eventually(t, "goodbye said", func() bool { return tr.listed(m.InfoHash()) == 0 })

	other, _ := testBlob(1<<20, 12)
	om := fill(t, testStore(t), other)
	p := seeder.partial(t, om)
	fetched := make(chan error, 1)
	go func() {
		fetched <- seeder.Fetch(context.Background(), om.Torrent(), p, []string{tr.url, "http://127.0.0.1:1/announce"})
	}()
	eventually(t, "announced", func() bool { return tr.listed(om.InfoHash()) == 1 })
	closeInTime(t, seeder.Client)
	closeInTime(t, seeder.Client)
	if err := <-fetched; !errors.Is(err, ErrClosed) {
		t.Errorf("Fetch = %v, want %v", err, ErrClosed)
	}
	if tr.listed(om.InfoHash()) != 0 {
		t.Error("no goodbye at Close")
	}
	blobAgain, err := seeder.store.Open(m.Digest())
	if err != nil {
		t.Fatal(err)
	}
	if err := seeder.Share(t.Context(), m, blobAgain, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Share after Close = %v, want %v", err, ErrClosed)
	}
	noGoroutinesLeft(t)
}

func TestLimitsHold(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	tr := newTracker(t)
	blob, _ := testBlob(4<<20, 13)
	for name, cfg := range map[string][2]Config{
		"upload":   {{Upload: layers.NewLimiter(2 << 20)}, {}},
		"download": {{}, {Download: layers.NewLimiter(2 << 20)}},
	} {
		t.Run(name, func(t *testing.T) {
			seeder, leecher := newHost(t, cfg[0]), newHost(t, cfg[1])
			m := seeder.share(t, blob, tr.url)
			begin := time.Now()
			mustEqual(t, "leecher", leecher.fetch(t, m, tr.url), blob)
			if took := time.Since(begin); took < 1500*time.Millisecond {
				t.Errorf("4 MiB at 2 MiB/s took %v", took)
			}
		})
	}
}

func TestManySharesAnnounceWithoutARush(t *testing.T) {
	tr := newTracker(t)
	h := newHost(t, Config{})
	const blobs = 200
	for i := range blobs {
		b, _ := testBlob(1000, uint64(1000+i))
		h.share(t, b, tr.url)
	}
	eventually(t, "all announced", func() bool {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		return len(tr.swarms) == blobs
	})
}

// Two seeders of one blob do not both send all of it.
func TestTwoOriginsShareTheWork(t *testing.T) {
	blob, _ := testBlob(16<<20, 14)
	var trackers []string
	var origins []*host
	var m *layers.Metainfo
	for range 2 {
		tr := newTracker(t) // each knows its own seeder
		o := newHost(t, Config{Seeder: true, Upload: layers.NewLimiter(4 << 20)})
		m = o.share(t, blob, tr.url)
		trackers, origins = append(trackers, tr.url), append(origins, o)
	}
	var all sync.WaitGroup
	for i := range 4 {
		h := newHost(t, Config{})
		all.Go(func() { mustEqual(t, fmt.Sprint("host ", i), h.fetch(t, m, trackers...), blob) })
	}
	all.Wait()
	var sent int64
	for _, o := range origins {
		sent += o.Stats().Sent
	}
	if sent > m.Size()*17/10 {
		t.Errorf("two seeders sent %d bytes of a blob of %d", sent, m.Size())
	}
	t.Logf("sent %.2f copies", float64(sent)/float64(m.Size()))
}
