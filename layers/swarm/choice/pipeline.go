package choice

import "time"

const (
	// queueTime is how much one peer is asked for ahead: more than it takes it
	// to hear of the next request.
	queueTime = 100 * time.Millisecond
	// unmeasured is asked ahead, in bytes, of a peer whose rate is not known yet.
	unmeasured = 256 << 10
	// mostQueued bounds it, in bytes.
	mostQueued = 32 << 20

	// mostAsked is how many pieces are asked of all near peers together, beside
	// what comes in within askTime.
	//
	// What is asked waits at the peer for those who asked before: as all ask and
	// are asked, a piece that is asked for comes after as many others as each
	// host keeps asked. So this is what one hop costs, in pieces, and until it is
	// taken a piece is bound to one peer while others may have it to give. But
	// a peer that nobody asks sends nothing; of ten requests a host, one in
	// e^10 is left without.
	mostAsked = 10
	askTime   = 10 * time.Millisecond

	// A peer that owes something and has been silent for stuckAfter does not
	// count, or else a few dead ones would use up what may be asked.
	stuckAfter  = time.Second
	surveyEvery = 100 * time.Millisecond

	// mostRevealed is how many pieces an origin is asked for, in case it shows
	// all it has.
	mostRevealed = 64
)

// Pipeline is how many bytes to keep asked of a peer that sends rate bytes per
// second, in pieces of pieceLen: another piece is asked for when less than that
// is outstanding. So it is at least one piece, and the next is asked for in
// time before that one is here.
func Pipeline(rate float64, pieceLen int64) int64 {
	if rate == 0 {
		return max(unmeasured, pieceLen/4)
	}
	return min(max(int64(rate*queueTime.Seconds()), pieceLen/4), mostQueued)
}

// room says whether p may be asked for one more piece.
func (l *Leech) room(p *Peer, now time.Duration) bool {
	switch {
	case p.tardy > 0 && len(p.asked) > 0:
		return false
	case p.kind == Origin: // it has bounded what it reveals
		return len(p.asked) < mostRevealed
	case p.kind == Far && l.near > 0:
		return l.far.owed == 0
	case p.owed >= Pipeline(p.meter.rate, l.pieceLen):
		return false
	case p.kind == Far:
		return true
	}
	l.survey(now)
	most := mostAsked*l.pieceLen + int64(l.meter.rate*askTime.Seconds())
	if p.owed > 0 {
		most /= 2 // rather ask one who has nothing to do for us
	}
	return l.owed-l.stuck < most
}

// survey counts what silent peers owe.
func (l *Leech) survey(now time.Duration) {
	if now-l.surveyed < surveyEvery {
		return
	}
	l.surveyed, l.stuck = now, 0
	for _, p := range l.peers {
		if p.kind == Near && (p.tardy > 0 || now-p.heard > stuckAfter) {
			l.stuck += p.owed
		}
	}
}

// meter keeps the rate at which something comes in, in bytes per second of the
// time in which something was to come.
type meter struct {
	rate  float64
	got   int64 // since rate was last brought up to date
	spent time.Duration
	mark  time.Duration // when spent was
}

// resume begins anew after a time in which nothing was to come.
func (m *meter) resume(now time.Duration) { m.mark = now }

func (m *meter) count(n int64, now time.Duration) {
	m.got += n
	m.spent += now - m.mark
	m.mark = now
	if m.spent < 100*time.Millisecond {
		return
	}
	r := float64(m.got) / m.spent.Seconds()
	if m.rate == 0 {
		m.rate = r
	}
	m.rate += (r - m.rate) / 4
	m.got, m.spent = 0, 0
}
