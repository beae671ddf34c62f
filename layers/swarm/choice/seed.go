package choice

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	// waiting is how many pieces that hosts have asked for should be at our link,
	// being sent or in line, which then is never idle, beside what leaves within
	// waitingTime.
	waiting     = 8
	waitingTime = 20 * time.Millisecond
	// longest bounds how far ahead of its turn a piece is revealed.
	longest = 500 * time.Millisecond

	// openPerHost bounds what one of many hosts has open.
	openPerHost = 4

	// mostUnspread first copies may lie at a host without any other host having
	// them; others come before it until it has passed some on.
	mostUnspread = 12

	// A piece that has been open so long, or staleFactor times as long as they
	// usually are, does not count any more: its host is slow, and another one is
	// to keep our link busy.
	staleAfter  = time.Second
	staleFactor = 4

	// A host that has said nothing for so long, or staleFactor times as long as
	// a piece usually is open, may be dead.
	quietAfter = 3 * time.Second
	// quietAtFirst is that time while no piece has been sent yet.
	quietAtFirst = 10 * time.Second
	// A host that has not asked for what it was shown in so long does not want it.
	sittingAfter = 5 * time.Second

	// A host that has got a piece elsewhere in that time can get more there.
	fedFor = 3 * time.Second

	// Each of several sources may be so many pieces ahead of the lowest that is
	// left to send, times the sources. When mostStolen of its pieces have been
	// sent by others it doubts that they are its own.
	sharedWindow = 24
	mostStolen   = 3
)

// Seed decides what a source that has the blob reveals to whom (super-seeding).
//
// Hosts are told of a piece only when they are to fetch it. The pieces that
// nobody has go out first, in the order of the blob, each to one host: the one
// with the fewest open, that is revealed and not yet sent. No more are open in
// all than keep our link busy, so that a piece is tied to a host only when it
// can go there at once. A host whose first copies nobody else has yet, after a
// dozen, does not pass on: others come before it until it does.
//
// When every piece has left once, hosts are told of those they lack, the rarest
// in their zone first: a host that has no other source gets the whole blob from
// here, one that has others needs little of it. So every piece leaves once
// before any leaves twice, and what crosses to another zone after that is only
// what has not come there between hosts.
//
// Of several sources each begins with the pieces of another residue class, and
// leaves out what hosts announce. As they do not know each other, each picks a
// class by chance, and another one when it finds that its pieces get about
// without it.
type Seed struct {
	rand   *rand.Rand
	pieces int
	here   int
	shared int
	class  int // of pieces, modulo shared, with which to begin
	stolen int // pieces of that class that others have sent
	hosts  []*Host
	zones  []*zone
	fresh  bitset        // nobody has it, and nobody was told
	next   int           // none below is fresh
	lone   map[int]first // copies that only the host we sent them to has
	moves  []Move
	looked time.Duration // when Moves was last called

	sent  int           // pieces since mark
	mark  time.Duration // when rate was last brought up to date
	rate  float64       // pieces that leave per second
	lag   time.Duration // from revealed to asked for
	usual time.Duration // from revealed to sent
}

// zone is what the hosts of one zone have between them.
type zone struct {
	name   string
	copies []int32 // how many have announced a piece
	opened []int32 // how many have it open
}

// Host is one host that fetches from a [Seed].
type Host struct {
	zone     *zone
	has      bitset
	told     bitset // revealed to it
	open     []reveal
	firsts   int // revealed to it before anybody else
	unspread int
	heard    time.Duration // when it last said something
	fed      time.Duration // when it last announced what it did not get of us
	quiet    bool          // it does not ask for what it is shown
	silent   bool          // it says nothing at all, and what it has does not count
	spent    bool          // there is nothing to tell it now
	gone     bool
}

// reveal is a piece revealed to a host and not sent yet.
type reveal struct {
	piece int
	at    time.Duration
	first bool // nobody else had it
	asked bool
}

// first is the first copy of a piece, sent and not announced by anybody else.
type first struct {
	host *Host
	at   time.Duration
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
	s := &Seed{
		rand: r, pieces: pieces, here: pieces, shared: 1,
		fresh: newBitset(pieces), lone: make(map[int]first),
	}
	s.fresh.fill(pieces)
	return s
}

// Here says that only pieces [0, n) are here yet. A source that still fetches
// the blob says 0 to begin with.
func (s *Seed) Here(n int) {
	s.here = min(n, s.pieces)
}

// Shared says how many complete sources the swarm has, this one included.
func (s *Seed) Shared(n int) {
	if n = max(n, 1); n != s.shared {
		s.shared, s.class, s.stolen = n, s.rand.IntN(n), 0
	}
}

// Add begins a connection to a host of that zone.
func (s *Seed) Add(name string, now time.Duration) *Host {
	h := &Host{zone: s.zone(name), has: newBitset(s.pieces), told: newBitset(s.pieces), heard: now, fed: now - fedFor}
	s.hosts = append(s.hosts, h)
	return h
}

func (s *Seed) zone(name string) *zone {
	for _, z := range s.zones {
		if z.name == name {
			return z
		}
	}
	z := &zone{name: name, copies: make([]int32, s.pieces), opened: make([]int32, s.pieces)}
	s.zones = append(s.zones, z)
	return z
}

// Remove ends a connection. What only this host had or was to get leaves again.
func (s *Seed) Remove(h *Host, now time.Duration) {
	if h.gone {
		return
	}
	h.gone = true
	s.hosts = slices.DeleteFunc(s.hosts, func(o *Host) bool { return o == h })
	for len(h.open) > 0 {
		s.shut(h, 0)
	}
	s.forsake(h)
	s.vacate(h.zone)
}

// vacate forgets a zone that no host is left in: anybody may name one.
func (s *Seed) vacate(z *zone) {
	if !slices.ContainsFunc(s.hosts, func(h *Host) bool { return h.zone == z }) {
		s.zones = slices.DeleteFunc(s.zones, func(o *zone) bool { return o == z })
	}
}

// Have notes that h announced piece i.
func (s *Seed) Have(h *Host, i int, now time.Duration) {
	if h.gone || h.has.has(i) {
		return
	}
	s.hear(h, now)
	if !h.told.has(i) {
		h.fed = now
	}
	s.arose(h, i)
	h.has.add(i)
	h.zone.copies[i]++
	if f := s.lone[i]; f.host != nil && f.host != h {
		f.host.unspread--
		delete(s.lone, i)
	}
	if k := h.find(i); k >= 0 { // it came from elsewhere, or we heard of it before we knew it sent
		s.shut(h, k)
	}
}

// arose notes that h has piece i, which may be the first we hear of it. If it has
// not got it of us, then of another source. Of two that send the same pieces one,
// by chance, had better see to the class that lags behind.
func (s *Seed) arose(h *Host, i int) {
	if s.shared > 1 && i%s.shared == s.class && !h.told.has(i) && s.announced(i) == 0 {
		if s.stolen++; s.stolen == mostStolen {
			s.stolen = 0
			if s.rand.IntN(2) == 0 {
				s.class = s.next % s.shared
			}
		}
	}
	s.fresh.del(i)
}

// Asked notes that h has asked for piece i, which was revealed to it.
func (s *Seed) Asked(h *Host, i int, now time.Duration) {
	if h.gone {
		return
	}
	s.hear(h, now)
	h.quiet = false
	if k := h.find(i); k >= 0 && !h.open[k].asked {
		h.open[k].asked = true
		s.lag += (now - h.open[k].at - s.lag) / 8
	}
}

// Sent notes that all of piece i has been handed to h's connection.
func (s *Seed) Sent(h *Host, i int, now time.Duration) {
	s.measure(now)
	k := h.find(i)
	if h.gone || k < 0 {
		return
	}
	if s.usual == 0 {
		s.usual = now - h.open[k].at
	}
	s.usual += (now - h.open[k].at - s.usual) / 8
	isFirst := h.open[k].first
	s.shut(h, k)
	if isFirst && s.copies(i) == 0 && s.lone[i].host == nil {
		s.lone[i] = first{h, now}
		h.unspread++
	}
}

// Moves returns what to tell hosts now. It is to be called after anything else
// that was told to the Seed, and some times a second. The slice is valid until
// the next call.
func (s *Seed) Moves(now time.Duration) []Move {
	s.moves, s.looked = s.moves[:0], now
	s.unseat(now)
	for _, h := range s.hosts {
		h.spent = false
	}
	for open, most := s.live(now), s.budget(); open < most; open++ {
		h, i, first := s.pick()
		if h == nil {
			break
		}
		s.reveal(h, i, first, now)
	}
	return s.moves
}

// budget is how many pieces may be open in all: those that wait for our link,
// and as many as leave from when one is revealed until it is asked for. That
// time is taken half as long again, so that it may grow.
func (s *Seed) budget() int {
	ahead := min(s.lag+s.lag/2+waitingTime, longest)
	return waiting + int(s.rate*ahead.Seconds())
}

// perHost is how many pieces one host may have open.
func (s *Seed) perHost() int {
	return max(openPerHost, 2*s.budget()/max(len(s.hosts), 1))
}

// stale is how long an open piece counts.
func (s *Seed) stale() time.Duration { return max(staleAfter, staleFactor*s.usual) }

// silence is how long a host may say nothing.
func (s *Seed) silence() time.Duration {
	if s.usual == 0 {
		return quietAtFirst
	}
	return max(quietAfter, staleFactor*s.usual)
}

// live is how many open pieces count.
func (s *Seed) live(now time.Duration) int {
	n, after := 0, s.stale()
	for _, h := range s.hosts {
		for _, r := range h.open {
			if now-r.at < after {
				n++
			}
		}
	}
	return n
}

// owes says whether h has something that others may be waiting for.
func (h *Host) owes() bool { return len(h.open) > 0 || h.unspread > 0 }

// unseat takes care that nobody waits for a host that does not ask for what it
// was shown, or that is silent altogether. What it has asked for it may get
// still, but what only this host had, or was to have, leaves again.
func (s *Seed) unseat(now time.Duration) {
	for _, h := range s.hosts {
		silent := !h.silent && h.owes() && now-h.heard >= s.silence()
		for k := len(h.open) - 1; k >= 0; k-- {
			switch r := h.open[k]; {
			case !r.asked && (silent || now-r.at >= sittingAfter):
				s.withdraw(h, k)
				h.quiet = true
			case silent && s.copies(r.piece) == 1:
				s.renew(r.piece)
			}
		}
		if silent {
			h.quiet = true
			s.forsake(h)
		}
	}
}

// forsake no longer counts on h: what only h has is fresh again.
func (s *Seed) forsake(h *Host) {
	if h.silent {
		return
	}
	h.silent, h.unspread = true, 0
	for i, f := range s.lone {
		if f.host == h {
			delete(s.lone, i)
		}
	}
	h.has.each(func(i int) { h.zone.copies[i]-- })
	h.has.each(s.refresh)
	h.told.each(s.refresh)
}

// hear notes that h said something.
func (s *Seed) hear(h *Host, now time.Duration) {
	h.heard = now
	if h.silent {
		h.silent = false
		h.has.each(func(i int) {
			h.zone.copies[i]++
			s.fresh.del(i)
		})
	}
}

// pick chooses the host to tell and the piece to tell it of, and says whether
// it is the first to be told.
func (s *Seed) pick() (h *Host, piece int, first bool) {
	fresh := s.anyFresh()
	if fresh {
		if h = s.least(func(h *Host) bool { return h.unspread < mostUnspread && !h.silent }); h != nil {
			return h, s.freshPiece(), true
		}
	}
	for {
		if h = s.least(func(h *Host) bool { return !h.spent }); h == nil {
			return nil, 0, false
		}
		if fresh && !h.silent { // which may have it
			return h, s.freshPiece(), true
		}
		i, ok := s.again(h)
		if ok {
			return h, i, false
		}
		h.spent = true
	}
}

// least finds the host that may be told of one more and comes first: whoever
// has fewest open, then fewest that nobody else has, then got fewest firsts.
func (s *Seed) least(may func(*Host) bool) *Host {
	var best *Host
	for _, h := range s.hosts {
		most := s.perHost()
		if h.quiet {
			most = 1 // to see whether it asks
		}
		if len(h.open) < most && may(h) && (best == nil || h.before(best)) {
			best = h
		}
	}
	return best
}

func (h *Host) before(o *Host) bool {
	if h.quiet != o.quiet {
		return o.quiet
	}
	if len(h.open) != len(o.open) {
		return len(h.open) < len(o.open)
	}
	if h.unspread != o.unspread {
		return h.unspread < o.unspread
	}
	return h.firsts < o.firsts
}

// anyFresh says whether some piece that is here never left.
func (s *Seed) anyFresh() bool {
	i, ok := s.fresh.firstIn(s.fresh, s.next, s.here)
	if ok {
		s.next = i
	}
	return ok
}

// freshPiece picks a fresh piece: the lowest, of our class if there is one not
// too far ahead.
func (s *Seed) freshPiece() int {
	if s.shared > 1 {
		i := s.next + (s.class-s.next%s.shared+s.shared)%s.shared
		for end := min(s.next+sharedWindow*s.shared, s.here); i < end; i += s.shared {
			if s.fresh.has(i) {
				return i
			}
		}
	}
	return s.next
}

// again picks a piece that h lacks although it has left before, and has had the
// time to spread: of the next so many the rarest in its zone, and among equals the
// lowest.
//
// With several zones our link into h's may be a narrow one, on which it waits for
// what others there have. If it gets anything of them it is told only of what
// nobody there has; and as they may be fetching that from another zone, the lowest
// first, of a random piece.
func (s *Seed) again(h *Host) (int, bool) {
	z, zones := h.zone, len(s.zones) > 1
	fed := zones && s.looked-h.fed < fedFor
	best, copies, ties, seen := -1, int32(0), 0, 0
	for w := range h.has {
		for x := ^(h.has[w] | h.told[w]); x != 0 && seen < sample; x &= x - 1 {
			i := w<<6 + bits.TrailingZeros64(x)
			if i >= s.here {
				return best, best >= 0
			}
			seen++
			switch c := z.copies[i] + z.opened[i]; {
			case s.coming(i) || fed && c > 0:
			case best < 0 || c < copies:
				best, copies, ties = i, c, 1
			case c == copies && zones:
				if ties++; s.rand.IntN(ties) == 0 {
					best = i
				}
			}
		}
	}
	return best, best >= 0
}

// coming says whether the first copy of piece i has only just left, or is about
// to: it may be with everybody before a second one could.
func (s *Seed) coming(i int) bool {
	if s.announced(i) > 0 {
		return false
	}
	if f, ok := s.lone[i]; ok {
		return s.looked-f.at < s.stale()
	}
	for _, h := range s.hosts {
		if k := h.find(i); k >= 0 && s.looked-h.open[k].at < s.stale() {
			return true
		}
	}
	return false
}

// reveal tells h of piece i.
func (s *Seed) reveal(h *Host, i int, first bool, now time.Duration) {
	if !h.owes() {
		h.heard = now
	}
	if first {
		h.firsts++
	}
	h.open = append(h.open, reveal{piece: i, at: now, first: first})
	h.told.add(i)
	h.zone.opened[i]++
	s.fresh.del(i)
	s.moves = append(s.moves, Move{Host: h, Piece: i})
}

// withdraw takes back h's k-th open piece.
func (s *Seed) withdraw(h *Host, k int) {
	i := h.open[k].piece
	s.shut(h, k)
	h.told.del(i)
	s.refresh(i)
	s.moves = append(s.moves, Move{Host: h, Piece: i, Withdraw: true})
}

// shut ends a reveal.
func (s *Seed) shut(h *Host, k int) {
	h.zone.opened[h.open[k].piece]--
	h.open = slices.Delete(h.open, k, k+1)
}

// refresh makes piece i fresh again if nobody has it or is to get it.
func (s *Seed) refresh(i int) {
	if s.copies(i) == 0 && s.lone[i].host == nil {
		s.renew(i)
	}
}

func (s *Seed) renew(i int) {
	s.fresh.add(i)
	s.next = min(s.next, i)
}

// announced is how many hosts have announced piece i, copies how many have done
// so or have it open.
func (s *Seed) announced(i int) (n int32) {
	for _, z := range s.zones {
		n += z.copies[i]
	}
	return n
}

func (s *Seed) copies(i int) int32 {
	n := s.announced(i)
	for _, z := range s.zones {
		n += z.opened[i]
	}
	return n
}

func (h *Host) find(i int) int {
	for k := range h.open {
		if h.open[k].piece == i {
			return k
		}
	}
	return -1
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
