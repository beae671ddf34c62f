package seeder

import (
	"testing"
	"time"
)

// Silence is what a seeder owes; the time in which our own process did not get
// to run is not.
func TestSilence(t *testing.T) {
	t.Parallel()
	const every = 50 * time.Millisecond
	type ticks struct {
		n     int
		after time.Duration
		heard bool
	}
	for name, test := range map[string]struct {
		ticks []ticks
		want  bool // is the limit of beatTicks reached?
	}{
		"silent":              {[]ticks{{beatTicks, every, false}}, true},
		"not for long":        {[]ticks{{beatTicks - 1, every, false}}, false},
		"a little late":       {[]ticks{{beatTicks, 2 * every, false}}, true},
		"a pause":             {[]ticks{{1, every, false}, {1, time.Hour, false}}, false},
		"a pause at the end":  {[]ticks{{beatTicks - 1, every, false}, {1, time.Second, false}}, false},
		"silent after it":     {[]ticks{{1, time.Hour, false}, {beatTicks, every, false}}, true},
		"starved":             {[]ticks{{lateTicks, 3 * every, false}}, false},
		"starved for long":    {[]ticks{{lateTicks + beatTicks, 3 * every, false}}, true},
		"heard elsewhere":     {[]ticks{{doubtTicks - 1, every, true}}, false},
		"heard just before":   {[]ticks{{beatTicks, every, true}, {beatTicks - 1, every, false}}, false},
		"heard long before":   {[]ticks{{1, every, true}, {beatTicks, every, false}}, true},
		"the only silent one": {[]ticks{{doubtTicks, every, true}, {beatTicks, every, false}}, true},
	} {
		var s silence
		for _, ticks := range test.ticks {
			for range ticks.n {
				s.tick(ticks.after, every, ticks.heard)
			}
		}
		if got := s.reached(beatTicks); got != test.want {
			t.Errorf("%s: %+v reached = %v, want %v", name, s, got, test.want)
		}
	}
}
