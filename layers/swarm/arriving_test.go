package swarm

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/murderp2p/murder/layers"
)

// arriving is a blob on its way from a registry to a seeder.
type arriving struct {
	partial *layers.Partial
	torrent *layers.Torrent
}

// fetchFromRegistry begins to bring a blob to h, of which nothing has come yet, and
// offers it to the swarm.
func (h *host) fetchFromRegistry(t testing.TB, m *layers.Metainfo, tracker string) arriving {
	t.Helper()
	a := arriving{partial: h.partial(t, m)}
	a.torrent = a.partial.Hashes(layers.InfoHash{1, 2, 3})
	if err := h.ShareArriving(t.Context(), a.torrent, a.partial, []string{tracker}); err != nil {
		t.Fatal(err)
	}
	return a
}

// mirrorOf is what a mirror of the seeder knows of the torrent: all that the seeder does, a
// little later.
func mirrorOf(ctx context.Context, t *layers.Torrent) *layers.Torrent {
	draft, _ := t.Draft()
	copied := layers.NewTorrent(t.Digest(), t.Size(), draft)
	go func() {
		for known := 0; copied.Metainfo() == nil; {
			changed := t.Changed()
			for ; known < t.Known(); known++ {
				sum, _ := t.Piece(known)
				_ = copied.Add(sum[:])
			}
			if err := t.Err(); err != nil {
				copied.Fail(err)
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return copied
}

// While a seeder still fetches a blob, hosts have what has come so far, from it and
// from each other.
func TestBlobSpreadsWhileItArrives(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(16<<20+5, 50)
	m := fill(t, testStore(t), blob)
	seeder := newHost(t, Config{Seeder: true, Upload: layers.NewLimiter(8 << 20)})
	a := seeder.fetchFromRegistry(t, m, tr.url)

	const half = 8 << 20
	hosts := make([]*host, 3)
	partials := make([]*layers.Partial, len(hosts))
	var all sync.WaitGroup
	for i := range hosts {
		h := newHost(t, Config{})
		p := h.partial(t, m)
		hosts[i], partials[i] = h, p
		torrent := mirrorOf(t.Context(), a.torrent)
		all.Go(func() {
			if err := h.Fetch(t.Context(), torrent, p, []string{tr.url}); err != nil {
				t.Errorf("host %d: Fetch = %v", i, err)
			}
			mustEqual(t, fmt.Sprint("host ", i), h.read(t, p), blob)
		})
	}
	if err := a.partial.Append(blob[:half]); err != nil {
		t.Fatal(err)
	}
	for i, p := range partials {
		eventually(t, fmt.Sprintf("host %d has the first half", i), func() bool { return p.Prefix() == half })
	}
	if err := a.partial.Append(blob[half:]); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	var fromPeers int64
	for _, h := range hosts {
		peers, _ := h.Received(m.Digest())
		fromPeers += peers
	}
	if fromPeers < m.Size() {
		t.Errorf("%d bytes came from peers, want that hosts share what they have", fromPeers)
	}

	// Who comes later knows the swarm by its lasting name.
	late := newHost(t, Config{})
	mustEqual(t, "late host", late.fetch(t, m, tr.url), blob)
}

// What is revealed of a blob that arrives can be asked for at once: who is refused it would
// not ask again for seconds.
func TestRevealedPiecesAreThere(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(4<<20, 52)
	m := fill(t, testStore(t), blob)
	seeder := newHost(t, Config{Seeder: true})
	a := seeder.fetchFromRegistry(t, m, tr.url)
	x := seeder.lookup(m.Digest())
	x.mu.Lock() // so that the exchange does not hear of what comes
	defer x.mu.Unlock()
	if err := a.partial.Append(blob[:1<<20]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "hashes are known", func() bool { return a.torrent.Known() > 0 })
	for i := range x.here() {
		if !x.have.has(i) {
			t.Errorf("piece %d would be revealed, and refused", i)
		}
	}
}

// When the seeder's fetch fails, those who fetch from it hear of it.
func TestArrivalThatFails(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(4<<20, 51)
	m := fill(t, testStore(t), blob)
	seeder := newHost(t, Config{Seeder: true})
	a := seeder.fetchFromRegistry(t, m, tr.url)
	if err := a.partial.Append(blob[:1<<20]); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, Config{})
	p := h.partial(t, m)
	fetched := make(chan error, 1)
	go func() { fetched <- h.Fetch(t.Context(), mirrorOf(t.Context(), a.torrent), p, []string{tr.url}) }()
	eventually(t, "what has come is here", func() bool { return p.Prefix() == 1<<20 })
	broken := errors.New("registry is gone")
	a.partial.Fail(broken)
	if err := <-fetched; !errors.Is(err, broken) {
		t.Errorf("Fetch = %v, want %v", err, broken)
	}
	eventually(t, "seeder has left", func() bool { return seeder.Stats().Active == 0 })
}

// mute takes connections and says nothing, or never answers.
func mute(t *testing.T) netip.AddrPort {
	t.Helper()
	l := testListener(t)
	var open sync.WaitGroup
	t.Cleanup(func() { l.Close(); open.Wait() })
	open.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
		}
	})
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestMutePeersHoldUpNobody(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(4<<20, 52)
	seeder := newHost(t, Config{Seeder: true})
	m := seeder.share(t, blob, tr.url)
	for range 5 {
		tr.announced(hashString(m), mute(t), eventStarted)
	}
	h := newHost(t, Config{})
	mustEqual(t, "host", h.fetch(t, m, tr.url), blob)
}

// The connections are those it is given: here inside mutual TLS.
func TestInsideTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"murder"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	config := &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		RootCAs:      pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "murder",
	}
	inside := func(seeder bool) *host {
		dial := func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
			d := tls.Dialer{Config: config}
			return d.DialContext(ctx, "tcp", a.String())
		}
		store := testStore(t)
		c, err := Open(Config{Listener: tls.NewListener(testListener(t), config), Dial: dial, Seeder: seeder, Log: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeInTime(t, c) })
		return &host{c, store}
	}
	tr := newTracker(t)
	blob, _ := testBlob(3<<20, 53)
	m := inside(true).share(t, blob, tr.url)
	mustEqual(t, "host", inside(false).fetch(t, m, tr.url), blob)

	stranger := newHost(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	p := stranger.partial(t, m)
	fetched := make(chan error, 1)
	go func() { fetched <- stranger.Fetch(ctx, m.Torrent(), p, []string{tr.url}) }()
	eventually(t, "stranger has announced himself", func() bool { return tr.listed(m.InfoHash()) == 3 })
	mustEqual(t, "another host", inside(false).fetch(t, m, tr.url), blob)
	cancel()
	<-fetched
	if p.Received() > 0 {
		t.Errorf("a stranger without a certificate has %d bytes", p.Received())
	}
}
