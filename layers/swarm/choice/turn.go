package choice

import (
	"slices"
	"time"
)

// bands is how many steps of progress are told apart when it is to be decided
// who is served first.
const bands = 32

// Turn is the place in line of a peer that has asked a host for a piece and
// waits for it. A host's link is given to one after the other, a piece at a
// time, to whoever has the least Turn: who has least of the blob, by bands of a
// 32nd, and within a band first come, first served.
//
// In a random graph some hosts have half as many neighbours as others. Served
// in order only, they end a quarter later than the rest, while the others have
// nothing left to do; as it is, all end together.
type Turn struct {
	band  int
	asked time.Duration
}

// NewTurn places a peer that has so many of so many pieces and asked at that
// time.
func NewTurn(has, pieces int, asked time.Duration) Turn {
	return Turn{band: has * bands / max(pieces, 1), asked: asked}
}

// Before says whether t comes before o.
func (t Turn) Before(o Turn) bool {
	return t.band < o.band || t.band == o.band && t.asked < o.asked
}

// Line gives a host's uplink to those who have asked for something: a few at a
// time, so that pieces are whole early, one after the other, and not all late
// together. A turn that takes long, as the taker's own link is slow, does not
// hold up the others: another one is given besides.
type Line struct {
	most    int           // turns at once
	least   time.Duration // in which no turn is a long one
	busy    int           // turns that count
	waiting []*Taker
	served  []*Taker
	usual   time.Duration // how long turns have taken of late
}

// Taker is a peer in a [Line].
type Taker struct {
	begin   func()
	place   Turn
	waiting bool
	served  bool
	since   time.Duration // when its turn began
	slow    bool          // its turn does not count any more
}

// NewLine returns a line of so many turns at once, none of which counts as a
// long one before least has passed.
func NewLine(most int, least time.Duration) *Line { return &Line{most: most, least: least} }

// NewTaker returns a peer that is in no line. It is told by begin when its turn
// comes.
func NewTaker(begin func()) *Taker { return &Taker{begin: begin} }

// Idle says whether t neither waits nor is served.
func (t *Taker) Idle() bool { return !t.waiting && !t.served }

// Served says whether it is t's turn.
func (t *Taker) Served() bool { return t.served }

// Add puts an idle t into the line.
func (l *Line) Add(t *Taker, place Turn) {
	if t.Idle() {
		t.place, t.waiting = place, true
		l.waiting = append(l.waiting, t)
	}
}

// Grant begins the turns that can begin. It is to be called after any other
// change, and now and then while somebody waits.
func (l *Line) Grant(now time.Duration) {
	if len(l.waiting) == 0 {
		return
	}
	for _, t := range l.served {
		if !t.slow && now-t.since > l.long() {
			t.slow = true
			l.busy--
		}
	}
	for len(l.waiting) > 0 && l.busy < l.most {
		t := l.waiting[0]
		for _, o := range l.waiting {
			if o.place.Before(t.place) {
				t = o
			}
		}
		l.waiting = without(l.waiting, t)
		l.served = append(l.served, t)
		t.waiting, t.served, t.slow, t.since = false, true, false, now
		l.busy++
		t.begin()
	}
}

// End ends t's turn, if it is.
func (l *Line) End(t *Taker, now time.Duration) {
	if !t.served {
		return
	}
	// Turns that take long count, or where all do it would never be known.
	took := min(now-t.since, 2*l.long())
	l.usual += (took - l.usual) / 8
	l.stop(t)
}

// Remove takes t out, wherever it is.
func (l *Line) Remove(t *Taker) {
	if t.waiting {
		l.waiting = without(l.waiting, t)
		t.waiting = false
	}
	if t.served {
		l.stop(t)
	}
}

func (l *Line) stop(t *Taker) {
	if !t.slow {
		l.busy--
	}
	l.served = without(l.served, t)
	t.served = false
}

// long is more than a turn should take.
func (l *Line) long() time.Duration { return max(2*l.usual, l.least) }

func without(list []*Taker, t *Taker) []*Taker {
	if i := slices.Index(list, t); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}
