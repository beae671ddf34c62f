package swarm

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"testing"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/metainfo"
	"github.com/anacrolix/torrent/storage"

	"github.com/murderp2p/murder/layers"
)

// library is a peer on the client of github.com/anacrolix/torrent, as far from our own
// engine as a BitTorrent client can be that is used in earnest.
type library struct {
	client  *torrent.Client
	torrent *torrent.Torrent
}

// newLibrary adds m to a client of its own, which keeps its bytes in store.
func newLibrary(t *testing.T, m *layers.Metainfo, store storage.ClientImpl) *library {
	t.Helper()
	return libraryOf(t, torrent.AddTorrentOpts{InfoHash: metainfo.Hash(m.InfoHash()), InfoBytes: m.InfoBytes(), Storage: store})
}

// libraryOf adds a torrent to a client of its own.
func libraryOf(t *testing.T, opts torrent.AddTorrentOpts) *library {
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
	tt, _ := cl.AddTorrentOpt(opts)
	return &library{cl, tt}
}

func (l *library) addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(l.client.LocalPort()))
}

// download fetches everything from the peers given and those that call.
func (l *library) download(t *testing.T, peers ...netip.AddrPort) []byte {
	t.Helper()
	for _, p := range peers {
		l.torrent.AddPeers([]torrent.PeerInfo{{Addr: addr(p)}})
	}
	l.torrent.DownloadAll()
	wait(t, "the library's download", l.torrent.Complete().On())
	r := l.torrent.NewReader()
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	return b
}

type addr netip.AddrPort

func (a addr) String() string { return netip.AddrPort(a).String() }

func at(h *host) netip.AddrPort { return netip.MustParseAddrPort(h.Addr().String()) }

func TestLibraryDownloadsFromUs(t *testing.T) {
	blob, _ := testBlob(5<<20+77, 41)
	for name, cfg := range map[string]Config{"origin": {Seeder: true}, "mirror": {}} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, cfg)
			m := h.share(t, blob)
			l := newLibrary(t, m, storage.NewFile(t.TempDir()))
			mustEqual(t, "library", l.download(t, at(h)), blob)
		})
	}
}

// seedingLibrary makes a library's client the only one in a swarm.
func seedingLibrary(t *testing.T, tr *testTracker, blob []byte) *layers.Metainfo {
	t.Helper()
	first := newHost(t, Config{})
	m := first.share(t, blob)
	l := newLibrary(t, m, storage.NewFile(t.TempDir()))
	l.download(t, at(first))
	closeInTime(t, first.Client)
	tr.announced(hashString(m), l.addr(), eventStarted)
	return m
}

func TestWeDownloadFromTheLibrary(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(5<<20+78, 42)
	m := seedingLibrary(t, tr, blob)
	h := newHost(t, Config{})
	mustEqual(t, "host", h.fetch(t, m, tr.url), blob)
	if peers, seeders := h.Received(m.Digest()); peers < m.Size() || seeders != 0 {
		t.Errorf("received %d from peers and %d from seeders", peers, seeders)
	}
}

// In a swarm of both kinds everybody ends with the blob, though the only one who had
// it leaves when it has been out once.
func TestMixedSwarm(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(chunky, 43)
	origin := newHost(t, Config{Seeder: true, Upload: layers.NewLimiter(16 << 20)})
	m := origin.share(t, blob, tr.url)
	var all sync.WaitGroup
	for i := range 2 {
		l := newLibrary(t, m, storage.NewFile(t.TempDir()))
		tr.announced(hashString(m), l.addr(), eventStarted)
		all.Go(func() { mustEqual(t, fmt.Sprint("library ", i), l.download(t, at(origin)), blob) })
	}
	for i := range 3 {
		h := newHost(t, Config{})
		all.Go(func() { mustEqual(t, fmt.Sprint("host ", i), h.fetch(t, m, tr.url), blob) })
	}
	all.Wait()
	if sent := origin.Stats().Sent; sent > 3*m.Size() {
		t.Errorf("the origin sent %d bytes to five hosts, want that they share the %d", sent, m.Size())
	}
}

// A peer with encryption in front of the handshake, as many clients prefer it.
func TestEncryptedPeer(t *testing.T) {
	blob, _ := testBlob(1<<20, 44)
	h := newHost(t, Config{Seeder: true})
	m := h.share(t, blob)
	cfg := torrent.TestingConfig(t)
	cfg.DisableUTP, cfg.DisableIPv6, cfg.Slogger = true, true, testLog(t)
	cfg.HeaderObfuscationPolicy = torrent.HeaderObfuscationPolicy{RequirePreferred: true, Preferred: true}
	cl, err := torrent.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	tt, _ := cl.AddTorrentOpt(torrent.AddTorrentOpts{
		InfoHash: metainfo.Hash(m.InfoHash()), InfoBytes: m.InfoBytes(), Storage: storage.NewFile(t.TempDir()),
	})
	l := &library{cl, tt}
	mustEqual(t, "library", l.download(t, at(h)), blob)
}

// badContent serves a blob of which every byte is wrong.
type badContent struct{}

func (badContent) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{
		Piece: func(p metainfo.Piece) storage.PieceImpl { return badPiece{p} },
		Close: func() error { return nil },
	}, nil
}

type badPiece struct{ metainfo.Piece }

func (p badPiece) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	return len(b), nil
}
func (badPiece) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }
func (badPiece) MarkComplete() error                    { return nil }
func (badPiece) MarkNotComplete() error                 { return nil }
func (badPiece) Completion() storage.Completion         { return storage.Completion{Ok: true, Complete: true} }
