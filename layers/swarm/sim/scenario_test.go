package sim

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"time"
)

// config is one scenario. Rates are in bytes a second.
type config struct {
	seed       uint64
	hosts      int
	sources    int
	sourceRate float64 // of a source's uplink, in hosts' rates
	rate       float64
	size       int64
	pieceLen   int64
	latency    time.Duration
	spread     time.Duration // all hosts join within
	dials      int
	turns      int
	waves      int
	waveGap    time.Duration
	kill       int // hosts
	killAt     time.Duration
	killSpread time.Duration
	notice     time.Duration // until peers see that a host is gone
	slow       int           // every so manieth host has half the rate
	zones      int
	narrow     float64
	coldRate   float64 // at which sources fetch the blob, in hosts' rates; 0 = they have it
	giveUp     time.Duration
}

// equal is n hosts of equal links and a source that has the blob.
func equal(hosts int, size, pieceLen int64, mbits float64) config {
	c := config{
		seed: 1, hosts: hosts, sources: 1, sourceRate: 1, rate: mbits * 1e6 / 8, size: size, pieceLen: pieceLen,
		latency: 200 * time.Microsecond, spread: 50 * time.Millisecond, dials: 10, turns: 3,
	}
	c.giveUp = 20 * c.limit()
	return c
}

// limit is the time one host alone takes.
func (c config) limit() time.Duration {
	return time.Duration(float64(c.size) / c.rate * 1e9)
}

// best is T*, the least time for the last of so many hosts.
func (c config) best() time.Duration {
	m := float64(c.size) / float64(c.pieceLen)
	return time.Duration(float64(c.limit()) * (1 + float64(bits.Len(uint(c.hosts))-1)/m))
}

// result is what came of a run. Times are over the limit, or over T*.
type result struct {
	unfinished        int
	p50, p99, max     float64 // over the limit
	p99Best, maxBest  float64 // over T*
	copies            float64 // sent by sources
	cross             float64 // copies over the narrow link
	first50, firstMax time.Duration
	stall             time.Duration
	twice             float64 // received twice, per host
	fast, slow        float64 // max over its own limit
	took              time.Duration
	events            int
}

func simulate(c config) result {
	began := time.Now()
	w := newWorld(c)
	w.run()
	r := result{took: time.Since(began), events: w.events}
	var times, firsts []float64
	var twice float64
	lived := 0
	for _, n := range w.nodes[:c.hosts] {
		twice += float64(n.twice)
		if n.dead {
			continue
		}
		lived++
		if n.done == 0 {
			r.unfinished++
			continue
		}
		t := float64(n.done-n.joined) / float64(c.limit())
		times = append(times, t)
		firsts = append(firsts, float64(n.first-n.joined))
		r.stall = max(r.stall, time.Duration(n.stall))
		if n.up > 1e9/c.rate {
			r.slow = max(r.slow, t/2)
		} else {
			r.fast = max(r.fast, t)
		}
	}
	slices.Sort(times)
	slices.Sort(firsts)
	r.p50, r.p99, r.max = at(times, .5), at(times, .99), at(times, 1)
	f := float64(c.limit()) / float64(c.best())
	r.p99Best, r.maxBest = r.p99*f, r.max*f
	r.first50, r.firstMax = time.Duration(at(firsts, .5)), time.Duration(at(firsts, 1))
	for _, n := range w.nodes[c.hosts:] {
		r.copies += float64(n.sent) / float64(c.size)
	}
	r.cross = float64(w.cross) / float64(c.size)
	r.twice = twice / float64(c.size) / float64(lived)
	return r
}

func at(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func (r result) String() string {
	return fmt.Sprintf("p50 %.3f p99 %.3f max %.3f | /T* p99 %.3f max %.3f | copies %.3f cross %.2f twice %.4f | first %.2f/%.2fs stall %.2fs | fast %.3f slow %.3f | unfinished %d | %s, %dk events",
		r.p50, r.p99, r.max, r.p99Best, r.maxBest, r.copies, r.cross, r.twice, r.first50.Seconds(), r.firstMax.Seconds(), r.stall.Seconds(), r.fast, r.slow, r.unfinished, r.took.Round(time.Millisecond), r.events/1000)
}
