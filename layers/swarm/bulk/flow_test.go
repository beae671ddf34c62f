package bulk

import (
	"testing"
	"time"
)

func TestFlow(t *testing.T) {
	const chunk = 64 << 10
	for _, c := range []struct {
		name string
		rate int // bytes a second
		fast bool
	}{
		{"25 Mbit/s among 8", 390 << 10, false},
		{"1 Gbit/s among 16", 7800 << 10, false},
		{"1 Gbit/s", 119 << 20, true},
		{"10 Gbit/s", 1192 << 20, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var f flow
			now := time.Hour
			for range 64 {
				f.add(chunk, now)
				now += time.Second * chunk / time.Duration(c.rate)
			}
			if f.fast != c.fast {
				t.Errorf("fast = %v", f.fast)
			}
		})
	}
}

// A connection is slow at first, and again when it has slowed down.
func TestFlowChanges(t *testing.T) {
	var f flow
	now := time.Nanosecond
	if f.add(window, now); f.fast {
		t.Error("fast before anything is known")
	}
	now += time.Millisecond
	if f.add(window, now); !f.fast {
		t.Error("slow with 1 MiB in 1 ms")
	}
	now += time.Second
	if f.add(window, now); f.fast {
		t.Error("fast with 1 MiB in 1 s")
	}
}
