package sim

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/murderp2p/murder/layers/swarm/choice"
)

// The model, so that its figures can be judged:
//
//   - A host has an uplink and a downlink. Data goes in quarters of a piece
//     ("chunks"). An uplink sends one chunk at a time at its rate, turning over
//     the connections that are being served; at most turns of them are, one
//     piece a turn, first come first served.
//   - A chunk then crosses the network (latency), the narrow link between
//     zones if there is one, and the receiver's downlink: queues that serve in
//     order, each beginning to pass a chunk on as it comes in. At most inFlight
//     chunks of one connection are under way: beyond that the sender waits and
//     its turn stays taken, as with a full socket.
//   - Control messages take the latency and no room, hashing takes no time, and
//     there is no protocol overhead: the limit compared with is size over rate.
//   - A host that is killed is noticed by its peers after the latency.
const (
	chunks   = 4
	inFlight = 4
)

type kind uint8

const (
	evJoin kind = iota
	evKill
	evTick
	evHere
	evSent    // a chunk has left the uplink of side's node
	evArrived // a chunk of piece sent by side has arrived
	evRequest // side's peer asks for piece
	evCancel
	evReveal // side's peer reveals piece to side
	evReject // side's peer takes piece back
	evHave   // node has piece, and its peers hear of it
	evGone   // side's peer is gone
	evWake
)

// node is a host, or a source.
type node struct {
	id       int
	zone     int
	up, down float64 // nanoseconds a byte
	leech    *choice.Leech
	seed     *choice.Seed
	rand     *rand.Rand
	sides    []*side
	dead     bool
	wants    int // peers to dial

	serving  []*side // have a turn
	turn     int     // which of them is sent to
	usual    int64   // how long turns take
	waiting  []*side // have requests and wait for a turn
	sending  bool
	downFree int64

	has         []bool
	front       int
	joined      int64
	first       int64
	frontAt     int64
	stall       int64
	done        int64
	sent, twice int64 // bytes sent; bytes received that were here already
	killAt      int64
	wakeAt      int64
}

// side is one node's end of a connection.
type side struct {
	at     *node
	other  *side
	peer   *choice.Peer // the other, as at fetches from it
	host   *choice.Host // the other, as at seeds it
	queue  []int32      // what the other asked of us
	queued bool         // serving or waiting
	chunk  int          // chunks of queue[0] that have been sent
	turn   choice.Turn  // when waiting
	began  int64        // when serving
	slow   bool         // it takes long over its turn, which does not count any more
	flying int
	got    int // chunks of the piece that comes in
	gotOf  int32
	closed bool
}

// world is one run.
type world struct {
	conf   config
	rand   *rand.Rand
	now    int64
	q      queue
	nodes  []*node // hosts, then sources
	hand   handout
	narrow [2]int64 // when the link between zones is free, by direction
	cross  int64    // bytes that crossed it
	left   int      // hosts not done
	pieces int
	events int
}

func newWorld(c config) *world {
	w := &world{conf: c, rand: rand.New(rand.NewPCG(c.seed, 1)), pieces: int((c.size + c.pieceLen - 1) / c.pieceLen)}
	w.hand = newHandout(c, w.rand)
	for i := range c.hosts + c.sources {
		n := &node{id: i, rand: rand.New(rand.NewPCG(c.seed, uint64(i)+2)), has: make([]bool, w.pieces), wakeAt: math.MaxInt64}
		n.up = 1e9 / c.rate
		n.down = 1e9 / c.rate
		if i < c.hosts {
			n.wants = c.dials
			if c.zones > 1 {
				n.zone = i % c.zones
			}
			if c.slow > 0 && i%c.slow == 1 {
				n.up, n.down = n.up*2, n.down*2
			}
		} else {
			n.up /= c.sourceRate
		}
		w.nodes = append(w.nodes, n)
	}
	w.left = c.hosts
	for i := range c.sources {
		w.q.put(event{kind: evJoin, node: w.nodes[c.hosts+i]})
	}
	order := w.rand.Perm(c.hosts)
	for k, i := range order {
		n := w.nodes[i]
		at := w.rand.Int64N(int64(c.spread) + 1)
		if c.waves > 0 {
			at += int64(k*c.waves/c.hosts) * int64(c.waveGap)
		}
		w.q.put(event{at: at, kind: evJoin, node: n})
		if k < c.kill {
			w.q.put(event{at: int64(c.killAt) + int64(float64(c.killSpread)*float64(k)/float64(c.kill)), kind: evKill, node: n})
		}
	}
	return w
}

func (w *world) size(i int32) int64 {
	return min(w.conf.pieceLen, w.conf.size-int64(i)*w.conf.pieceLen)
}

func (w *world) time() time.Duration { return time.Duration(w.now) }

func (w *world) put(after int64, k kind, n *node, s *side, piece int32) {
	w.q.put(event{at: w.now + after, kind: k, node: n, side: s, piece: piece})
}

// run goes on until every host that lives is done.
func (w *world) run() {
	for w.left > 0 && w.q.len() > 0 {
		e := w.q.take()
		w.now = e.at
		w.events++
		if time.Duration(w.now) > w.conf.giveUp {
			return
		}
		w.happen(&e)
	}
}

func (w *world) happen(e *event) {
	switch e.kind {
	case evJoin:
		w.join(e.node)
	case evKill:
		w.kill(e.node)
	case evTick:
		w.tick(e.node)
	case evHere:
		w.here(e.node, int(e.piece))
	case evSent:
		w.sent(e.side)
	case evArrived:
		w.arrived(e.side, e.piece)
	case evRequest:
		w.requested(e.side, e.piece)
	case evCancel:
		w.cancelled(e.side, e.piece)
	case evReveal:
		if !e.side.closed && !e.side.at.dead {
			e.side.at.leech.Have(e.side.peer, int(e.piece))
			w.fill(e.side)
		}
	case evReject:
		if !e.side.closed && !e.side.at.dead {
			e.side.at.leech.Lost(e.side.peer, int(e.piece))
			w.fillAll(e.side.at)
		}
	case evHave:
		w.have(e.node, e.piece)
	case evGone:
		w.gone(e.side)
	case evWake:
		if e.node.wakeAt == w.now {
			e.node.wakeAt = math.MaxInt64
			w.moves(e.node)
		}
	}
}

func (w *world) join(n *node) {
	n.joined, n.frontAt = w.now, w.now
	if n.id >= w.conf.hosts {
		n.seed = choice.NewSeed(w.pieces, n.rand)
		n.seed.Shared(w.conf.sources)
		if w.conf.coldRate > 0 {
			n.seed.Here(0)
			w.put(w.fetchTime(0), evHere, n, nil, 1)
		}
		w.hand.join(n.id, w.time())
		return
	}
	n.leech = choice.NewLeech(w.conf.size, w.conf.pieceLen, func(int) bool { return false }, n.rand)
	n.leech.Wanted([]int{0})
	for _, id := range w.hand.join(n.id, w.time()) {
		w.connect(n, w.nodes[id])
	}
	w.put(int64(tickEvery)+w.rand.Int64N(int64(tickEvery)), evTick, n, nil, 0)
}

func (w *world) fetchTime(i int32) int64 {
	return int64(float64(w.size(i)) * 1e9 / (w.conf.rate * w.conf.coldRate))
}

// here goes on with a source that still fetches the blob.
func (w *world) here(n *node, pieces int) {
	n.seed.Here(pieces)
	w.moves(n)
	if pieces < w.pieces {
		w.put(w.fetchTime(int32(pieces)), evHere, n, nil, int32(pieces+1))
	}
}

// connect makes a connection that both know of at once.
func (w *world) connect(a, b *node) {
	if a.dead || b.dead || a == b {
		return
	}
	for _, s := range a.sides {
		if s.other.at == b {
			return
		}
	}
	sa, sb := &side{at: a, gotOf: -1}, &side{at: b, gotOf: -1}
	sa.other, sb.other = sb, sa
	a.sides, b.sides = append(a.sides, sa), append(b.sides, sb)
	w.meet(sa)
	w.meet(sb)
	w.fill(sa)
	w.fill(sb)
}

func (w *world) meet(s *side) {
	o := s.other.at
	if s.at.seed != nil {
		s.host = s.at.seed.Add(string(rune('a'+o.zone)), w.time())
		for i, has := range o.has {
			if has {
				s.at.seed.Have(s.host, i, w.time())
			}
		}
		w.moves(s.at)
		return
	}
	kind := choice.Near
	switch {
	case o.seed != nil:
		kind = choice.Origin
	case o.zone != s.at.zone:
		kind = choice.Far
	}
	s.peer = s.at.leech.Add(kind, w.time())
	for i, has := range o.has {
		if has {
			s.at.leech.Have(s.peer, i)
		}
	}
}

func (w *world) kill(n *node) {
	if n.dead {
		return
	}
	n.dead = true
	n.killAt = w.now
	if n.done == 0 {
		w.left--
	}
	w.hand.leave(n.id, w.time())
	for _, s := range n.sides {
		w.put(int64(w.conf.latency+w.conf.notice), evGone, nil, s.other, 0)
	}
}

func (w *world) gone(s *side) {
	n := s.at
	if n.dead || s.closed {
		return
	}
	s.closed = true
	n.sides = slices.DeleteFunc(n.sides, func(o *side) bool { return o == s })
	n.waiting = slices.DeleteFunc(n.waiting, func(o *side) bool { return o == s })
	if k := slices.Index(n.serving, s); k >= 0 {
		n.serving = slices.Delete(n.serving, k, k+1)
	}
	s.queue = nil
	if n.seed != nil {
		n.seed.Remove(s.host, w.time())
		w.moves(n)
		return
	}
	n.leech.Remove(s.peer)
	w.fillAll(n)
	w.kick(n)
	if n.done == 0 && len(n.sides) < max(1, n.wants/2) {
		for _, id := range w.hand.more(n.id, w.time()) {
			w.connect(n, w.nodes[id])
		}
	}
}

const tickEvery = 500 * time.Millisecond

func (w *world) tick(n *node) {
	if n.dead || n.done != 0 {
		return
	}
	w.fillAll(n)
	w.put(int64(tickEvery), evTick, n, nil, 0)
}

func (w *world) fillAll(n *node) {
	for _, s := range n.sides {
		w.fill(s)
	}
}

// fill asks the other side for what Leech chooses.
func (w *world) fill(s *side) {
	if s.peer == nil || s.at.done != 0 || s.closed {
		return
	}
	for {
		i, ok := s.at.leech.Next(s.peer, w.time())
		if !ok {
			return
		}
		w.put(int64(w.conf.latency), evRequest, nil, s.other, int32(i))
	}
}

// requested: s.at is asked for a piece by the other side.
func (w *world) requested(s *side, piece int32) {
	if s.closed || s.at.dead {
		return
	}
	s.queue = append(s.queue, piece)
	if s.at.seed != nil {
		s.at.seed.Asked(s.host, int(piece), w.time())
	}
	w.enqueue(s)
	w.kick(s.at)
}

func (w *world) enqueue(s *side) {
	if !s.queued && len(s.queue) > 0 {
		s.queued = true
		s.turn = w.line(s)
		s.at.waiting = append(s.at.waiting, s)
	}
}

// kick starts the next chunk on n's uplink, if it is idle and somebody's turn.
func (w *world) kick(n *node) {
	if n.sending || n.dead {
		return
	}
	w.grant(n)
	for range n.serving {
		n.turn = (n.turn + 1) % len(n.serving)
		if s := n.serving[n.turn]; s.flying < inFlight {
			n.sending = true
			w.put(int64(float64(w.size(s.queue[0]))/chunks*n.up), evSent, nil, s, s.queue[0])
			return
		}
	}
}

// grant gives a turn to who comes first, if there is one to give. A turn that
// takes long does not count.
func (w *world) grant(n *node) {
	busy := 0
	for _, s := range n.serving {
		s.slow = s.slow || w.now-s.began > max(2*n.usual, int64(tickEvery))
		if !s.slow {
			busy++
		}
	}
	for ; len(n.waiting) > 0 && busy < w.conf.turns; busy++ {
		first := 0
		for k, s := range n.waiting {
			if s.turn.Before(n.waiting[first].turn) {
				first = k
			}
		}
		s := n.waiting[first]
		n.waiting = slices.Delete(n.waiting, first, first+1)
		s.chunk, s.began, s.slow = 0, w.now, false
		n.serving = append(n.serving, s)
	}
}

// line says where s stands among those who wait for s.at.
func (w *world) line(s *side) choice.Turn {
	if l := s.other.at.leech; l != nil && s.at.seed == nil {
		return choice.NewTurn(w.pieces-l.Missing(), w.pieces, w.time())
	}
	return choice.NewTurn(0, w.pieces, w.time())
}

// sent: a chunk of s.queue[0] has left.
func (w *world) sent(s *side) {
	n, to := s.at, s.other.at
	n.sending = false
	if n.dead {
		return
	}
	if s.closed || len(s.queue) == 0 || !slices.Contains(n.serving, s) {
		w.kick(n)
		return
	}
	i := s.queue[0]
	bytes := float64(w.size(i)) / chunks
	n.sent += int64(bytes)
	at := w.now + int64(w.conf.latency)
	began := at - int64(bytes*n.up)
	if n.zone != to.zone && w.conf.narrow > 0 {
		d := 0
		if n.zone > to.zone {
			d = 1
		}
		w.cross += int64(bytes)
		at, began = pass(&w.narrow[d], at, began, int64(bytes*1e9/w.conf.narrow))
	}
	at, _ = pass(&to.downFree, at, began, int64(bytes*to.down))
	s.flying++
	w.put(at-w.now, evArrived, nil, s, i)
	if s.chunk++; s.chunk == chunks {
		w.endTurn(s)
		if n.seed != nil {
			n.seed.Sent(s.host, int(i), w.time())
			w.moves(n)
		}
	}
	w.kick(n)
}

// pass is a queue that serves in order: a chunk whose first byte comes at began
// and whose last comes at at takes that long. It returns when they leave.
func pass(free *int64, at, began, takes int64) (int64, int64) {
	began = max(began, *free)
	at = max(at, began+takes)
	*free = at
	return at, began
}

// endTurn takes queue[0] as served and puts the side in line again.
func (w *world) endTurn(s *side) {
	n := s.at
	k := slices.Index(n.serving, s)
	n.serving = slices.Delete(n.serving, k, k+1)
	if !s.slow {
		n.usual += (w.now - s.began - n.usual) / 8
	}
	s.queue = s.queue[:copy(s.queue, s.queue[1:])]
	s.queued = false
	w.enqueue(s)
}

// arrived: a chunk that s sent is at the other side.
func (w *world) arrived(s *side, piece int32) {
	n := s.other.at
	blocked := s.flying == inFlight
	s.flying--
	if blocked && !s.closed {
		w.kick(s.at)
	}
	if n.dead || s.other.closed {
		return
	}
	r := s.other
	if r.gotOf != piece {
		r.gotOf, r.got = piece, 0
	}
	r.got++
	if n.has[piece] {
		n.twice += w.size(piece) / chunks
		return
	}
	n.leech.Progress(r.peer, int(piece), w.size(piece)/chunks, w.time())
	if r.got == chunks {
		w.complete(n, r, piece)
		return
	}
	w.fill(r)
}

// complete: n has all of a piece.
func (w *world) complete(n *node, from *side, piece int32) {
	n.has[piece] = true
	for _, p := range n.leech.Done(int(piece)) {
		for _, s := range n.sides {
			if s.peer == p {
				w.put(int64(w.conf.latency), evCancel, nil, s.other, piece)
			}
		}
	}
	w.read(n)
	w.put(int64(w.conf.latency), evHave, n, nil, piece)
	if n.leech.Missing() == 0 {
		n.done = w.now
		w.left--
		return
	}
	w.fill(from)
}

// read moves the client's in-order stream on.
func (w *world) read(n *node) {
	if !n.has[n.front] {
		return
	}
	if n.front == 0 {
		n.first = w.now
	} else {
		n.stall = max(n.stall, w.now-n.frontAt)
	}
	n.frontAt = w.now
	for n.front < w.pieces && n.has[n.front] {
		n.front++
	}
	n.leech.Wanted([]int{n.front})
}

func (w *world) have(n *node, piece int32) {
	if n.dead {
		return
	}
	for _, s := range n.sides {
		o := s.other
		if o.at.dead || o.closed {
			continue
		}
		if o.at.seed != nil {
			o.at.seed.Have(o.host, int(piece), w.time())
			w.moves(o.at)
			continue
		}
		if o.at.done != 0 {
			continue
		}
		o.at.leech.Have(o.peer, int(piece))
		w.fill(o)
	}
}

func (w *world) cancelled(s *side, piece int32) {
	if s.closed || s.at.dead {
		return
	}
	k := slices.Index(s.queue, piece)
	switch {
	case k < 0:
		return
	case k == 0 && slices.Contains(s.at.serving, s):
		w.endTurn(s)
	default:
		s.queue = slices.Delete(s.queue, k, k+1)
		if len(s.queue) == 0 {
			s.at.waiting = slices.DeleteFunc(s.at.waiting, func(o *side) bool { return o == s })
			s.queued = false
		}
	}
	w.kick(s.at)
}

// moves tells hosts what a source reveals and takes back.
func (w *world) moves(n *node) {
	for _, m := range n.seed.Moves(w.time()) {
		var s *side
		for _, o := range n.sides {
			if o.host == m.Host {
				s = o
			}
		}
		if !m.Withdraw {
			w.put(int64(w.conf.latency), evReveal, nil, s.other, int32(m.Piece))
			continue
		}
		w.cancelled(s, int32(m.Piece))
		w.put(int64(w.conf.latency), evReject, nil, s.other, int32(m.Piece))
	}
	if at, ok := n.seed.Wake(); ok && int64(at) < n.wakeAt {
		n.wakeAt = max(int64(at), w.now)
		w.q.put(event{at: n.wakeAt, kind: evWake, node: n})
	}
}
