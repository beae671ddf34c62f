package swarm

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/murderp2p/murder/layers"
)

const (
	// maxCandidates bounds the addresses kept of one swarm.
	maxCandidates = 200
	// maxDials bounds how often one address is tried; the tracker may name it again.
	maxDials = 4
	// redialAfter is the pause before an address is tried a second time, twice as long
	// before the third, and so on.
	redialAfter = 250 * time.Millisecond
	// dialsAtOnce bounds the connections being set up, of all swarms together.
	dialsAtOnce = 64
	// banFor is how long nobody talks to a peer that sent wrong bytes.
	banFor = time.Hour
	// maxBans bounds how many are remembered. The oldest is forgiven first.
	maxBans = 1024
	// maxOffenders is how many peers of one IP may be banned before all of it is: who
	// sends wrong bytes can call again from another port, under another peer ID.
	maxOffenders = 3
)

// candidate is an address that a tracker has named.
type candidate struct {
	dialing bool
	tried   int
	next    time.Duration // not to be dialed before
}

// meet takes in what a tracker tells: addresses of peers, and how many hosts have the
// whole blob. A host that has everything waits to be called.
func (x *exchange) meet(tracker string, addrs []netip.AddrPort, complete int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.whole[tracker] = complete
	if x.leech == nil {
		return
	}
	for _, addr := range addrs {
		if x.candidates[addr] == nil && len(x.candidates) < maxCandidates && !x.connected(addr) {
			x.candidates[addr] = &candidate{}
		}
	}
	x.redial()
	x.tick()
}

// alone tells whether no tracker knows of another host that has the whole blob, and
// one has been asked. mu is held.
func (x *exchange) alone() bool {
	for _, n := range x.whole {
		if n > 1 {
			return false
		}
	}
	return len(x.whole) > 0
}

// connected tells whether there is a connection with who listens at addr. mu is held.
func (x *exchange) connected(addr netip.AddrPort) bool {
	for _, p := range x.peers {
		if p.addr == addr {
			return true
		}
	}
	return false
}

// wants is how many more peers are of use. Who could not be reached once may be dead, and
// is not waited for.
func (x *exchange) wants() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.leech == nil || x.left {
		return 0
	}
	coming := 0
	for _, c := range x.candidates {
		if c.tried == 0 || c.tried == 1 && c.dialing {
			coming++
		}
	}
	return max(0, enoughPeers-len(x.peers)-coming)
}

// lacks is how many bytes of the blob are missing, as trackers are told; 0 is whole.
func (x *exchange) lacks() int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.missing == 0 {
		return 0
	}
	return max(1, x.torrent.Size()-int64(x.pieces-x.missing)*x.torrent.PieceLength())
}

// redial dials the candidates whose time has come. mu is held.
func (x *exchange) redial() {
	if x.leech == nil || x.left {
		clear(x.candidates)
		return
	}
	now := x.now()
	for addr, c := range x.candidates {
		if c.dialing || now < c.next || len(x.peers)+x.dialing >= maxPeers {
			continue
		}
		c.dialing = true
		c.tried++
		x.dialing++
		x.running.Go(func() { x.dial(addr, c) })
	}
}

// dial connects to a candidate and serves the connection.
func (x *exchange) dial(addr netip.AddrPort, c *candidate) {
	l, err := x.client.dial(x.leaving, addr, x)
	x.mu.Lock()
	x.dialing--
	c.dialing = false
	if err == nil || c.tried >= maxDials {
		delete(x.candidates, addr)
	}
	c.next = x.now() + redialAfter<<c.tried
	x.mu.Unlock()
	if err != nil {
		x.client.log.Debug("dial", "peer", addr, "err", err)
		return
	}
	x.run(l)
}

// dial connects to addr for x, whose swarm the peer may know by either name.
func (c *Client) dial(ctx context.Context, addr netip.AddrPort, x *exchange) (l *link, err error) {
	err = errNotShared // if it has no name any more
	select {
	case c.dials <- struct{}{}:
		defer func() { <-c.dials }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for _, name := range x.names() {
		if l, err = c.call(ctx, addr, name); err == nil {
			return l, nil
		}
	}
	return nil, err
}

// call connects to addr for the swarm of that name.
func (c *Client) call(ctx context.Context, addr netip.AddrPort, name layers.InfoHash) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := c.cfg.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	l, err := hail(ctx, conn, name, c.id)
	if err != nil {
		conn.Close()
	}
	return l, err
}

// bans remembers who sent wrong bytes, by where it called from: with its peer ID, which
// alone anybody could claim to have another banned, and with its port, as several may
// share an IP.
type bans struct {
	mu    sync.Mutex // guards the rest
	ids   map[caller]time.Time
	addrs map[netip.AddrPort]time.Time
}

type caller struct {
	id [20]byte
	ip netip.Addr
}

func newBans() *bans {
	return &bans{ids: make(map[caller]time.Time), addrs: make(map[netip.AddrPort]time.Time)}
}

func (b *bans) add(id [20]byte, addr netip.AddrPort) {
	b.mu.Lock()
	defer b.mu.Unlock()
	remember(b.ids, caller{id, addr.Addr()})
	remember(b.addrs, addr)
}

func (b *bans) has(id [20]byte, addr netip.AddrPort) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	offenders := 0
	for c, at := range b.ids {
		if c.ip == addr.Addr() && time.Since(at) < banFor {
			offenders++
		}
	}
	return offenders >= maxOffenders || time.Since(b.ids[caller{id, addr.Addr()}]) < banFor || time.Since(b.addrs[addr]) < banFor
}

// remember notes k, in the place of the oldest where there are too many.
func remember[K comparable](m map[K]time.Time, k K) {
	if len(m) >= maxBans {
		oldest, at := k, time.Now()
		for other, t := range m {
			if t.Before(at) {
				oldest, at = other, t
			}
		}
		delete(m, oldest)
	}
	m[k] = time.Now()
}
