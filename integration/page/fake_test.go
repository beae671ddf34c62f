package page_test

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/murderp2p/murder/seeder/page"
)

// fakeFleet is a fleet to look at, without a daemon: its hosts pull an image of some
// layers, at the pace of step.
type fakeFleet struct {
	mu      sync.Mutex // guards the rest
	hosts   int
	step    int  // of steps
	hostile bool // names are such as strangers would choose
	idle    bool
	play    bool // a step at each View, over and over
}

// steps is how many it takes until all hosts have everything.
const steps = 100

// zones is how many zones the hosts are in.
const zones = 4

func (f *fakeFleet) set(change func(f *fakeFleet)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// layerSizes are bytes.
var layerSizes = []int64{412 << 20, 187<<20 + 4321, 96 << 20, 31 << 20, 5 << 20}

// share is how much host i has of layer l, in per cent: those of later numbers are
// slower, as are those of later layers.
func (f *fakeFleet) share(i, l int) int {
	slowness := 60 + int(uint32(i)*2654435761>>16)%90 + 9*l // 60 to 185
	return min(100, 185*f.step/slowness)
}

// Totals implements page.Source.
func (f *fakeFleet) Totals() page.Totals {
	f.mu.Lock()
	defer f.mu.Unlock()
	var t page.Totals
	if f.idle {
		return t
	}
	for l, size := range layerSizes {
		t.Registry += size * int64(min(100, 4*f.step)) / 100
		for i := range f.hosts {
			t.Fleet += size / 100 * int64(f.share(i, l))
		}
	}
	return t
}

// View implements page.Source.
func (f *fakeFleet) View() page.View {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.play {
		f.step = f.step%(steps-1) + 1
	}
	v := page.View{Now: page.Now{Version: "v1.4.0", Cached: 90 << 30}}
	if f.idle {
		return v
	}
	for l, size := range layerSizes {
		v.Swarms = append(v.Swarms, f.swarm(l, size))
	}
	for i := range f.hosts {
		h := f.host(i)
		v.Hosts = append(v.Hosts, h)
		switch h.State {
		case page.Ready:
			v.Now.Ready++
		case page.Pulling:
			v.Now.Pulling++
		case page.Away:
			v.Now.Away++
		}
	}
	v.Now.Hosts, v.Now.Swarms = f.hosts, len(v.Swarms)
	v.Jobs = []page.Job{f.job(v.Now.Ready)}
	v.Fallbacks = []page.Fallback{{Reason: "swarm stalled", Count: int64(f.step / 9)}, {Reason: "seeder unreachable", Count: int64(f.step / 3)}, {Reason: "cache unusable"}}
	if f.hostile {
		v.Fallbacks = append(v.Fallbacks, page.Fallback{Reason: "constructor", Count: 7})
	}
	return v
}

func (f *fakeFleet) swarm(l int, size int64) page.Swarm {
	s := page.Swarm{
		ID: l + 1, Name: "registry.example/shop/checkout", Digest: fmt.Sprintf("sha256:%012x", 0x9f3ac1d0e5b7+l*0x1234567), Size: size,
		Fetched: min(100, 4*f.step), Hosts: f.hosts,
	}
	if f.hostile {
		s.Name = hostileNames[l%len(hostileNames)]
	}
	total := 0
	for i := range f.hosts {
		have := f.share(i, l)
		total += have
		s.Fill[have/10]++
	}
	if f.hosts > 0 {
		s.Percent = total / f.hosts
	}
	return s
}

func (f *fakeFleet) host(i int) page.Host {
	h := page.Host{
		ID: i + 1, Name: fmt.Sprintf("node-%04d.prod.example", i+1), Addr: fmt.Sprintf("10.%d.%d.%d", i/65536, i/256%256, i%256),
		Zone: i%zones + 1, ZoneName: fmt.Sprintf("eu-central-1%c", 'a'+i%zones), State: page.Ready, Percent: 100,
	}
	if f.hostile {
		h.Name, h.ZoneName = hostileNames[i%len(hostileNames)], hostileNames[(i%zones+1)%len(hostileNames)]
	}
	var have, want int64
	for l, size := range layerSizes {
		if f.share(i, l) == 100 {
			h.Whole++
		}
		have, want = have+size/100*int64(f.share(i, l)), want+size/100*100
	}
	if have < want {
		h.State, h.Percent, h.Left = page.Pulling, int(100*have/want), want-have
	}
	if i%667 == 333 {
		h.State, h.Percent, h.Left = page.Away, 0, 0
	}
	return h
}

func (f *fakeFleet) job(done int) page.Job {
	j := page.Job{
		ID: 1, Images: "registry.example/shop/checkout:v2.31", Whom: "zones eu-central-1a, eu-central-1b", State: page.Running,
		Hosts: f.hosts, Done: done, Began: time.Date(2030, 1, 2, 12, 4, 11, 0, time.UTC), Slowest: "node-0090.prod.example, node-0179.prod.example",
	}
	for l, size := range layerSizes {
		for i := range f.hosts {
			j.Have, j.Want = j.Have+size/100*int64(f.share(i, l)), j.Want+size/100*100
		}
	}
	if f.hostile {
		j.Images, j.Whom = hostileNames[0], hostileNames[1]
	}
	if j.Have == j.Want {
		j.State, j.Slowest = page.Done, ""
	}
	return j
}

// hostileNames would do harm as markup, in an attribute, in a script, in an event, or
// by turning the text around them about.
var hostileNames = []string{
	`<img src=x onerror="window.harmed=1">`,
	`"><script>window.harmed=1</script>`,
	`</title><svg onload=window.harmed=1>`,
	"a\n\ndata: {\"seq\":1}\n\nevent: view",
	"x\u202egnp.exe\u2066\x1b[31m\x00",
	`javascript:window.harmed=1//'` + "`${window.harmed=1}`",
	strings.Repeat("w", 500),
	strings.Repeat("e\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307\u0308\u0309\u030a\u030b", 9), // marks that pile up
	strings.Repeat("\ufdfd", 20), // the widest character that there is
	"مضيف-שרת", "constructor", "__proto__",
}
