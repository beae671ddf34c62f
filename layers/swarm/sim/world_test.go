package sim

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/murderp2p/murder/layers/swarm/choice"
)

// The model, so that its figures can be judged:
//
//   - A host has an uplink and a downlink. Data goes in quarters of a piece
//     ("chunks"). An uplink sends one chunk at a time at its rate, turning over
//     the connections that are being served. At most turnsAtOnce of them are, a
//     piece each, in the order of choice.Turn; a source serves them as they come.
//   - A chunk then crosses the network (latency), the narrow link between zones
//     if there is one, and the receiver's downlink: queues that serve in order,
//     each passing a chunk on as it comes in. At most inFlight chunks of one
//     connection are under way: beyond that the sender waits and its turn stays
//     taken, as with a full socket, until it has taken so long that another one
//     is served besides.
//   - Control messages take the latency and no room, hashing and disks take no
//     time, and there is no protocol overhead: a limit of size over rate can be
//     reached.
//   - Connections are made at once. Who is killed says no goodbye to the tracker;
//     its peers notice after the latency and config.notice.
const (
	chunks      = 4
	inFlight    = 4
	turnsAtOnce = 3
	// tickEvery is how often a host looks for what is late. (The engine does so five
	// times as often, which is seldom of use and would take most of the time here.)
	tickEvery = 500 * time.Millisecond
	// wakeEvery is how often a source does.
	wakeEvery = 100 * time.Millisecond
	// slowTurn is the least time after which a turn may count as a slow one.
	slowTurn = 100 * time.Millisecond
	// askAgain is how often a host asks the tracker, and askPause how long it waits
	// at least when it has lost a neighbour and has too few.
	askAgain = 5 * time.Second
	askPause = 2 * time.Second
)

// kind is what an event is. side and piece, or node, say to whom it happens.
type kind uint8

const (
	evJoin    kind = iota
	evKill         // node dies
	evGone         // side's other end has gone
	evTick         // node looks for what is late
	evTracker      // node asks the tracker for more
	evHere         // source node has fetched pieces up to piece
	evWake         // source node looks for who does not answer
	evSent         // a chunk has left the uplink of side's node
	evCrossed      // a chunk of piece that side sent has left the link between zones
	evArrived      // a chunk of piece that side sent has arrived
	evRequest      // side is asked for piece by its other end
	evCancel       // or not any more
	evReveal       // piece is revealed to side
	evReject       // or taken back
	evHave         // node's peers hear that it has piece
)

// world is one run.
type world struct {
	conf   config
	rand   *rand.Rand
	now    int64 // nanoseconds
	queue  queue
	hosts  []*node
	source []*node
	track  *tracker
	narrow [2]int64 // when the link between zones is free, by direction
	cross  [2]int64 // bytes that have crossed it
	left   int      // hosts not done
	pieces int
	events int
}

func newWorld(c config) *world {
	w := &world{conf: c, pieces: c.pieces(), left: c.hosts, rand: rand.New(rand.NewPCG(c.seed, 1))}
	w.track = newTracker(w)
	for i := range c.sources {
		n := w.newNode(c.hosts + i)
		n.up /= c.sourceRate
		w.source = append(w.source, n)
		w.put(0, evJoin, n, nil, 0)
	}
	for i := range c.hosts {
		n := w.newNode(i)
		if c.zones > 1 {
			n.zone = i % c.zones
		}
		if c.slow > 0 && i%c.slow == 1 {
			n.up, n.down = 2*n.up, 2*n.down
		}
		w.hosts = append(w.hosts, n)
	}
	for k, i := range w.rand.Perm(c.hosts) {
		at := w.rand.Int64N(int64(c.spread) + 1)
		if c.waves > 1 {
			at += int64(k*c.waves/c.hosts) * int64(c.waveEvery)
		}
		w.put(at, evJoin, w.hosts[i], nil, 0)
		if k < c.kill {
			w.put(c.killTime(k), evKill, w.hosts[i], nil, 0)
		}
	}
	return w
}

func (w *world) newNode(id int) *node {
	return &node{
		id: id, line: choice.NewLine(turnsAtOnce, slowTurn), up: 1e9 / w.conf.rate, down: 1e9 / w.conf.rate,
		rand: rand.New(rand.NewPCG(w.conf.seed, uint64(id)+2)), has: make([]bool, w.pieces),
	}
}

func (w *world) time() time.Duration { return time.Duration(w.now) }

func (w *world) size(piece int32) int64 {
	return min(w.conf.pieceLen, w.conf.size-int64(piece)*w.conf.pieceLen)
}

// put has something happen after so long.
func (w *world) put(after int64, k kind, n *node, s *side, piece int32) {
	w.queue.put(event{at: w.now + after, kind: k, node: n, side: s, piece: piece})
}

// send has something happen at the other end of a connection.
func (w *world) send(k kind, to *side, piece int32) {
	w.put(int64(w.conf.latency), k, nil, to, piece)
}

// run goes on until every host that lives is done, or it is hopeless.
func (w *world) run() {
	for w.left > 0 && w.queue.len() > 0 && w.now < int64(w.conf.giveUp) {
		e := w.queue.take()
		w.now = e.at
		w.events++
		if e.side != nil {
			w.toSide(e.kind, e.side, e.piece)
		} else {
			w.toNode(e.kind, e.node, e.piece)
		}
	}
}

func (w *world) toNode(k kind, n *node, piece int32) {
	switch k {
	case evJoin:
		w.join(n)
	case evKill:
		w.kill(n)
	case evTick:
		w.tick(n)
	case evTracker:
		w.lookAround(n)
	case evHere:
		w.here(n, int(piece))
	case evWake:
		w.wake(n)
	case evHave:
		w.have(n, piece)
	}
}

func (w *world) toSide(k kind, s *side, piece int32) {
	switch {
	case k == evSent:
		w.sent(s)
	case k == evCrossed:
		w.crossed(s, piece)
	case k == evArrived:
		w.arrived(s, piece)
	case s.closed || s.at.dead:
	case k == evGone:
		w.gone(s)
	case k == evRequest:
		w.requested(s, piece)
	case k == evCancel:
		w.cancelled(s, piece)
	case k == evReveal:
		s.at.leech.Have(s.peer, int(piece))
		w.ask(s)
	case k == evReject:
		s.at.leech.Lost(s.peer, int(piece))
		w.askAll(s.at)
	}
}

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

	line     *choice.Line
	serving  []*side // whose turn it is
	next     int     // which of these is sent to
	sending  bool
	downFree int64

	has     []bool
	front   int // what its reader waits for
	frontAt int64
	joined  int64
	asked   int64 // when it last asked the tracker
	askAt   int64 // when it is to ask again
	first   int64 // when it had piece 0
	half    int64 // when its reader had half of the blob
	stall   int64 // the longest time its reader had to wait
	done    int64
	sent    int64 // bytes
	twice   int64 // bytes received that were here already
}

// side is one node's end of a connection.
type side struct {
	at    *node
	other *side
	peer  *choice.Peer // the other, when at fetches from it
	host  *choice.Host // the other, when at reveals to it

	// What the other gets of us.
	queue  []int32 // pieces it asked for
	taker  *choice.Taker
	chunk  int // chunks of queue[0] sent
	flying int // chunks sent that have not arrived

	// What we get of it.
	coming int32 // piece
	got    int   // chunks of it

	closed bool
}

// connect makes a connection that both know of at once.
func (w *world) connect(a, b *node) {
	if a.dead || b.dead || a == b || slices.ContainsFunc(a.sides, func(s *side) bool { return s.other.at == b }) {
		return
	}
	sa, sb := &side{at: a, coming: -1}, &side{at: b, coming: -1}
	sa.other, sb.other = sb, sa
	sa.taker, sb.taker = choice.NewTaker(sa.turnBegins), choice.NewTaker(sb.turnBegins)
	a.sides, b.sides = append(a.sides, sa), append(b.sides, sb)
	w.meet(sa)
	w.meet(sb)
	w.makeRoom(sa)
	w.makeRoom(sb)
	w.ask(sa)
	w.ask(sb)
}

// makeRoom parts a host that still fetches from another one than s, if it has
// too many of its kind.
func (w *world) makeRoom(s *side) {
	n := s.at
	if n.seed != nil || n.done != 0 || s.other.at.seed != nil {
		return
	}
	var same []*side
	for _, o := range n.sides {
		if o != s && o.other.at.seed == nil && (o.other.at.zone == n.zone) == (s.other.at.zone == n.zone) {
			same = append(same, o)
		}
	}
	most := w.conf.kept
	if s.other.at.zone != n.zone {
		most = keptFar
	}
	if len(same) >= most {
		parted := same[w.rand.IntN(len(same))]
		w.gone(parted)
		w.gone(parted.other)
	}
}

// meet tells a node of the other end of a connection and of what it has.
func (w *world) meet(s *side) {
	n, o := s.at, s.other.at
	if n.seed != nil {
		s.host = n.seed.Add(string(rune('a'+o.zone)), w.time())
		for i, has := range o.has {
			if has {
				n.seed.Have(s.host, i, w.time())
			}
		}
		w.reveal(n)
		return
	}
	kind := choice.Near
	switch {
	case o.seed != nil:
		kind = choice.Origin
	case o.zone != n.zone:
		kind = choice.Far
	}
	s.peer = n.leech.Add(kind, w.time())
	for i, has := range o.has {
		if has {
			n.leech.Have(s.peer, i)
		}
	}
}

func (w *world) kill(n *node) {
	n.dead = true
	if n.done == 0 {
		w.left--
	}
	for _, s := range n.sides {
		w.put(int64(w.conf.latency+w.conf.notice), evGone, nil, s.other, 0)
	}
}

// gone: the other end of s is not there any more.
func (w *world) gone(s *side) {
	n := s.at
	if s.closed || n.dead {
		return
	}
	s.closed = true
	n.sides = without(n.sides, s)
	n.line.Remove(s.taker)
	n.serving = without(n.serving, s)
	w.serve(n)
	if n.seed != nil {
		n.seed.Remove(s.host, w.time())
		w.reveal(n)
		return
	}
	n.leech.Remove(s.peer)
	w.askAll(n)
	if n.done == 0 && len(n.sides) < w.conf.neighbours {
		w.askBy(n, max(w.now, n.asked+int64(askPause)))
	}
}

func without[T comparable](list []T, v T) []T {
	if i := slices.Index(list, v); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}
