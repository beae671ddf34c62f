package main

import (
	"fmt"
	"time"

	"github.com/murderp2p/murder/integration/netlab"
)

// plan says what one run is made of.
type plan struct {
	Title string
	Sizes []int64 // bytes of each layer of the image that is pulled
	Image bool    // pull by tag, three layers at a time; else the layers alone, one after the other

	Hosts    []host
	Rate     int64 // of an ordinary host's link, bits a second; 0 is unlimited
	Seeder   netlab.Link
	Registry netlab.Link
	Cable    int64 // rate between two zones, bits a second; 0 is one zone

	Twins      bool // there are two seeders alike, with a link each
	Cold       bool // the seeder has nothing when the hosts begin
	Warm       bool // the hosts have everything in their caches
	Neighbours int  // hosts that a host can reach; 0 is all
	Chain      bool // the second of two hosts can exchange pieces with the first only
}

// host is one host's part in a plan.
type host struct {
	Group  string // hosts of one group are reported together
	Link   netlab.Link
	Zone   int
	Delay  time.Duration // after the others, when it begins
	Kill   time.Duration // after the start, when its mirror is killed; 0 is never
	Behind bool          // nobody waits for it
}

// size is the bytes that each host pulls.
func (p plan) size() (sum int64) {
	for _, s := range p.Sizes {
		sum += s
	}
	return sum
}

// limit is the time in seconds that a link needs for all bytes at the least,
// headers not counted. It is 0 for an unlimited link.
func (p plan) limit(l netlab.Link) float64 {
	if l.Down == 0 {
		return 0
	}
	return float64(p.size()) * 8 / float64(l.Down)
}

// equal is n hosts with links of one rate.
func equal(n int, rate int64) []host {
	hosts := make([]host, n)
	for i := range hosts {
		hosts[i] = host{Group: "all", Link: both(rate)}
	}
	return hosts
}

// straight is whether each host pulls one blob that the seeder has and it has
// not: what can be done without murder too.
func (p plan) straight() bool { return len(p.Sizes) == 1 && !p.Image && !p.Cold && !p.Warm && !p.Chain }

func both(rate int64) netlab.Link { return netlab.Link{Up: rate, Down: rate} }

// patience is how long a run may take at most.
func (p plan) patience() time.Duration {
	worst := 0.0
	for _, h := range p.Hosts {
		if !h.Behind {
			worst = max(worst, p.limit(h.Link)+h.Delay.Seconds())
		}
	}
	return 3*time.Minute + time.Duration(max(12, float64(len(p.Hosts)+4))*worst*float64(time.Second))
}

// rateText writes bits a second as the flags take them.
func rateText(rate int64) string {
	switch {
	case rate == 0:
		return "unlimited"
	case rate%1e6 == 0:
		return fmt.Sprintf("%d Mbit/s", rate/1e6)
	default:
		return fmt.Sprintf("%.3g Mbit/s", float64(rate)/1e6)
	}
}
