package integration

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
)

// The benchmarks compare whole programs, so they are tests that run only when
// asked for, and not under b.Loop: one round is many seconds, the rounds of
// the two sides alternate, and what is printed is a ratio. None fails for
// being slow. Run them by `make bench-warm`, `bench-cold` and `bench-memory`.

func needsBench(t *testing.T) {
	t.Helper()
	needs(t)
	if os.Getenv("MURDER_BENCH") == "" {
		t.Skip("benchmarks run by the bench targets of the Makefile")
	}
}

// report prints a benchmark's one line.
func report(t *testing.T, format string, args ...any) {
	t.Helper()
	fmt.Printf("%s: %s\n", strings.ToLower(strings.TrimPrefix(t.Name(), "Test")), fmt.Sprintf(format, args...))
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// TestBenchWarm gets a cached blob of 512 MiB over loopback, from the mirror
// and from nginx with the same file, by one client at a time and by four.
func TestBenchWarm(t *testing.T) {
	needsBench(t)
	needs(t, "docker-registry", "nginx")
	const size, rounds = 512 << 20, 7
	image, err := makeImage(newRoot(t), "warm", size)
	if err != nil {
		t.Fatal(err)
	}
	f := startFleet(t, fleetConfig{Mirrors: 1})
	push(t, f.Registry.Addr, "bench/app:v1", image, nil)
	m, blob := f.Mirrors[0], layerBlobs(t, image)[0]
	warm := m.Blob(f.Registry.Addr, "bench/app", blob.Digest)
	if err := checkBlob(t, warm, blob.Digest); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("blobs", blob.Digest.Algorithm().String(), blob.Digest.Encoded())
	waitUntil(t, "the blob has its name", func() error {
		_, err := os.Stat(filepath.Join(m.DataDir, file))
		return err
	})
	n := startNginx(t, m.DataDir)

	for _, clients := range []int{1, 4} {
		sides := []*warmSide{
			{name: "mirror", pid: m.PID(), url: warm},
			{name: "nginx", pid: n.PID(), url: "http://" + n.Addr + "/" + filepath.ToSlash(file)},
		}
		for round := range rounds {
			for i := range sides { // who goes first alternates
				sides[(i+round)%2].measure(t, clients, blob.Size)
			}
		}
		mirror, nginx := median(sides[0].rates), median(sides[1].rates)
		report(t, "%d client(s): mirror %.0f MiB/s, nginx %.0f MiB/s, ratio %.2f (wanted at least 0.9); CPU s a GiB: mirror %.2f, nginx %.2f",
			clients, mirror, nginx, mirror/nginx, median(sides[0].cpu), median(sides[1].cpu))
	}
}

// warmSide is one of the two servers.
type warmSide struct {
	name, url string
	pid       int
	rates     []float64 // MiB/s, one for each round
	cpu       []float64 // seconds a GiB
}

func (s *warmSide) measure(t *testing.T, clients int, size int64) {
	t.Helper()
	before, start := cpuSeconds(t, s.pid), time.Now()
	var gets errgroup.Group
	for range clients {
		gets.Go(func() error { return drain(s.url, size) })
	}
	if err := gets.Wait(); err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	mib := float64(clients) * float64(size) / (1 << 20)
	s.rates = append(s.rates, mib/time.Since(start).Seconds())
	s.cpu = append(s.cpu, (cpuSeconds(t, s.pid)-before)/mib*1024)
}

// drain reads a body of size bytes as cheaply as it can: the client is not
// what is measured.
func drain(url string, size int64) error {
	resp, err := plainClient.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	buf := make([]byte, 1<<20)
	var n int64
	for {
		k, err := resp.Body.Read(buf)
		n += int64(k)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if resp.StatusCode != http.StatusOK || n != size {
		return fmt.Errorf("GET %s = %d with %d of %d bytes", url, resp.StatusCode, n, size)
	}
	return nil
}

// cpuSeconds is the user and system time of a process so far.
func cpuSeconds(t testing.TB, pid int) float64 {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := cutLast(string(stat), ") ") // the name may hold spaces
	fields := strings.Fields(rest)
	user, userErr := strconv.ParseFloat(fields[11], 64) // utime and stime are proc_pid_stat(5)'s 14 and 15
	system, systemErr := strconv.ParseFloat(fields[12], 64)
	if userErr != nil || systemErr != nil {
		t.Fatalf("/proc/%d/stat: %s", pid, stat)
	}
	const ticks = 100 // a second: USER_HZ on every Linux that Go runs on
	return (user + system) / ticks
}

// TestBenchCold pulls an image of 500 MB with containerd on a host that has
// nothing, through a seeder that has nothing, all on this machine, against the
// same pull straight from the registry. Once with gzipped layers, as images
// have them, and once with bytes that nothing has to unpack, where the engine
// itself works least and what murder adds shows most.
func TestBenchCold(t *testing.T) {
	needsBench(t)
	needsRoot(t)
	programs := debianContainerd(t)
	dir := newRoot(t)
	random, err := makeImage(dir, "cold", 200<<20, 150<<20, 100<<20, 45<<20, 5<<20)
	if err != nil {
		t.Fatal(err)
	}
	text, err := makeTextImage(dir, 320<<20, 240<<20, 160<<20, 72<<20, 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	storage := filepath.Join(dir, "storage")
	reg := startRegistry(t, registryConfig{Storage: storage})
	push(t, reg.Addr, "bench/random:v1", random, nil)
	push(t, reg.Addr, "bench/text:v1", text, nil)
	benchCold(t, programs, storage, "bench/text:v1", fmt.Sprintf("%d MB in gzipped layers", sizeOf(layerBlobs(t, text))/1e6))
	benchCold(t, programs, storage, "bench/random:v1", fmt.Sprintf("%d MB in plain layers", sizeOf(layerBlobs(t, random))/1e6))
}

func benchCold(t *testing.T, programs containerdPrograms, storage, ref, what string) {
	t.Helper()
	const rounds = 5
	var straight, through, ratios []float64
	for round := range rounds {
		pulls := []func(){
			func() { straight = append(straight, coldPull(t, programs, storage, ref, false)) },
			func() { through = append(through, coldPull(t, programs, storage, ref, true)) },
		}
		for i := range pulls { // who goes first alternates
			pulls[(i+round)%2]()
		}
		t.Logf("round %d: straight %.2fs, through murder %.2fs", round, straight[round], through[round])
		ratios = append(ratios, through[round]/straight[round]) // of one round: others use this disk too
	}
	report(t, "containerd, %s, nothing cached: straight %.2fs, through a cold mirror and a cold seeder %.2fs, ratio %.2f (wanted at most 1.25)",
		what, median(straight), median(through), median(ratios))
}

// makeTextImage makes an image with a gzipped layer for each size, of words
// that compress to two thirds.
func makeTextImage(dir string, sizes ...int64) (v1.Image, error) {
	var layers []v1.Layer
	for i, size := range sizes {
		own := filepath.Join(dir, fmt.Sprintf("text-%d", i))
		if err := writeWords(filepath.Join(own, "data", strconv.Itoa(i)), uint64(i), size); err != nil {
			return nil, err
		}
		l, err := makeLayer(own+".tar.gz", true, func(w *layerWriter) error { return w.addDir(own, "", keepAll) })
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	return assemble("amd64", layers...)
}

// word is 3 to 11 letters.
func word(r *rand.Rand) string {
	letters := make([]byte, 3+r.IntN(9))
	for i := range letters {
		letters[i] = byte('a' + r.IntN(26))
	}
	return string(letters)
}

func writeWords(file string, seed uint64, size int64) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(seed, 0))
	words := make([]string, 1<<14)
	for i := range words {
		words[i] = word(r) + " "
	}
	out := bufio.NewWriterSize(f, 1<<20)
	for n := int64(0); n < size && err == nil; {
		k := 0
		k, err = out.WriteString(words[r.IntN(len(words))])
		n += int64(k)
	}
	return errors.Join(err, out.Flush(), f.Close())
}

// coldPull is the seconds that one pull takes with everything fresh.
func coldPull(t *testing.T, programs containerdPrograms, storage, ref string, murder bool) (seconds float64) {
	t.Run("pull", func(t *testing.T) { // its cleanup ends the programs of a round
		c := startContainerd(t, programs)
		reg := startRegistry(t, registryConfig{Storage: storage})
		through := ""
		daemons := []*process{c.process, reg.process}
		if murder {
			seeder := startSeeder(t, daemonConfig{Insecure: []string{reg.Addr}})
			mirror := startMirror(t, daemonConfig{Insecure: []string{reg.Addr}, Seeders: []string{seeder.URL()}})
			through = mirror.Addr
			daemons = append(daemons, seeder.process, mirror.process)
		}
		c.Mirror(t, reg.Addr, through)
		start := time.Now()
		if err := c.Pull(t, reg.Addr+"/"+ref, ""); err != nil {
			t.Fatal(err)
		}
		seconds = time.Since(start).Seconds()
		for _, d := range daemons {
			t.Logf("%s used %.2f CPU seconds", d.name, cpuSeconds(t, d.PID()))
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return seconds
}

// TestBenchMemory measures a mirror's resident memory: idle, and at its peak
// while 1 GiB that is arriving from the seeder streams to three clients.
func TestBenchMemory(t *testing.T) {
	needsBench(t)
	needs(t, "docker-registry")
	if raceDetector {
		t.Skip("the race detector's memory is not murder's")
	}
	image, err := makeImage(newRoot(t), "memory", 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	f := startFleet(t, fleetConfig{Mirrors: 1, Certs: benchCerts(t)})
	push(t, f.Registry.Addr, "bench/app:v1", image, nil)
	m, blob := f.Mirrors[0], layerBlobs(t, image)[0]
	if a := get(t, m.URL()+"/readyz"); a.Status != http.StatusOK {
		t.Fatalf("GET /readyz = %d", a.Status)
	}
	idle := residentMiB(t, m.PID(), "VmRSS")
	var clients sync.WaitGroup
	for range 3 {
		clients.Go(func() {
			if err := drain(m.Blob(f.Registry.Addr, "bench/app", blob.Digest), blob.Size); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	report(t, "mirror idle %.0f MiB (wanted under 40), peak while 1 GiB streams to 3 clients %.0f MiB (wanted under 200); seeder's peak %.0f MiB",
		idle, residentMiB(t, m.PID(), "VmHWM"), residentMiB(t, f.Seeder.PID(), "VmHWM"))
}

// benchCerts are for a fleet with TLS, if that is what is to be measured.
func benchCerts(t *testing.T) *certs {
	t.Helper()
	if os.Getenv("MURDER_BENCH_TLS") == "" {
		return nil
	}
	return newCerts(t)
}

// residentMiB reads VmRSS (now) or VmHWM (peak) of a process.
func residentMiB(t testing.TB, pid int, field string) float64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if name, value, _ := strings.Cut(line, ":"); name == field {
			kib, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib / 1024
		}
	}
	t.Fatalf("/proc/%d/status has no %s", pid, field)
	return 0
}

// TestBenchCrowd measures a mirror's resident memory when all comes together:
// 1,000 layers cached and seeded, 100 others arriving through as many swarms,
// slowly, and 200 clients that read those, slowly as well.
func TestBenchCrowd(t *testing.T) {
	needsBench(t)
	needs(t, "docker-registry")
	if raceDetector {
		t.Skip("the race detector's memory is not murder's")
	}
	const cached, active, clients = 1000, 100, 200
	old, err := makeImage(newRoot(t), "old", slices.Repeat([]int64{1 << 20}, cached)...)
	if err != nil {
		t.Fatal(err)
	}
	arriving, err := makeImage(newRoot(t), "arriving", slices.Repeat([]int64{16 << 20}, active)...)
	if err != nil {
		t.Fatal(err)
	}
	f := startFleet(t, fleetConfig{Certs: benchCerts(t)})
	push(t, f.Registry.Addr, "bench/old:v1", old, nil)
	push(t, f.Registry.Addr, "bench/arriving:v1", arriving, nil)
	narrow := startSeeder(t, daemonConfig{Insecure: []string{f.name()}, Certs: f.certs, Flags: []string{"--upload-limit", "4MiB"}})
	m := startMirror(t, daemonConfig{Seeders: []string{f.Seeder.URL(), narrow.URL()}, Insecure: []string{f.name()}, Certs: f.certs})
	var pulls errgroup.Group
	pulls.SetLimit(8)
	for _, blob := range layerBlobs(t, old) {
		pulls.Go(func() error { return drain(m.Blob(f.Registry.Addr, "bench/old", blob.Digest), blob.Size) })
	}
	if err := pulls.Wait(); err != nil {
		t.Fatal(err)
	}
	before := residentMiB(t, m.PID(), "VmRSS")
	f.Seeder.Stop(t) // from now on there is the narrow one alone

	blobs := layerBlobs(t, arriving)
	var reading atomic.Int64
	for i := range clients {
		go func() {
			body, err := openBlob(t, m.Blob(f.Registry.Addr, "bench/arriving", blobs[i%active].Digest))
			if err != nil {
				return
			}
			defer body.Close()
			reading.Add(1)
			sip(body)
		}()
	}
	waitUntil(t, "every client reads", func() error {
		if n := reading.Load(); n < clients {
			return fmt.Errorf("%d clients read", n)
		}
		return nil
	})
	time.Sleep(20 * time.Second) // buffers fill
	report(t, "%.0f swarms, %d clients that read slowly: mirror %.0f MiB with the cached layers alone, now %.0f, peak %.0f (wanted under 300); seeder's peak %.0f MiB",
		m.Metrics(t).Sum("murder_torrents_active"), clients, before, residentMiB(t, m.PID(), "VmRSS"), residentMiB(t, m.PID(), "VmHWM"), residentMiB(t, narrow.PID(), "VmHWM"))
}

// sip reads as a client behind a slow disk does, 16 KiB at a time.
func sip(body io.Reader) {
	buf := make([]byte, 16<<10)
	for {
		if _, err := io.ReadFull(body, buf); err != nil {
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
}
