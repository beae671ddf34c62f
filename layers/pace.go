package layers

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// minRate, in bytes a second, is what an arrival must bring, or it counts as too
	// slow: less than any line that images are pulled over has to spare for a layer,
	// more than what trickles from a host that is ill.
	minRate = 16 << 10
	// paceWindow is over how long that is measured. In it 240 KiB must come.
	paceWindow = 15 * time.Second
	// paceTicks is how many looks a window consists of.
	paceTicks = 30
)

// TooSlow is the error of an arrival that brought something, but too little.
type TooSlow struct {
	Rate int64 // bytes a second
}

func (e *TooSlow) Error() string { return fmt.Sprintf("only %d bytes a second came", e.Rate) }

// Pace ends arrivals that trickle. Whether that helps the caller decides: on a line that
// is slow for everybody to begin anew brings nothing.
type Pace struct {
	// Window is how long an arrival may be too slow before Leave is asked; 0 = 15 s.
	Window time.Duration
	// Patience returns which part of a moment counts as waiting for whoever sends, from
	// 0, as when it is we who hold the bytes back, to 1; nil = all of it.
	Patience func() float64
	// Leave is told of each window at the end of which p is too slow, and the bytes a
	// second that came, and decides whether the arrival ends. It may be called again.
	Leave func(rate int64) bool
}

// Watch runs bring, which fills p, and ends its context when Leave says so; then the
// error is a [*TooSlow]. Only time in which this process gets to run is counted.
func (pc Pace) Watch(ctx context.Context, p *Partial, bring func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { pc.watch(ctx, cancel, p) })
	err := bring(ctx)
	if slow, ok := context.Cause(ctx).(*TooSlow); ok && err != nil {
		err = slow
	}
	cancel(nil)
	watching.Wait()
	return err
}

func (pc Pace) watch(ctx context.Context, cancel context.CancelCauseFunc, p *Partial) {
	window := pc.Window
	if window == 0 {
		window = paceWindow
	}
	every := window / paceTicks
	tick := time.NewTicker(every)
	defer tick.Stop()
	m := measure{window: window, from: p.Received()}
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.Done():
			return
		case <-tick.C:
		}
		if rate, slow := m.tick(pc.waited(every), p.Received()); slow && pc.Leave(rate) {
			cancel(&TooSlow{rate})
			return
		}
	}
}

// waited is which part of a tick counts.
func (pc Pace) waited(every time.Duration) time.Duration {
	if pc.Patience == nil {
		return every
	}
	return time.Duration(float64(every) * pc.Patience())
}

// measure is the rate of one window after the other.
type measure struct {
	window time.Duration
	waited time.Duration // in this one
	from   int64         // bytes that were here when it began
}

// tick notes that so much more has been waited, and how many bytes are here now. At the
// end of a window it tells the bytes a second, and whether they are too few.
func (m *measure) tick(waited time.Duration, here int64) (rate int64, slow bool) {
	if m.waited += waited; m.waited < m.window {
		return 0, false
	}
	rate = max(0, int64(float64(here-m.from)/m.waited.Seconds()))
	m.waited, m.from = 0, here
	return rate, rate < minRate
}
