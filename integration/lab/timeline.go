package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/murderp2p/murder/integration/netlab"
)

// timelineStep is how often the cards are read while hosts pull.
const timelineStep = 500 * time.Millisecond

// moment is how busy the cables were in the step that ended then, as shares of
// their rates. It tells a seeder that idles from hosts that wait for each other.
type moment struct {
	Seconds  float64 // after the start
	Seeder   float64 // sending
	Sending  float64 // hosts, on average
	Received float64 // likewise
	Least    float64 // the host that received least
}

// timeline reads the cards until ctx ends. Cables without a limit have none.
func (s *stage) timeline(ctx context.Context) (moments []moment, err error) {
	if s.plan.Rate == 0 {
		return nil, nil
	}
	start := time.Now()
	last, then, err := s.cards()
	for err == nil && sleep(ctx, timelineStep) == nil {
		var now time.Time
		var cards []traffic
		if cards, now, err = s.cards(); err == nil {
			moments = append(moments, s.moment(cards, last, now.Sub(then).Seconds()))
			moments[len(moments)-1].Seconds = now.Sub(start).Seconds()
			last, then = cards, now
		}
	}
	return moments, err
}

// cards reads the seeder's card and then each host's.
func (s *stage) cards() (cards []traffic, now time.Time, err error) {
	for _, m := range append([]*netlab.Machine{s.seeder}, s.hosts...) {
		t, err := readTraffic(m)
		if err != nil {
			return nil, now, err
		}
		cards = append(cards, t)
	}
	return cards, time.Now(), nil
}

func (s *stage) moment(now, before []traffic, seconds float64) moment {
	m := moment{Least: 1}
	share := func(bytes, rate int64) float64 { return float64(bytes) * 8 / seconds / float64(rate) }
	for i := range now {
		t := now[i].minus(before[i])
		if i == 0 {
			m.Seeder = share(t.Sent, s.plan.Seeder.Up)
			continue
		}
		link := s.plan.Hosts[i-1].Link
		m.Sending += share(t.Sent, link.Up) / float64(len(s.hosts))
		received := share(t.Received, link.Down)
		m.Received += received / float64(len(s.hosts))
		m.Least = min(m.Least, received)
	}
	return m
}

// printTimeline writes a line for each second.
func printTimeline(w io.Writer, moments []moment) {
	fmt.Fprintln(w, "  share of the cables in use: s, seeder sending, hosts sending, receiving, the one that receives least")
	for i := 1; i < len(moments); i += 2 {
		a, b := moments[i-1], moments[i]
		fmt.Fprintf(w, "  %6.1f  %.2f  %.2f  %.2f  %.2f\n", b.Seconds, (a.Seeder+b.Seeder)/2, (a.Sending+b.Sending)/2, (a.Received+b.Received)/2, min(a.Least, b.Least))
	}
}
