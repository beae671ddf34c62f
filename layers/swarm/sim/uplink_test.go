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
	if s.lined || len(s.queue) == 0 {
		return
	}
	s.lined = true
	has := 0
	if l := s.other.at.leech; l != nil && s.host == nil {
		has = w.pieces - l.Missing()
	}
	s.turn = choice.NewTurn(has, w.pieces, w.time())
	s.at.line = append(s.at.line, s)
}

// cancelled takes a piece out of what s's other end asked for.
func (w *world) cancelled(s *side, piece int32) {
	k := slices.Index(s.queue, piece)
	switch {
	case k < 0:
		return
	case k == 0 && slices.Contains(s.at.serving, s):
		w.endTurn(s)
	default:
		s.queue = slices.Delete(s.queue, k, k+1)
		if len(s.queue) == 0 {
			s.at.line = without(s.at.line, s)
			s.lined = false
		}
	}
	w.serve(s.at)
}

// serve puts the next chunk on n's uplink, if it is idle and there is one.
func (w *world) serve(n *node) {
	if n.sending || n.dead {
		return
	}
	w.grant(n)
	for range n.serving {
		n.next = (n.next + 1) % len(n.serving)
		if s := n.serving[n.next]; s.flying < inFlight {
			n.sending = true
			w.put(int64(float64(w.size(s.queue[0]))/chunks*n.up), evSent, nil, s, s.queue[0])
			return
		}
	}
}

// grant gives a turn to who comes first, if there is one to give. One that takes
// long does not count.
func (w *world) grant(n *node) {
	busy := 0
	for _, s := range n.serving {
		if s.slow = s.slow || w.now-s.began > n.long(); !s.slow {
			busy++
		}
	}
	for ; len(n.line) > 0 && busy < turnsAtOnce; busy++ {
		s := slices.MinFunc(n.line, func(a, b *side) int {
			switch {
			case a.turn.Before(b.turn):
				return -1
			case b.turn.Before(a.turn):
				return 1
			}
			return 0
		})
		n.line = without(n.line, s)
		s.chunk, s.began, s.slow = 0, w.now, false
		n.serving = append(n.serving, s)
	}
}

// long is more than a turn should take.
func (n *node) long() int64 { return max(2*n.usual, int64(slowTurn)) }

// endTurn takes queue[0] as served and puts the side in line again.
func (w *world) endTurn(s *side) {
	n := s.at
	n.serving = without(n.serving, s)
	n.usual += (min(w.now-s.began, 2*n.long()) - n.usual) / 8
	s.queue = slices.Delete(s.queue, 0, 1)
	s.lined = false
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
