package handout

import (
	"math"
	"net/netip"
	"slices"
	"strings"
)

// peer is one address at which a client takes part. A tracker holds millions,
// so it has no pointers and little air.
type peer struct {
	addr     address
	id       [20]byte
	expires  uint32 // seconds
	place    uint16 // in its zone's order
	zone     uint8
	complete bool
	fed      bool // has a place at the origin
	waiting  bool
	across   uint8 // neighbours of other zones
	degree   uint8
	edges    [MaxDegree]uint16 // its neighbours' numbers, the oldest first: degree of them
}

// nobody is the number of no peer.
const nobody = -1

// address is a netip.AddrPort without its pointer.
type address struct {
	ip   [16]byte
	port uint16
}

func pack(a netip.AddrPort) address { return address{a.Addr().As16(), a.Port()} }

func (a address) unpack() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a.ip).Unmap(), a.port)
}

func (p *peer) handed() Peer { return Peer{Addr: p.addr.unpack(), ID: p.id} }

// class says who may be told of a peer. A zone's order is by class.
type class uint8

const (
	needy class = iota // has room, and lacks something: anybody
	whole              // has room, and everything: those who lack something
	full               // has no room: nobody, but as a last resort
)

func (p *peer) class() class {
	switch {
	case p.degree >= MaxDegree:
		return full
	case p.complete:
		return whole
	default:
		return needy
	}
}

// zone is the peers of one zone.
type zone struct {
	name  string
	order []uint16 // their numbers, by class and in no order within one
	ends  [2]int   // where needy and whole end
}

// add lists addr, which must not be listed.
func (s *Swarm) add(addr netip.AddrPort, a *Ask) int {
	i := len(s.peers)
	s.peers = append(s.peers, peer{addr: pack(addr), id: a.ID, zone: s.zone(a.Zone)})
	s.index(i)
	z := s.zoneOf(i)
	s.peers[i].place = uint16(len(z.order))
	z.order = append(z.order, uint16(i))
	s.classify(i)
	return i
}

// renew notes what i says of itself.
func (s *Swarm) renew(i int, a *Ask) {
	p := &s.peers[i]
	p.expires = uint32(min(math.Ceil(a.Expires.Seconds()), math.MaxUint32))
	if p.complete == a.Complete {
		return
	}
	p.complete = a.Complete
	if !p.complete {
		s.complete--
	} else {
		s.complete++
		s.unfeed(i)
		s.leaveWhole(i)
	}
	s.classify(i)
}

// leaveWhole parts i, which is complete now, from neighbours that are so too:
// they have nothing to say to each other.
func (s *Swarm) leaveWhole(i int) {
	for _, j := range s.neighbours(i) {
		if s.peers[j].complete {
			s.unlink(i, int(j))
		}
	}
}

func (s *Swarm) unfeed(i int) {
	if s.peers[i].fed {
		s.peers[i].fed = false
		s.fed--
	}
}

// remove forgets i. The last peer takes its number.
func (s *Swarm) remove(i int) {
	s.tell(i, Peer{}, false)
	for s.peers[i].degree > 0 {
		s.unlink(i, int(s.peers[i].edges[0]))
	}
	s.unfeed(i)
	if s.peers[i].complete {
		s.complete--
	}
	s.leaveZone(i)
	s.unindex(i)
	last := len(s.peers) - 1
	if i != last {
		s.renumber(last, i)
	}
	s.peers = s.peers[:last]
	s.shrink()
}

// renumber makes peer from peer to, wherever it is known by its number.
func (s *Swarm) renumber(from, to int) {
	p := &s.peers[from]
	for _, j := range p.edges[:p.degree] {
		n := &s.peers[j]
		n.edges[slices.Index(n.edges[:n.degree], uint16(from))] = uint16(to)
	}
	s.zoneOf(from).order[p.place] = uint16(to)
	s.reindex(from, to)
	if p.waiting {
		at := slices.IndexFunc(s.waiting, func(w *Waiter) bool { return w.peer == from })
		s.waiting[at].peer = to
	}
	s.peers[to] = *p
}

// shrink gives memory back when most of a swarm has left.
func (s *Swarm) shrink() {
	if cap(s.peers) > 16 && len(s.peers) < cap(s.peers)/4 {
		s.peers = append(make([]peer, 0, 2*len(s.peers)), s.peers...)
		s.rebuild()
	}
}

// neighbours returns a copy of i's edges, of which nobody has none.
func (s *Swarm) neighbours(i int) []uint16 {
	if i == nobody {
		return nil
	}
	return slices.Clone(s.peers[i].edges[:s.peers[i].degree])
}

// link makes two peers neighbours, if both have room; they must not be.
func (s *Swarm) link(i, j int) bool {
	p, q := &s.peers[i], &s.peers[j]
	if p.degree >= MaxDegree || q.degree >= MaxDegree {
		return false
	}
	p.edges[p.degree], q.edges[q.degree] = uint16(j), uint16(i)
	p.degree++
	q.degree++
	if p.zone != q.zone {
		p.across++
		q.across++
	}
	s.classify(i)
	s.classify(j)
	return true
}

// unlink undoes link.
func (s *Swarm) unlink(i, j int) {
	p, q := &s.peers[i], &s.peers[j]
	p.strike(j)
	q.strike(i)
	if p.zone != q.zone {
		p.across--
		q.across--
	}
	s.classify(i)
	s.classify(j)
}

func (p *peer) strike(neighbour int) {
	at := slices.Index(p.edges[:p.degree], uint16(neighbour))
	copy(p.edges[at:p.degree], p.edges[at+1:p.degree])
	p.degree--
}

// zone finds or makes the zone of that name.
func (s *Swarm) zone(name string) uint8 {
	if i := slices.IndexFunc(s.zones, func(z zone) bool { return z.name == name }); i >= 0 {
		return uint8(i)
	}
	if i := slices.IndexFunc(s.zones, func(z zone) bool { return len(z.order) == 0 }); i >= 0 {
		s.zones[i].name = strings.Clone(name) // which may be part of a whole query
		return uint8(i)
	}
	if len(s.zones) >= maxZones-1 && name != "" { // the last is kept for those without
		return s.zone("")
	}
	s.zones = append(s.zones, zone{name: strings.Clone(name)})
	return uint8(len(s.zones) - 1)
}

func (s *Swarm) zoneOf(i int) *zone { return &s.zones[s.peers[i].zone] }

func (s *Swarm) leaveZone(i int) {
	z, p := s.zoneOf(i), &s.peers[i]
	s.classifyAs(i, full)
	last := len(z.order) - 1
	s.swap(z, int(p.place), last)
	z.order = z.order[:last]
	if last < cap(z.order)/4 {
		z.order = slices.Clip(slices.Clone(z.order))
	}
}

// classify moves i to where its class stands in its zone's order.
func (s *Swarm) classify(i int) { s.classifyAs(i, s.peers[i].class()) }

func (s *Swarm) classifyAs(i int, to class) {
	z, p := s.zoneOf(i), &s.peers[i]
	is := full
	for is > needy && int(p.place) < z.ends[is-1] {
		is--
	}
	for ; is < to; is++ {
		z.ends[is]--
		s.swap(z, int(p.place), z.ends[is])
	}
	for ; is > to; is-- {
		s.swap(z, int(p.place), z.ends[is-1])
		z.ends[is-1]++
	}
}

func (s *Swarm) swap(z *zone, a, b int) {
	z.order[a], z.order[b] = z.order[b], z.order[a]
	s.peers[z.order[a]].place, s.peers[z.order[b]].place = uint16(a), uint16(b)
}
