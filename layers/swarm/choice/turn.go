package choice

import "time"

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
