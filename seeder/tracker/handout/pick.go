package handout

import "slices"

// picker chooses peers for one asker.
type picker struct {
	s      *Swarm
	ask    *Ask
	self   int      // nobody if the asker is not listed
	known  []uint16 // its neighbours when it asked
	chosen []uint16
	linked int // how many of them have become its neighbours already
}

// counted is how many of those wanted can become neighbours now: in a small
// swarm all that there are.
func (p *picker) counted(want int) int {
	if p.s.small() {
		return min(want, 2*Degree)
	}
	return min(want, Degree)
}

// strikeOld strikes off what the asker, who lacks so many, cannot have in use,
// unless everybody has room for everybody.
func (p *picker) strikeOld(want int) {
	if p.self == nobody || p.s.small() {
		return
	}
	keep := uint8(2*Degree - min(want, Degree))
	for me := &p.s.peers[p.self]; me.degree > keep; {
		p.s.unlink(p.self, int(me.edges[0]))
	}
}

// meetWaiting makes the asker known to peers that wait for one, and them to it.
// A newcomer that has everything and asks for nobody is somebody to be told of.
func (p *picker) meetWaiting(want int, isNew bool) {
	tells := p.counted(want)
	if isNew && p.ask.Complete {
		tells = p.counted(MaxDegree)
	}
	if p.self == nobody || tells == 0 {
		return
	}
	for _, w := range slices.Clone(p.s.waiting) { // befriend takes them off
		c := w.peer
		if tells == 0 || !p.suits(c) || !p.welcome(c) || !p.befriend(c) {
			continue
		}
		tells--
		if len(p.chosen) < want {
			p.chosen = append(p.chosen, uint16(c))
		}
	}
	p.linked = len(p.chosen)
}

// welcome reports whether the asker and c are of one zone, or both lack
// neighbours of others or neighbours altogether.
func (p *picker) welcome(c int) bool {
	q, me := &p.s.peers[c], &p.s.peers[p.self]
	lacks := func(p *peer) bool { return p.across < across || p.degree < Degree }
	return q.zone == me.zone || lacks(q) && lacks(me)
}

// pick chooses until there are as many as there should be, or no more to be had:
// those with room, who become neighbours; then anybody, for ordinary clients and
// for who has too few; then those told of before.
func (p *picker) pick(want int) {
	n := p.counted(want)
	p.fill(n, true)
	for _, c := range p.chosen[p.linked:] {
		p.befriend(int(c))
	}
	p.linked = len(p.chosen)
	if p.ask.Fresh {
		return
	}
	least := p.upTo(Degree, n)
	if want > 2*Degree {
		n, least = want, want
	}
	p.fill(least, false)
	for _, c := range slices.Backward(p.known) { // the latest are the likeliest to be there
		if len(p.chosen) < n && p.differs(int(c)) && p.useful(int(c)) {
			p.chosen = append(p.chosen, c)
		}
	}
}

// upTo is how many are to be chosen in all, at most n, for the asker to have
// that many neighbours.
func (p *picker) upTo(neighbours, n int) int {
	if p.self != nobody {
		neighbours -= int(p.s.peers[p.self].degree) - p.linked
	}
	return min(neighbours, n)
}

// fill chooses until there are n: of the asker's own zone but for a few, and
// more of others only if it has too few neighbours. What others lack its own
// zone makes up for.
func (p *picker) fill(n int, room bool) {
	own := slices.IndexFunc(p.s.zones, func(z zone) bool { return z.name == p.ask.Zone })
	if p.self != nobody {
		own = int(p.s.peers[p.self].zone)
	}
	far := p.far(n)
	p.sample(own, n-far, room, false)
	p.fillOthers(own, min(n, len(p.chosen)+far), room)
	p.sample(own, n, room, false)
	if room {
		n = p.upTo(Degree, n)
	}
	p.fillOthers(own, n, room)
}

// far is how many of n the asker is to be given from other zones.
func (p *picker) far(n int) int {
	far := across
	if n > 2*Degree {
		far = n / 5
	}
	if p.self != nobody {
		far -= int(p.s.peers[p.self].across)
	}
	return min(max(far, 0), n/2)
}

// fillOthers chooses from other zones than own until there are n, about as many
// from each, and what small zones lack of their share from the next.
func (p *picker) fillOthers(own, n int, room bool) {
	if len(p.s.zones) == 1 || len(p.chosen) >= n {
		return
	}
	order := p.s.rand.Perm(len(p.s.zones)) // settles who gets what does not divide
	if at := slices.Index(order, own); at >= 0 {
		order = slices.Delete(order, at, at+1)
	}
	for i, z := range order {
		left := len(order) - i
		p.sample(z, len(p.chosen)+(n-len(p.chosen)+left-1)/left, room, true)
	}
	for _, z := range order {
		p.sample(z, n, room, true)
	}
}

const (
	// shuffled is up to how many peers are looked at one by one in random order.
	// Of more, each is drawn at random, which finds enough that suit in time.
	shuffled = 256
	// tries bounds the draws in one zone for one answer, beside those chosen.
	tries = 128
)

// sample chooses random peers of a zone until there are n: only such as have
// room, or anybody.
func (p *picker) sample(zone, n int, room, far bool) {
	if zone < 0 || len(p.chosen) >= n {
		return
	}
	order := p.s.zones[zone].among(p.ask.Complete, room)
	var buf [shuffled]uint16
	few := len(order) <= shuffled
	if few {
		order = buf[:copy(buf[:], order)]
	}
	for i := 0; len(order) > 0 && len(p.chosen) < n; i++ {
		at := p.s.rand.IntN(len(order))
		c := int(order[at])
		if few {
			order[at] = order[len(order)-1]
			order = order[:len(order)-1]
		} else if i > n+tries {
			return
		}
		if p.suits(c) && (!far || !room || p.roomAcross(c)) {
			p.chosen = append(p.chosen, uint16(c))
		}
	}
}

// among is the peers that an asker who is complete, or not, may be told of.
func (z *zone) among(complete, room bool) []uint16 {
	switch {
	case !room:
		return z.order
	case complete:
		return z.order[:z.ends[needy]]
	default:
		return z.order[:z.ends[whole]]
	}
}

// suits reports whether c is worth giving to the asker: somebody it was not
// told of, with whom there is something to exchange.
func (p *picker) suits(c int) bool {
	return p.useful(c) && p.differs(c) && !slices.Contains(p.known, uint16(c))
}

func (p *picker) useful(c int) bool { return !p.ask.Complete || !p.s.peers[c].complete }

// differs reports that c is not chosen yet, and not the asker itself under
// whatever address.
func (p *picker) differs(c int) bool {
	q := &p.s.peers[c]
	return c != p.self && q.id != p.ask.ID && !slices.Contains(p.ask.Addrs, q.addr.unpack()) &&
		!slices.Contains(p.chosen, uint16(c))
}

// roomAcross reports whether c, if it is of another zone than the asker, has
// room for neighbours of others: all but what those of its own zone may need,
// and a few in any case.
func (p *picker) roomAcross(c int) bool {
	q := &p.s.peers[c]
	if p.self != nobody && p.s.peers[p.self].zone == q.zone {
		return true
	}
	return int(q.across) < max(maxAcross, MaxDegree-2*len(p.s.zones[q.zone].order))
}

// befriend makes the asker and c neighbours, and tells c if it waits.
func (p *picker) befriend(c int) bool {
	if p.self == nobody || !p.s.link(p.self, c) {
		return false
	}
	p.s.tell(c, p.s.peers[p.self].handed(), true)
	return true
}
