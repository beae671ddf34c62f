package integration

import (
	"fmt"
	"net/http"
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
	alone bool    // cannot be mended, so it is no part of a soak
	waits bool    // its strike waits for the pulls, so nothing else can strike
	at    float64 // the share of the image that is everywhere when it strikes

	// retry says why engines have to ask again though their mirrors run on, if they have to.
	retry string

	before func(t *testing.T, f *flock)                // the pulls begin; may be nil
	token  func(f *flock) string                       // with which engines ask; may be nil
	strike func(t *testing.T, f *flock, pulls []*pull) // may be nil
	check  func(t *testing.T, f *flock)                // of more than that all is well; may be nil
}

var chaosCases = []chaosCase{
	{name: "seeder killed", at: 0.25, strike: killSeeder},
	{name: "seeder killed as it fetches", flock: flockConfig{Cold: true}, at: 0.25, strike: killSeeder},
	{name: "seeder restarted", at: 0.25, strike: restartSeeder},
	{name: "seeder restarted as it fetches", flock: flockConfig{Cold: true}, at: 0.25, strike: restartSeeder},
	{name: "half of the mirrors restarted", at: 0.25, strike: restartMirrors},
	{name: "half of the mirrors ended", at: 0.25, strike: endMirrors},
	{name: "seeder ended", at: 0.25, strike: endSeeder},
	{name: "registry killed", at: 0.1, strike: killRegistry},
	{name: "registry restarted", flock: flockConfig{Cold: true}, at: 0.1,
		retry: "nobody else has the bytes, for a moment", strike: restartRegistry},

	{name: "seeder silent", at: 0.25, strike: stopSeeder, check: killStopped},
	{name: "seeder silent as it fetches", flock: flockConfig{Cold: true}, at: 0.25, strike: stopSeeder, check: killStopped},
	{name: "first of two seeders silent", alone: true, flock: flockConfig{Deaf: true}, at: 0.1},
	{name: "peer sends wrong bytes", before: corruptPeer, at: 0.05, check: wasAsked},
	{name: "peer offers and never sends", before: silentPeer, at: 0.05, check: wasAsked},
	{name: "rot in half of what has arrived", at: 0.4, strike: rotPartials},
	{name: "rot in three caches", alone: true, flock: flockConfig{Hosts: 11}, before: rotCaches, at: 0.05},
	{name: "rot in caches as they are read", alone: true, at: 1, strike: rotUnderReaders, check: pullAgain},
	{name: "rot in what is arriving", alone: true, at: 0.2, strike: rotArriving, check: toldOfRot},
	{name: "disks of two full", wired: true, flock: flockConfig{SmallDisks: 2}, at: 0.25, strike: fillDisks},
	{name: "disks of two full, seeder killed", wired: true, flock: flockConfig{SmallDisks: 2}, at: 0.25, strike: fillDisksKillSeeder},
	{name: "two cables cut for 20 s", wired: true, at: 0.25, strike: cutCables},
	{name: "partition, the seeder with two", wired: true, flock: flockConfig{Small: 2}, at: 0.25, strike: partition, check: join},
	{name: "clocks jump", at: 0.25, strike: jumpClocks},
	{name: "200 slow clients", waits: true, at: 0.05, strike: crowd},

	{name: "registry says 500", flock: flockConfig{Cold: true}, at: 0.1, retry: onlyRegistry, strike: refuse(http.StatusInternalServerError)},
	{name: "registry says 429", flock: flockConfig{Cold: true}, at: 0.1, retry: onlyRegistry, strike: refuse(http.StatusTooManyRequests)},
	{name: "registry's bodies end early", flock: flockConfig{Cold: true}, at: 0.1, retry: onlyRegistry, strike: truncate},
	{name: "registry sends wrong bytes", flock: flockConfig{Cold: true}, at: 0.1, retry: onlyRegistry, strike: falsify},
	{name: "object storage, URLs expire", flock: flockConfig{Cold: true, Bucket: true}, before: useBucket, at: 0.1,
		retry: onlyRegistry, strike: expireURLs},
	{name: "tokens expire", flock: flockConfig{Cold: true}, before: wantTokens, token: currentToken, at: 0.1,
		retry: "only engines can get new tokens", strike: expireTokens},
}

const onlyRegistry = "nobody but the registry has the bytes"

// TestChaos runs all cases and logs a table of how pulls went on.
func TestChaos(t *testing.T) {
	needs(t, "docker-registry")
	image := newFlockImage(t, "v1", 8<<20, 5<<20, 3<<20, 200<<10)
	var table []aftermath
	for _, c := range chaosCases {
		t.Run(c.name, func(t *testing.T) { table = append(table, c.run(t, image)) })
	}
	t.Log("chaos: " + aftermathHead)
	for _, a := range table {
		t.Log("chaos: " + a.String())
	}
}

func (c chaosCase) run(t *testing.T, image *flockImage) aftermath {
	if c.wired {
		needsShaping(t)
	}
	f := startFlock(t, image, c.flock)
	if c.before != nil {
		c.before(t, f)
	}
	pulls := f.pullEverywhere(t, c.tokens(f))
	c.strikeAt(t, f, pulls, c.at)
	awaitPulls(t, pulls, c.retry == "")
	if c.check != nil {
		c.check(t, f)
	}
	f.logWays(t)
	return newAftermath(c.name, pulls)
}

// tokens is the case's token, for pullEverywhere.
func (c chaosCase) tokens(f *flock) func() string {
	if c.token == nil {
		return nil
	}
	return func() string { return c.token(f) }
}

// strikeAt strikes once this share of the image is everywhere.
func (c chaosCase) strikeAt(t *testing.T, f *flock, pulls []*pull, share float64) {
	t.Helper()
	awaitShare(t, pulls, share)
	inFlight := 0
	for _, p := range pulls {
		if p.strike() {
			inFlight++
		}
	}
	t.Logf("%s, with %d of %d pulls in flight", c.name, inFlight, len(pulls))
	if c.strike != nil {
		c.strike(t, f, pulls)
	}
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
