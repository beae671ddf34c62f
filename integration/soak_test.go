package integration

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestSoak has one flock live for MURDER_SOAK (10m), while images are pulled
// everywhere and the faults of the chaos cases strike at random. Nothing is
// asked of a round but that each pull ends with the right bytes, by engines that
// ask again for what breaks. MURDER_SOAK_SEED replays the draws of a run; in
// which byte they strike depends on the machine.
func TestSoak(t *testing.T) {
	duration, seed := soakOptions(t)
	t.Logf("chaos: soak for %v, seed %d", duration, seed)
	wired := shapingWorks() == nil
	s := &soak{seed: seed, image: newSoakImage(t, rand.New(rand.NewPCG(seed, 0)), 0)}
	cfg := flockConfig{Cold: true, Bucket: true, SeederFlags: soakFlags, MirrorFlags: soakFlags}
	if wired {
		cfg.Small, cfg.SmallDisks = 2, 2
	}
	s.flock = startFlock(t, s.image, cfg)
	for _, c := range chaosCases {
		if !c.alone && (wired || !c.wired) {
			s.faults = append(s.faults, c)
		}
	}
	table := map[string]aftermath{}
	start := time.Now()
	rounds := 0
	for ; time.Since(start) < duration && !t.Failed(); rounds++ {
		name, pulls := s.round(t, rounds)
		table[name] = table[name].plus(newAftermath(name, pulls))
	}
	t.Logf("chaos: %d rounds, seed %d", rounds, seed)
	t.Log("chaos: " + aftermathHead)
	for _, name := range slices.Sorted(maps.Keys(table)) {
		t.Log("chaos: " + table[name].String())
	}
}

// soakFlags keep caches so small that blobs are evicted, and logs short.
var soakFlags = []string{"--cache-size", "64MiB", "--log-level", "info"}

func soakOptions(t *testing.T) (duration time.Duration, seed uint64) {
	t.Helper()
	needs(t, "docker-registry")
	text := os.Getenv("MURDER_SOAK")
	if text == "" {
		t.Skip("MURDER_SOAK is not set, as to 10m")
	}
	duration, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	seed = uint64(time.Now().UnixNano()) % 1e6
	if text := os.Getenv("MURDER_SOAK_SEED"); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return duration, seed
}

// soak is a flock and what may strike it.
type soak struct {
	flock  *flock
	seed   uint64
	faults []chaosCase
	image  *flockImage // of the first round
}

// newSoakImage makes an image of one to four layers, of up to 12 MiB each.
func newSoakImage(t testing.TB, r *rand.Rand, round int) *flockImage {
	t.Helper()
	var sizes []int64
	for range 1 + r.IntN(4) {
		sizes = append(sizes, 64<<10+r.Int64N(12<<20))
	}
	return newFlockImage(t, fmt.Sprintf("soak-%d-%d", r.Uint32(), round), sizes...)
}

// round pulls an image everywhere, with one fault or two on the way.
func (s *soak) round(t *testing.T, n int) (name string, pulls []*pull) {
	t.Helper()
	f := s.flock
	r := rand.New(rand.NewPCG(s.seed, uint64(n)+1))
	if n > 0 {
		f.image = newSoakImage(t, r, n)
	}
	r.Shuffle(len(f.Hosts), func(i, j int) { f.Hosts[i], f.Hosts[j] = f.Hosts[j], f.Hosts[i] })
	first, second := s.faults[r.IntN(len(s.faults))], s.faults[r.IntN(len(s.faults))]
	at, then, both := 0.6*r.Float64(), 0.3*r.Float64(), r.IntN(3) == 0
	lasts := time.Second + time.Duration(r.Int64N(int64(9*time.Second))) // the fault's own time
	warm := r.IntN(2) == 0
	t.Logf("round %d: %s at %.2f of %d bytes, warm %v, for %v", n, first.name, at, f.image.Size(), warm, lasts)

	if warm {
		f.warm(t)
	}
	if first.before != nil {
		first.before(t, f)
	}
	pulls = f.pullEverywhere(t, first.tokens(f))
	first.strikeAt(t, f, pulls, at)
	if name = first.name; both && !first.waits && !second.waits && second.strike != nil {
		second.strikeAt(t, f, pulls, at+then)
		name = "two at once"
	}
	awaitEnd(pulls, lasts)
	f.mend(t)
	awaitPulls(t, pulls, false)
	f.logWays(t)
	return name, pulls
}

// awaitEnd returns when all pulls have ended, or after a time.
func awaitEnd(pulls []*pull, atMost time.Duration) {
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	for _, p := range pulls {
		select {
		case <-p.ended:
		case <-timer.C:
			return
		}
	}
}

// mend ends all faults.
func (f *flock) mend(t *testing.T) {
	t.Helper()
	f.Registry.Replace(nil)
	f.Bucket.Replace(nil)
	if f.bad != nil {
		f.bad.Stop(t)
		f.bad = nil
	}
	if f.network != nil {
		errs := []error{f.network.Join()}
		for _, h := range f.Hosts {
			errs = append(errs, h.cfg.On.Mend())
		}
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	if f.Registry.process.hasEnded() {
		f.Registry.Crash() // its gate may have come back without it
		f.Registry.Restart(t)
	}
	for _, p := range append([]*part{f.Seeder}, f.Hosts...) {
		if p.hasEnded() {
			p.Restart(t)
		}
		p.Signal(t, syscall.SIGCONT)
		if err := os.Remove(p.ballast()); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	f.Registry.Forget()
}
