package choice

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	// revealAhead is how long a revealed piece should wait for its turn on our
	// link: long enough that the link never waits for a host to ask, short
	// enough that no piece is tied to a host that has become slow.
	revealAhead = 500 * time.Millisecond

	// fewestOpen pieces are open at any rate, so that a link that sends less
	// than one piece in revealAhead is busy too.
	fewestOpen = 6

	// openPerHost bounds what one of many hosts has open.
	openPerHost = 4

	// mostUnspread first copies may lie at a host without any other host having
	// them; it gets no more until it has passed some on.
	mostUnspread = 12

	// sitting is how long a host may leave what it was shown, and get nothing
	// else of us, before it is shown to others.
	sitting = 5 * time.Second

	// sharedWindow is how many pieces ahead each of several sources picks from
	// at random, per source.
	sharedWindow = 64
)

// Seed decides what a source that has the blob reveals to whom (super-seeding).
//
// Hosts are told of a piece only when they are to fetch it. The pieces that
// nobody in a zone has go out first, in the order of the blob, each to one
// host: the one with the fewest open, that is revealed and not yet sent. There
// are as many open in all as leave in half a second, so that the link never
// waits and a slow host holds up little. A host whose first copies nobody else
// has yet after a dozen does not pass on, and gets no more until it does, unless
// there is nobody else to serve.
//
// When every piece has left once, hosts are told of those they lack, the rarest
// first: a host that has no other source gets the whole blob from here, one
// that has others needs little of it. First copies that wait at a slow host by
// then are taken back and given to one that has nothing to do.
type Seed struct {
	rand   *rand.Rand
	pieces int
	here   int
	shared int
	zones  map[string]*zone
	hosts  []*Host
	open   int // at all hosts
	moves  []Move

	sent int           // pieces since mark
	mark time.Duration // when rate was last brought up to date
	rate float64       // pieces that leave per second
}

// zone is what the hosts of one zone have between them.
type zone struct {
	fresh  bitset        // nobody there has it and nobody was told
	next   int           // none below is fresh
	copies []int32       // how many have announced it
	opened []int32       // how many have it open
	lone   map[int]*Host // first copies that only the host we sent it to has
}

// Host is one host that fetches from a [Seed].
type Host struct {
	zone     *zone
	has      bitset
	told     bitset // revealed to it
	open     []reveal
	unspread int
	served   time.Duration // when it last got a piece from us, or was first told of one
	landed   bool
}

// reveal is a piece revealed to a host and not sent yet.
type reveal struct {
	piece int
	at    time.Duration
}

// Move is something to tell a host: that we have Piece (a HAVE), or, with
// Withdraw, that we do not give it any more (its requests are rejected, BEP 6).
type Move struct {
	Host     *Host
	Piece    int
	Withdraw bool
}

// NewSeed returns the choice for a source of a blob of so many pieces, all of
// which are here.
func NewSeed(pieces int, r *rand.Rand) *Seed {
	return &Seed{rand: r, pieces: pieces, here: pieces, shared: 1, zones: make(map[string]*zone)}
}

// Here says that only pieces [0, n) are here yet. A source that still fetches
// the blob says 0 to begin with.
func (s *Seed) Here(n int) { s.here = min(n, s.pieces) }

// Shared says how many complete sources the swarm has, this one included.
func (s *Seed) Shared(n int) { s.shared = max(n, 1) }

// Add begins a connection to a host of that zone.
func (s *Seed) Add(name string, now time.Duration) *Host {
	z := s.zones[name]
	if z == nil {
		z = &zone{
			fresh:  newBitset(s.pieces),
			copies: make([]int32, s.pieces),
			opened: make([]int32, s.pieces),
			lone:   make(map[int]*Host),
		}
		z.fresh.fill(s.pieces)
		s.zones[name] = z
	}
	h := &Host{zone: z, has: newBitset(s.pieces), told: newBitset(s.pieces), served: now}
	s.hosts = append(s.hosts, h)
	return h
}

// Remove ends a connection. What only this host had is to leave again.
func (s *Seed) Remove(h *Host, now time.Duration) {
	if h.landed {
		return
	}
	h.landed = true
	s.hosts = slices.DeleteFunc(s.hosts, func(o *Host) bool { return o == h })
	for len(h.open) > 0 {
		s.shut(h, 0)
	}
	for i, o := range h.zone.lone {
		if o == h {
			delete(h.zone.lone, i)
		}
	}
	h.has.each(func(i int) { h.zone.copies[i]-- })
	h.told.each(func(i int) { h.zone.refresh(i) })
	h.has.each(func(i int) { h.zone.refresh(i) })
}

// Have notes that h announced piece i.
func (s *Seed) Have(h *Host, i int, now time.Duration) {
	z := h.zone
	if h.landed || h.has.has(i) {
		return
	}
	h.has.add(i)
	z.copies[i]++
	z.fresh.del(i)
	if o := z.lone[i]; o != nil && o != h {
		o.unspread--
		delete(z.lone, i)
	}
	if k := h.find(i); k >= 0 { // it came from elsewhere, or we heard of it before we knew it sent
		s.shut(h, k)
	}
}

// Sent notes that all of piece i has been handed to h's connection.
func (s *Seed) Sent(h *Host, i int, now time.Duration) {
	s.measure(now)
	k := h.find(i)
	if h.landed || k < 0 {
		return
	}
	h.served = now
	s.shut(h, k)
	if h.zone.copies[i] == 0 && h.zone.lone[i] == nil {
		h.zone.lone[i] = h
		h.unspread++
	}
}

// Moves returns what to tell hosts now. It is to be called after anything else
// that was told to the Seed, and at [Seed.Wake]. The slice is valid until the
// next call.
func (s *Seed) Moves(now time.Duration) []Move {
	s.moves = s.moves[:0]
	s.unseat(now)
	for s.open < s.budget() {
		h, i := s.pick()
		if h == nil {
			break
		}
		s.reveal(h, i, now)
	}
	return s.moves
}

// Wake says when Moves may have something although nothing happened: when a
// host will have sat on a reveal for too long.
func (s *Seed) Wake() (at time.Duration, ok bool) {
	for _, h := range s.hosts {
		if len(h.open) == 0 {
			continue
		}
		if t := h.served + s.patience(); !ok || t < at {
			at, ok = t, true
		}
	}
	return at, ok
}

// patience is how long a host may sit on a reveal. At four times what the open
// ones take to leave, it is the host's fault and not our link's.
func (s *Seed) patience() time.Duration {
	if s.rate == 0 {
		return 4 * sitting
	}
	return max(sitting, time.Duration(4*float64(s.budget())/s.rate*float64(time.Second)))
}

// budget is how many pieces may be open in all.
func (s *Seed) budget() int {
	return max(fewestOpen, int(s.rate*revealAhead.Seconds()))
}

// perHost is how many pieces one host may have open.
func (s *Seed) perHost() int {
	if len(s.hosts) == 0 {
		return 0
	}
	return max(openPerHost, 2*s.budget()/len(s.hosts))
}

// unseat takes back what hosts sit on.
func (s *Seed) unseat(now time.Duration) {
	for _, h := range s.hosts {
		if len(h.open) == 0 || now-h.served < s.patience() {
			continue
		}
		for len(h.open) > 0 {
			s.withdraw(h, 0)
		}
		h.served = now
	}
}

// pick chooses the host to tell and the piece to tell it of.
func (s *Seed) pick() (*Host, int) {
	var best *Host
	for _, h := range s.hosts {
		if len(h.open) < s.perHost() && h.unspread < mostUnspread && s.hasFresh(h.zone) && (best == nil || h.before(best)) {
			best = h
		}
	}
	if best != nil {
		return best, s.freshFor(best)
	}
	var piece int
	for _, h := range s.hosts {
		if len(h.open) >= s.perHost() || best != nil && !h.before(best) {
			continue
		}
		if i, ok := s.again(h); ok {
			best, piece = h, i
		}
	}
	return best, piece
}

// before says whether h is to be served before o: whoever has less coming, then
// whoever passes on better.
func (h *Host) before(o *Host) bool {
	if len(h.open) != len(o.open) {
		return len(h.open) < len(o.open)
	}
	return h.unspread < o.unspread
}

// hasFresh says whether some piece that is here never left for the zone.
func (s *Seed) hasFresh(z *zone) bool {
	i, ok := z.fresh.firstIn(z.fresh, z.next, s.here)
	if z.next = s.here; ok {
		z.next = i
	}
	return ok
}

// freshFor picks a fresh piece for h: the lowest; with several sources, which
// would all begin with it, a random one of those ahead.
func (s *Seed) freshFor(h *Host) int {
	z := h.zone
	if s.shared == 1 {
		return z.next
	}
	from := z.next + s.rand.IntN(sharedWindow*s.shared)
	if i, ok := z.fresh.firstIn(z.fresh, from, s.here); ok {
		return i
	}
	return z.next
}

// again picks a piece that h lacks although it has left before: the rarest of
// the next so many, the lowest among equals.
func (s *Seed) again(h *Host) (int, bool) {
	z := h.zone
	best, copies, seen := -1, int32(0), 0
	for w := range h.has {
		for x := ^(h.has[w] | h.told[w]); x != 0; x &= x - 1 {
			i := w<<6 + bits.TrailingZeros64(x)
			if i >= s.here {
				return best, best >= 0
			}
			if c := z.copies[i] + z.opened[i]; best < 0 || c < copies {
				best, copies = i, c
			}
			if seen++; seen >= sample {
				return best, true
			}
		}
	}
	return best, best >= 0
}

// reveal tells h of piece i.
func (s *Seed) reveal(h *Host, i int, now time.Duration) {
	if len(h.open) == 0 {
		h.served = now
	}
	h.open = append(h.open, reveal{i, now})
	h.told.add(i)
	h.zone.opened[i]++
	h.zone.fresh.del(i)
	s.open++
	s.moves = append(s.moves, Move{Host: h, Piece: i})
}

// withdraw takes back h's k-th open piece.
func (s *Seed) withdraw(h *Host, k int) {
	i := h.open[k].piece
	s.shut(h, k)
	h.told.del(i)
	h.zone.refresh(i)
	s.moves = append(s.moves, Move{Host: h, Piece: i, Withdraw: true})
}

// shut ends a reveal.
func (s *Seed) shut(h *Host, k int) {
	h.zone.opened[h.open[k].piece]--
	h.open = slices.Delete(h.open, k, k+1)
	s.open--
}

// refresh makes piece i fresh again if nobody in the zone has it or is to get it.
func (z *zone) refresh(i int) {
	if z.copies[i] == 0 && z.opened[i] == 0 && z.lone[i] == nil {
		z.fresh.add(i)
		z.next = min(z.next, i)
	}
}

func (h *Host) find(i int) int {
	return slices.IndexFunc(h.open, func(r reveal) bool { return r.piece == i })
}

// measure keeps the rate at which pieces leave.
func (s *Seed) measure(now time.Duration) {
	s.sent++
	d := now - s.mark
	if d < 100*time.Millisecond || s.sent < 4 {
		return
	}
	r := float64(s.sent) / d.Seconds()
	if s.rate == 0 || d > 10*time.Second {
		s.rate = r
	} else {
		s.rate += (r - s.rate) / 4
	}
	s.sent, s.mark = 0, now
}
