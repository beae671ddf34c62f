package choice

import (
	"math"
	"slices"
	"time"
)

const (
	// A piece asked of one peer is asked of another too when the first has been
	// silent for lateSilence and has had lateAsk for it. Anything more eager
	// fetched 5 to 11 % of a blob twice.
	lateSilence = 1500 * time.Millisecond
	lateAsk     = 3 * time.Second

	// When endPieces or fewer are missing, and all are asked for, there is nothing
	// else to do, and what is fetched twice are these few.
	// On a thin link it takes as long as endTurns pieces take to come in at our rate, and
	// half of that for the silence, until others who asked a peer before have had theirs.
	endPieces  = 16
	endSilence = 300 * time.Millisecond
	endAsk     = 500 * time.Millisecond
	endTurns   = 16

	// For the one piece that a reader stands at there is less patience, too.
	urgentSilence = 500 * time.Millisecond
	urgentAsk     = time.Second

	// A peer that sends, but would take this much longer over a piece than
	// another one does, is late as well.
	slowFactor = 4
	slowMargin = time.Second

	// Who was late when a reader waited is tardy until it has brought a whole piece in
	// time, and each time it happens again one more: it owes one piece at a time, which
	// does not count as asked for and is away from readers, who do not wait for it a
	// second time. A peer that only trickles is never silent, and would hold up a reader
	// for urgentAsk at each piece it is given. Where all are as late, it is our link.

	// Who owed something and was silent for stuckAfter is asked for nothing more until
	// he sends something, or has not been found so for shunFor.
	shunFor = 5 * time.Second
)

// shuns says whether p is asked for nothing now. A peer that brings nothing would
// otherwise be given another piece for each that is had elsewhere in its place.
func (l *Leech) shuns(p *Peer, now time.Duration) bool {
	if p.kind != Origin && p.stuck(now) {
		p.shunned = now + shunFor
	}
	return now < p.shunned
}

// late picks a piece for p, which has nothing to do, that another peer was
// asked for and is late with: the one asked for first.
func (l *Leech) late(p *Peer, now time.Duration) (int, bool) {
	if now < l.lateAt && l.missing > endPieces || p.kind == Far && l.near > 0 {
		return 0, false
	}
	after, silence := lateAsk, lateSilence
	if l.missing <= endPieces {
		after, silence = endAsk, endSilence
		if l.meter.rate > 0 {
			turns := time.Duration(endTurns * float64(l.pieceLen) / l.meter.rate * float64(time.Second))
			after, silence = min(max(after, turns), lateAsk), min(max(silence, turns/2), lateSilence)
		}
	}
	best, oldest, first := -1, now, now
	for _, o := range l.peers {
		for _, a := range o.asked {
			first = min(first, a.at)
			if a.at < oldest && now-a.at >= after && l.isLate(a.piece, p, now, after, silence) {
				best, oldest = a.piece, a.at
			}
		}
	}
	l.lateAt = first + after
	return best, best >= 0
}

// urgent picks the piece that a reader stands at, if p has it and whoever was
// asked for it is late.
func (l *Leech) urgent(p *Peer, now time.Duration) (int, bool) {
	if l.moved {
		l.moved, l.frontAt = false, now
	}
	if now-l.frontAt < urgentAsk || p.kind == Far && l.near > 0 {
		return 0, false
	}
	for _, i := range l.fronts {
		if i < l.pieces && l.lacked.has(i) && l.isLate(i, p, now, urgentAsk, urgentSilence) {
			l.frontAt = now // a third is not asked at once
			l.blame(now)
			return i, true
		}
	}
	return 0, false
}

// blame makes tardy who is late with a piece at which a reader waits, and whoever is as
// late with another or as slow: it would keep the reader waiting next.
func (l *Leech) blame(now time.Duration) {
	much := l.much(l.best(now))
	for _, o := range l.peers {
		if o.tardy == 0 && l.drags(o, now, much) {
			o.lapses++
			o.tardy, o.bound = o.lapses, much
			l.tardy++
		}
	}
}

// drags says whether o owes a piece that it takes too much time over.
func (l *Leech) drags(o *Peer, now, much time.Duration) bool {
	for k, a := range o.asked {
		if a.left > 0 && (o.meter.rate > 0 && o.takes(l.pieceLen) > much || l.behind(o, k, now, urgentAsk, much, much)) {
			return true
		}
	}
	return false
}

// best is the rate of the fastest peer that is not silent.
func (l *Leech) best(now time.Duration) (rate float64) {
	for _, o := range l.peers {
		if !o.stuck(now) {
			rate = max(rate, o.meter.rate)
		}
	}
	return rate
}

// stuck says whether p owes something and is silent.
func (p *Peer) stuck(now time.Duration) bool { return p.owed > 0 && now-p.heard > stuckAfter }

// overdue picks a piece that a reader is about to come to, and that only tardy peers have
// been asked for: it need not stand there and wait first, once more. For a peer with
// nothing else to do any such piece will do.
func (l *Leech) overdue(p *Peer, idle bool) (int, bool) {
	if l.tardy == 0 || p.tardy > 0 || p.kind == Far && l.near > 0 {
		return 0, false
	}
	for _, f := range l.fronts {
		end := l.pieces
		if !idle {
			end = min(f+window, end)
		}
		for i, ok := l.lacked.firstIn(p.has, f, end); ok; i, ok = l.lacked.firstIn(p.has, i+1, end) {
			if l.leftToTardy(i) {
				return i, true
			}
		}
	}
	return 0, false
}

// leftToTardy says whether piece i has been asked of somebody, and of tardy peers only,
// who have not sent all of it.
func (l *Leech) leftToTardy(i int) bool {
	asked := false
	for _, o := range l.peers {
		k := o.find(i)
		if k < 0 {
			continue
		}
		if o.tardy == 0 || o.asked[k].left == 0 {
			return false
		}
		asked = true
	}
	return asked
}

// apart picks what a tardy peer is asked for: what a reader comes to soon only if nobody
// else brings it, or has not after all.
func (l *Leech) apart(p *Peer, now time.Duration) (int, bool) {
	waited := now-l.frontAt >= urgentAsk
	for _, f := range l.fronts {
		for i := f; i < min(f+window, l.pieces); i++ {
			if l.free.has(i) && p.has.has(i) && (waited && i == f || !l.othersBring(i, now)) {
				return i, true
			}
		}
	}
	return l.rarest(p)
}

// othersBring says whether piece i can be had of a peer that is not tardy.
func (l *Leech) othersBring(i int, now time.Duration) bool {
	return slices.ContainsFunc(l.peers, func(o *Peer) bool {
		return o.tardy == 0 && o.has.has(i) && !o.stuck(now) && (o.kind != Far || l.near == 0)
	})
}

// isLate says whether all who were asked for piece i are late with it, and p had
// better be asked for it too.
func (l *Leech) isLate(i int, p *Peer, now, after, silence time.Duration) bool {
	if !p.has.has(i) || p.find(i) >= 0 {
		return false
	}
	asked, much := 0, l.much(p.meter.rate)
	for _, o := range l.peers {
		k := o.find(i)
		if k < 0 {
			continue
		}
		if o.asked[k].left == 0 || !l.behind(o, k, now, after, silence, much) {
			return false
		}
		asked++
	}
	return asked > 0 && (p.tardy == 0 || !l.othersBring(i, now))
}

// behind says whether o is late with its k-th piece: it has been silent, or will take
// much longer to send it than others.
func (l *Leech) behind(o *Peer, k int, now, after, silence, much time.Duration) bool {
	if now-o.asked[k].at < after {
		return false
	}
	var left int64
	for _, a := range o.asked[:k+1] {
		left += a.left
	}
	return now-o.heard >= silence || o.takes(left) > much
}

// takes is how long p takes over n bytes; very long if it has not sent any yet.
func (p *Peer) takes(n int64) time.Duration {
	return time.Duration(float64(n) / max(p.meter.rate, 1) * float64(time.Second))
}

// much is much longer than a piece takes at that rate, and for ever if it is not known.
func (l *Leech) much(rate float64) time.Duration {
	if rate < 1 {
		return math.MaxInt64
	}
	return time.Duration(slowFactor*float64(l.pieceLen)/rate*float64(time.Second)) + slowMargin
}
