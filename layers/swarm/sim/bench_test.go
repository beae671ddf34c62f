package sim

import (
	"fmt"
	"os"
	"regexp"
	"runtime/debug"
	"testing"
	"time"

	"github.com/murderp2p/murder/layers"
)

// TestBenchSim prints a table of large fleets. MURDER_SIM is a regular expression
// for the scenarios to run.
func TestBenchSim(t *testing.T) {
	if os.Getenv("MURDER_BENCH") == "" {
		t.Skip("takes minutes to an hour; set MURDER_BENCH, or make bench-sim")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	only := regexp.MustCompile(os.Getenv("MURDER_SIM"))
	fmt.Printf("bench %-48s %7s %6s %6s %6s %7s %7s %7s %12s %6s %7s %7s %6s\n", "scenario", "pieces",
		"p50", "p99", "max", "p99/T*", "copies", "crossed", "first byte", "half", "stall", "twice", "took")
	for _, s := range scenarios() {
		if !only.MatchString(s.name) {
			continue
		}
		r := simulate(s.config)
		fmt.Printf("bench %-48s %7d %6.3f %6.3f %6.3f %7.3f %7.3f %7.2f %5.2f/%-5.2fs %6.2f %6.2fs %6.2f%% %5.0fs",
			s.name, s.pieces(), r.p50, r.p99, r.max, r.p99Best, r.copies, r.cross, r.first.Seconds(), r.last.Seconds(),
			r.half, r.stall.Seconds(), 100*r.twice, r.took.Seconds())
		if r.slow > 0 {
			fmt.Printf("  fast %.3f, slow %.3f over their own limits", r.fast, r.slow)
		}
		if r.unfinished > 0 {
			fmt.Printf("  %d UNFINISHED", r.unfinished)
		}
		fmt.Println()
	}
}

type scenario struct {
	name string
	config
}

// scenarios is the table, the quick ones first.
func scenarios() []scenario {
	var list []scenario
	add := func(name string, c config) { list = append(list, scenario{name, c}) }
	sized := func(hosts int, size int64, mbits float64) config {
		return equal(hosts, size, layers.PieceLength(size), mbits)
	}
	with := func(c config, change func(c *config)) config {
		change(&c)
		return c
	}

	for _, hosts := range []int{1, 8, 16, 32} {
		add(fmt.Sprintf("%d hosts, 128 MiB, 25 Mbit/s", hosts), lab(hosts))
	}
	add("16 hosts, 8 neighbours", with(lab(16), func(c *config) { c.neighbours, c.kept = 8, 8 }))
	add("16 hosts, source's link 4 times theirs", with(lab(16), func(c *config) { c.sourceRate = 4 }))
	add("16 hosts, two sources", with(lab(16), func(c *config) { c.sources = 2 }))
	add("20 hosts, a fifth every 5 s", with(lab(20), func(c *config) { c.waves, c.waveEvery = 5, 5*time.Second }))
	add("16 hosts, a quarter killed at half time", with(lab(16), func(c *config) { c.kill, c.killAt = 4, c.limit()/2 }))
	add("16 hosts, half of them of half the rate", with(lab(16), func(c *config) { c.slow = 2 }))
	add("16 hosts, two zones, one host's rate between", with(lab(16), func(c *config) { c.zones, c.narrow = 2, c.rate }))
	add("16 hosts, cold source of their rate", with(lab(16), func(c *config) { c.cold = 1 }))
	add("16 hosts, cold source of 4 times their rate", with(lab(16), func(c *config) { c.cold, c.sourceRate = 4, 4 }))

	for size := int64(1 << 20); size <= 256<<20; size *= 4 {
		for pieceLen := int64(16 << 10); pieceLen <= 256<<10; pieceLen *= 4 {
			add(fmt.Sprintf("16 hosts, %d MiB in pieces of %d KiB, 100 Mbit/s", size>>20, pieceLen>>10), equal(16, size, pieceLen, 100))
		}
	}

	base := sized(1000, 10<<30, 1000)
	add("1000 hosts, 10 GiB, 8 neighbours", with(base, func(c *config) { c.neighbours, c.kept = 8, 8 }))
	add("1000 hosts, 10 GiB, a fifth every 20 s", with(base, func(c *config) { c.waves, c.waveEvery = 5, 20*time.Second }))
	add("1000 hosts, 10 GiB, 1 % lost, unnoticed for 20 s", with(base, func(c *config) { c.kill, c.killFor, c.notice = 10, c.limit(), 20*time.Second }))
	add("1000 hosts, 10 GiB, a quarter killed at half time", with(base, func(c *config) { c.kill, c.killAt = 250, c.limit()/2 }))
	add("1000 hosts, 10 GiB, half of them of half the rate", with(base, func(c *config) { c.slow = 2 }))
	add("1000 hosts, 10 GiB, two zones, 10 hosts' rate between", with(base, func(c *config) { c.zones, c.narrow = 2, 10*c.rate }))

	for _, hosts := range []int{100, 1000, 10000} {
		for _, size := range []int64{1 << 30, 10 << 30, 100 << 30} {
			add(fmt.Sprintf("%d hosts, %d GiB, 1 Gbit/s", hosts, size>>30), sized(hosts, size, 1000))
		}
	}
	large := sized(10000, 10<<30, 1000)
	add("10000 hosts, 10 GiB, a fifth every 20 s", with(large, func(c *config) { c.waves, c.waveEvery = 5, 20*time.Second }))
	add("10000 hosts, 10 GiB, 1 % lost, unnoticed for 20 s", with(large, func(c *config) { c.kill, c.killFor, c.notice = 100, c.limit(), 20*time.Second }))
	return list
}
