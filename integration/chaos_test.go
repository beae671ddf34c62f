package integration

import (
	"fmt"
	"testing"
)

// What a fleet's pulls do when its parts fail in the middle: 8 hosts pull an
// image, something breaks, and each pull ends with the right bytes. A pull whose
// own mirror runs on must not even break; where that cannot be, the case says why.

// chaosCase is one thing that goes wrong.
type chaosCase struct {
	name  string
	flock flockConfig
	wired bool    // needs machines with cables
	at    float64 // the share of the image that is everywhere when it strikes

	// retry says why engines have to ask again though their mirrors run on, if they have to.
	retry string

	token  func(f *flock) func(host int) func() string // what engines say they are; nil is nobody
	strike func(t *testing.T, f *flock, pulls []*pull)
	check  func(t *testing.T, f *flock, pulls []*pull) // of more than that all is well; may be nil
}

var chaosCases = []chaosCase{
	{name: "seeder killed", at: 0.25, strike: killSeeder},
	{name: "seeder killed as it fetches", flock: flockConfig{Cold: true}, at: 0.25, strike: killSeeder},
	{name: "seeder restarted", at: 0.25, strike: restartSeeder},
	{name: "seeder restarted as it fetches", flock: flockConfig{Cold: true}, at: 0.25, strike: restartSeeder},
	{name: "half of the mirrors restarted", at: 0.25, strike: restartMirrors},
	{name: "registry killed", at: 0.1, strike: killRegistry},
	{name: "registry restarted", flock: flockConfig{Cold: true}, at: 0.1,
		retry: "nobody else has the bytes, for a moment", strike: restartRegistry},
}

func killSeeder(t *testing.T, f *flock, _ []*pull) { f.Seeder.Kill() }

func restartSeeder(t *testing.T, f *flock, _ []*pull) {
	f.Seeder.Kill()
	f.Seeder.Restart(t)
}

// restartMirrors kills half of the mirrors, all at once, before it starts the
// first again.
func restartMirrors(t *testing.T, f *flock, pulls []*pull) {
	half := f.Hosts[:len(f.Hosts)/2]
	var before float64
	for i, h := range half {
		pulls[i].mirrorEnds = true
		before += h.received(t)
		h.Kill()
	}
	for _, h := range half {
		h.Restart(t)
	}
	t.Cleanup(func() { // while the mirrors still run
		after := 0.0
		for _, h := range half {
			after += h.received(t)
		}
		twice := before + after - float64(int64(len(half))*f.image.Size())
		t.Logf("%d killed mirrors received %.1f MiB in all before, %.1f after: %.1f MiB each came twice",
			len(half), before/(1<<20), after/(1<<20), twice/float64(len(half))/(1<<20))
	})
}

// received is what a mirror has received since it started, in bytes.
func (p *part) received(t testing.TB) float64 {
	return p.Metrics(t).Sum("murder_received_bytes_total")
}

func killRegistry(t *testing.T, f *flock, _ []*pull) { f.Registry.Crash() }

func restartRegistry(t *testing.T, f *flock, _ []*pull) {
	f.Registry.Crash()
	f.Registry.Restart(t)
}

// TestChaos runs all cases and logs a table of how pulls went on.
func TestChaos(t *testing.T) {
	var table []aftermath
	for _, c := range chaosCases {
		t.Run(c.name, func(t *testing.T) { table = append(table, c.run(t)) })
	}
	t.Log("chaos: " + aftermathHead)
	for _, a := range table {
		t.Log("chaos: " + a.String())
	}
}

func (c chaosCase) run(t *testing.T) aftermath {
	if c.wired {
		needsShaping(t)
	}
	f := startFlock(t, c.flock)
	var token func(host int) func() string
	if c.token != nil {
		token = c.token(f)
	}
	pulls := f.pullEverywhere(t, f.image, token)
	awaitShare(t, pulls, c.at)
	inFlight := 0
	for _, p := range pulls {
		if p.strike() {
			inFlight++
		}
	}
	t.Logf("it strikes with %d of %d pulls in flight", inFlight, len(pulls))
	if c.strike != nil {
		c.strike(t, f, pulls)
	}
	awaitPulls(t, pulls, c.retry == "")
	if c.check != nil {
		c.check(t, f, pulls)
	}
	f.logWays(t)
	return newAftermath(c.name, pulls)
}

// logWays logs where the bytes came from, and why not from the swarm.
func (f *flock) logWays(t testing.TB) {
	t.Helper()
	sums := map[string]float64{}
	for _, h := range f.Hosts {
		m := h.Metrics(t)
		for _, from := range []string{"peer", "seeder", "upstream"} {
			sums[from] += m.Sum("murder_received_bytes_total", fmt.Sprintf("from=%q", from))
		}
		if s := m.Series("murder_fallbacks_total"); s != "" {
			sums[s]++
		}
	}
	t.Logf("mirrors: %v", sums)
}
