package handout

import (
	"hash/maphash"
	"net/netip"
)

// The index finds a peer by its address: a table with open addressing of peers'
// numbers plus one, 0 where it is free. It costs a peer three to six bytes,
// where a map with addresses for keys costs some forty.

// find returns the number of the peer at addr.
func (s *Swarm) find(addr netip.AddrPort) (i int, ok bool) {
	if len(s.slots) == 0 {
		return nobody, false
	}
	at := s.slotOf(pack(addr))
	if s.slots[at] == 0 {
		return nobody, false
	}
	return int(s.slots[at]) - 1, true
}

// slotOf is the slot where a's peer is, or would be.
func (s *Swarm) slotOf(a address) int {
	at := s.home(a)
	for s.slots[at] != 0 && s.peers[s.slots[at]-1].addr != a {
		at = (at + 1) & (len(s.slots) - 1)
	}
	return at
}

// home is the slot where the search for a begins.
func (s *Swarm) home(a address) int {
	return int(maphash.Comparable(s.seed, a) & uint64(len(s.slots)-1))
}

// index enters peer i, which is the last.
func (s *Swarm) index(i int) {
	if 4*len(s.peers) > 3*len(s.slots) {
		s.rebuild()
		return
	}
	s.slots[s.slotOf(s.peers[i].addr)] = uint16(i + 1)
}

// rebuild makes the table anew, three quarters full at most: a power of two.
func (s *Swarm) rebuild() {
	n := 8
	for 4*len(s.peers) > 3*n {
		n *= 2
	}
	s.slots = make([]uint16, n)
	for i := range s.peers {
		s.slots[s.slotOf(s.peers[i].addr)] = uint16(i + 1)
	}
}

func (s *Swarm) reindex(from, to int) { s.slots[s.slotOf(s.peers[from].addr)] = uint16(to + 1) }

// unindex takes peer i out, and closes the gap: what stands behind it must be
// found without passing a free slot.
func (s *Swarm) unindex(i int) {
	mask := len(s.slots) - 1
	gap := s.slotOf(s.peers[i].addr)
	for at := (gap + 1) & mask; s.slots[at] != 0; at = (at + 1) & mask {
		home := s.home(s.peers[s.slots[at]-1].addr)
		if (at-home)&mask >= (at-gap)&mask { // the search for it passes the gap
			s.slots[gap] = s.slots[at]
			gap = at
		}
	}
	s.slots[gap] = 0
}
