package choice

import "time"

const (
	// A piece asked of one peer is asked of another too when the first has been
	// silent for lateSilence and has had lateAsk for it. Anything more eager
	// fetched 5 to 11 % of a blob twice.
	lateSilence = 1500 * time.Millisecond
	lateAsk     = 3 * time.Second

	// When endPieces or fewer are missing, and all are asked for, there is nothing
	// else to do, and what is fetched twice are these few.
	endPieces  = 16
	endSilence = 300 * time.Millisecond
	endAsk     = 500 * time.Millisecond

	// For the one piece that a reader stands at there is less patience, too.
	urgentSilence = 500 * time.Millisecond
	urgentAsk     = time.Second

	// A peer that sends, but would take this much longer over a piece than
	// another one does, is late as well.
	slowFactor = 4
	slowMargin = time.Second

	// Who was late when a reader waited is tardy until it has brought a whole piece, and
	// each time it happens again one more: it owes one piece at a time, which does not
	// count as asked for, and readers do not wait for it a second time. A peer that only
	// trickles is never silent, and would hold up a reader for urgentAsk at each piece it
	// is given.

	// Who owed something and was silent for stuckAfter is asked for nothing more until
	// he sends something, or has not been found so for shunFor.
	shunFor = 5 * time.Second
)

// shuns says whether p is asked for nothing now. A peer that brings nothing would
// otherwise be given another piece for each that is had elsewhere in its place.
func (l *Leech) shuns(p *Peer, now time.Duration) bool {
	if p.kind != Origin && p.owed > 0 && now-p.heard > stuckAfter {
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
			l.blame(p, now)
			return i, true
		}
	}
	return 0, false
}

// blame makes tardy who is late with a piece at which a reader waits, and whoever is as
// late with another: it would keep the reader waiting next. p is asked for the piece as
// well now.
func (l *Leech) blame(p *Peer, now time.Duration) {
	for _, o := range l.peers {
		for k, a := range o.asked {
			if o.tardy == 0 && a.left > 0 && l.behind(o, k, p, now, urgentAsk, urgentSilence) {
				o.lapses++
				o.tardy = o.lapses
				l.tardy++
			}
		}
	}
}

// overdue picks a piece that a reader is about to come to, and that only tardy peers have
// been asked for: it need not stand there and wait first, once more. For a peer with
// nothing else to do any such piece will do.
func (l *Leech) overdue(p *Peer, idle bool) (int, bool) {
	if l.tardy == 0 || p.tardy > 0 || p.kind == Far && l.near > 0 {
		return 0, false
	}
	for _, f := range l.fronts {
		for i := f; i < l.pieces && (idle || i < f+window); i++ {
			if l.lacked.has(i) && p.has.has(i) && l.leftToTardy(i) {
				return i, true
			}
		}
	}
	return 0, false
}

// leftToTardy says whether piece i has been asked of somebody, and of tardy peers only.
func (l *Leech) leftToTardy(i int) bool {
	asked := false
	for _, o := range l.peers {
		if o.find(i) < 0 {
			continue
		}
		if o.tardy == 0 {
			return false
		}
		asked = true
	}
	return asked
}

// isLate says whether all who were asked for piece i are late with it, and p had
// better be asked for it too.
func (l *Leech) isLate(i int, p *Peer, now, after, silence time.Duration) bool {
	if !p.has.has(i) || p.find(i) >= 0 {
		return false
	}
	asked := 0
	for _, o := range l.peers {
		k := o.find(i)
		if k < 0 {
			continue
		}
		if o.asked[k].left == 0 || !l.behind(o, k, p, now, after, silence) {
			return false
		}
		asked++
	}
	return asked > 0
}

// behind says whether o is late with its k-th piece: it has been silent, or will take
// longer than p.
func (l *Leech) behind(o *Peer, k int, p *Peer, now, after, silence time.Duration) bool {
	return now-o.asked[k].at >= after && (now-o.heard >= silence || l.slower(o, k, p))
}

// slower says whether o will take much longer until it has sent its k-th piece
// than p takes over one.
func (l *Leech) slower(o *Peer, k int, p *Peer) bool {
	if p.meter.rate == 0 {
		return false
	}
	var left int64
	for _, a := range o.asked[:k+1] {
		left += a.left
	}
	theirs := float64(left) / max(o.meter.rate, 1)
	ours := float64(l.pieceLen) / p.meter.rate
	return theirs > slowFactor*ours+slowMargin.Seconds()
}
