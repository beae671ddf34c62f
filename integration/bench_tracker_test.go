package integration

import (
	"bytes"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	benchHosts  = 20_000
	benchSwarms = 10

	// benchConnections is as many as a machine usually lets one process open. It
	// is a multiple of atOnce, so that each connection is one worker's alone.
	benchConnections = 128 * atOnce
)

// TestBenchTracker announces 20,000 hosts on 10 swarms each to the tracker of a
// seeder that has one core (GOMAXPROCS=1), over HTTP, and divides by the CPU
// seconds that the seeder takes, so that what the hosts cost, which run on the
// same machine, does not count: first over thousands of connections, as in a
// fleet, then all over a few, which is cheaper for HTTP.
//
// The second run shows what a listed peer costs in resident memory, since
// thousands of connections take far more of it. The time an announce takes is
// that of a tracker which has all the work it can do: there are always 64 under
// way.
func TestBenchTracker(t *testing.T) {
	needsBench(t)
	if raceDetector {
		t.Skip("the race detector's time and memory are not murder's")
	}
	fleet := benchTracker(t, benchConnections)
	few := benchTracker(t, atOnce)
	report(t, "%d hosts on %d swarms each, announces a CPU second: joining %.0f and again %.0f with %d connections, %.0f and %.0f with %d (wanted 20000); "+
		"an announce among %d at once: p50 %.1f ms, p99 %.1f ms; "+
		"resident memory %.0f bytes a peer (wanted 300), %.1f KiB a connection",
		benchHosts, benchSwarms, fleet.join, fleet.again, fleet.connections, few.join, few.again, few.connections,
		atOnce, fleet.p50, fleet.p99,
		few.peers/(benchHosts*benchSwarms), fleet.idle/benchConnections/1024)
}

// trackerRun is what one run measured.
type trackerRun struct {
	connections int
	join, again float64 // announces a CPU second
	p50, p99    float64 // milliseconds that one took, of all
	idle, peers float64 // bytes of memory that connections took, and then peers
}

func benchTracker(t *testing.T, connections int) (run trackerRun) {
	t.Run(fmt.Sprint(connections), func(t *testing.T) { // its cleanup ends the seeder
		t.Setenv("GOMAXPROCS", "1")
		s := startSeeder(t, daemonConfig{Flags: []string{"--log-level", "info"}})
		hosts := dialHosts(t, s.Addr, connections)
		run.connections = connections
		memory := residentMiB(t, s.PID(), "VmRSS")
		grown := func() float64 {
			before := memory
			memory = residentMiB(t, s.PID(), "VmRSS")
			return (memory - before) * (1 << 20)
		}
		rate := func(query string) float64 {
			before := cpuSeconds(t, s.PID())
			hosts.announce(t, query)
			return benchHosts * benchSwarms / (cpuSeconds(t, s.PID()) - before)
		}
		rate("&event=stopped&left=1000") // warms it up, and lists nobody
		run.idle = grown()
		run.join = rate("&event=started&left=100000000&numwant=10")
		run.peers = grown()
		run.again = (rate("&left=50000000&numwant=10") + rate("&left=20000000&numwant=3")) / 2
		run.peers += grown()
		run.p50, run.p99 = hosts.percentiles()
		if got := s.Metrics(t).Sum("murder_tracker_peers"); got != benchHosts*benchSwarms {
			t.Errorf("the tracker lists %v peers, want %d", got, benchHosts*benchSwarms)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return run
}

// benchFleet is hosts that share connections to a tracker.
type benchFleet struct {
	addr  string
	conns []net.Conn
	took  [atOnce][]float64 // milliseconds, worker by worker
}

// percentiles are the median and the 99th of what the announces took so far.
func (f *benchFleet) percentiles() (p50, p99 float64) {
	all := slices.Concat(f.took[:]...)
	slices.Sort(all)
	return all[len(all)/2], all[len(all)*99/100]
}

func dialHosts(t *testing.T, addr string, connections int) *benchFleet {
	t.Helper()
	f := &benchFleet{addr: addr}
	for range connections {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		f.conns = append(f.conns, c)
	}
	return f
}

// atOnce is how many announces are under way at the same time.
const atOnce = 64

// announce announces every host to every swarm.
func (f *benchFleet) announce(t *testing.T, query string) {
	t.Helper()
	var workers errgroup.Group
	for w := range atOnce {
		workers.Go(func() error {
			answer := make([]byte, 4096)
			for swarm := range benchSwarms {
				for host := w; host < benchHosts; host += atOnce {
					c, start := f.conns[host%len(f.conns)], time.Now()
					if err := f.ask(c, host, swarm, query, answer); err != nil {
						return fmt.Errorf("host %d, swarm %d: %w", host, swarm, err)
					}
					f.took[w] = append(f.took[w], float64(time.Since(start).Microseconds())/1000)
				}
			}
			return nil
		})
	}
	if err := workers.Wait(); err != nil {
		t.Fatal(err)
	}
}

// ask announces a host as a mirror would. The hosts' addresses are made up, as
// there is but one.
func (f *benchFleet) ask(c net.Conn, host, swarm int, query string, answer []byte) error {
	infohash := url.QueryEscape(fmt.Sprintf("\x01\xfe swarm number %02d \xff", swarm))
	request := fmt.Sprintf("GET /announce?compact=1&downloaded=0&info_hash=%s&ip=10.1.%d.%d&peer_id=-MD0002-%012d&port=7081&uploaded=0%s HTTP/1.1\r\n"+
		"Host: %s\r\nUser-Agent: Go-http-client/1.1\r\nAccept-Encoding: gzip\r\n\r\n",
		infohash, host>>8, host&255, host, query, f.addr)
	if _, err := c.Write([]byte(request)); err != nil {
		return err
	}
	got := 0
	for {
		n, err := c.Read(answer[got:])
		if err != nil {
			return err
		}
		got += n
		if whole(answer[:got]) {
			break
		}
	}
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 ")) || !bytes.Contains(answer[:got], []byte("8:interval")) {
		return fmt.Errorf("answer %q", answer[:got])
	}
	return nil
}

// whole reports whether an HTTP answer is all there.
func whole(answer []byte) bool {
	header, body, ok := bytes.Cut(answer, []byte("\r\n\r\n"))
	if !ok {
		return false
	}
	_, length, _ := bytes.Cut(header, []byte("Content-Length: "))
	length, _, _ = bytes.Cut(length, []byte("\r\n"))
	n, err := strconv.Atoi(string(length))
	return err == nil && len(body) >= n
}
