package proxy

import (
	"context"
	"errors"

	"github.com/murderp2p/murder/layers"
)

// waysInOrder are those of a download, the best first.
var waysInOrder = []string{"swarm", "seeder", "upstream"}

// pace decides when a download leaves a way that brings something, but too little: for
// one that may be faster at once, and else after twice as long each time. So what
// trickles is left soon, and a line that is slow for all is not asked again and again.
type pace struct {
	rates   map[string]int64 // bytes a second of each way when it was last too slow; 0 = it failed
	way     string           // the one at hand
	slow    int              // windows for which that has been too slow
	windows int              // after so many it is left for what is known to be no better
}

func newPace() *pace { return &pace{rates: make(map[string]int64), windows: 1} }

// failed notes that a way was of no use.
func (p *pace) failed(way string) { p.rates[way] = 0 }

// leave decides after a window in which a way was too slow.
func (p *pace) leave(way string, rate int64) bool {
	if p.way != way {
		p.way, p.slow = way, 0
	}
	p.rates[way] = rate
	p.slow++
	switch {
	case p.maybeFaster(way, rate):
	case p.slow > p.windows:
		p.windows *= 2
	default:
		return false
	}
	p.slow = 0
	return true
}

// maybeFaster tells whether another way has not been tried, or was at least twice as fast.
func (p *pace) maybeFaster(way string, rate int64) bool {
	for _, other := range waysInOrder {
		was, tried := p.rates[other]
		if other != way && (!tried || was > 2*rate) {
			return true
		}
	}
	return false
}

// paced runs a way and ends it when it trickles.
func (d *download) paced(ctx context.Context, way string, bring func(context.Context) error) error {
	watched := layers.Pace{
		Window:   d.mirror.slowAfter,
		Patience: func() float64 { return d.patience(way) },
		Leave:    func(rate int64) bool { return d.pace.leave(way, rate) },
	}
	return watched.Watch(ctx, d.partial, bring)
}

// patience is which part of a moment counts against a way. Where the swarm has brought
// all that the seeder has, the registry is slow, and a fleet had better not ask it for
// itself: the seeder asks once more before we do.
func (d *download) patience(way string) float64 {
	switch {
	case d.partial.Torrent() != nil && !closed(d.partial.Checked()):
		return 0 // we do not know yet what we lack
	case d.mirror.cfg.Download.Held():
		return 0
	case way == "swarm" && d.abreast():
		return 0.25
	}
	return 1
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func isTooSlow(err error) bool {
	_, ok := errors.AsType[*layers.TooSlow](err)
	return ok
}
