package swarm

import (
	"fmt"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/murderp2p/murder/layers/swarm/choice"
)

const (
	// mirrorTurns is how many takers a mirror sends to at a time. Each gets a piece or
	// so, so that pieces are whole early, one after the other, and not all late together.
	mirrorTurns = 3
	// originTurns are as many as keep an origin's link busy, on which all wait: a
	// connection begins each turn slowly, as TCP does after a pause.
	originTurns = 6
	// minTurn is the least that a taker gets in its turn, in bytes.
	minTurn = 64 << 10
	// maxTurn bounds it where pieces are long.
	maxTurn = 1 << 20
)

// asked queues what p asks for. mu is held.
func (x *exchange) asked(p *peer, r request) error {
	i := int64(r.index)
	if i >= int64(x.pieces) || r.length == 0 || r.length > maxRequest ||
		int64(r.begin)+int64(r.length) > x.torrent.PieceSize(int(i)) {
		return fmt.Errorf("request for %d bytes at %d of piece %d: %w", r.length, r.begin, r.index, errMessage)
	}
	if !x.have.has(int(i)) || len(p.queue) >= maxQueue {
		p.reject(r)
		return nil
	}
	p.queue = append(p.queue, r)
	if p.host != nil {
		x.seed.Asked(p.host, int(i), x.now())
	}
	x.takers.lineUp(p)
	return nil
}

func (p *peer) reject(r request) {
	if p.fast {
		p.out = appendRequest(p.out, pp.Reject, r)
		p.kick()
	}
}

// cancelled takes a request out of p's queue. BEP 6 wants every request answered.
// mu is held.
func (x *exchange) cancelled(p *peer, r request) {
	if n := len(p.queue); n > 0 {
		if p.queue = without(p.queue, r); len(p.queue) < n {
			p.reject(r)
		}
	}
}

// toWrite takes what can go to p now: messages appended to b and, when it is p's turn,
// what it asked for first.
func (x *exchange) toWrite(p *peer, b []byte) (head []byte, r request, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	head = append(b, p.out...)
	p.out = p.out[:0]
	if p.closed || p.turn.state != serving {
		return head, r, false
	}
	if len(p.queue) == 0 || p.turn.left <= 0 {
		x.takers.end(p, x.now())
		return head, r, false
	}
	r = p.queue[0]
	p.queue = without(p.queue, r)
	p.turn.left -= int64(r.length)
	return head, r, true
}

// wrote notes that a chunk has been given to p's connection.
func (x *exchange) wrote(p *peer, r request) {
	x.client.sent(x, p, int64(r.length))
	x.mu.Lock()
	defer x.mu.Unlock()
	p.sent += int64(r.length)
	if p.host == nil {
		return
	}
	i := int(r.index)
	if p.served[i] += int64(r.length); p.served[i] >= x.torrent.PieceSize(i) {
		delete(p.served, i)
		x.seed.Sent(p.host, i, x.now())
		x.reveal()
	}
}

// reveals tells whether new peers are shown our pieces one by one: those of an origin
// are, so that it sends each once before it sends any twice; and those of a host that
// is the only one to have them all. mu is held.
func (x *exchange) reveals() bool {
	return x.partial == nil && (x.client.cfg.Seeder || x.alone) || x.growing()
}

// growing tells whether we offer a blob that we are still fetching from elsewhere.
func (x *exchange) growing() bool { return x.partial != nil && x.client.cfg.Seeder }

// revealing is the choice of what is revealed to whom. mu is held.
func (x *exchange) revealing() *choice.Seed {
	if x.seed == nil {
		x.seed = choice.NewSeed(x.pieces, random())
		x.seed.Here(x.here())
		x.seed.Shared(x.sources)
	}
	return x.seed
}

// maxOrigins bounds what a peer may say of how many seeders there are: of very many each
// would begin far from the blob's start.
const maxOrigins = 8

// sourcesAre takes note of how many seeders a peer knows of, so that they do not all
// begin with the same pieces. mu is held.
func (x *exchange) sourcesAre(n int) {
	if n = min(n, maxOrigins); n <= x.sources {
		return
	}
	x.sources = n
	if x.seed != nil {
		x.seed.Shared(n)
	}
}

// here is how many pieces from the first on can be sent. mu is held.
func (x *exchange) here() int {
	if x.growing() {
		return x.torrent.Known()
	}
	return x.pieces
}

// reveal tells takers what they may ask for from now on. mu is held.
func (x *exchange) reveal() {
	if x.seed == nil {
		return
	}
	for _, m := range x.seed.Moves(x.now()) {
		p := x.hosts[m.Host]
		if p == nil || p.closed {
			continue
		}
		if m.Withdraw {
			p.withdraw(m.Piece)
		} else {
			p.out = appendHave(p.out, m.Piece)
			p.kick()
		}
	}
}

// withdraw rejects what p has asked of piece i, which another host is to have first. A
// client without BEP 6 cannot be told, and gets it all the same.
func (p *peer) withdraw(i int) {
	if !p.fast {
		return
	}
	kept := p.queue[:0]
	for _, r := range p.queue {
		if int(r.index) == i {
			p.reject(r)
		} else {
			kept = append(kept, r)
		}
	}
	p.queue = kept
}

// turn is when a peer is sent what it asked for.
type turn struct {
	state turnState
	place choice.Turn   // in line
	left  int64         // bytes of this turn
	since time.Duration // when it began
	slow  bool          // it takes long, and holds up nobody else any more
}

type turnState int

const (
	idle    turnState = iota // it has asked for nothing
	inLine                   // it waits for its turn
	serving                  // it is being sent to
)

// takers are the peers that have asked for something, served in turns. The exchange's
// mu guards it.
type takers struct {
	length int64 // bytes of a turn
	clock  func() time.Duration
	most   int // turns at once
	busy   int // turns that count
	line   []*peer
	active []*peer       // whose turn it is
	usual  time.Duration // how long turns have taken of late
}

// turnsOf says how many turns there are at once.
func turnsOf(cfg Config) int {
	if cfg.Seeder {
		return originTurns
	}
	return mirrorTurns
}

// lineUp puts p into the line, if it has asked for something.
func (t *takers) lineUp(p *peer) {
	if p.turn.state != idle || p.closed || len(p.queue) == 0 {
		return
	}
	p.turn.state = inLine
	p.turn.place = p.place(t.clock())
	t.line = append(t.line, p)
	t.grant()
}

// place is where p stands among those who ask. Who is shown pieces one by one gets them
// in the order in which they were revealed.
func (p *peer) place(now time.Duration) choice.Turn {
	if p.shy {
		return choice.NewTurn(0, p.x.pieces, now)
	}
	return choice.NewTurn(p.count, p.x.pieces, now)
}

func (t *takers) grant() {
	for len(t.line) > 0 && t.busy < t.most {
		p := t.line[0]
		for _, o := range t.line {
			if o.turn.place.Before(p.turn.place) {
				p = o
			}
		}
		t.line = without(t.line, p)
		p.turn = turn{state: serving, left: t.length, since: t.clock()}
		t.active = append(t.active, p)
		t.busy++
		p.kick()
	}
}

// end ends p's turn, and gives it the next one if it wants more.
func (t *takers) end(p *peer, now time.Duration) {
	if p.turn.state != serving {
		return
	}
	if !p.turn.slow {
		t.busy--
	}
	took := min(now-p.turn.since, 2*t.long()) // slow ones count, or where all are it would never be known
	t.usual += (took - t.usual) / 8
	t.active = without(t.active, p)
	p.turn.state = idle
	t.lineUp(p)
	t.grant()
}

// remove takes p out wherever it is.
func (t *takers) remove(p *peer) {
	p.queue = nil
	t.line = without(t.line, p)
	if p.turn.state == inLine {
		p.turn.state = idle
	}
	t.end(p, p.turn.since+t.usual)
}

// hurry lets others have a turn besides those who take long over theirs.
func (t *takers) hurry(now time.Duration) {
	if len(t.line) == 0 {
		return
	}
	for _, p := range t.active {
		if !p.turn.slow && now-p.turn.since > t.long() {
			p.turn.slow = true
			t.busy--
		}
	}
	t.grant()
}

// long is more than a turn should take.
func (t *takers) long() time.Duration { return max(2*t.usual, tickEvery) }
