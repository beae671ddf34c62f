package swarm

import (
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/bencode"
	"github.com/anacrolix/torrent/metainfo"
	pp "github.com/anacrolix/torrent/peer_protocol"
	"github.com/anacrolix/torrent/storage"

	"github.com/murderp2p/murder/layers"
)

// named is what a seeder tells a host of a blob that it has.
func named(m *layers.Metainfo) *layers.Torrent {
	return layers.NamedTorrent(m.Digest(), m.Size(), m.InfoHash())
}

// fetchNamed fetches a blob by its swarm's name.
func (h *host) fetchNamed(t *testing.T, m *layers.Metainfo, trackers ...string) []byte {
	t.Helper()
	p, torrent := h.partial(t, m), named(m)
	if err := h.Fetch(t.Context(), torrent, p, trackers); err != nil {
		t.Errorf("Fetch = %v", err)
		return nil
	}
	if got := torrent.Metainfo(); got == nil || got.InfoHash() != m.InfoHash() {
		t.Errorf("metainfo = %v", got)
	}
	return h.read(t, p)
}

// Hosts that know no more than the name of a swarm get hashes and blob of it. The hashes
// take several messages.
func TestHashesComeFromTheSwarm(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(60<<20, 80)
	seeder := newHost(t, Config{Seeder: true})
	m := seeder.share(t, blob, tr.url)
	if len(m.InfoBytes()) <= infoBlock {
		t.Fatalf("the info has only %d bytes", len(m.InfoBytes()))
	}
	var all sync.WaitGroup
	for i := range 3 {
		h := newHost(t, Config{})
		all.Go(func() { mustEqual(t, fmt.Sprint("host ", i), h.fetchNamed(t, m, tr.url), blob) })
	}
	all.Wait()
}

// Who has fetched a part in an earlier life knows the hashes.
func TestHashesAreKept(t *testing.T) {
	blob, _ := testBlob(2<<20, 81)
	source := newHost(t, Config{Seeder: true})
	m := source.share(t, blob)
	h := newHost(t, Config{})
	p := h.partial(t, m)
	if err := p.SetTorrent(m.Torrent()); err != nil {
		t.Fatal(err)
	}
	torrent := named(m)
	go func() { _ = h.Fetch(t.Context(), torrent, p, nil) }()
	wait(t, "hashes", torrent.Done())
	if torrent.Metainfo() == nil {
		t.Error("no metainfo")
	}
	p.Fail(io.EOF)
}

// The library's client gets the hashes by BEP 9 from us, as with a magnet link.
func TestLibraryHasOnlyTheName(t *testing.T) {
	blob, _ := testBlob(3<<20, 82)
	for name, cfg := range map[string]Config{"origin": {Seeder: true}, "mirror": {}} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, cfg)
			m := h.share(t, blob)
			l := libraryOf(t, torrent.AddTorrentOpts{InfoHash: metainfo.Hash(m.InfoHash()), Storage: storage.NewFile(t.TempDir())})
			l.torrent.AddPeers([]torrent.PeerInfo{{Addr: addr(at(h))}})
			wait(t, "metadata", l.torrent.GotInfo())
			mustEqual(t, "library", l.download(t, at(h)), blob)
		})
	}
}

// And we get them from it.
func TestLibraryHasTheHashes(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(3<<20, 83)
	m := seedingLibrary(t, tr, blob)
	h := newHost(t, Config{})
	mustEqual(t, "host", h.fetchNamed(t, m, tr.url), blob)
}

// liar says that it has the hashes, and sends others (0), refuses them (1), or is silent.
func (s stranger) liar(size, kind int) {
	hello, _ := bencode.Marshal(pp.ExtendedHandshakeMessage{
		M: map[pp.ExtensionName]pp.ExtensionNumber{pp.ExtensionNameMetadata: 9}, MetadataSize: size,
	})
	if s.say(appendExtended(nil, 0, hello, nil)) != nil {
		return
	}
	for b, ok := s.next(); ok; b, ok = s.next() {
		if len(b) < 2 || pp.MessageType(b[0]) != pp.Extended || b[1] != 9 {
			continue
		}
		var m pp.ExtendedMetadataRequestMsg
		if _, err := decodeHead(b[2:], &m); err != nil {
			return
		}
		m.Type, m.TotalSize = pp.DataMetadataExtensionMsgType, size
		block := make([]byte, m.PieceSize())
		switch kind {
		case 1:
			m.Type, block = pp.RejectMetadataExtensionMsgType, nil
		case 2:
			continue
		}
		if s.say(appendMetadata(nil, ourMetadataID, m, block)) != nil {
			return
		}
	}
}

// Peers that send wrong hashes, refuse them, or never answer, cannot keep us from those
// that have the right ones.
func TestWrongHashes(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(2<<20, 84)
	other := newHost(t, Config{})
	m := other.share(t, blob)
	h := newHost(t, Config{})
	p, torrent := h.partial(t, m), named(m)
	fetched := make(chan error, 1)
	go func() { fetched <- h.Fetch(t.Context(), torrent, p, []string{tr.url}) }()
	eventually(t, "in the swarm", func() bool { return h.knows(m.InfoHash()) })
	var liars sync.WaitGroup
	defer liars.Wait()
	for i := range 9 {
		s := callFrom(t, fmt.Sprintf("127.0.0.%d", 2+i), h, m.InfoHash(), [20]byte{'l', byte(i)})
		defer s.Close()
		liars.Go(func() { s.liar(len(m.InfoBytes()), i%3) })
	}
	x := h.lookup(m.Digest())
	eventually(t, "all have lied", func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		lied := 0
		for _, p := range x.peers {
			if p.info.useless || p.info.coming != nil {
				lied++
			}
		}
		return lied == 9
	})
	tr.announced(hashString(m), at(other), eventStarted)
	if err := <-fetched; err != nil {
		t.Fatalf("Fetch = %v", err)
	}
	mustEqual(t, "host", h.read(t, p), blob)
}

// Only some are sent the hashes at a time. A turn ends when the peer has them, when it is
// gone, and after a while anyway.
func TestHashesAreSentToAFewAtATime(t *testing.T) {
	blob, _ := testBlob(1<<20, 85)
	h := newHost(t, Config{Seeder: true})
	m := h.share(t, blob)
	x := h.lookup(m.Digest())
	for i := range 3 * infoTurns {
		s := callFrom(t, fmt.Sprintf("127.0.0.%d", 2+i), h, m.InfoHash(), [20]byte{'w', byte(i)})
		hello, _ := bencode.Marshal(pp.ExtendedHandshakeMessage{M: map[pp.ExtensionName]pp.ExtensionNumber{pp.ExtensionNameMetadata: 9}})
		s.say(appendExtended(nil, 0, hello, nil))
		for range 1000 { // it is not sent more often for that
			s.say(appendMetadata(nil, ourMetadataID, pp.ExtendedMetadataRequestMsg{}, nil))
		}
		go func() { _, _ = io.Copy(io.Discard, s) }()
	}
	state := func() (peers, busy, waiting, turns int) {
		x.mu.Lock()
		defer x.mu.Unlock()
		for _, p := range x.peers {
			if p.info.turn {
				turns++
			}
		}
		return len(x.peers), x.infoBusy, len(x.infoLine), turns
	}
	eventually(t, "all are served in the end", func() bool {
		peers, busy, waiting, turns := state()

		if busy > infoTurns || busy != turns {
			t.Fatalf("%d are being served, %d counted", turns, busy)
		}
		return peers == 3*infoTurns && busy == 0 && waiting == 0
	})
}
