package swarm

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anacrolix/torrent/bencode"
	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/murderp2p/murder/layers"
)

// stranger is a peer whose every byte the test decides.
type stranger struct {
	net.Conn
}

// callFrom dials a host from an IP of loopback and greets it under any peer ID.
func callFrom(t *testing.T, ip string, h *host, name layers.InfoHash, id [20]byte) stranger {
	t.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 0))}
	c, err := d.Dial("tcp", h.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s := stranger{c}
	b := append([]byte(pp.Protocol), extensions[:]...)
	s.say(append(append(b, name[:]...), id[:]...))
	if _, err := io.ReadFull(c, make([]byte, 68)); err != nil {
		t.Fatalf("no answer to the handshake: %v", err)
	}
	return s
}

// say writes, and does not mind being cut off.
func (s stranger) say(b []byte) error {
	_, err := s.Write(b)
	return err
}

func chunkOf(i, begin uint32, data []byte) []byte {
	return append(appendPiece(nil, request{i, begin, uint32(len(data))}), data...)
}

// next reads a message; ok is false when there will be no more.
func (s stranger) next() (b []byte, ok bool) {
	var head [4]byte
	if _, err := io.ReadFull(s, head[:]); err != nil {
		return nil, false
	}
	b = make([]byte, binary.BigEndian.Uint32(head[:]))
	_, err := io.ReadFull(s, b)
	return b, err == nil
}

// junk answers every request with zeros.
func (s stranger) junk() {
	for b, ok := s.next(); ok; b, ok = s.next() {
		if len(b) == 13 && pp.MessageType(b[0]) == pp.Request {
			index, begin, n := binary.BigEndian.Uint32(b[1:]), binary.BigEndian.Uint32(b[5:]), binary.BigEndian.Uint32(b[9:])
			if s.say(chunkOf(index, begin, make([]byte, n))) != nil {
				return
			}
		}
	}
}

// begun is a fetch under way.
func (h *host) begun(t *testing.T, m *layers.Metainfo, trackers ...string) (*layers.Partial, <-chan error) {
	t.Helper()
	p := h.partial(t, m)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	fetched := make(chan error, 1)
	go func() { fetched <- h.Fetch(ctx, m.Torrent(), p, trackers) }()
	eventually(t, "in the swarm", func() bool { return h.knows(m.InfoHash()) })
	return p, fetched
}

// Chunks that nobody asked for change nothing.
func TestPushedChunksSpoilNothing(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(chunky, 60)
	seeder := newHost(t, Config{Seeder: true, Upload: layers.NewLimiter(32 << 20)})
	m := seeder.share(t, blob, tr.url)
	h := newHost(t, Config{})
	p, fetched := h.begun(t, m, tr.url)
	s := callFrom(t, "127.0.0.1", h, m.InfoHash(), [20]byte{'h'})
	go func() { _, _ = io.Copy(io.Discard, s) }()
	ended := make(chan struct{})
	defer func() { s.Close(); <-ended }()
	go func() {
		defer close(ended)
		for i := 0; s.say(chunkOf(uint32(i%m.Pieces()), 16<<10, make([]byte, 16<<10))) == nil; i++ {
		}
	}()
	if err := <-fetched; err != nil {
		t.Fatalf("Fetch = %v", err)
	}
	mustEqual(t, "host", h.read(t, p), blob)
	if _, sent := h.Received(m.Digest()); sent > 2*m.Size() {
		t.Errorf("the seeder had to send %d bytes of a blob of %d", sent, m.Size())
	}
}

// Who lies about who he is harms himself: a seeder that another claims to be serves on.
func TestForgedPeerID(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(2<<20, 61)
	m := fill(t, testStore(t), blob)
	h := newHost(t, Config{})
	p, fetched := h.begun(t, m, tr.url)
	seeder := newHost(t, Config{Seeder: true})
	s := callFrom(t, "127.0.0.2", h, m.InfoHash(), seeder.id)
	s.say(appendSignal(appendSignal(nil, pp.HaveAll), pp.Unchoke))
	go s.junk()
	eventually(t, "the liar is banned", func() bool { return h.bans.count() > 0 })
	seeder.share(t, blob, tr.url)
	if err := <-fetched; err != nil {
		t.Fatalf("Fetch = %v", err)
	}
	mustEqual(t, "host", h.read(t, p), blob)
}

// A connection that another takes the place of may end long after.
func TestReplacedConnectionEndsLate(t *testing.T) {
	blob, _ := testBlob(1<<20, 62)
	slow := Config{Download: layers.NewLimiter(256 << 10)}
	m := fill(t, testStore(t), blob)
	for name, share := range map[string]bool{"leecher": false, "seeder": true} {
		t.Run(name, func(t *testing.T) {
			cfg := slow
			cfg.Seeder = share
			h := newHost(t, cfg)
			fetched := make(<-chan error)
			var p *layers.Partial
			if share {
				h.share(t, blob)
			} else {
				p, fetched = h.begun(t, m)
			}
			x := h.lookup(m.Digest())
			peers := func() (n int, first *peer) {
				x.mu.Lock()
				defer x.mu.Unlock()
				for _, p := range x.peers {
					first = p
				}
				return len(x.peers), first
			}
			id := [20]byte{'x'}
			first := callFrom(t, "127.0.0.1", h, m.InfoHash(), id)
			if share {
				first.say(appendSignal(nil, pp.HaveNone)) // who has all is let go
			} else {
				first.say(appendSignal(nil, pp.HaveAll))
			}
			var old *peer
			eventually(t, "first connection is in", func() bool { _, old = peers(); return old != nil })
			for range 4 { // the reader has to wait for the limiter
				first.say(chunkOf(3, 0, make([]byte, 64<<10)))
			}
			second := callFrom(t, "127.0.0.1", h, m.InfoHash(), id)
			eventually(t, "second one is in its place", func() bool { _, p := peers(); return p != nil && p != old })
			second.Close()
			eventually(t, "and gone", func() bool { n, _ := peers(); return n == 0 })
			if !share {
				for i := range m.Pieces() {
					from := int64(i) * m.PieceLength()
					if err := p.WritePiece(i, blob[from:from+m.PieceSize(i)]); err != nil {
						t.Fatal(err)
					}
				}
				if err := <-fetched; err != nil {
					t.Errorf("Fetch = %v", err)
				}
			}
			first.Close()
			wait(t, "first connection ends", old.gone)
		})
	}
}

// Who names a swarm that we are not in hears nothing from us.
func TestStrangersAreNotAnswered(t *testing.T) {
	h := newHost(t, Config{Seeder: true})
	blob, _ := testBlob(1<<20, 63)
	h.share(t, blob)
	if _, err := h.call(t.Context(), at(h), layers.InfoHash{9}); err == nil {
		t.Error("answered a handshake for a swarm that nobody has")
	}
}

// A peer that knows a swarm by its first name only is found by who knows both.
func TestBothNamesAreTried(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(4<<20, 64)
	m := fill(t, testStore(t), blob)
	seeder := newHost(t, Config{Seeder: true})
	a := seeder.fetchFromRegistry(t, m, tr.url)
	if err := a.partial.Append(blob[:2<<20]); err != nil {
		t.Fatal(err)
	}
	draft, _ := a.torrent.Draft()
	both := layers.NewTorrent(m.Digest(), m.Size(), draft)
	for i := range m.Pieces() {
		sum := m.Piece(i)
		if err := both.Add(sum[:]); err != nil {
			t.Fatal(err)
		}
	}
	h := newHost(t, Config{})
	p := h.partial(t, m)
	tr.announced(hashString(m), at(seeder), eventStarted) // as a tracker that knows no better
	ctx, cancel := context.WithCancel(t.Context())
	fetched := make(chan error, 1)
	go func() { fetched <- h.Fetch(ctx, both, p, []string{tr.url}) }()
	eventually(t, "what the seeder has is here", func() bool { return p.Prefix() >= 2<<20 })
	cancel()
	<-fetched
}

// A connection on which nothing but keep-alives come is not cut.
func TestKeepAlivesKeepAlive(t *testing.T) {
	d := decoder{r: newLink(nopConn{}).r}
	if m, err := d.next(); err != nil || !m.alive {
		t.Errorf("next = %+v, %v, want that a keep-alive is told, so that time begins anew", m, err)
	}
}

// nopConn sends zeros for ever: keep-alives, one after the other.
type nopConn struct{ net.Conn }

func (nopConn) Read(b []byte) (int, error)  { clear(b); return len(b), nil }
func (nopConn) SetDeadline(time.Time) error { return nil }

// A peer that costs us much by a few bytes, again and again, is cut off.
func TestFicklePeersAreCutOff(t *testing.T) {
	blob, _ := testBlob(1<<20, 91)
	h := newHost(t, Config{})
	m := fill(t, testStore(t), blob)
	h.begun(t, m)
	for name, words := range map[string][]byte{
		"offers all":      appendSignal(nil, pp.HaveAll),
		"has a bitfield":  appendBitfield(nil, newBitset(m.Pieces()), m.Pieces()),
		"chokes":          appendSignal(appendSignal(nil, pp.Choke), pp.Unchoke),
		"wants":           appendSignal(appendSignal(nil, pp.Interested), pp.NotInterested),
		"has much to say": binary.BigEndian.AppendUint32(nil, 1<<20)[:4:4],
	} {
		t.Run(name, func(t *testing.T) {
			if name == "has much to say" {
				words = append(words, byte(pp.Bitfield)) // and it does not come
			}
			s := callFrom(t, "127.0.0.5", h, m.InfoHash(), [20]byte{'f', byte(len(name))})
			heard := make(chan struct{})
			go func() {
				defer close(heard)
				for ok := true; ok; _, ok = s.next() {
				}
			}()
			for range 2 * changesAtOnce {
				if s.say(words) != nil || name == "has much to say" {
					break
				}
			}
			select {
			case <-heard:
			case <-time.After(patience):
				t.Error("it is still heard")
			}
		})
	}
}

// Who comes when the connections are as many as may be gets the place of one that
// moves nothing, and serves a host that does want something.
func TestIdleConnectionsKeepNobodyOut(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(2<<20, 71)
	seeder := newHost(t, Config{Seeder: true})
	m := seeder.share(t, blob, tr.url)
	eventually(t, "known", func() bool { return seeder.knows(m.InfoHash()) })
	for k := range maxPeers {
		s := callFrom(t, "127.0.0.9", seeder, m.InfoHash(), [20]byte{'s', byte(k)})
		if err := s.say(appendSignal(nil, pp.HaveNone)); err != nil {
			t.Fatal(err)
		}
	}
	x := seeder.lookup(m.Digest())
	eventually(t, "all places taken", func() bool { return len(x.list()) == maxPeers })
	host := newHost(t, Config{})
	mustEqual(t, "blob", host.fetch(t, m, tr.url), blob)
}

// A host that has fetched a blob and is the only one left with all of it reveals it
// piece by piece, as the seeder did.
func TestTheLastWholeHostReveals(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(2<<20, 72)
	seeder := newHost(t, Config{Seeder: true})
	m := seeder.share(t, blob, tr.url)
	host := newHost(t, Config{})
	mustEqual(t, "blob", host.fetch(t, m, tr.url), blob)
	x := host.lookup(m.Digest())
	reveals := func(others int) bool {
		x.meet("one", nil, 1)
		x.meet("another", nil, 1+others)
		x.mu.Lock()
		defer x.mu.Unlock()
		return x.reveals()
	}
	if reveals(1) {
		t.Error("it reveals as if it were alone while another host has the blob")
	}
	if !reveals(0) {
		t.Error("it does not reveal though nobody else has the blob")
	}
	seeder.Drop(m.Digest())
	second := newHost(t, Config{})
	mustEqual(t, "blob", second.fetch(t, m, tr.url), blob)
}

// A piece that is being judged while one who sent a part of it is banned is not asked for
// again: other bytes would come to lie where those are that were found right.
func TestJudgedPieceIsNotWrittenOver(t *testing.T) {
	blob, _ := testBlob(1<<20, 73)
	m := fill(t, testStore(t), blob)
	h := newHost(t, Config{})
	p, _ := h.begun(t, m)
	x := h.lookup(m.Digest())
	liar, addr := [20]byte{'l'}, netip.MustParseAddrPort("127.0.0.3:1")

	pc := newPiece(x.torrent, 0, x.chunkLength)
	right := blob[:pc.size]
	if _, err := p.WriteAt(right, 0); err != nil {
		t.Fatal(err)
	}
	pc.feed(right, 0)
	pc.hashing.Lock() // so that its hash takes long
	x.mu.Lock()
	pc.left, pc.from[liar] = 0, addr
	x.arriving[0], x.unproven[0] = pc, pc
	x.mu.Unlock()
	judged := make(chan struct{})
	go func() {
		defer close(judged)
		x.prove()
	}()
	eventually(t, "being judged", func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		return x.unproven[0] == nil
	})
	x.mu.Lock()
	x.ban(liar, addr, 1)
	again := x.arriving[0] == nil
	x.mu.Unlock()
	if again { // another liar was asked, and has sent this
		if _, err := p.WriteAt(make([]byte, len(right)), 0); err != nil {
			t.Fatal(err)
		}
	}
	pc.hashing.Unlock()
	wait(t, "judged", judged)
	got := make([]byte, len(right))
	if _, err := p.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !p.PieceHave(0) {
		t.Error("the piece was right, and is lost")
	}
	mustEqual(t, "verified piece", got, right)
}

// Who comes back under another peer ID after wrong bytes, from another port, is not heard
// any more; an honest host of another IP is.
func TestCorruptPeerComesBack(t *testing.T) {
	var log syncBuffer
	tr := newTracker(t)
	blob, _ := testBlob(2<<20, 73)
	m := fill(t, testStore(t), blob)
	h := newHost(t, Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	p, fetched := h.begun(t, m, tr.url)
	for k := range maxOffenders {
		s := callFrom(t, "127.0.0.7", h, m.InfoHash(), [20]byte{'c', byte(k)})
		s.say(appendSignal(appendSignal(nil, pp.HaveAll), pp.Unchoke))
		go s.junk()
		eventually(t, "it is banned", func() bool { return h.bans.count() == k+1 })
	}
	again := callFrom(t, "127.0.0.7", h, m.InfoHash(), [20]byte{'c', 'x'})
	again.say(appendSignal(appendSignal(nil, pp.HaveAll), pp.Unchoke))
	for _, ok := again.next(); ok; _, ok = again.next() {
		t.Error("a host that has sent wrong bytes three times is still spoken to")
	}
	if n := strings.Count(log.String(), "peer=127.0.0.7:"); n != maxOffenders {
		t.Errorf("the log names it %d times, want %d: %s", n, maxOffenders, log.String())
	}
	newHost(t, Config{Seeder: true}).share(t, blob, tr.url)
	if err := <-fetched; err != nil {
		t.Fatalf("Fetch = %v", err)
	}
	mustEqual(t, "host", h.read(t, p), blob)
}

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Connections that come in are bounded, in all and from one IP; one that ends makes room.
func TestGuestsAreBounded(t *testing.T) {
	g := newGuests(4, 2)
	from := func(ip string) net.Conn { return remoteConn{addr: ip + ":1"} }
	first, _ := g.enter(from("10.0.0.1"))
	for _, test := range []struct {
		ip string
		ok bool
	}{
		{"10.0.0.1", true}, {"10.0.0.1", false}, {"[::ffff:10.0.0.1]", false}, {"10.0.0.2", true}, {"10.0.0.3", true}, {"10.0.0.4", false},
	} {
		if _, ok := g.enter(from(test.ip)); ok != test.ok {
			t.Errorf("one more from %s: %v, want %v", test.ip, ok, test.ok)
		}
	}
	first()
	if _, ok := g.enter(from("10.0.0.1")); !ok {
		t.Error("no room for another in the place of one that has ended")
	}
}

// Where few files may be open, connections that say nothing take no more than their part of
// them, and keep nobody out either.
func TestSilentConnectionsWhereFilesAreFew(t *testing.T) {
	h := newHost(t, Config{Seeder: true, MaxGuests: 8})
	blob, _ := testBlob(1<<20, 76)
	m := h.share(t, blob)
	eventually(t, "known", func() bool { return h.knows(m.InfoHash()) })
	for range 20 {
		c, err := net.Dial("tcp", h.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	eventually(t, "no more than a quarter is silent", func() bool {
		h.guests.mu.Lock()
		defer h.guests.mu.Unlock()
		return h.guests.all == 2
	})
	callFrom(t, "127.0.0.1", h, m.InfoHash(), [20]byte{'n'}) // fails the test if it is not answered
}

// Connections that say nothing keep nobody out: who comes is answered, in the place of the
// one that has been silent for longest.
func TestSilentConnectionsKeepNobodyOut(t *testing.T) {
	h := newHost(t, Config{Seeder: true})
	blob, _ := testBlob(1<<20, 75)
	m := h.share(t, blob)
	eventually(t, "known", func() bool { return h.knows(m.InfoHash()) })
	var silent []net.Conn
	for range greetingsAtOnce {
		c, err := net.Dial("tcp", h.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	waiting := func() int {
		h.greetings.mu.Lock()
		defer h.greetings.mu.Unlock()
		return h.greetings.silent.Len()
	}
	eventually(t, "all have come in", func() bool { return waiting() == greetingsAtOnce })
	callFrom(t, "127.0.0.1", h, m.InfoHash(), [20]byte{'n'}) // fails the test if it is not answered
	closed := make(chan error, 1)
	go func() {
		_, err := silent[0].Read(make([]byte, 1))
		closed <- err
	}()
	select {
	case err := <-closed:
		if err == nil {
			t.Error("a silent connection is spoken to")
		}
	case <-time.After(patience):
		t.Error("the oldest silent connection is still there")
	}
	if n := waiting(); n != greetingsAtOnce-1 {
		t.Errorf("%d silent connections are left of %d, want all but the oldest", n, greetingsAtOnce)
	}
}

type remoteConn struct {
	net.Conn
	addr string
}

func (c remoteConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.addr))
}

// trickle answers requests with a right chunk now and then.
func (s stranger) trickle(m *layers.Metainfo, blob []byte) {
	asked := make(chan request, 1000)
	go func() {
		defer close(asked)
		for b, ok := s.next(); ok; b, ok = s.next() {
			if len(b) == 13 && pp.MessageType(b[0]) == pp.Request {
				asked <- request{binary.BigEndian.Uint32(b[1:]), binary.BigEndian.Uint32(b[5:]), binary.BigEndian.Uint32(b[9:])}
			}
		}
	}()
	for r := range asked {
		off := int64(r.index)*m.PieceLength() + int64(r.begin)
		if s.say(chunkOf(r.index, r.begin, blob[off:off+int64(r.length)])) != nil {
			return
		}
		time.Sleep(2 * time.Second) // it is slow
	}
}

// Peers that offer all and send a chunk now and then, so that they are never silent, hold up
// nobody, whatever they say they are: what they owe is had of others.
func TestTricklingPeersHoldUpNobody(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(8<<20, 74)
	m := fill(t, testStore(t), blob)
	h := newHost(t, Config{})
	p, fetched := h.begun(t, m, tr.url)
	for k := range 4 {
		s := callFrom(t, "127.0.0.8", h, m.InfoHash(), [20]byte{'t', byte(k)})
		who := identity{seeder: k%2 == 0, version: "dev"}
		hello, err := bencode.Marshal(pp.ExtendedHandshakeMessage{V: who.String()})
		if err != nil {
			t.Fatal(err)
		}
		s.say(appendSignal(appendSignal(appendExtended(nil, 0, hello, nil), pp.HaveAll), pp.Unchoke))
		go s.trickle(m, blob)
	}
	x := h.lookup(m.Digest())
	eventually(t, "all are asked", func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		asked := 0
		for _, p := range x.peers {
			asked += min(1, p.requests)
		}
		return asked == 4
	})
	newHost(t, Config{Seeder: true, Upload: layers.NewLimiter(3 << 20)}).share(t, blob, tr.url)
	begun := time.Now()
	r := p.NewReader(t.Context(), 0, m.Size())
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	mustEqual(t, "reader", got, blob)
	if err := <-fetched; err != nil {
		t.Fatalf("Fetch = %v", err)
	}
	t.Logf("read after %v", time.Since(begun))
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, p := range x.peers {
		if p.id[0] == 't' && p.received > m.Size()/16 {
			t.Errorf("%d bytes were waited for from who trickles", p.received)
		}
	}
}

// A piece of which one of several has sent a wrong part is had of one peer at a time: who
// takes it over from another is not joined by a third, who might spoil it again.
func TestSuspectPieceComesFromOne(t *testing.T) {
	blob, _ := testBlob(chunky, 75)
	m := fill(t, testStore(t), blob)
	h := newHost(t, Config{})
	p, _ := h.begun(t, m)
	x := h.lookup(m.Digest())
	wait(t, "what is on disk is known", p.Checked())
	for _, sent := range []int{0, 1} { // chunks that the first has sent before another takes over
		piece := uint32(sent)
		in := make([]*peer, 3)
		for k := range in {
			id := [20]byte{'s', byte(sent), byte(k)}
			s := callFrom(t, "127.0.0.9", h, m.InfoHash(), id)
			defer s.Close()
			go func() { _, _ = io.Copy(io.Discard, s) }()
			hello := appendSignal(nil, pp.Unchoke)
			if k == 0 {
				hello = appendHave(hello, int(piece))
			}
			s.say(hello)
			eventually(t, "it is in, and asked", func() bool {
				x.mu.Lock()
				defer x.mu.Unlock()
				in[k] = x.peers[id]
				return in[k] != nil && in[k].source != nil && !in[k].choking && (k > 0 || in[k].asking(int(piece)) != nil)
			})
			if k == 0 && sent > 0 {
				s.say(chunkOf(piece, 0, make([]byte, minChunk)))
				eventually(t, "a part of it is here", func() bool {
					x.mu.Lock()
					defer x.mu.Unlock()
					pc := x.arriving[int(piece)]
					return pc.got.has(0) && pc.writes == 0
				})
			}
		}
		func() {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.suspects[int(piece)] = true
			x.leech.Have(in[1].source, int(piece))
			x.leech.Have(in[2].source, int(piece))
			i, ok := x.leech.Next(in[1].source, x.now()+5*time.Second) // the first is late
			if !ok || i != int(piece) {
				t.Fatalf("%d sent: the second is asked for %d, %v", sent, i, ok)
			}
			x.ask(in[1], i)
			if i, ok := x.leech.Next(in[2].source, x.now()); ok {
				t.Errorf("%d sent: the third is asked for %d as well", sent, i)
			}
			if in[0].asking(i) != nil {
				t.Errorf("%d sent: the first is waited for still", sent)
			}
		}()
	}
}
