package swarm

import (
	"sync"
	"syscall"
	"testing"
	"time"
)

// BenchmarkOneToOne moves a blob from a seeder to a host over loopback, both in this
// process, with all that a mirror does to it: pieces and digest checked, on disk. The
// CPU time is that of both ends.
func BenchmarkOneToOne(b *testing.B) {
	blob, _ := testBlob(512<<20, 30)
	tr := newTracker(b)
	seeder := newHost(b, Config{Seeder: true})
	m := seeder.share(b, blob, tr.url)
	b.SetBytes(m.Size())
	before := cpuTime(b)
	for b.Loop() {
		b.StopTimer()
		leecher := newHost(b, Config{})
		p := leecher.partial(b, m)
		b.StartTimer()
		if err := leecher.Fetch(b.Context(), m.Torrent(), p, []string{tr.url}); err != nil {
			b.Fatal(err)
		}
		<-p.Done()
		b.StopTimer()
		leecher.Drop(m.Digest())
		b.StartTimer()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric((cpuTime(b)-before).Seconds()/float64(b.N)/(float64(m.Size())/(1<<30)), "CPU-s/GiB")
}

// BenchmarkFlock moves a blob to sixteen hosts at once, all in this process: what many
// peers and short pieces cost. The CPU time is that of all, by what hosts receive.
func BenchmarkFlock(b *testing.B) {
	const n = 16
	blob, _ := testBlob(64<<20, 31)
	tr := newTracker(b)
	seeder := newHost(b, Config{Seeder: true})
	m := seeder.share(b, blob, tr.url)
	b.SetBytes(n * m.Size())
	before := cpuTime(b)
	for b.Loop() {
		hosts := make([]*host, n)
		var all sync.WaitGroup
		for i := range hosts {
			h := newHost(b, Config{})
			hosts[i] = h
			p := h.partial(b, m)
			all.Go(func() {
				if err := h.Fetch(b.Context(), m.Torrent(), p, []string{tr.url}); err != nil {
					b.Error(err)
				}
				<-p.Done()
			})
		}
		all.Wait()
		for _, h := range hosts {
			h.Drop(m.Digest())
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric((cpuTime(b)-before).Seconds()/float64(b.N)/(n*float64(m.Size())/(1<<30)), "CPU-s/GiB")
}

// cpuTime is what this process has used so far.
func cpuTime(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
