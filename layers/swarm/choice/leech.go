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

	// A piece asked of one peer is asked of another too when the first has been
	// silent for lateSilence and has had lateAsk for it. Anything more eager
	// fetched 5 to 11 % of a blob twice.
	lateSilence = 1500 * time.Millisecond
	lateAsk     = 3 * time.Second
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
// the rarest such piece, ties at random. A whole piece is asked of one peer.
// When there is nothing left to ask it for, a peer with nothing else to do may
// get what another one is late with.
type Leech struct {
	rand     *rand.Rand
	pieces   int
	known    int
	size     int64
	pieceLen int64

	lacked  bitset  // not verified here
	free    bitset  // lacked, and asked of nobody
	copies  []int32 // how many near hosts have the piece
	missing int
	peers   []*Peer
	fronts  []int // where readers stand
	pending int   // pieces asked of somebody and not verified
	also    []*Peer
	freed   []int
}

// Peer is the other end of one connection.
type Peer struct {
	kind   PeerKind
	has    bitset
	asked  []ask
	owed   int64         // bytes asked and not yet here
	heard  time.Duration // when it last sent something, or was first asked
	rate   float64       // bytes per second while it owed something
	got    int64         // bytes since mark
	mark   time.Duration
	landed bool // it has been removed
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
		rand: r, pieces: n, known: n, size: size, pieceLen: pieceLen,
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

// Known says that only pieces [0, n) may be asked for, as the others' hashes
// are not known yet. All may from the start.
func (l *Leech) Known(n int) { l.known = n }

// Missing is how many pieces are not verified yet.
func (l *Leech) Missing() int { return l.missing }

// Wanted says at which pieces readers stand, lowest first.
func (l *Leech) Wanted(fronts []int) { l.fronts = append(l.fronts[:0], fronts...) }

// Add begins a connection to a peer that has no piece yet.
func (l *Leech) Add(kind PeerKind, now time.Duration) *Peer {
	p := &Peer{kind: kind, has: newBitset(l.pieces), heard: now, mark: now}
	l.peers = append(l.peers, p)
	return p
}

// Remove ends a connection. What was asked of p and of nobody else can be asked
// elsewhere; it is returned, and valid until the next call.
func (l *Leech) Remove(p *Peer) (freed []int) {
	if p.landed {
		return nil
	}
	p.landed = true
	l.peers = slices.DeleteFunc(l.peers, func(o *Peer) bool { return o == p })
	if p.kind == Near {
		p.has.each(func(i int) { l.copies[i]-- })
	}
	l.freed = l.freed[:0]
	for len(p.asked) > 0 {
		i := p.asked[0].piece
		if l.Drop(p, i); l.free.has(i) {
			l.freed = append(l.freed, i)
		}
	}
	return l.freed
}

// Have notes that p has piece i.
func (l *Leech) Have(p *Peer, i int) {
	if p.has.has(i) {
		return
	}
	p.has.add(i)
	if p.kind == Near {
		l.copies[i]++
	}
}

// HaveAll notes that p has every piece.
func (l *Leech) HaveAll(p *Peer) {
	for i := range l.pieces {
		l.Have(p, i)
	}
}

// Lost notes that p does not give piece i, whatever it said before: it rejected
// it (BEP 6). It can be asked elsewhere.
func (l *Leech) Lost(p *Peer, i int) {
	l.Drop(p, i)
	if !p.has.has(i) {
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
	if !l.forget(p, i) || l.askedOf(i) != nil {
		return
	}
	if l.lacked.has(i) {
		l.free.add(i)
	}
}

// Interesting says whether p has a piece that is lacked here.
func (l *Leech) Interesting(p *Peer) bool { return p.has.meets(l.lacked) }

// Progress notes that n bytes of piece i came from p.
func (l *Leech) Progress(p *Peer, i int, n int64, now time.Duration) {
	p.heard = now
	if k := p.find(i); k >= 0 {
		n = min(n, p.asked[k].left)
		p.asked[k].left -= n
		p.owed -= n
		p.measure(n, now)
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

// Next picks the piece to ask p for and notes it as asked. It is to be called
// until it says no, whenever something has happened that may have changed the
// answer: p announced or sent something, another's pieces were freed, or half a
// second has passed. It keeps to [Pipeline] by itself.
func (l *Leech) Next(p *Peer, now time.Duration) (piece int, ok bool) {
	if !l.room(p) {
		return 0, false
	}
	if i, ok := l.choose(p); ok {
		l.ask(p, i, now)
		return i, true
	}
	if len(p.asked) > 0 {
		return 0, false
	}
	if i, ok := l.late(p, now); ok {
		l.ask(p, i, now)
		return i, true
	}
	return 0, false
}

// room says whether p may be asked for one more piece. An origin is asked for
// all that it reveals: it has bounded that itself.
func (l *Leech) room(p *Peer) bool {
	switch p.kind {
	case Origin:
		return true
	case Far:
		return p.owed == 0
	default:
		return p.owed < Pipeline(p.rate, l.pieceLen)
	}
}

// choose picks among the pieces that were asked of nobody.
func (l *Leech) choose(p *Peer) (int, bool) {
	if p.kind != Far {
		for _, f := range l.fronts {
			if i, ok := l.free.firstIn(p.has, f, min(f+window, l.known)); ok {
				return i, true
			}
		}
	}
	return l.rarest(p)
}

// rarest picks the free piece of p's that the fewest near hosts have, at random
// among equals: it looks at sample pieces from a random place on. Of a far peer
// it picks only what no near host has.
func (l *Leech) rarest(p *Peer) (int, bool) {
	best, copies, ties, seen := -1, int32(0), 0, 0
	words := len(p.has)
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
			c := l.copies[i]
			if i >= l.known || p.kind == Far && c > 0 {
				continue
			}
			seen++
			switch {
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

// late picks a piece that another peer was asked for and is late with, the
// oldest first.
func (l *Leech) late(p *Peer, now time.Duration) (int, bool) {
	best, oldest := -1, time.Duration(0)
	for _, o := range l.peers {
		if o == p || now-o.heard < lateSilence {
			continue
		}
		for _, a := range o.asked {
			if a.left > 0 && now-a.at >= lateAsk && p.has.has(a.piece) && (best < 0 || a.at < oldest) && l.askedOf(a.piece) == o {
				best, oldest = a.piece, a.at
			}
		}
	}
	return best, best >= 0
}

// ask notes piece i as asked of p.
func (l *Leech) ask(p *Peer, i int, now time.Duration) {
	if p.owed == 0 {
		p.heard, p.mark, p.got = now, now, 0
	}
	n := l.pieceSize(i)
	p.asked = append(p.asked, ask{i, now, n})
	p.owed += n
	l.free.del(i)
}

// forget undoes ask, without freeing the piece.
func (l *Leech) forget(p *Peer, i int) bool {
	k := p.find(i)
	if k < 0 {
		return false
	}
	p.owed -= p.asked[k].left
	p.asked = slices.Delete(p.asked, k, k+1)
	return true
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
	return slices.IndexFunc(p.asked, func(a ask) bool { return a.piece == i })
}

// measure keeps the rate at which p sends while it owes something.
func (p *Peer) measure(n int64, now time.Duration) {
	p.got += n
	if d := now - p.mark; d >= 250*time.Millisecond {
		p.rate = p.rate/2 + float64(p.got)/d.Seconds()/2
		p.got, p.mark = 0, now
	}
}
