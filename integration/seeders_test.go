package integration

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// seeders are a registry, seeders beside it, and mirrors that name them in different
// orders.
type seederFleet struct {
	Registry *testRegistry
	Seeders  []*daemon
	Mirrors  []*daemon
	config   daemonConfig // of the seeders
}

func startSeederFleet(t testing.TB, seeders, mirrors int, flags ...string) *seederFleet {
	t.Helper()
	f := &seederFleet{Registry: startRegistry(t, registryConfig{})}
	f.config = daemonConfig{Insecure: []string{f.Registry.Addr}, Default: f.Registry.Addr, Flags: flags}
	var urls []string
	for range seeders {
		s := startSeeder(t, f.config)
		f.Seeders = append(f.Seeders, s)
		urls = append(urls, s.URL())
	}
	for i := range mirrors {
		cfg := f.config
		cfg.Flags = nil
		cfg.Seeders = slices.Concat(urls[i%seeders:], urls[:i%seeders])
		f.Mirrors = append(f.Mirrors, startMirror(t, cfg))
	}
	return f
}

// preferred is the seeder that has begun to fetch since before was noted.
func (f *seederFleet) preferred(t testing.TB, before []float64) (int, bool) {
	for i, n := range f.fetched(t) {
		if n > before[i] {
			return i, true
		}
	}
	return 0, false
}

// fetched is what each seeder has had of the registry, in bytes.
func (f *seederFleet) fetched(t testing.TB) (bytes []float64) {
	for _, s := range f.Seeders {
		bytes = append(bytes, s.Metrics(t).Sum("murder_received_bytes_total", `from="upstream"`))
	}
	return bytes
}

// stop ends all programs.
func (f *seederFleet) stop() {
	for _, d := range slices.Concat(f.Seeders, f.Mirrors) {
		d.Kill()
	}
	f.Registry.Crash()
}

// pullAll pulls a blob by all mirrors at once. When one of the clients has had some bytes,
// at is called. It returns the longest time that any client waited for bytes after that.
func (f *seederFleet) pullAll(t testing.TB, blob blobInfo, some int64, at func()) (longest time.Duration) {
	t.Helper()
	var mu sync.Mutex // guards longest and happened
	var happened time.Time
	var once sync.Once
	var pulling sync.WaitGroup
	for _, m := range f.Mirrors {
		pulling.Go(func() {
			body, err := openBlob(t, m.Blob(f.Registry.Addr, "app", blob.Digest))
			if err != nil {
				t.Error(err)
				return
			}
			defer body.Close()
			verifier := blob.Digest.Verifier()
			buf := make([]byte, 64<<10)
			for got, last := int64(0), time.Now(); ; {
				n, err := body.Read(buf)
				verifier.Write(buf[:n])
				got += int64(n)
				if at != nil && got >= some {
					once.Do(func() {
						at()
						mu.Lock()
						happened = time.Now()
						mu.Unlock()
					})
				}
				mu.Lock()
				if now := time.Now(); !happened.IsZero() {
					longest = max(longest, now.Sub(later(last, happened)))
				}
				mu.Unlock()
				last = time.Now()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Errorf("pull of %s after %d bytes: %v", blob.Digest, got, err)
					return
				}
			}
			if !verifier.Verified() {
				t.Errorf("pull of %s: wrong bytes", blob.Digest)
			}
		})
	}
	pulling.Wait()
	return longest
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// pushBlob pushes an image of one layer, and returns that.
func (f *seederFleet) pushBlob(t testing.TB, seed string, size int64) blobInfo {
	t.Helper()
	image, err := makeImage(newRoot(t), seed, size)
	if err != nil {
		t.Fatal(err)
	}
	push(t, f.Registry.Addr, "app:"+seed, image, nil)
	return layerBlobs(t, image)[0]
}

func (f *seederFleet) gets(d digest.Digest) int { return f.Registry.BlobGets()[d] }

// TestSeederDiesInMidBlob kills the seeder that fetches and seeds a blob while three hosts
// pull it: the next takes over, and no host goes to the registry.
func TestSeederDiesInMidBlob(t *testing.T) {
	needs(t, "docker-registry")
	f := startSeederFleet(t, 3, 3, "--upload-limit", "4MiB")
	blob := f.pushBlob(t, "v1", 12<<20)
	before := f.fetched(t)
	f.pullAll(t, blob, 1<<20, func() {
		i, ok := f.preferred(t, before)
		if !ok {
			t.Error("bytes came, and no seeder has fetched any")
		}
		f.Seeders[i].Kill()
	})
	if n := f.gets(blob.Digest); n != 2 {
		t.Errorf("the registry was asked %d times for the blob, want once by each of two seeders", n)
	}
	for i, m := range f.Mirrors {
		if n := m.Metrics(t).Sum("murder_received_bytes_total", `from="upstream"`); n > 0 {
			t.Errorf("mirror %d had %.0f bytes of the registry", i, n)
		}
	}
}

// TestBenchSeeders measures, with three seeders, how often the registry sends a blob that
// eight hosts pull at once, and for how long a client waits when the preferred seeder is
// killed in mid-blob.
func TestBenchSeeders(t *testing.T) {
	needsBench(t)
	needs(t, "docker-registry")
	const blobs, rounds = 24, 20
	shared := startSeederFleet(t, 3, 8)
	var all []blobInfo
	for i := range blobs {
		all = append(all, shared.pushBlob(t, fmt.Sprint("shared", i), 2<<20))
	}
	var pulling sync.WaitGroup
	for _, blob := range all {
		pulling.Go(func() { shared.pullAll(t, blob, 0, nil) })
	}
	pulling.Wait()
	most, sum := 0, 0
	for _, blob := range all {
		most, sum = max(most, shared.gets(blob.Digest)), sum+shared.gets(blob.Digest)
	}
	report(t, "%d blobs to 8 hosts by 3 seeders: the registry sent %d, each at most %d times", blobs, sum, most)

	var waits []float64
	gets := 0
	for round := range rounds {
		// A fleet of its own: hosts that have just seen a seeder die trust it again at
		// different times, and a blob may be fetched by two until then.
		f := startSeederFleet(t, 3, 3, "--upload-limit", "8MiB")
		blob := f.pushBlob(t, fmt.Sprint("round", round), 16<<20)
		before := f.fetched(t)
		wait := f.pullAll(t, blob, 4<<20, func() {
			preferred, _ := f.preferred(t, before)
			f.Seeders[preferred].Kill()
		})
		waits = append(waits, wait.Seconds())
		gets = max(gets, f.gets(blob.Digest))
		f.stop()
	}
	p50 := median(waits)
	report(t, "the preferred seeder is killed in mid-blob: clients wait for %.2f s (p50 of %d rounds, the longest of 3 clients each), %.2f s at the most; the registry sent a blob at most %d times",
		p50, rounds, waits[len(waits)-1], gets)
}

// TestSeedersBehindOneName has a mirror find its seeders by one name with two addresses,
// and later others, with and without TLS, where certificates are for that name alone.
func TestSeedersBehindOneName(t *testing.T) {
	needs(t, "docker-registry")
	needsRoot(t)
	for _, tls := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", tls), func(t *testing.T) {
			const name = "host" // as in newCerts, which knows 127.0.0.1 besides
			f := &seederFleet{Registry: startRegistry(t, registryConfig{})}
			f.config = daemonConfig{Insecure: []string{f.Registry.Addr}, Default: f.Registry.Addr}
			if tls {
				f.config.Certs = newCerts(t)
			}
			port := "0"
			start := func(addr string) *daemon {
				cfg := f.config
				cfg.Listen, cfg.Peers = net.JoinHostPort(addr, port), net.JoinHostPort(addr, "0")
				return startSeeder(t, cfg)
			}
			first := start("127.0.0.2")
			_, port, _ = net.SplitHostPort(first.Addr)
			f.Seeders = []*daemon{first, start("127.0.0.3")}

			hosts := filepath.Join(newRoot(t), "hosts")
			writeFile(t, hosts, "127.0.0.2 host\n127.0.0.3 host\n")
			cfg := f.config
			cfg.Seeders = []string{"http://" + net.JoinHostPort(name, port)}
			if tls {
				cfg.Seeders = []string{"https://" + net.JoinHostPort(name, port)}
			}
			cfg.Through = []string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts}
			f.Mirrors = []*daemon{startMirror(t, cfg)}

			const blobs = 12 // all at one of two seeders: once in 2,048 runs
			for i := range blobs {
				blob := f.pushBlob(t, fmt.Sprint("v", i), 2<<20)
				f.pullAll(t, blob, 0, nil)
				if n := f.gets(blob.Digest); n != 1 {
					t.Errorf("the registry sent a blob %d times, want once", n)
				}
			}
			for i, n := range f.fetched(t) {
				if n == 0 {
					t.Errorf("seeder %d has fetched nothing", i)
				}
			}

			f.Seeders = append(f.Seeders, start("127.0.0.4"))
			writeFile(t, hosts, "127.0.0.4 host\n127.0.0.2 host\n") // in place: it is bound
			f.Mirrors[0].waitLine(t, "seeders have changed", func(line string) bool {
				return strings.Contains(line, "seeders have changed") && strings.Contains(line, "127.0.0.4")
			})
			f.Seeders[0].Kill()
			f.Seeders[1].Kill()
			f.Seeders = f.Seeders[2:]
			before := f.fetched(t)
			f.pullAll(t, f.pushBlob(t, "late", 2<<20), 0, nil)
			if _, ok := f.preferred(t, before); !ok {
				t.Error("the seeder that is left has not been asked")
			}
			if n := f.Mirrors[0].Metrics(t).Sum("murder_received_bytes_total", `from="upstream"`); n > 0 {
				t.Errorf("the mirror had %.0f bytes of the registry", n)
			}
		})
	}
}
