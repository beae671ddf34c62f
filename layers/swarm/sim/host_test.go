package sim

import (
	"math"

	"github.com/murderp2p/murder/layers/swarm/choice"
)

// join begins a node's part in the swarm.
func (w *world) join(n *node) {
	n.joined, n.frontAt = w.now, w.now
	if n.id >= w.conf.hosts {
		w.open(n)
		return
	}
	n.leech = choice.NewLeech(w.conf.size, w.conf.pieceLen, func(int) bool { return false }, n.rand)
	n.leech.Wanted([]int{0})
	w.lookAround(n)
	w.put(w.rand.Int64N(int64(tickEvery)), evTick, n, nil, 0)
}

// lookAround asks the tracker for peers, and once more after a while.
func (w *world) lookAround(n *node) {
	if n.dead || n.done != 0 || n.askAt > w.now {
		return
	}
	peers, source := w.track.announce(n)
	for _, p := range peers {
		w.connect(n, p)
	}
	if source {
		for _, p := range w.source {
			w.connect(n, p)
		}
	}
	n.asked, n.askAt = w.now, math.MaxInt64
	w.askBy(n, w.now+int64(askAgain))
}

// askBy has n ask the tracker at that time, if not before.
func (w *world) askBy(n *node, at int64) {
	if at < n.askAt {
		n.askAt = at
		w.put(at-w.now, evTracker, n, nil, 0)
	}
}

// tick looks for what is late.
func (w *world) tick(n *node) {
	if n.dead || n.done != 0 {
		return
	}
	w.askAll(n)
	w.put(int64(tickEvery), evTick, n, nil, 0)
}

func (w *world) askAll(n *node) {
	for _, s := range n.sides {
		w.ask(s)
	}
}

// ask asks the other end for what Leech chooses.
func (w *world) ask(s *side) {
	if s.peer == nil || s.at.done != 0 || s.closed {
		return
	}
	for {
		i, ok := s.at.leech.Next(s.peer, w.time())
		if !ok {
			return
		}
		w.send(evRequest, s.other, int32(i))
	}
}

// arrived: a chunk that s sent is at its other end.
func (w *world) arrived(s *side, piece int32) {
	if s.flying--; s.flying == inFlight-1 && !s.closed {
		w.serve(s.at)
	}
	r := s.other
	n := r.at
	if n.dead || r.closed {
		return
	}
	if r.coming != piece {
		r.coming, r.got = piece, 0
	}
	r.got++
	bytes := w.size(piece) / chunks
	if n.has[piece] {
		n.twice += bytes
		return
	}
	if r.got == chunks { // with what a division by chunks has left out
		bytes = w.size(piece)
	}
	n.leech.Progress(r.peer, int(piece), bytes, w.time())
	if r.got == chunks {
		w.complete(n, piece)
	}
	w.ask(r)
}

// complete: n has all of a piece.
func (w *world) complete(n *node, piece int32) {
	n.has[piece] = true
	for _, p := range n.leech.Done(int(piece)) {
		for _, s := range n.sides {
			if s.peer == p {
				w.send(evCancel, s.other, piece)
			}
		}
	}
	w.read(n)
	w.put(int64(w.conf.latency), evHave, n, nil, piece)
	if n.leech.Missing() == 0 {
		n.done = w.now
		w.left--
		w.track.announce(n)
	}
}

// read moves on the client that reads the blob in order.
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
	if n.half == 0 && n.front >= w.pieces/2 {
		n.half = w.now
	}
	n.leech.Wanted([]int{n.front})
}

// have: n's peers hear that it has piece. To those who have it too it is no news.
func (w *world) have(n *node, piece int32) {
	if n.dead {
		return
	}
	for _, s := range n.sides {
		o := s.other
		switch {
		case o.at.dead || o.closed:
		case o.at.seed != nil:
			o.at.seed.Have(o.host, int(piece), w.time())
			w.reveal(o.at)
		case !o.at.has[piece]:
			o.at.leech.Have(o.peer, int(piece))
			w.ask(o)
		}
	}
}
