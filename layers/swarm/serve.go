package swarm

import (
	"fmt"

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
	x.lineUp(p)
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
	if p.closed || !p.taker.Served() {
		return head, r, false
	}
	if len(p.queue) == 0 || p.allowed <= 0 {
		x.turnEnds(p)
		return head, r, false
	}
	r = p.queue[0]
	p.queue = without(p.queue, r)
	p.allowed -= int64(r.length)
	return head, r, true
}

// wrote notes that a chunk has been given to p's connection.
func (x *exchange) wrote(p *peer, r request) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.client.sent(x, p, int64(r.length))
	p.sent += int64(r.length)
	p.movedAt = x.now()
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
	return x.missing == 0 && (x.client.cfg.Seeder || x.alone())
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

// here is how many pieces from the first on can be sent. Those of a torrent that grows it
// takes note of: what is revealed may be asked for at once. mu is held.
func (x *exchange) here() int {
	if !x.growing() {
		return x.pieces
	}
	known := x.torrent.Known()
	for i := known - 1; i >= 0 && !x.have.has(i); i-- {
		x.have.set(i)
	}
	return known
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

// turnsOf says how many turns there are at once.
func turnsOf(cfg Config) int {
	if cfg.Seeder {
		return originTurns
	}
	return mirrorTurns
}

// lineUp puts p into the line, if it has asked for something. mu is held.
func (x *exchange) lineUp(p *peer) {
	if p.closed || len(p.queue) == 0 {
		return
	}
	now := x.now()
	has := p.count
	if p.shy { // it gets pieces in the order in which they were revealed
		has = 0
	}
	x.line.Add(p.taker, choice.NewTurn(has, x.pieces, now))
	x.line.Grant(now)
}

// turnBegins tells p that its requests can be served. mu is held.
func (p *peer) turnBegins() {
	p.allowed = min(max(p.x.torrent.PieceLength(), minTurn), maxTurn)
	p.kick()
}

// turnEnds gives p the next turn if it wants more. mu is held.
func (x *exchange) turnEnds(p *peer) {
	x.line.End(p.taker, x.now())
	x.lineUp(p)
	x.line.Grant(x.now())
}

// leaveLine serves p nothing more. mu is held.
func (x *exchange) leaveLine(p *peer) {
	p.queue = nil
	x.line.Remove(p.taker)
	x.line.Grant(x.now())
}
