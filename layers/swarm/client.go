// Package swarm moves blobs between hosts over BitTorrent: it implements
// [layers.Swarm] on the client of github.com/anacrolix/torrent, and keeps that
// library's types to itself.
//
// A blob that this host shares or fetches is a swarm joined. The library works
// on it only while it is being fetched or somebody is connected for it: what is
// merely on offer costs an entry in a table and an announce now and then, so a
// cache of thousands of blobs can be shared by an idle process that stays small.
//
// Peers are found by our own announces (the library's come at most once a minute)
// and spoken to over our own listener and dialer, which name each peer by an
// alias of its address so that a ban hits the one who earned it; see peerAddr.
// Which settings the library runs with, and why, is in settings.go.
package swarm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"

	"github.com/murderp2p/murder/layers"
)

// Config says how a Client meets its peers. The zero value of every field works.
type Config struct {
	// Listen is where peers connect, "host:port". "" means ":0", any free port.
	Listen string
	// Advertise is the address given to peers through the tracker. A zero address
	// means the one that announces come from, a zero port the one of Listen.
	Advertise netip.AddrPort
	// Seeder says that this is an origin's daemon; else it is a mirror. Peers
	// count bytes by it.
	Seeder bool
	// Zone is where this host stands, for peers and tracker to prefer neighbours;
	// "" is a zone like any other.
	Zone string
	// Version is told to peers, such as "0.1.0". "" means "dev".
	Version string
	// Upload and Download bound what goes over all connections, together with
	// whatever else shares the limiters. nil means no limit.
	Upload, Download *rate.Limiter
	// HTTP asks the trackers. nil means a client of its own; it is given a
	// timeout per announce either way.
	HTTP *http.Client
	// Log hears from the library (from Warn up) and from us. nil means slog.Default().
	Log *slog.Logger
}

// ErrClosed is returned by the methods of a Client that has been closed.
var ErrClosed = errors.New("swarm client is closed")

// Client takes part in swarms. It implements layers.Swarm, and its methods are
// safe for concurrent use.
type Client struct {
	cfg       Config
	log       *slog.Logger
	library   *torrent.Client
	listener  *listener
	names     *book
	peers     *roster
	announcer *announcer
	total     tally // of all swarms, those left included

	stop      context.CancelFunc // ends all that runs and all fetches
	stopped   <-chan struct{}    // closed by stop
	running   sync.WaitGroup     // the goroutines that Open started
	closeOnce sync.Once

	mu     sync.Mutex // guards the maps; held for look-ups only
	joined map[layers.InfoHash]*joined
	// tallies outlive the swarms they were counted in, until Drop: who asks where
	// a blob's bytes came from asks when the fetch is over.
	tallies map[layers.InfoHash]*tally
	hashes  map[digest.Digest]layers.InfoHash // of what was joined, until Drop
	coming  map[digest.Digest]*layers.Torrent // what ShareArriving waits for
}

var _ layers.Swarm = (*Client)(nil)

// tally counts bytes of blobs.
type tally struct {
	fromPeers, fromSeeders, sent, crossZone atomic.Int64
}

// Open listens for peers and returns a client that has joined nothing.
func Open(cfg Config) (*Client, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Version == "" {
		cfg.Version = "dev"
	}
	names := newBook()
	l, err := listen(cfg.Listen, names)
	if err != nil {
		return nil, fmt.Errorf("listen for peers: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	c := &Client{
		cfg: cfg, log: cfg.Log, listener: l, names: names, stop: stop, stopped: ctx.Done(),
		joined:  make(map[layers.InfoHash]*joined),
		tallies: make(map[layers.InfoHash]*tally),
		hashes:  make(map[digest.Digest]layers.InfoHash),
		coming:  make(map[digest.Digest]*layers.Torrent),
	}
	c.peers = newRoster(cfg.Zone, &c.total, c.tally)
	c.library, err = torrent.NewClient(c.settings())
	if err != nil {
		stop()
		l.Close()
		return nil, fmt.Errorf("start bittorrent client: %w", err)
	}
	c.library.AddDialer(&dialer{names: names})
	c.library.AddListener(l)
	c.announcer = newAnnouncer(c.cfg, l.port(), c.library.PeerID())
	c.running.Go(func() { c.sweep(ctx) })
	return c, nil
}

// Addr is where the client listens for peers.
func (c *Client) Addr() net.Addr { return c.listener.Addr() }

// closeTimeout bounds Close: saying goodbye to trackers that do not answer is
// given up, since they forget us by themselves.
const closeTimeout = 2 * time.Second

// Close leaves all swarms and stops listening. Fetches under way return ErrClosed.
func (c *Client) Close() error {
	c.closeOnce.Do(func() {
		c.stop()
		c.running.Wait()
		for _, j := range c.all() {
			c.leave(j)
		}
		c.announcer.close(closeTimeout)
		c.library.Close() // first, or it would spin on Accept
		c.listener.Close()
	})
	return nil
}

// all lists the swarms joined.
func (c *Client) all() []*joined {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]*joined, 0, len(c.joined))
	for _, j := range c.joined {
		list = append(list, j)
	}
	return list
}

// hash returns the infohash of a blob that was joined.
func (c *Client) hash(d digest.Digest) layers.InfoHash {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hashes[d]
}

func (c *Client) lookup(ih layers.InfoHash) *joined {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.joined[ih]
}

// tally returns the count kept for a swarm, of which there is one from the first
// time it was joined until Drop. It may be called with the library's lock held.
func (c *Client) tally(ih layers.InfoHash) *tally {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tallies[ih]
	if t == nil {
		t = new(tally)
		c.tallies[ih] = t
	}
	return t
}

// Received returns how many bytes of the blob mirrors and seeders have sent us,
// since it was first joined or last dropped. Chunks that arrived damaged count too.
func (c *Client) Received(d digest.Digest) (fromPeers, fromSeeders int64) {
	c.mu.Lock()
	t := c.tallies[c.hashes[d]]
	c.mu.Unlock()
	if t == nil {
		return 0, 0
	}
	return t.fromPeers.Load(), t.fromSeeders.Load()
}

// Stats returns totals since Open.
func (c *Client) Stats() layers.Stats {
	c.peers.settle()
	c.mu.Lock()
	active := len(c.joined)
	c.mu.Unlock()
	return layers.Stats{
		FromPeers:  c.total.fromPeers.Load(),
		FromSeeder: c.total.fromSeeders.Load(),
		Sent:       c.total.sent.Load(),
		CrossZone:  c.total.crossZone.Load(),
		Active:     active,
	}
}

// Peers lists those we are connected with for a swarm.
func (c *Client) Peers(d digest.Digest) []layers.Peer {
	j := c.lookup(c.hash(d))
	if j == nil {
		return nil
	}
	return c.peers.list(j.hash, j.meta.Pieces())
}

const (
	// sweepEvery is how often idle swarms are looked for and counts brought up to date.
	sweepEvery = 10 * time.Second
	// idleAfter is how long nobody must have been connected for a whole blob before
	// the library lets go of it. Coming back costs a connecting peer milliseconds.
	idleAfter = 30 * time.Second
)

// sweep keeps counts current and retires swarms that nobody uses.
func (c *Client) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c.peers.settle()
		for _, j := range c.all() {
			j.retire(c.peers.lastSeen(j.hash), idleAfter)
		}
	}
}
