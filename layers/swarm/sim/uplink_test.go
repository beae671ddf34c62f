package sim

import (
	"slices"

	"github.com/murderp2p/murder/layers/swarm/choice"
)

// requested: the other end of s asks for a piece.
func (w *world) requested(s *side, piece int32) {
	s.queue = append(s.queue, piece)
	if s.host != nil {
		s.at.seed.Asked(s.host, int(piece), w.time())
	}
	w.lineUp(s)
	w.serve(s.at)
}

func (w *world) lineUp(s *side) {
	if len(s.queue) == 0 || s.closed {
		return
	}
	has := 0
	if l := s.other.at.leech; l != nil && s.host == nil {
		has = w.pieces - l.Missing()
	}
	s.at.line.Add(s.taker, choice.NewTurn(has, w.pieces, w.time()))
}

// turnBegins: it is s's turn to be served.
func (s *side) turnBegins() {
	s.chunk = 0
	s.at.serving = append(s.at.serving, s)
}

// cancelled takes a piece out of what s's other end asked for.
func (w *world) cancelled(s *side, piece int32) {
	k := slices.Index(s.queue, piece)
	switch {
	case k < 0:
		return
	case k == 0 && s.taker.Served():
		w.endTurn(s)
	default:
		s.queue = slices.Delete(s.queue, k, k+1)
		if len(s.queue) == 0 {
			s.at.line.Remove(s.taker)
		}
	}
	w.serve(s.at)
}

// serve puts the next chunk on n's uplink, if it is idle and there is one.
func (w *world) serve(n *node) {
	if n.sending || n.dead {
		return
	}
	n.line.Grant(w.time())
	for range n.serving {
		n.next = (n.next + 1) % len(n.serving)
		if s := n.serving[n.next]; s.flying < inFlight {
			n.sending = true
			w.put(int64(float64(w.size(s.queue[0]))/chunks*n.up), evSent, nil, s, s.queue[0])
			return
		}
	}
}

// endTurn takes queue[0] as served and puts the side in line again.
func (w *world) endTurn(s *side) {
	n := s.at
	n.serving = without(n.serving, s)
	n.line.End(s.taker, w.time())
	s.queue = slices.Delete(s.queue, 0, 1)
	w.lineUp(s)
}

// sent: a chunk of what s serves has left.
func (w *world) sent(s *side) {
	n := s.at
	n.sending = false
	if n.dead || s.closed || !slices.Contains(n.serving, s) { // it was cancelled, or the peer has gone
		w.serve(n)
		return
	}
	piece := s.queue[0]
	s.flying++
	w.travel(s, piece)
	if s.chunk++; s.chunk == chunks {
		w.endTurn(s)
		if n.seed != nil {
			n.seed.Sent(s.host, int(piece), w.time())
			w.reveal(n)
		}
	}
	w.serve(n)
}

// travel takes a chunk that has just left s across the network.
func (w *world) travel(s *side, piece int32) {
	from, to := s.at, s.other.at
	bytes := float64(w.size(piece)) / chunks
	from.sent += int64(bytes)
	last := w.now + int64(w.conf.latency)
	if from.zone == to.zone || w.conf.narrow == 0 {
		w.down(s, piece, last-int64(bytes*from.up), last)
		return
	}
	way := 0
	if from.zone > to.zone {
		way = 1
	}
	w.cross[way] += int64(bytes)
	_, last = pass(&w.narrow[way], last-int64(bytes*from.up), last, w.crossing(piece))
	w.put(last-w.now, evCrossed, nil, s, piece)
}

// crossing is how long a chunk is on the link between zones.
func (w *world) crossing(piece int32) int64 {
	return int64(float64(w.size(piece)) / chunks * 1e9 / w.conf.narrow)
}

// crossed: a chunk that s sent has left the link between zones.
func (w *world) crossed(s *side, piece int32) {
	w.down(s, piece, w.now-w.crossing(piece), w.now)
}

// down takes a chunk that s sent, and that comes in from first to last, through
// the receiver's downlink.
func (w *world) down(s *side, piece int32, first, last int64) {
	to := s.other.at
	_, last = pass(&to.downFree, first, last, int64(float64(w.size(piece))/chunks*to.down))
	w.put(last-w.now, evArrived, nil, s, piece)
}

// pass is a queue that serves in order and passes on what comes in at once: a
// chunk whose first byte comes at first and whose last at last, and that takes
// so long. It returns when they leave.
func pass(free *int64, first, last, takes int64) (int64, int64) {
	first = max(first, *free)
	*free = max(last, first+takes)
	return first, *free
}
