package page_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"
)

// benchHosts is the fleet that the page is measured with.
const benchHosts = 2000

// TestBenchPage measures what the page costs with 2,000 hosts. At rest nobody
// pulls; at work all 2,000 do, and each has more at each update, which is the most that
// there can be to say.
func TestBenchPage(t *testing.T) {
	if os.Getenv("MURDER_BENCH") == "" {
		t.Skip("benchmarks run by the bench targets of the Makefile")
	}
	node, chromium := needsBrowser(t)
	f := &fakeFleet{hosts: benchHosts}
	s := startSeeder(t, f, time.Second)
	var files int
	for _, path := range []string{"", "page/style.css", "page/page.js"} {
		files += len(get(t, s.url()+path))
	}
	cmd := exec.CommandContext(t.Context(), node, "load.mjs")
	cmd.Env = append(os.Environ(), "PAGE_URL="+s.url(), "PAGE_TOKEN="+rightToken, "PAGE_CHROMIUM="+chromium)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("load.mjs: %v", err)
	}
	var load struct{ Shown, Drawn []float64 } // ms from the start of a load, and what an update takes the browser
	if err := json.Unmarshal(out, &load); err != nil {
		t.Fatalf("load.mjs says %q: %v", out, err)
	}
	for _, viewers := range []int{1, 32} {
		rest := measure(t, s, f, viewers, false)
		work := measure(t, s, f, viewers, true)
		fmt.Printf("bench-page: %d hosts, %d viewers: first load %.1f kB of files (gzip) and %.1f kB of state; "+
			"an update at rest %.2f kB and %.2f ms CPU, with all hosts at work %.1f kB a viewer and %.2f ms CPU in all\n",
			benchHosts, viewers, float64(files)/1000, float64(rest.first)/1000, float64(rest.bytes)/1000, rest.cpu, float64(work.bytes)/1000, work.cpu)
	}
	slices.Sort(load.Shown)
	slices.Sort(load.Drawn)
	fmt.Printf("bench-page: Chromium shows %d hosts %.0f ms after the address was given (median of %d), and takes %.1f ms for an update with all at work\n",
		benchHosts, load.Shown[len(load.Shown)/2], len(load.Shown), load.Drawn[len(load.Drawn)/2])
}

// cost is what updates cost on average.
type cost struct {
	first, bytes int     // of the first event; of an update, to one viewer
	cpu          float64 // milliseconds of this process: with the fake fleet, and the viewers, who only count
}

// measure has viewers look for some updates.
func measure(t *testing.T, s *seeder, f *fakeFleet, viewers int, atWork bool) (c cost) {
	t.Helper()
	const updates = 20
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	f.set(func(f *fakeFleet) { f.step, f.play = 40, atWork })
	defer f.set(func(f *fakeFleet) { f.play = false })
	streams := make([]*bufio.Reader, viewers)
	for i := range streams {
		streams[i] = bufio.NewReaderSize(events(ctx, t, s), 1<<20) // an event is one line
		c.first = event(t, streams[i])
	}
	for _, stream := range streams {
		event(t, stream)
	}
	before := cpu(t)
	for range updates {
		for _, stream := range streams {
			c.bytes += event(t, stream)
		}
	}
	c.cpu = (cpu(t) - before).Seconds() * 1000 / updates
	c.bytes /= updates * viewers
	return c
}

func events(ctx context.Context, t *testing.T, s *seeder) io.Reader {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, "GET", s.url()+"page/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+rightToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("events: %s", resp.Status)
	}
	return resp.Body
}

// event reads one and returns its length.
func event(t *testing.T, r *bufio.Reader) (n int) {
	t.Helper()
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			t.Fatal(err)
		}
		if n += len(line); bytes.Equal(line, []byte("\n")) {
			return n
		}
	}
}

func get(t *testing.T, url string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept-Encoding", "gzip")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// cpu is what this process has used so far.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
