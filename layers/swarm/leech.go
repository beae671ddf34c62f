package swarm

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/layers/swarm/choice"
)

// maxAsked bounds the requests that a peer has been sent and has not answered. Clients
// drop what goes beyond their own bound, which for many is 250.
const maxAsked = 250

// lack makes us a host that fetches. mu is held.
func (x *exchange) lack() {
	if x.missing == 0 || x.partial == nil || x.leech != nil {
		return
	}
	x.leech = choice.NewLeech(x.torrent.Size(), x.torrent.PieceLength(), x.have.has, random())
	for i := range x.pieces {
		if !x.have.has(i) && x.partial.Unjudged(i) {
			x.held.set(i)
			x.leech.Hold(i)
		}
	}
	x.leech.Wanted(x.front)
	for _, p := range x.peers {
		p.signal(pp.Interested)
	}
}

// pumpAll asks of everybody what can be asked. mu is held.
func (x *exchange) pumpAll() {
	if x.leech == nil {
		return
	}
	for _, p := range x.peers {
		x.pump(p)
	}
}

// pump asks p for as much as it should owe us. mu is held.
func (x *exchange) pump(p *peer) {
	if x.leech == nil || p.source == nil || p.choking || p.closed {
		return
	}
	said := len(p.out)
	for p.requests < maxAsked {
		if p.askChunk() {
			continue
		}
		i, ok := x.leech.Next(p.source, x.now())
		if !ok {
			break
		}
		x.ask(p, i)
	}
	if len(p.out) > said {
		p.kick()
	}
}

// ask notes piece i as asked of p. Its chunks are asked for one by one.
func (x *exchange) ask(p *peer, i int) {
	pc := x.arriving[i]
	if pc != nil && x.suspects[i] && (len(pc.asks) > 0 || pc.mixes(p.id)) {
		x.discard(pc)
		x.leech.Ask(p.source, i, x.now()) // it has been forgotten with the others
		pc = x.arriving[i]
	}
	if pc == nil {
		pc = newPiece(x.torrent, i, x.chunkLength)
		x.arriving[i] = pc
	}
	a := &ask{peer: p, piece: pc, open: newBitset(chunks(pc.size, pc.chunk))}
	pc.asks = append(pc.asks, a)
	p.asks = append(p.asks, a)
}

// askChunk asks for the next chunk of the pieces that p has been chosen for, or tells
// that there is none.
func (p *peer) askChunk() bool {
	for _, a := range p.asks {
		for n := chunks(a.piece.size, a.piece.chunk); a.next < n; {
			c := a.next
			a.next++
			if a.piece.got.has(c) {
				continue
			}
			r := a.piece.request(c)
			a.open.set(c)
			a.n++
			if p.requests == 0 {
				p.heardAt = p.x.now() - p.silent
			}
			p.requests++
			p.out = appendRequest(p.out, pp.Request, r)
			return true
		}
	}
	return false
}

// readersWait is how long a reader may stand at a piece that nobody has offered before
// an origin is asked for it outright.
const readersWait = time.Second

// rescue asks an origin for what a reader waits for in vain. It has every piece, also
// those that it has not revealed to us; but as a rule they are better had from whom it
// has revealed them to. A piece far ahead of all that was revealed to anyone is not on
// its way to any of us, as when a client reads the blob's end first. mu is held.
func (x *exchange) rescue(now time.Duration) {
	if x.leech == nil {
		return
	}
	for _, i := range x.front {
		waited := now - x.frontAt
		onItsWay := i <= x.highest+8+x.pieces/16
		if x.have.has(i) || x.held.has(i) || onItsWay && waited < readersWait {
			continue
		}
		if pc := x.arriving[i]; pc != nil && pc.comes(now) {
			continue
		}
		for _, p := range x.peers {
			if p.who.seeder && !p.choking && p.source != nil && p.asking(i) == nil {
				x.ask(p, i)
				x.pump(p)
				x.frontAt = now // if it refuses, not so soon again
				break
			}
		}
	}
}

// asking finds what p has been asked of piece i.
func (p *peer) asking(i int) *ask {
	for _, a := range p.asks {
		if a.piece.index == i {
			return a
		}
	}
	return nil
}

// chunk takes in bytes of the blob. They are p's until it returns.
func (x *exchange) chunk(p *peer, r request, b []byte) error {
	pc := x.accept(p, r)
	if pc == nil {
		return nil // nobody waits for it any more
	}
	off := int64(r.index)*x.torrent.PieceLength() + int64(r.begin)
	if _, err := x.partial.WriteAt(b, off); err != nil {
		x.fail(err)
		return err
	}
	pc.feed(b, int64(r.begin))
	x.mu.Lock()
	pc.writes--
	done := pc.left == 0 && pc.writes == 0
	if pc.spoilt {
		done = false
		x.discard(pc)
	}
	pc.judged = done
	x.mu.Unlock()
	if done {
		x.complete(pc)
	}
	return nil
}

// accept notes that a chunk has come, asks for more, and tells others whom it was
// asked of that it is not needed any more. It returns nil for one that is of no use.
func (x *exchange) accept(p *peer, r request) *piece {
	x.mu.Lock()
	defer x.mu.Unlock()
	pc := x.arriving[int(r.index)]
	if x.leech == nil || pc == nil {
		return nil
	}
	c, ok := pc.find(r)
	if !ok {
		return nil
	}
	p.received += int64(r.length)
	p.movedAt = x.now()
	p.answered()
	x.client.received(x, p, int64(r.length))
	a := p.asking(pc.index)
	if a == nil || !a.settle(c) {
		return nil // not asked for, or not any more: nobody may push bytes on us
	}
	x.leech.Progress(p.source, pc.index, int64(r.length), x.now())
	if pc.spoilt || pc.got.has(c) {
		return nil
	}
	pc.got.set(c)
	pc.left--
	pc.writes++
	pc.from[p.id] = p.addr
	for _, a := range pc.asks {
		if a.settle(c) {
			a.peer.out = appendRequest(a.peer.out, pp.Cancel, r)
			a.peer.kick()
		}
	}
	x.pump(p)
	return pc
}

// answered notes that p is not silent.
func (p *peer) answered() { p.heardAt, p.silent = p.x.now(), 0 }

// settle notes that a chunk asked for will not be waited for any more. It tells whether
// it was. Others may have brought it: that is no answer of a's peer.
func (a *ask) settle(c int) bool {
	if !a.open.has(c) {
		return false
	}
	a.open.clear(c)
	a.n--
	p := a.peer
	if p.requests--; p.requests == 0 {
		p.silent = p.x.now() - p.heardAt
	}
	return true
}

// end forgets that a's peer was asked for a's piece. If cancel is true the peer hears it.
// mu is held.
func (a *ask) end(cancel bool) {
	p := a.peer
	for c := range chunks(a.piece.size, a.piece.chunk) {
		if a.settle(c) && cancel && !p.closed {
			p.out = appendRequest(p.out, pp.Cancel, a.piece.request(c))
		}
	}
	p.kick()
	p.asks = without(p.asks, a)
	a.piece.asks = without(a.piece.asks, a)
}

// takeBack ends all that p was asked for. mu is held.
func (x *exchange) takeBack(p *peer) {
	for _, a := range slices.Clone(p.asks) {
		a.end(false)
		if p.source != nil {
			x.leech.Drop(p.source, a.piece.index)
		}
	}
}

// rejected takes note that p will not give what r asks for (BEP 6). mu is held.
func (x *exchange) rejected(p *peer, r request) {
	a := p.asking(int(r.index))
	if a == nil || p.source == nil {
		return
	}
	if c, ok := a.piece.find(r); !ok || !a.open.has(c) {
		return
	}
	i := a.piece.index
	p.answered()
	a.end(false)
	x.leech.Lost(p.source, i)
	if p.has.has(i) {
		p.has.clear(i)
		p.count--
	}
	x.pumpAll()
}

// complete judges a piece whose bytes are all on disk. It has been marked as judged, and
// is not when complete returns.
func (x *exchange) complete(pc *piece) {
	sum, err := pc.sum(x.partial, int64(pc.index)*x.torrent.PieceLength())
	if err != nil {
		x.fail(err)
		return
	}
	x.mu.Lock()
	want, known := x.torrent.Piece(pc.index)
	if !known {
		x.unproven[pc.index] = pc
		x.unjudged(pc)
	}
	x.mu.Unlock()
	switch {
	case !known: // prove goes on when it is
	case sum.SHA1 == want:
		x.proven(pc, sum)
	default:
		x.wrong(pc)
	}
}

// unjudged ends the judging of a piece. If it was to be fetched anew meanwhile, and did not
// turn out right, it is now. mu is held.
func (x *exchange) unjudged(pc *piece) {
	pc.judged = false
	if pc.spoilt && x.arriving[pc.index] == pc {
		x.discard(pc)
		x.pumpAll()
	}
}

// prove judges the pieces whose hashes have become known.
func (x *exchange) prove() {
	var known []*piece
	x.mu.Lock()
	for i, pc := range x.unproven {
		if _, ok := x.torrent.Piece(i); ok {
			delete(x.unproven, i)
			pc.judged = true
			known = append(known, pc)
		}
	}
	x.mu.Unlock()
	for _, pc := range known {
		x.complete(pc)
	}
}

// proven keeps a piece that is right.
func (x *exchange) proven(pc *piece, sum layers.PieceSum) {
	if err := x.partial.PieceDone(pc.index, sum); err != nil {
		x.fail(fmt.Errorf("keep piece %d: %w", pc.index, err))
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.arrived(pc.index)
	x.unjudged(pc)
}

// letGo has those pieces fetched that were on disk from an earlier run and have turned out
// wrong. mu is held.
func (x *exchange) letGo() {
	wrong := false
	for i := range x.held.all() {
		if x.partial.Unjudged(i) {
			continue
		}
		x.held.clear(i)
		switch {
		case x.have.has(i):
		case x.partial.PieceHave(i):
			x.arrived(i)
		case x.leech != nil:
			x.leech.Failed(i)
			wrong = true
		}
	}
	if wrong {
		x.pumpAll()
	}
}

// arrived notes that piece i is here, from wherever. mu is held.
func (x *exchange) arrived(i int) {
	if x.have.has(i) {
		return
	}
	x.have.set(i)
	x.missing--
	if pc := x.arriving[i]; pc != nil {
		delete(x.arriving, i)
		for _, a := range slices.Clone(pc.asks) {
			a.end(true)
		}
	}
	delete(x.unproven, i)
	if x.leech != nil {
		x.leech.Done(i)
	}
	x.tell(i)
	if x.missing == 0 {
		x.enough()
		return
	}
	x.pumpAll()
}

// wrong throws a wrong piece away. Who has sent all of it is banned. Where several
// have, nobody knows who it was: from now on the piece is taken from one peer at a time.
func (x *exchange) wrong(pc *piece) {
	x.mu.Lock()
	defer x.mu.Unlock()
	pc.judged = false
	x.discard(pc)
	if len(pc.from) > 1 {
		x.suspects[pc.index] = true
	} else {
		for id, addr := range pc.from {
			x.ban(id, addr, pc.index)
		}
	}
	x.pumpAll()
}

// ban cuts off a peer that has sent a wrong piece, and throws away all else of which
// it has sent a part. mu is held.
func (x *exchange) ban(id [20]byte, addr netip.AddrPort, i int) {
	if p := x.peers[id]; p != nil && p.addr.Addr() == addr.Addr() {
		x.giveUp(p)
	}
	x.client.bans.add(id, addr)
	x.client.log.Warn("peer banned for wrong bytes", "peer", addr, "digest", x.torrent.Digest(), "piece", i)
	for _, pc := range x.arriving {
		if _, ok := pc.from[id]; ok {
			x.discard(pc)
		}
	}
}

// discard has a piece fetched anew. While parts of it are still on their way to the
// disk that waits for them, or they could end up in what comes next; and while it is being
// judged for the outcome, or what comes next would lie where what was found right was.
// mu is held.
func (x *exchange) discard(pc *piece) {
	pc.spoilt = true
	for _, a := range slices.Clone(pc.asks) {
		a.end(true)
	}
	if pc.writes > 0 || pc.judged || x.arriving[pc.index] != pc {
		return
	}
	delete(x.arriving, pc.index)
	delete(x.unproven, pc.index)
	if x.leech != nil {
		x.leech.Failed(pc.index)
	}
}
