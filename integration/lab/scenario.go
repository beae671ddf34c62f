package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/murderp2p/murder/integration/netlab"
)

// scenario is a kind of run that can be asked for by name.
type scenario struct {
	name    string
	plan    func(o options) plan // of a run that is one fleet pulling
	compare bool                 // also with the library's client and with no fleet at all

	run func(ctx context.Context, l *lab) error // of any other, instead
}

// scenarios are all there are, in the order in which they run.
var scenarios = []scenario{
	{name: "equal8", plan: equalLinks(8), compare: true},
	{name: "equal16", plan: equalLinks(16), compare: true},
	{name: "equal32", plan: equalLinks(32), compare: true},
	{name: "seeder4x", plan: fastSeeder},
	{name: "twoseeders", plan: twoSeeders},
	{name: "neighbours8", plan: fewNeighbours},
	{name: "waves", plan: waves},
	{name: "slowhost", plan: slowHost},
	{name: "slowhalf", plan: slowHalf},
	{name: "killquarter", plan: killQuarter},
	{name: "zones", plan: twoZones},
	{name: "image8", plan: image8},
	{name: "cold1", plan: cold(1)},
	{name: "cold4", plan: cold(4)},
	{name: "tiny", run: tiny},
	{name: "warm", plan: warm},
	{name: "cpu", plan: chain},
	{name: "lone", run: lone},
	{name: "fleet16", run: fleet16},
}

func findScenario(name string) (scenario, bool) {
	i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
	if i < 0 {
		return scenario{}, false
	}
	return scenarios[i], true
}

// basic is n equal hosts and what all scenarios start from. Registry and
// seeder have links as the hosts have.
func basic(o options, n int) plan {
	n, size, rate := o.hostsOr(n), o.sizeOr(128<<20), o.rateOr(50e6)
	return plan{
		Title: fmt.Sprintf("%d hosts, %s at %s", n, humanize.IBytes(uint64(size)), rateText(rate)),
		Sizes: []int64{size}, Rate: rate, Hosts: equal(n, rate), Seeder: both(rate), Registry: both(rate),
	}
}

func (p plan) titled(format string, args ...any) plan {
	p.Title += ", " + fmt.Sprintf(format, args...)
	return p
}

func equalLinks(n int) func(options) plan {
	return func(o options) plan { return basic(o, n).titled("equal links") }
}

func fastSeeder(o options) plan {
	p := basic(o, 16).titled("the seeder's link four times that")
	p.Seeder = both(4 * p.Rate)
	return p
}

func twoSeeders(o options) plan {
	p := basic(o, 16).titled("two seeders that have it")
	p.Twins = true
	return p
}

func fewNeighbours(o options) plan {
	p := basic(o, 16).titled("each reaches 8 others")
	p.Neighbours = 8
	return p
}

// waves begins with a fifth of the hosts every 5 s.
func waves(o options) plan {
	p := basic(o, 15).titled("a fifth every 5 s, each host's own time")
	for i := range p.Hosts {
		p.Hosts[i].Delay = time.Duration(i*5/len(p.Hosts)) * 5 * time.Second
	}
	return p
}

func slowHost(o options) plan {
	p := basic(o, 16).titled("one host at a tenth, for which nobody waits")
	slow := &p.Hosts[len(p.Hosts)-1]
	*slow = host{Group: "slow", Link: both(p.Rate / 10), Behind: true}
	return p
}

func slowHalf(o options) plan {
	p := basic(o, 16).titled("half of them at half the rate, each over its own limit")
	for i := range p.Hosts {
		p.Hosts[i].Group = "fast"
		if i%2 == 1 {
			p.Hosts[i].Group, p.Hosts[i].Link = "slow", both(p.Rate/2)
		}
	}
	return p
}

// killQuarter kills mirrors when the others should be half through.
func killQuarter(o options) plan {
	p := basic(o, 16).titled("a quarter of the mirrors killed at half time")
	for i := range p.Hosts {
		p.Hosts[i].Group = "others"
	}
	for _, i := range rand.New(rand.NewPCG(2, 0)).Perm(len(p.Hosts))[:len(p.Hosts)/4] {
		p.Hosts[i].Group = "killed"
		p.Hosts[i].Kill = time.Duration(p.limit(p.Hosts[i].Link) / 2 * float64(time.Second))
	}
	return p
}

// twoZones puts half of the hosts behind a cable as narrow as one host's own.
func twoZones(o options) plan {
	p := basic(o, 16).titled("half of them in another zone, with one host's rate between the zones")
	p.Cable = p.Rate
	for i := range p.Hosts {
		p.Hosts[i].Zone = i % 2
		p.Hosts[i].Group = fmt.Sprintf("zone%d", i%2)
	}
	return p
}

// image8 is an image with layers of the sizes that real ones have.
func image8(o options) plan {
	p := basic(o, 16)
	p.Image = true
	p.Sizes = imageSizes(p.size())
	p.Title = fmt.Sprintf("%d hosts, an image of 8 layers from %s to %s at %s, 3 at a time", len(p.Hosts),
		humanize.IBytes(uint64(slices.Min(p.Sizes))), humanize.IBytes(uint64(slices.Max(p.Sizes))), rateText(p.Rate))
	return p
}

// imageSizes are eight layers of which the biggest has size bytes, in no
// order of size, as in images.
func imageSizes(size int64) []int64 {
	return []int64{size / 4, 2 << 10, size / 8, size, 32 << 10, size / 64, size / 2, size / 32}
}

// cold has the seeder's link to the registry be n times the hosts': what the
// seeder sends goes at the hosts' rate in any case.
func cold(n int64) func(options) plan {
	return func(o options) plan {
		p := basic(o, 16).titled("the seeder has nothing, its link to the registry %d times a host's", n)
		p.Cold = true
		p.Registry = both(n * p.Rate)
		p.Seeder = netlab.Link{Up: p.Rate, Down: n * p.Rate}
		return p
	}
}

// chain has one host receive everything from the seeder and send everything
// to another, as fast as the machine can: what a host's part in a swarm costs.
func chain(o options) plan {
	o.size, o.hosts = o.sizeOr(1<<30), 2
	p := unlimited(basic(o, 2))
	p.Title = fmt.Sprintf("%s from the seeder to one host (first) and from that to another (second), unlimited", humanize.IBytes(uint64(p.size())))
	p.Chain = true
	p.Hosts[0].Group, p.Hosts[1].Group = "first", "second"
	return p
}

// unlimited takes the limits off all cables.
func unlimited(p plan) plan {
	p.Rate, p.Hosts, p.Seeder, p.Registry = 0, equal(len(p.Hosts), 0), netlab.Link{}, netlab.Link{}
	return p
}

// warm pulls what is in the caches, over loopback.
func warm(o options) plan {
	p := unlimited(basic(o, 4))
	p.Title = fmt.Sprintf("%d hosts, %s from each one's own cache, unlimited", len(p.Hosts), humanize.IBytes(uint64(p.size())))
	p.Warm = true
	return p
}
