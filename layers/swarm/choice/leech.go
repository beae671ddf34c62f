package choice

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	// window is how many pieces ahead of a reader are asked for in order.
	window = 8

	// sample bounds the pieces that one choice compares. The rarest of this
	// many, taken from a random place on, is as good as the rarest of all.
	sample = 512

	// common is one in how many near peers must have the rarest piece for no piece
	// to be rare: then it is the reader's order that counts.
	common = 2
)

// PeerKind is what a peer is to a host that fetches.
type PeerKind int

const (
	// Near is a host of our own zone.
	Near PeerKind = iota
	// Far is a host of another zone, behind a link that is dearer than ours.
	Far
	// Origin is a source that reveals its pieces as a [Seed] does. They are not
	// counted when rarity is, for it has everything.
	Origin
)

// Leech decides what one host asks of whom, for one blob.
//
// Each connection chooses for itself whenever it has room: the lowest piece in
// the window ahead of a reader that its peer has and nobody was asked for; else
// the rarest such piece, ties at random; but where even that one is with half of
// the near peers, as behind a fast origin or for one who comes late, the lowest.
// A whole piece is asked of one peer.
// When there is nothing left to ask it for, a peer with nothing else to do may
// get what another one is late with: see late.go. What is to be had of hosts of
// another zone only is for far.go to say.
type Leech struct {
	rand     *rand.Rand
	pieces   int
	size     int64
	pieceLen int64

	lacked  bitset  // not verified here
	free    bitset  // lacked, and asked of nobody
	copies  []int32 // how many near hosts have the piece
	missing int
	peers   []*Peer
	near    int // how many of them are near
	tardy   int // how many of them are tardy

	owed     int64         // bytes asked of near peers and not yet here
	stuck    int64         // those of them that silent peers owe
	surveyed time.Duration // when that was last counted
	meter    meter         // what near peers send

	fronts  []int         // where readers stand
	frontAt time.Duration // since when, or so
	moved   bool          // they have been told of since
	lateAt  time.Duration // nothing is late before
	far     far

	also []*Peer
}

// Peer is the other end of one connection.
type Peer struct {
	kind  PeerKind
	has   bitset
	asked []ask
	owed  int64         // bytes asked and not yet here
	heard time.Duration // when it last sent something, or began to owe it
	meter meter
	// shunned is until when it is asked for nothing, as it has brought nothing.
	shunned time.Duration
	tardy   int           // so many pieces it has to bring since it kept a reader waiting
	bound   time.Duration // each in that time
	lapses  int           // how often it did
	gone    bool
}

// ask is a piece asked of a peer.
type ask struct {
	piece int
	at    time.Duration
	left  int64 // bytes of it that this peer has not sent
}

// NewLeech returns the choice for a blob of size bytes in pieces of pieceLen
// bytes. have says which pieces are here already.
func NewLeech(size, pieceLen int64, have func(i int) bool, r *rand.Rand) *Leech {
	n := int((size + pieceLen - 1) / pieceLen)
	l := &Leech{
		rand: r, pieces: n, size: size, pieceLen: pieceLen,
		lacked: newBitset(n), free: newBitset(n), copies: make([]int32, n),
	}
	for i := range n {
		if !have(i) {
			l.lacked.add(i)
			l.free.add(i)
			l.missing++
		}
	}
	return l
}

// Missing is how many pieces are not verified yet.
func (l *Leech) Missing() int { return l.missing }

// Wanted says at which pieces readers stand, lowest first.
func (l *Leech) Wanted(fronts []int) {
	if !slices.Equal(l.fronts, fronts) {
		l.fronts = append(l.fronts[:0], fronts...)
		l.moved = true
	}
}

// Add begins a connection to a peer that has no piece yet.
func (l *Leech) Add(kind PeerKind, now time.Duration) *Peer {
	p := &Peer{kind: kind, has: newBitset(l.pieces), heard: now}
	l.peers = append(l.peers, p)
	if kind == Near {
		l.near++
	}
	return p
}

// Remove ends a connection. What was asked of p and of nobody else can be asked
// elsewhere.
func (l *Leech) Remove(p *Peer) {
	if p.gone {
		return
	}
	for len(p.asked) > 0 {
		l.Drop(p, p.asked[0].piece)
	}
	p.gone = true
	if p.tardy > 0 {
		l.tardy--
	}
	l.peers = slices.DeleteFunc(l.peers, func(o *Peer) bool { return o == p })
	if p.kind == Near {
		l.near--
		p.has.each(func(i int) { l.copies[i]-- })
	}
}

// Have notes that p has piece i.
func (l *Leech) Have(p *Peer, i int) {
	if p.gone || p.has.has(i) {
		return
	}
	p.has.add(i)
	if p.kind == Near {
		l.copies[i]++
	}
}

// Lost notes that p does not give piece i, whatever it said before: it rejected
// it (BEP 6). It can be asked elsewhere.
func (l *Leech) Lost(p *Peer, i int) {
	l.Drop(p, i)
	if p.gone || !p.has.has(i) {
		return
	}
	p.has.del(i)
	if p.kind == Near {
		l.copies[i]--
	}
}

// Drop takes back what p was asked for, so that it can be asked elsewhere; p
// still has it.
func (l *Leech) Drop(p *Peer, i int) {
	if l.forget(p, i) && l.askedOf(i) == nil && l.lacked.has(i) {
		l.free.add(i)
	}
}

// Progress notes that n bytes of piece i came from p.
func (l *Leech) Progress(p *Peer, i int, n int64, now time.Duration) {
	k := p.find(i)
	if k < 0 {
		return
	}
	n = min(n, p.asked[k].left)
	p.asked[k].left -= n
	p.owed -= n
	p.heard, p.shunned = now, 0
	p.meter.count(n, now)
	if p.asked[k].left == 0 && p.tardy > 0 && now-p.asked[k].at <= p.bound {
		if p.tardy--; p.tardy == 0 {
			l.tardy--
		}
	}
	switch {
	case p.kind == Near:
		l.owed -= n
		l.meter.count(n, now)
	case p.kind == Far:
		l.far.owed -= n
		if p.asked[k].left == 0 {
			l.far.came(now - p.asked[k].at)
		}
	}
}

// Done notes that piece i is here and verified, and returns the peers it is
// still asked of, to cancel. The slice is valid until the next call.
func (l *Leech) Done(i int) (also []*Peer) {
	l.also = l.also[:0]
	for _, p := range l.peers {
		if k := p.find(i); k >= 0 {
			if p.asked[k].left > 0 {
				l.also = append(l.also, p)
			}
			l.forget(p, i)
		}
	}
	l.free.del(i)
	if l.lacked.has(i) {
		l.lacked.del(i)
		l.missing--
	}
	return l.also
}

// Failed notes that piece i came and was not what its hash says: it is to be
// fetched again.
func (l *Leech) Failed(i int) {
	for _, p := range l.peers {
		l.forget(p, i)
	}
	if l.lacked.has(i) {
		l.free.add(i)
	}
}

// Hold keeps piece i from being asked of anyone, until Failed or Done: its bytes are here,
// and it is not known yet whether they are right.
func (l *Leech) Hold(i int) { l.free.del(i) }

// Next picks the piece to ask p for and notes it as asked. It is to be called
// until it says no, whenever something has happened that may have changed the
// answer: p announced or sent something, another's pieces were freed, or some
// tenths of a second have passed. It keeps to [Pipeline] by itself.
func (l *Leech) Next(p *Peer, now time.Duration) (piece int, ok bool) {
	if p.gone || l.shuns(p, now) {
		return 0, false
	}
	if piece, ok = l.urgent(p, now); !ok && l.room(p, now) {
		if piece, ok = l.overdue(p, false); !ok {
			piece, ok = l.choose(p, now)
		}
		if !ok && len(p.asked) == 0 {
			if piece, ok = l.overdue(p, true); !ok {
				piece, ok = l.late(p, now)
			}
		}
	}
	if ok {
		l.ask(p, piece, now)
	}
	return piece, ok
}

// Ask notes that p is asked for piece i, although Next did not say so.
func (l *Leech) Ask(p *Peer, i int, now time.Duration) {
	if !p.gone && p.find(i) < 0 && l.lacked.has(i) {
		l.ask(p, i, now)
	}
}

// choose picks among the pieces that were asked of nobody.
func (l *Leech) choose(p *Peer, now time.Duration) (int, bool) {
	if p.kind == Far && l.near > 0 {
		return l.far.choose(l, p, now)
	}
	if p.tardy > 0 {
		return l.apart(p, now)
	}
	for _, f := range l.fronts {
		if i, ok := l.free.firstIn(p.has, f, min(f+window, l.pieces)); ok {
			return i, true
		}
	}
	rarest, ok := l.rarest(p)
	if ok && len(l.fronts) > 0 && int(l.copies[rarest])*common >= l.near {
		if i, ok := l.free.firstIn(p.has, l.fronts[0], l.pieces); ok {
			return i, true
		}
	}
	return rarest, ok
}

// rarest picks the free piece of p's that the fewest near hosts have, at random
// among equals: it looks at sample pieces from a random place on.
func (l *Leech) rarest(p *Peer) (int, bool) {
	best, copies, ties, seen := -1, int32(0), 0, 0
	words := (l.pieces + 63) / 64
	if words == 0 {
		return 0, false
	}
	start := l.rand.IntN(words)
	for k := range words {
		w := start + k
		if w >= words {
			w -= words
		}
		for x := p.has[w] & l.free[w]; x != 0; x &= x - 1 {
			i := w<<6 + bits.TrailingZeros64(x)
			seen++
			switch c := l.copies[i]; {
			case best < 0 || c < copies:
				best, copies, ties = i, c, 1
			case c == copies:
				if ties++; l.rand.IntN(ties) == 0 {
					best = i
				}
			}
		}
		if seen >= sample {
			break
		}
	}
	return best, best >= 0
}

// ask notes piece i as asked of p.
func (l *Leech) ask(p *Peer, i int, now time.Duration) {
	if p.owed == 0 {
		p.heard = now
		p.meter.resume(now)
	}
	n := l.pieceSize(i)
	p.asked = append(p.asked, ask{i, now, n})
	l.owe(p, n)
	l.free.del(i)
}

// forget undoes ask, without freeing the piece.
func (l *Leech) forget(p *Peer, i int) bool {
	k := p.find(i)
	if k < 0 {
		return false
	}
	l.owe(p, -p.asked[k].left)
	p.asked = slices.Delete(p.asked, k, k+1)
	return true
}

func (l *Leech) owe(p *Peer, n int64) {
	p.owed += n
	switch p.kind {
	case Near:
		l.owed += n
	case Far:
		l.far.owed += n
	}
}

// askedOf returns a peer that is asked for piece i, or nil.
func (l *Leech) askedOf(i int) *Peer {
	for _, p := range l.peers {
		if p.find(i) >= 0 {
			return p
		}
	}
	return nil
}

func (l *Leech) pieceSize(i int) int64 {
	return min(l.pieceLen, l.size-int64(i)*l.pieceLen)
}

func (p *Peer) find(i int) int {
	for k := range p.asked {
		if p.asked[k].piece == i {
			return k
		}
	}
	return -1
}
