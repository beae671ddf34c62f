package sim

import (
	"testing"
	"time"

	"github.com/murderp2p/murder/layers"
)

// The bounds are wide: they are to catch what breaks the swarm, not what makes it
// a little slower. The figures of the day are printed by make bench-sim. As all
// is deterministic, a test that passes passes again.

// lab is the fleet of integration/lab: hosts on links of 25 Mbit/s.
func lab(hosts int) config {
	c := equal(hosts, 128<<20, 64<<10, 25)
	c.latency = 2 * time.Millisecond
	return c
}

// check runs c and reports what is more than it may be.
func check(t *testing.T, c config, most result) result {
	t.Helper()
	t.Parallel()
	r := simulate(c)
	t.Log(r)
	if r.unfinished > 0 {
		t.Errorf("%d hosts did not finish", r.unfinished)
	}
	bound := func(what string, got, most float64) {
		if most > 0 && !(got <= most) {
			t.Errorf("%s = %.3f, want %.3f at most", what, got, most)
		}
	}
	bound("p50", r.p50, most.p50)
	bound("max", r.max, most.max)
	bound("max of the fast over their limit", r.fast, most.fast)
	bound("max of the slow over their limit", r.slow, most.slow)
	bound("copies sent by sources", r.copies, most.copies)
	bound("copies that crossed into the far zone", r.cross, most.cross)
	bound("received twice", r.twice, most.twice)
	bound("first byte", r.first.Seconds(), most.first.Seconds())
	bound("last first byte", r.last.Seconds(), most.last.Seconds())
	bound("longest stall", r.stall.Seconds(), most.stall.Seconds())
	return r
}

func TestSixteenHosts(t *testing.T) {
	check(t, lab(16), result{
		p50: 1.02, max: 1.03, copies: 1.03, twice: .005,
		first: 500 * time.Millisecond, last: time.Second, stall: 2 * time.Second,
	})
}

func TestEightHosts(t *testing.T) {
	check(t, lab(8), result{max: 1.02, copies: 1.03, stall: 2 * time.Second})
}
func TestThirtyTwoHosts(t *testing.T) {
	check(t, lab(32), result{max: 1.05, copies: 1.05, stall: 2 * time.Second})
}

func TestOneHost(t *testing.T) { check(t, lab(1), result{max: 1.001, copies: 1.001}) }

func TestHundredHosts(t *testing.T) {
	check(t, equal(100, 256<<20, 512<<10, 1000), result{p50: 1.12, max: 1.16, copies: 1.15})
}

func TestThousandHosts(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds, or a minute with the race detector")
	}
	check(t, equal(1000, 128<<20, 512<<10, 1000), result{p50: 1.4, max: 1.7})
}

// No host is told of more than eight others, as in a large fleet.
func TestEightNeighbours(t *testing.T) {
	c := lab(16)
	c.neighbours, c.kept = 8, 8
	check(t, c, result{max: 1.06, copies: 1.05})
}

func TestSourceOfFourTimesTheRate(t *testing.T) {
	c := lab(16)
	c.sourceRate = 4
	check(t, c, result{max: 1.02})
}

func TestTwoSources(t *testing.T) {
	c := lab(16)
	c.sources = 2
	check(t, c, result{max: 1.03, last: 2 * time.Second, stall: 2 * time.Second})
}

func TestWaves(t *testing.T) {
	c := lab(20)
	c.waves, c.waveEvery = 5, 5*time.Second
	check(t, c, result{max: 1.05, stall: 2 * time.Second})
}

func TestQuarterKilled(t *testing.T) {
	c := lab(16)
	c.kill, c.killAt = 4, c.limit()/2
	check(t, c, result{max: 1.05, stall: 2 * time.Second})
}

// Nobody is told that the dead are dead: a switch has failed.
func TestQuarterFallsSilent(t *testing.T) {
	c := lab(16)
	c.kill, c.killAt, c.notice = 4, c.limit()/2, time.Minute
	check(t, c, result{max: 1.05, stall: 6 * time.Second})
}

func TestHostsDieOneAfterTheOther(t *testing.T) {
	c := equal(100, 64<<20, 64<<10, 50)
	c.kill, c.killFor, c.notice = 20, c.limit(), 20*time.Second
	check(t, c, result{max: 1.3, stall: 6 * time.Second})
}

func TestHalfOfTheHostsAreSlow(t *testing.T) {
	c := lab(16)
	c.slow = 2
	check(t, c, result{fast: 1.15, slow: 1.05, stall: 3 * time.Second})
}

func TestOneSlowHost(t *testing.T) {
	c := lab(16)
	c.slow = 16
	check(t, c, result{fast: 1.05, slow: 1.05})
}

// The link between the zones is as narrow as one host's.
func TestTwoZones(t *testing.T) {
	c := lab(16)
	c.zones, c.narrow = 2, c.rate
	check(t, c, result{max: 1.2, cross: 1.25, stall: 4 * time.Second})
}

func TestFourZones(t *testing.T) {
	c := lab(32)
	c.zones = 4
	check(t, c, result{max: 1.1})
}

func TestColdSource(t *testing.T) {
	c := lab(16)
	c.cold = 1
	check(t, c, result{max: 1.05, copies: 1.05, stall: 2 * time.Second})
}

func TestSlowNetwork(t *testing.T) {
	c := lab(16)
	c.latency = 25 * time.Millisecond
	check(t, c, result{max: 1.05})
}

func TestFewPieces(t *testing.T) {
	c := lab(16)
	c.size = 1 << 20
	r := check(t, c, result{copies: 4})
	if all := time.Duration(r.max * float64(c.limit())); all > 2*time.Second {
		t.Errorf("1 MiB took %v", all)
	}
}

func TestSameSeedSameRun(t *testing.T) {
	c := lab(16)
	c.size /= 8
	c.kill, c.killAt = 4, c.limit()/2
	a, b := simulate(c), simulate(c)
	a.took, b.took = 0, 0
	if a != b {
		t.Errorf("two runs with the same seed:\n%v\n%v", a, b)
	}
	c.seed++
	if d := simulate(c); d.events == a.events {
		t.Errorf("another seed came to as many events, %d", d.events)
	}
}

// The real rule makes pieces short enough for a large fleet.
func TestPieceLength(t *testing.T) {
	for _, size := range []int64{64 << 20, 1 << 30, 10 << 30, 50 << 30} {
		if pieces := size / layers.PieceLength(size); pieces < 1000 {
			t.Errorf("a blob of %d bytes has %d pieces", size, pieces)
		}
	}
}
