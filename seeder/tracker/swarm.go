package tracker

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// maxZones bounds the zones told apart in one swarm, since anybody may name
// one. Peers of later zones count as having none.
const maxZones = 256

// swarm is the peers of one torrent. The shard's lock guards it.
type swarm struct {
	peers     map[netip.AddrPort]*peer // by address: a client that restarts takes its old place
	zones     map[string][]*peer       // the same peers by zone, in no order
	complete  int                      // peers that have everything
	completed int                      // how many said so in an announce (scrape's "downloaded")
}

// peer is one address at which a client takes part.
type peer struct {
	addr     netip.AddrPort
	id       [20]byte
	zone     string
	index    int // in zones[zone]
	complete bool
	expires  time.Time
}

func newSwarm() *swarm {
	return &swarm{peers: make(map[netip.AddrPort]*peer), zones: make(map[string][]*peer)}
}

// announced lists every address of a until expires, or renews it, unless there
// are already max peers.
func (sw *swarm) announced(a *announce, max int, expires time.Time) {
	if a.event == eventCompleted {
		sw.completed++
	}
	for _, addr := range a.addrs {
		if old := sw.peers[addr]; old != nil {
			sw.remove(old)
		} else if len(sw.peers) >= max {
			continue
		}
		sw.add(&peer{addr: addr, id: a.peerID, zone: a.zone, complete: a.left == 0, expires: expires})
	}
}

// stopped takes the addresses of a off the list, if they are still that
// client's: a late goodbye must not remove the process that took its place.
func (sw *swarm) stopped(a *announce) {
	for _, addr := range a.addrs {
		if p := sw.peers[addr]; p != nil && p.id == a.peerID {
			sw.remove(p)
		}
	}
}

func (sw *swarm) add(p *peer) {
	if _, known := sw.zones[p.zone]; !known && len(sw.zones) >= maxZones {
		p.zone = ""
	}
	p.index = len(sw.zones[p.zone])
	sw.zones[p.zone] = append(sw.zones[p.zone], p)
	sw.peers[p.addr] = p
	if p.complete {
		sw.complete++
	}
}

func (sw *swarm) remove(p *peer) {
	zone := sw.zones[p.zone]
	last := len(zone) - 1
	swap(zone, p.index, last)
	zone[last] = nil
	sw.zones[p.zone] = zone[:last]
	if last == 0 {
		delete(sw.zones, p.zone)
	}
	delete(sw.peers, p.addr)
	if p.complete {
		sw.complete--
	}
}

// expire removes the peers whose time is up.
func (sw *swarm) expire(now time.Time) {
	for _, p := range sw.peers {
		if p.expires.Before(now) {
			sw.remove(p)
		}
	}
}

// endpoint is a peer as it is handed out.
type endpoint struct {
	addr netip.AddrPort
	id   [20]byte
	noID bool // the peer is known by its address alone
}

// pick chooses up to n peers at random for the asker a: four in five of its
// own zone and the rest from others, so that bytes cross zones seldom but no
// zone is cut off from pieces that only another has. Either side fills up what
// the other lacks.
func (sw *swarm) pick(a *announce, n int) []endpoint {
	own := sw.zones[a.zone]
	chosen, next := sample(nil, a, own, 0, n-n/5)
	chosen = sw.pickOthers(chosen, a, n)
	chosen, _ = sample(chosen, a, own, next, n)
	return chosen
}

// pickOthers adds peers of other zones than a's to chosen, about as many from
// each, until there are n.
func (sw *swarm) pickOthers(chosen []endpoint, a *announce, n int) []endpoint {
	others := make([][]*peer, 0, len(sw.zones))
	for name, zone := range sw.zones { // in random order, which settles who gets what does not divide
		if name != a.zone {
			others = append(others, zone)
		}
	}
	// The small ones first, so that what they lack of their share goes to the large.
	slices.SortStableFunc(others, func(x, y []*peer) int { return len(x) - len(y) })
	for i, zone := range others {
		left := len(others) - i
		share := (n - len(chosen) + left - 1) / left
		chosen, _ = sample(chosen, a, zone, 0, len(chosen)+share)
	}
	return chosen
}

// maxScan bounds how many peers are looked at in one zone for one answer: all
// of a small one, and of a large one enough that somebody suits.
const maxScan = 1000

// sample adds random peers of zone[from:] that suit a to chosen until it has n,
// and returns where it stopped, so that a second call goes on with those not
// looked at yet. It shuffles the zone as it goes (Fisher-Yates): every peer is
// as likely as any other, at a cost that does not grow with the swarm.
func sample(chosen []endpoint, a *announce, zone []*peer, from, n int) ([]endpoint, int) {
	i := from
	for ; i < min(len(zone), from+maxScan) && len(chosen) < n; i++ {
		swap(zone, i, i+rand.IntN(len(zone)-i))
		if p := zone[i]; a.wants(p) {
			chosen = append(chosen, endpoint{addr: p.addr, id: p.id})
		}
	}
	return chosen, i
}

func swap(zone []*peer, i, j int) {
	zone[i], zone[j] = zone[j], zone[i]
	zone[i].index, zone[j].index = i, j
}
