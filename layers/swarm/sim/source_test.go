package sim

import (
	"github.com/murderp2p/murder/layers/swarm/choice"
)

// open begins a source's part.
func (w *world) open(n *node) {
	n.seed = choice.NewSeed(w.pieces, n.rand)
	n.seed.Shared(w.conf.sources)
	w.put(int64(wakeEvery), evWake, n, nil, 0)
	if w.conf.cold > 0 {
		n.seed.Here(0)
		w.put(w.fetchTime(0), evHere, n, nil, 1)
	}
}

// fetchTime is how long a source takes to fetch a piece.
func (w *world) fetchTime(piece int32) int64 {
	return int64(float64(w.size(piece)) * 1e9 / (w.conf.rate * w.conf.cold))
}

// here goes on with a source that still fetches the blob.
func (w *world) here(n *node, pieces int) {
	n.seed.Here(pieces)
	w.reveal(n)
	if pieces < w.pieces {
		w.put(w.fetchTime(int32(pieces)), evHere, n, nil, int32(pieces+1))
	}
}

// reveal tells hosts what Seed decides.
func (w *world) reveal(n *node) {
	for _, m := range n.seed.Moves(w.time()) {
		for _, s := range n.sides {
			switch {
			case s.host != m.Host:
			case m.Withdraw:
				w.cancelled(s, int32(m.Piece))
				w.send(evReject, s.other, int32(m.Piece))
			default:
				w.send(evReveal, s.other, int32(m.Piece))
			}
		}
	}
}

// wake has a source look now and then for hosts that it waits for in vain.
func (w *world) wake(n *node) {
	w.reveal(n)
	w.put(int64(wakeEvery), evWake, n, nil, 0)
}
