// Package tracker is an HTTP BitTorrent tracker that keeps its swarms in
// memory: announce (BEP 3, with the compact forms of BEP 23 and the IPv6 ones
// of BEP 7) and scrape (BEP 48). The seeder serves it next to its own API, and
// any BitTorrent client may use it.
//
// It knows infohashes and addresses, nothing of blobs or torrents: what the
// seeder itself shares it asks through two functions of [Config], so it
// imports neither layers nor a BitTorrent client. It is a list of who is
// there, lost at a restart and whole again one announce interval later.
//
// Whom a peer is told of is the inner package handout's to choose.
//
// Three things go beyond the BEPs. A peer may name its zone (zone=) and is then
// mostly given peers of the same zone. A peer that lacks some may wait for them
// (wait=SECONDS): then an answer that would tell of nobody new is held until
// somebody comes; "wait" in an answer says for how long at most. And a tracker whose seeder shares a torrent lists that seeder
// as a peer, at the address the asker reached it on, so the seeder need not
// announce to itself or know which of its addresses a host can reach.
//
// Every answer has a "tracker id" (BEP 3) that is another after a restart, so
// that a client of several swarms sees from one that it must announce them all.
package tracker

import (
	"context"
	crand "crypto/rand"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/murderp2p/murder/seeder/tracker/handout"
)

const (
	defaultInterval  = 30 * time.Second
	defaultMaxPeers  = 20_000
	defaultMaxSwarms = 100_000
	defaultMaxTotal  = 4_000_000

	// shards spreads swarms over locks, so that expiry, which walks every
	// peer, holds up only a 64th of the announces at a time.
	shards = 64
)

// Config says how a Tracker behaves. The zero value works and lists only
// those who announce.
type Config struct {
	// Interval is how often a peer that lacks something is asked to announce;
	// 0 means 30 s, which is 333 announces a second from a fleet of 10,000
	// with one torrent each. Complete peers, of which a fleet with full caches
	// has hundreds of times as many and which wait to be called, are asked ten
	// times less often. A peer silent for two and a half of its intervals is
	// forgotten.
	Interval time.Duration
	// MaxPeers bounds the peers listed in one swarm; 0 means 20,000, and there
	// are never more than 65,534. Those who come when it is full are answered
	// but not listed.
	MaxPeers int
	// MaxSwarms bounds the swarms, since any infohash may be announced;
	// 0 means about 100,000.
	MaxSwarms int
	// MaxTotal bounds the peers listed in all swarms together, each counted once per
	// swarm, since one host may claim to be any number of them; 0 means about
	// 4,000,000: 20,000 hosts with 200 torrents each.
	MaxTotal int
	// Has reports whether the seeder beside this tracker shares the torrent.
	// nil means it shares none. It is called for every announce and scrape.
	Has func(infohash [20]byte) bool
	// Self gives the seeder's BitTorrent address as it is best reached by an
	// asker whose request came in on local (an address of this host, nil when
	// unknown); false means there is none to give. nil means always false.
	Self func(local net.Addr) (netip.AddrPort, bool)
	// Log gets one line per announce at Debug. nil means slog.Default().
	Log *slog.Logger
}

// Tracker keeps swarms. Its methods are safe for concurrent use.
type Tracker struct {
	cfg       Config
	id        string        // of this process, see answer
	start     time.Time     // what now counts from
	ended     chan struct{} // closed when Run ends
	announces atomic.Int64
	held      atomic.Int64 // answers held now
	rates     *rates
	peers     atomic.Int64 // in all swarms
	shards    [shards]shard
}

// shard is the part of the swarms that shares one lock.
type shard struct {
	mu     sync.Mutex // guards swarms and all inside them; held for map work only, never I/O
	swarms map[[20]byte]*handout.Swarm
	peers  *atomic.Int64 // in all swarms of all shards
	rand   *rand.Rand    // of all its swarms
}

// Stats is what a tracker holds and has done.
type Stats struct {
	Swarms    int   // with at least one peer
	Peers     int   // addresses listed, counted once per swarm
	Announces int64 // answered since the start, refused ones not counted
}

// New makes a tracker with no swarms. Peers are forgotten only while Run runs.
func New(cfg Config) *Tracker {
	if cfg.Interval <= 0 {
		cfg.Interval = defaultInterval
	}
	if cfg.MaxPeers <= 0 {
		cfg.MaxPeers = defaultMaxPeers
	}
	if cfg.MaxSwarms <= 0 {
		cfg.MaxSwarms = defaultMaxSwarms
	}
	if cfg.MaxTotal <= 0 {
		cfg.MaxTotal = defaultMaxTotal
	}
	if cfg.Has == nil {
		cfg.Has = func([20]byte) bool { return false }
	}
	if cfg.Self == nil {
		cfg.Self = func(net.Addr) (netip.AddrPort, bool) { return netip.AddrPort{}, false }
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	t := &Tracker{cfg: cfg, id: crand.Text()[:8], start: time.Now(), ended: make(chan struct{}), rates: newRates(announceRate, announceBurst)}
	for i := range t.shards {
		t.shards[i].swarms = make(map[[20]byte]*handout.Swarm)
		t.shards[i].peers = &t.peers
		t.shards[i].rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	return t
}

// now is the time as handout has it.
func (t *Tracker) now() time.Duration { return time.Since(t.start) }

// Run forgets peers that have gone silent, until ctx ends; it returns nil. It
// runs once. When it ends the answers held are given.
func (t *Tracker) Run(ctx context.Context) error {
	defer close(t.ended)
	tick := time.NewTicker(t.cfg.Interval / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			t.expire(t.now())
		}
	}
}

// completeInterval is how many times the interval complete peers are asked to wait.
const completeInterval = 10

// interval is how long a should wait before it announces again.
func (t *Tracker) interval(a *announce) time.Duration {
	if a.left == 0 {
		return t.cfg.Interval * completeInterval
	}
	return t.cfg.Interval
}

// expire forgets the peers that should have announced before now.
func (t *Tracker) expire(now time.Duration) {
	for i := range t.shards {
		t.shards[i].expire(now)
	}
}

func (s *shard) expire(now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ih, sw := range s.swarms {
		s.change(sw, func() { sw.Expire(now) })
		s.dropEmpty(ih, sw)
	}
}

// change keeps count of the peers while f enters some into sw or takes them out. s.mu must
// be held.
func (s *shard) change(sw *handout.Swarm, f func()) {
	before := sw.Len()
	f()
	s.peers.Add(int64(sw.Len() - before))
}

// dropEmpty forgets the swarm if nobody is left in it. s.mu must be held.
func (s *shard) dropEmpty(ih [20]byte, sw *handout.Swarm) {
	if sw.Len() == 0 {
		delete(s.swarms, ih)
	}
}

// Stats counts swarms, peers and announces.
func (t *Tracker) Stats() Stats {
	st := Stats{Announces: t.announces.Load(), Peers: int(t.peers.Load())}
	for i := range t.shards {
		st.Swarms += t.shards[i].count()
	}
	return st
}

func (s *shard) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.swarms)
}

// shard finds the part that holds infohash. SHA-1 spreads evenly by itself.
func (t *Tracker) shard(infohash [20]byte) *shard {
	return &t.shards[int(infohash[0])%shards]
}
