package swarm

import (
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/anacrolix/torrent"

	"github.com/murderp2p/murder/layers"
)

// identity is who a client says it is, in its extended handshake (BEP 10, "v"):
// "murder/0.1.0 seeder zone=a". Other clients, and murders that lie, are mirrors
// without a zone as far as counting goes; nothing else depends on it.
type identity struct {
	version string
	seeder  bool
	zone    string
}

// self is who we are.
func (c *Client) self() identity {
	return identity{version: c.cfg.Version, seeder: c.cfg.Seeder, zone: c.cfg.Zone}
}

// String writes what parseIdentity reads.
func (id identity) String() string {
	role := "mirror"
	if id.seeder {
		role = "seeder"
	}
	return "murder/" + url.QueryEscape(id.version) + " " + role + " zone=" + url.QueryEscape(id.zone)
}

func parseIdentity(v string) identity {
	var id identity
	words := strings.Fields(v)
	if len(words) < 2 || !strings.HasPrefix(words[0], "murder/") {
		return id
	}
	id.version = strings.TrimPrefix(words[0], "murder/")
	id.seeder = words[1] == "seeder"
	for _, word := range words[2:] {
		if zone, ok := strings.CutPrefix(word, "zone="); ok {
			id.zone, _ = url.QueryUnescape(zone)
		}
	}
	return id
}

// roster knows the connections and counts what moves over them.
//
// Its methods add, greeted, closed and received are called with the library's lock
// held, so mu is taken after that lock and never before it.
type roster struct {
	zone  string
	total *tally
	tally func(layers.InfoHash) *tally

	mu    sync.Mutex // guards the rest
	conns map[*torrent.PeerConn]*link
	seen  map[layers.InfoHash]time.Time // when the last connection of a swarm ended
	open  map[layers.InfoHash]int       // connections of a swarm
}

// link is one connection.
type link struct {
	hash     layers.InfoHash
	tally    *tally
	id       identity
	port     uint16 // where it takes connections; 0 if it did not say
	greeted  bool   // id and port are known
	received int64  // bytes
	sent     int64  // bytes counted already
	closed   bool
}

func newRoster(zone string, total *tally, of func(layers.InfoHash) *tally) *roster {
	return &roster{
		zone: zone, total: total, tally: of,
		conns: make(map[*torrent.PeerConn]*link),
		seen:  make(map[layers.InfoHash]time.Time),
		open:  make(map[layers.InfoHash]int),
	}
}

func (r *roster) add(pc *torrent.PeerConn) {
	ih := layers.InfoHash(pc.Torrent().InfoHash())
	l := &link{hash: ih, tally: r.tally(ih)}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[pc] = l
	r.open[ih]++
}

func (r *roster) greeted(pc *torrent.PeerConn, client string, port int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.conns[pc]; l != nil {
		l.id, l.greeted = parseIdentity(client), true
		if port > 0 && port < 1<<16 {
			l.port = uint16(port)
		}
	}
}

// closed notes that a connection has ended. It stays until settle has counted the
// last of it, which cannot be read while the library holds its lock.
func (r *roster) closed(pc *torrent.PeerConn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.conns[pc]
	if l == nil || l.closed {
		return
	}
	l.closed = true
	r.seen[l.hash] = time.Now()
	if r.open[l.hash]--; r.open[l.hash] == 0 {
		delete(r.open, l.hash)
	}
}

// received counts n bytes that were asked for and came.
func (r *roster) received(pc *torrent.PeerConn, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.conns[pc]
	if l == nil {
		return
	}
	l.received += int64(n)
	for _, t := range []*tally{l.tally, r.total} {
		if l.id.seeder {
			t.fromSeeders.Add(int64(n))
		} else {
			t.fromPeers.Add(int64(n))
		}
		if r.crosses(l) {
			t.crossZone.Add(int64(n))
		}
	}
}

// crosses tells whether l leads to another zone. One that did not greet us has none.
func (r *roster) crosses(l *link) bool { return l.greeted && l.id.zone != r.zone }

// settle brings the counts of sent bytes up to date.
func (r *roster) settle() {
	r.mu.Lock()
	conns := make(map[*torrent.PeerConn]bool, len(r.conns))
	for pc, l := range r.conns {
		conns[pc] = l.closed
	}
	r.mu.Unlock()
	for pc, closed := range conns {
		stats := pc.Stats() // takes the library's lock
		r.count(pc, stats.BytesWrittenData.Int64(), closed)
	}
}

// count takes note that sent bytes have gone over pc in all. The last time is when
// it had been closed before they were read.
func (r *roster) count(pc *torrent.PeerConn, sent int64, last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.conns[pc]
	if l == nil {
		return
	}
	n := sent - l.sent
	l.sent = sent
	for _, t := range []*tally{l.tally, r.total} {
		t.sent.Add(n)
		if r.crosses(l) {
			t.crossZone.Add(n)
		}
	}
	if last {
		delete(r.conns, pc)
	}
}

// lastSeen tells when a swarm last had a connection: now if it has one, and the
// zero time if it never had.
func (r *roster) lastSeen(ih layers.InfoHash) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open[ih] > 0 {
		return time.Now()
	}
	return r.seen[ih]
}

// forget drops what is kept of a swarm that was left.
func (r *roster) forget(ih layers.InfoHash) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.seen, ih)
}

// list returns the peers of a swarm of so many pieces.
func (r *roster) list(ih layers.InfoHash, pieces int) []layers.Peer {
	r.mu.Lock()
	links := make(map[*torrent.PeerConn]link)
	for pc, l := range r.conns {
		if l.hash == ih && !l.closed {
			links[pc] = *l
		}
	}
	r.mu.Unlock()
	peers := make([]layers.Peer, 0, len(links))
	for pc, l := range links {
		stats := pc.Stats() // takes the library's lock
		peers = append(peers, layers.Peer{
			Addr:     l.listens(pc),
			Zone:     l.id.zone,
			Seeder:   l.id.seeder,
			Complete: stats.RemotePieceCount == pieces,
			Have:     stats.RemotePieceCount,
			Pieces:   pieces,
			Received: l.received,
			Sent:     stats.BytesWrittenData.Int64(),
		})
	}
	return peers
}

// listens returns the address at which a peer takes connections, as far as it is known.
func (l link) listens(pc *torrent.PeerConn) netip.AddrPort {
	a, _ := pc.RemoteAddr.(peerAddr)
	if l.port != 0 {
		return netip.AddrPortFrom(a.real.Addr(), l.port)
	}
	return a.real
}
