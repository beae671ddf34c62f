package choice

import "time"

const (
	// farPause is the least time between two hosts of a zone asking for the same
	// piece of another zone.
	farPause = 500 * time.Millisecond
	// farFactor is how many times what a far piece takes that time is at least.
	farFactor = 4
	// farAhead is how many pieces ahead of the reader one is picked from, for
	// each host of the zone that may be picking.
	farAhead = 16
)

// far is what a host fetches from hosts of other zones: only what no near host
// has, and so that each piece crosses the link between zones about once. The
// hosts of a zone cannot tell what others of them have asked for, so
//
//   - each waits for a random while after it first sees a piece there, so long
//     that one asks, has it, and has told the others before the second asks;
//   - of pieces that wait longer than that, as the link has no room, each picks
//     at random among many;
//   - each asks for one piece at a time.
type far struct {
	due   []int32       // milliseconds since began: when a piece may be asked for; 0 if not seen
	began time.Duration // time itself, in milliseconds, would not fit in after a month
	owed  int64         // bytes asked of far peers and not yet here
	took  time.Duration
}

// choose picks a piece to ask of p, a far peer.
func (f *far) choose(l *Leech, p *Peer, now time.Duration) (int, bool) {
	if f.due == nil {
		f.due, f.began = make([]int32, l.pieces), now
	}
	from := 0
	if len(l.fronts) > 0 {
		from = l.fronts[0]
	}
	i, ok := f.among(l, p, from, l.pieces, now)
	if !ok {
		i, ok = f.among(l, p, 0, from, now)
	}
	return i, ok
}

// among picks at random among the first so many pieces of [from, to) that can
// be had of p alone and have waited.
func (f *far) among(l *Leech, p *Peer, from, to int, now time.Duration) (int, bool) {
	best, ties, left := -1, 0, farAhead*(l.near+1)
	for left > 0 {
		i, ok := l.free.firstIn(p.has, from, to)
		if !ok {
			break
		}
		from = i + 1
		if l.copies[i] > 0 {
			continue
		}
		if f.urgent(l, i, now) {
			return i, true
		}
		if left--; f.wait(l, i, now) {
			continue
		}
		if ties++; l.rand.IntN(ties) == 0 {
			best = i
		}
	}
	return best, best >= 0
}

// wait says whether it is too early to ask for piece i, and lets the wait begin
// when it is first seen.
func (f *far) wait(l *Leech, i int, now time.Duration) bool {
	since := now - f.began
	if f.due[i] == 0 {
		pause := max(farPause, farFactor*f.took)
		f.due[i] = int32((since + time.Duration(l.rand.Float64()*float64(l.near)*float64(pause))).Milliseconds()) + 1
	}
	return int64(f.due[i]) > since.Milliseconds()
}

// urgent says whether a reader has stood at piece i for a while. As others' may
// stand there too, one in as many tries asks for it.
func (f *far) urgent(l *Leech, i int, now time.Duration) bool {
	return len(l.fronts) > 0 && i == l.fronts[0] && now-l.frontAt >= urgentAsk && l.rand.IntN(l.near) == 0
}

// came notes that a far piece was all sent, so long after it was asked for.
func (f *far) came(after time.Duration) {
	f.took += (after - f.took) / 4
}
