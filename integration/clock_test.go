package integration

import (
	"testing"
	"time"
)

// TestClockJumps proves the harness: a program that was given another clock
// tells another time, and goes on.
func TestClockJumps(t *testing.T) {
	needsClock(t)
	m := startMirror(t, daemonConfig{Insecure: []string{"127.0.0.1:1"}})
	for _, d := range []time.Duration{48 * time.Hour, -1000 * time.Hour} {
		jumpClock(t, m.process, d)
		m.waitClock(t, d)
	}
}
