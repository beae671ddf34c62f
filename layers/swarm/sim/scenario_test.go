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
	spread     time.Duration // all hosts of a wave join within
	neighbours int           // that a host looks for
	kept       int           // at most, if more come
	waves      int
	waveEvery  time.Duration
	kill       int           // hosts
	killAt     time.Duration // the first of them
	killFor    time.Duration // until the last
	notice     time.Duration // until a peer sees that a host is gone
	slow       int           // one of so many hosts has half the rate
	zones      int
	narrow     float64 // rate of the link between zones
	cold       float64 // at which sources fetch the blob, in hosts' rates; 0 = they have it
	giveUp     time.Duration
}

// equal is so many hosts of equal links, and a source that has the blob.
func equal(hosts int, size, pieceLen int64, mbits float64) config {
	c := config{
		seed: 1, hosts: hosts, sources: 1, sourceRate: 1, rate: mbits * 1e6 / 8, size: size, pieceLen: pieceLen,
		latency: 500 * time.Microsecond, spread: 50 * time.Millisecond, neighbours: wanted, kept: kept,
	}
	c.giveUp = 20*c.limit() + time.Minute
	return c
}

func (c config) pieces() int { return int((c.size + c.pieceLen - 1) / c.pieceLen) }

// limit is the time one host alone takes.
func (c config) limit() time.Duration {
	return time.Duration(float64(c.size) / c.rate * 1e9)
}

// best is T*, the least time for the last of so many hosts.
func (c config) best() time.Duration {
	return time.Duration(float64(c.limit()) * (1 + float64(bits.Len(uint(c.hosts))-1)/float64(c.pieces())))
}

// killTime is when the k-th of those to be killed is.
func (c config) killTime(k int) int64 {
	return int64(c.killAt) + int64(k)*int64(c.killFor)/int64(c.kill)
}

// result is what came of a run. Times are over the limit, or over T*.
type result struct {
	unfinished    int
	p50, p99, max float64
	p99Best       float64
	fast, slow    float64 // max over its own limit, of fast hosts and of those of half the rate
	first, last   time.Duration
	stall         time.Duration
	half          float64 // when the median host had half of the blob in order
	copies        float64 // sent by sources
	cross         float64 // copies that came into the far zone
	twice         float64 // received twice, per host
	took          time.Duration
	events        int
}

func simulate(c config) result {
	began := time.Now()
	w := newWorld(c)
	w.run()
	r := w.result()
	r.took = time.Since(began)
	return r
}

func (w *world) result() result {
	c := w.conf
	r := result{events: w.events, cross: float64(w.cross[0]) / float64(c.size)}
	var times, firsts, halves []float64
	for _, n := range w.hosts {
		r.twice += float64(n.twice) / float64(c.size) / float64(c.hosts)
		switch {
		case n.dead:
			continue
		case n.done == 0:
			r.unfinished++
			continue
		}
		t := float64(n.done-n.joined) / float64(c.limit())
		if n.up > 1e9/c.rate {
			r.slow = max(r.slow, t/2)
		} else {
			r.fast = max(r.fast, t)
		}
		times = append(times, t)
		firsts = append(firsts, float64(n.first-n.joined))
		halves = append(halves, float64(n.half-n.joined)/float64(c.limit()))
		r.stall = max(r.stall, time.Duration(n.stall))
	}
	for _, n := range w.source {
		r.copies += float64(n.sent) / float64(c.size)
	}
	r.p50, r.p99, r.max = quantile(times, .5), quantile(times, .99), quantile(times, 1)
	r.p99Best = r.p99 * float64(c.limit()) / float64(c.best())
	r.half = quantile(halves, .5)
	r.first, r.last = time.Duration(quantile(firsts, .5)), time.Duration(quantile(firsts, 1))
	return r
}

func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	slices.Sort(values)
	return values[min(len(values)-1, int(q*float64(len(values))))]
}

func (r result) String() string {
	s := fmt.Sprintf("p50 %.3f p99 %.3f max %.3f, p99/T* %.3f; copies %.3f; first byte %.2f/%.2f s, half %.2f, stall %.2f s",
		r.p50, r.p99, r.max, r.p99Best, r.copies, r.first.Seconds(), r.last.Seconds(), r.half, r.stall.Seconds())
	if r.slow > 0 {
		s += fmt.Sprintf("; fast %.3f slow %.3f", r.fast, r.slow)
	}
	if r.cross > 0 {
		s += fmt.Sprintf("; crossed %.2f", r.cross)
	}
	if r.twice > 0 {
		s += fmt.Sprintf("; twice %.4f", r.twice)
	}
	if r.unfinished > 0 {
		s += fmt.Sprintf("; UNFINISHED %d", r.unfinished)
	}
	return s + fmt.Sprintf(" (%s, %d k events)", r.took.Round(time.Millisecond), r.events/1000)
}
