package tracker

import (
	"net/netip"

	"github.com/murderp2p/murder/seeder/tracker/handout"
)

// Swarm is how many are in one.
type Swarm struct {
	InfoHash        [20]byte
	Peers, Complete int
}

// Swarms lists the swarms that keep tells of, in no order.
func (t *Tracker) Swarms(keep func(infohash [20]byte) bool) []Swarm {
	var swarms []Swarm
	for i := range t.shards {
		first := len(swarms)
		swarms = t.shards[i].list(swarms)
		kept := swarms[:first]
		for _, s := range swarms[first:] { // not under the lock, since keep may have one of its own
			if keep(s.InfoHash) {
				kept = append(kept, s)
			}
		}
		swarms = kept
	}
	return swarms
}

func (s *shard) list(dst []Swarm) []Swarm {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ih, sw := range s.swarms {
		dst = append(dst, Swarm{ih, sw.Len(), sw.Complete()})
	}
	return dst
}

// Peer is one that a swarm lists.
type Peer struct {
	Addr     netip.AddrPort
	Zone     string // "" = none
	Complete bool   // lacks nothing
}

// Peers appends those that a swarm lists to dst, in no order.
func (t *Tracker) Peers(infohash [20]byte, dst []Peer) []Peer {
	s := t.shard(infohash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if sw := s.swarms[infohash]; sw != nil {
		sw.Each(func(p handout.Peer, zone string, complete bool) { dst = append(dst, Peer{p.Addr, zone, complete}) })
	}
	return dst
}
