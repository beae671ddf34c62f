// Package swarm moves blobs between hosts over BitTorrent: it implements
// [layers.Swarm]. It is an engine of our own on the wire protocol of BEP 3, with the
// fast extension (BEP 6), metadata (BEP 9) and the handshake of BEP 10, so that any
// BitTorrent client can take part; but it differs from those in what it is for. They share what they
// have with strangers on slow lines, fairly; we bring one blob to all hosts of a data
// centre in as little more than the time that one link takes for it.
//
// How it does that is decided in package choice, without a connection or a clock. The
// rest of the room is what that needs:
//
//   - A [Client] listens, and finds the exchange that a peer asks for by its infohash.
//   - An exchange is one blob between us and our peers. Its two sides are leech.go,
//     which asks for pieces, and serve.go, which sends them.
//   - A peer is one connection, with a goroutine that reads and one that writes. What
//     is said to a peer is written at once, between two chunks of data if need be; data
//     goes out in turns, to few peers at a time, by package bulk.
//   - A piece is gathered on disk, chunk by chunk, and hashed in passing; nothing of a
//     blob is kept in memory.
//   - The announcers tell trackers what we have, and hand on the peers they name.
//
// Connections come from the listener and the dialer in [Config].
package swarm

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
)

// Config says how a Client meets its peers.
type Config struct {
	// Listener takes connections from peers. The client closes it.
	Listener net.Listener
	// MaxGuests bounds the connections that peers make to us, where 8,192 are too many; 0
	// is no further bound.
	MaxGuests int
	// Dial connects to peers. nil means plain TCP.
	Dial Dialer
	// Advertise is the address given to peers through the tracker. A zero address
	// means the one that announces come from, a zero port the one of Listener.
	Advertise netip.AddrPort
	// Seeder says that this is an origin's daemon, which has blobs from the registry
	// and only sends; else it is a mirror. Peers count bytes by it.
	Seeder bool
	// Zone is where this host stands, for peers and tracker to prefer neighbours;
	// "" is a zone like any other.
	Zone string
	// Version is told to peers, such as "0.1.0". "" means "dev".
	Version string
	// Upload and Download bound what goes over all connections, together with
	// whatever else shares the limiters. nil means no limit.
	Upload, Download *layers.Limiter
	// DialTLS connects to trackers of https. nil means as the system's CAs have it,
	// with no certificate of our own.
	DialTLS func(ctx context.Context, network, addr string) (net.Conn, error)
	// Log hears of peers that send wrong bytes (Warn) and of connections (Debug).
	// nil means slog.Default().
	Log *slog.Logger
}

// ErrClosed is returned by the methods of a Client that has been closed.
var ErrClosed = errors.New("swarm client is closed")

// peerIDPrefix names the client in the way of BEP 20.
const peerIDPrefix = "-MD0002-"

// Client takes part in swarms. It implements layers.Swarm, and its methods are
// safe for concurrent use.
type Client struct {
	cfg        Config
	log        *slog.Logger
	id         [20]byte
	began      time.Time
	bans       *bans
	announcers *announcers
	dials      chan struct{} // a place for each connection being set up
	greetings  greetings     // who has come in and has not said what it wants
	guests     *guests       // who has come in
	total      tally         // of all swarms, those left included

	stop      context.CancelFunc // ends all that runs and all fetches
	stopped   context.Context
	running   sync.WaitGroup // the goroutines that Open started
	closeOnce sync.Once

	retracking sync.Mutex // one at a time changes the trackers

	mu        sync.Mutex // guards the maps; held for look-ups only
	exchanges map[digest.Digest]*exchange
	byName    map[layers.InfoHash]*exchange
	// trackers are those of Retrack; nil before it was called.
	trackers []string
	// tallies outlive the exchanges they were counted in, until Drop: who asks where
	// a blob's bytes came from asks when the fetch is over.
	tallies map[digest.Digest]*tally
}

var _ layers.Swarm = (*Client)(nil)

// tally counts bytes of blobs.
type tally struct {
	fromPeers, fromSeeders, sent, crossZone atomic.Int64
}

const (
	// greetingsAtOnce bounds the connections that have not said what they want.
	greetingsAtOnce = 256
	// guestsAtOnce bounds the connections that have come in, of all swarms together:
	// each costs a file descriptor, two goroutines and some 20 KiB. guestsOfOne is how
	// many may come from one IP.
	guestsAtOnce, guestsOfOne = 8192, 2048
)

// Open takes connections from cfg.Listener and returns a client that shares nothing yet.
func Open(cfg Config) (*Client, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Version == "" {
		cfg.Version = "dev"
	}
	if cfg.Dial == nil {
		cfg.Dial = dialTCP
	}
	most := guestsAtOnce
	if cfg.MaxGuests > 0 {
		most = min(most, cfg.MaxGuests)
	}
	c := &Client{
		cfg: cfg, log: cfg.Log, began: time.Now(), bans: newBans(),
		dials:     make(chan struct{}, dialsAtOnce),
		greetings: greetings{most: min(greetingsAtOnce, max(1, most/4))},
		guests:    newGuests(most, min(guestsOfOne, max(1, most/2))),
		exchanges: make(map[digest.Digest]*exchange),
		byName:    make(map[layers.InfoHash]*exchange),
		tallies:   make(map[digest.Digest]*tally),
	}
	c.stopped, c.stop = context.WithCancel(context.Background())
	copy(c.id[:], peerIDPrefix+rand.Text())
	c.announcers = newAnnouncers(cfg, c.port(), c.id)
	c.running.Go(c.accept)
	return c, nil
}

// Addr is where the client listens for peers.
func (c *Client) Addr() net.Addr { return c.cfg.Listener.Addr() }

// port is the one that peers are told; 0 if the listener has none.
func (c *Client) port() uint16 {
	if a, err := netip.ParseAddrPort(c.Addr().String()); err == nil {
		return a.Port()
	}
	return 0
}

// acceptPause keeps accept from spinning when no connection can be taken, as when all
// file descriptors are in use.
const acceptPause = 50 * time.Millisecond

// acceptWarnEvery is the least time between two warnings of that.
const acceptWarnEvery = time.Minute

func (c *Client) accept() {
	var warned time.Time
	for {
		conn, err := c.cfg.Listener.Accept()
		if errors.Is(err, net.ErrClosed) || c.stopped.Err() != nil {
			return
		}
		if err != nil {
			if time.Since(warned) >= acceptWarnEvery {
				warned = time.Now()
				c.log.Warn("accept a peer", "err", err)
			}
			select {
			case <-c.stopped.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		leave, ok := c.guests.enter(conn)
		if !ok {
			conn.Close()
			continue
		}
		greeted := c.greetings.enter(conn)
		c.running.Go(func() {
			defer leave()
			c.receive(conn, greeted)
		})
	}
}

// receive hears which swarm a connection is for, and hands it over. greeted is told when
// that is known.
func (c *Client) receive(conn net.Conn, greeted func()) {
	l, err := answer(c.stopped, conn, c.id, c.eachName, c.knows)
	greeted()
	if err != nil {
		c.log.Debug("peer not understood", "peer", conn.RemoteAddr(), "err", err)
		conn.Close()
		return
	}
	if x := c.enter(l.name); x != nil {
		defer x.running.Done()
		x.run(l)
		return
	}
	conn.Close()
}

// knows tells whether there is an exchange of that name.
func (c *Client) knows(name layers.InfoHash) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.byName[name] != nil
}

// enter returns the exchange of that name with its running count raised by one, or nil.
func (c *Client) enter(name layers.InfoHash) *exchange {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.byName[name]
	if x != nil {
		x.running.Add(1)
	}
	return x
}

// eachName calls f with the names of our swarms until it returns false.
func (c *Client) eachName(f func(secret []byte) (more bool)) {
	c.mu.Lock()
	names := make([]layers.InfoHash, 0, len(c.byName))
	for name := range c.byName {
		names = append(names, name)
	}
	c.mu.Unlock()
	for _, name := range names {
		if !f(name[:]) {
			return
		}
	}
}

// closeTimeout bounds Close: saying goodbye to trackers that do not answer is
// given up, since they forget us by themselves.
const closeTimeout = 2 * time.Second

// Close leaves all swarms and stops listening. Fetches under way return ErrClosed.
func (c *Client) Close() error {
	c.closeOnce.Do(func() {
		c.stop()
		c.cfg.Listener.Close()
		for _, x := range c.all() {
			c.leave(x)
		}
		c.running.Wait()
		c.announcers.close(closeTimeout)
	})
	return nil
}

// all lists the exchanges.
func (c *Client) all() []*exchange {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]*exchange, 0, len(c.exchanges))
	for _, x := range c.exchanges {
		list = append(list, x)
	}
	return list
}

func (c *Client) lookup(d digest.Digest) *exchange {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.exchanges[d]
}

// tally returns the count kept for a blob, of which there is one from the first time
// its swarm was joined until Drop. c.mu is held.
func (c *Client) tally(d digest.Digest) *tally {
	t := c.tallies[d]
	if t == nil {
		t = new(tally)
		c.tallies[d] = t
	}
	return t
}

// received counts n bytes of x's blob that p has sent.
func (c *Client) received(x *exchange, p *peer, n int64) {
	for _, t := range []*tally{x.tally, &c.total} {
		if p.who.seeder {
			t.fromSeeders.Add(n)
		} else {
			t.fromPeers.Add(n)
		}
		if c.crosses(p) {
			t.crossZone.Add(n)
		}
	}
}

// sent counts n bytes of x's blob that have gone to p.
func (c *Client) sent(x *exchange, p *peer, n int64) {
	for _, t := range []*tally{x.tally, &c.total} {
		t.sent.Add(n)
		if c.crosses(p) {
			t.crossZone.Add(n)
		}
	}
}

// crosses tells whether p is in another zone. Who is not one of us has none.
func (c *Client) crosses(p *peer) bool { return p.who.murder() && p.who.zone != c.cfg.Zone }

// Received returns how many bytes of the blob mirrors and seeders have sent us,
// since it was first joined or last dropped. Chunks that came twice or damaged count too.
func (c *Client) Received(d digest.Digest) (fromPeers, fromSeeders int64) {
	c.mu.Lock()
	t := c.tallies[d]
	c.mu.Unlock()
	if t == nil {
		return 0, 0
	}
	return t.fromPeers.Load(), t.fromSeeders.Load()
}

// Stats returns totals since Open.
func (c *Client) Stats() layers.Stats {
	c.mu.Lock()
	active := len(c.exchanges)
	c.mu.Unlock()
	return layers.Stats{
		FromPeers:  c.total.fromPeers.Load(),
		FromSeeder: c.total.fromSeeders.Load(),
		Sent:       c.total.sent.Load(),
		CrossZone:  c.total.crossZone.Load(),
		Active:     active,
	}
}

// Peers lists those we are connected with for a blob.
func (c *Client) Peers(d digest.Digest) []layers.Peer {
	if x := c.lookup(d); x != nil {
		return x.list()
	}
	return nil
}
