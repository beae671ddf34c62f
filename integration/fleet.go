package integration

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
)

// fleet is a registry, a seeder beside it, and mirrors that know the seeder.
type fleet struct {
	Registry *testRegistry
	Seeder   *daemon
	Mirrors  []*daemon
	certs    *certs
}

// fleetConfig says what the fleet is made of.
type fleetConfig struct {
	Registry    registryConfig
	Mirrors     int
	Certs       *certs // of all daemons; nil = no TLS
	SeederFlags []string
	MirrorFlags []string
}

// startFleet starts registry, seeder and mirrors. The registry is also their
// default registry, for engines that cannot name one.
func startFleet(t testing.TB, cfg fleetConfig) *fleet {
	t.Helper()
	f := &fleet{Registry: startRegistry(t, cfg.Registry), certs: cfg.Certs}
	f.Seeder = startSeeder(t, daemonConfig{Insecure: []string{f.name()}, Default: f.name(), Certs: f.certs, Flags: cfg.SeederFlags})
	for range cfg.Mirrors {
		f.Mirrors = append(f.Mirrors, f.addMirror(t, cfg.MirrorFlags...))
	}
	return f
}

// name is the registry as images name it: without :80, which is understood.
func (f *fleet) name() string { return strings.TrimSuffix(f.Registry.Addr, ":80") }

// addMirror starts one more mirror.
func (f *fleet) addMirror(t testing.TB, flags ...string) *daemon {
	t.Helper()
	return startMirror(t, daemonConfig{Seeders: []string{f.Seeder.URL()}, Insecure: []string{f.name()}, Default: f.name(), Certs: f.certs, Flags: flags})
}

// checkEachBlobOnce fails the test unless the registry has sent each blob
// exactly once. Without blobs, it looks at those that were asked for.
func (f *fleet) checkEachBlobOnce(t testing.TB, blobs ...blobInfo) {
	t.Helper()
	gets := f.Registry.BlobGets()
	for _, b := range blobs {
		if gets[b.Digest] != 1 {
			t.Errorf("the registry sent %s %d times, want once", b.Digest, gets[b.Digest])
		}
		delete(gets, b.Digest)
	}
	for d, n := range gets {
		t.Errorf("the registry sent %s, which nobody pulled, %d times", d, n)
	}
	if t.Failed() {
		for _, r := range f.Registry.Requests() {
			t.Logf("the registry saw %+v", r)
		}
	}
}

// checkBytesSent fails the test unless the mirror gave its clients at least
// want bytes: what an engine pulled went through it.
func checkBytesSent(t testing.TB, mirror *daemon, want int64) {
	t.Helper()
	if got := mirror.Metrics(t).Sum("murder_sent_bytes_total", `to="client"`); got < float64(want) {
		t.Errorf("the mirror sent its clients %.0f bytes, want at least %d", got, want)
	}
}

func sizeOf(blobs []blobInfo) int64 {
	var sum int64
	for _, b := range blobs {
		sum += b.Size
	}
	return sum
}

// hostAddr is an address of a registry whose name, without a port, is a host
// of its own on loopback: names within a path cannot have ports (the
// reference grammar of Docker and podman). Needs root, for port 80.
func hostAddr(t testing.TB) string {
	t.Helper()
	needsRoot(t)
	return fmt.Sprintf("127.%d.%d.%d:80", 64+rand.IntN(64), rand.IntN(256), 2+rand.IntN(250))
}

// onePiece is what tests that stop in the middle of a blob take as "some".
const onePiece = 256 << 10

// missingDigest names a blob that no registry has.
const missingDigest = digest.Digest("sha256:00000000000000000000000000000000000000000000000000000000deadbeef")
