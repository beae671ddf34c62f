package handout

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"
)

// fleet is a swarm with hosts that are known by a number.
type fleet struct {
	testing.TB
	*Swarm
	now time.Duration
}

func newFleet(tb testing.TB) *fleet {
	return &fleet{TB: tb, Swarm: New(rand.New(rand.NewPCG(1, 2)))}
}

const lifetime = 75 * time.Second

func host(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 7081)
}

func number(p Peer) int {
	ip := p.Addr.Addr().As4()
	return int(ip[1])<<16 | int(ip[2])<<8 | int(ip[3])
}

func (f *fleet) ask(n int, zone string, want int) *Ask {
	a := &Ask{Addrs: []netip.AddrPort{host(n)}, Zone: zone, Want: want, Expires: f.now + lifetime}
	copy(a.ID[:], fmt.Sprint(n))
	return a
}

// join announces host n and returns whom it was told of.
func (f *fleet) join(n int, zone string, want int) []int {
	f.Helper()
	return f.announce(f.ask(n, zone, want))
}

func (f *fleet) announce(a *Ask) []int {
	f.Helper()
	peers, _ := f.Announce(a, MaxPeers, nil)
	told := make([]int, len(peers))
	for i, p := range peers {
		told[i] = number(p)
	}
	slices.Sort(told)
	if len(peers) > a.Want || len(slices.Compact(slices.Clone(told))) != len(peers) {
		f.Errorf("who wanted %d was told of %v", a.Want, told)
	}
	return told
}

func (f *fleet) degree(n int) int {
	i, there := f.find(host(n))
	if !there {
		f.Fatalf("host %d is not listed", n)
	}
	return int(f.peers[i].degree)
}

// check that all that is kept twice agrees.
func (f *fleet) check() {
	f.Helper()
	complete, fed, waiting := 0, 0, 0
	for i := range f.peers {
		p := &f.peers[i]
		across := uint8(0)
		for _, j := range p.edges[:p.degree] {
			q := &f.peers[j]
			if int(j) == i || !slices.Contains(q.edges[:q.degree], uint16(i)) || p.complete && q.complete {
				f.Fatalf("peer %d and its neighbour %d do not agree", i, j)
			}
			if q.zone != p.zone {
				across++
			}
		}
		if across != p.across || len(slices.Compact(slices.Sorted(slices.Values(p.edges[:p.degree])))) != int(p.degree) {
			f.Fatalf("neighbours of %d are %v, %d across and not %d", i, p.edges[:p.degree], across, p.across)
		}
		z := f.zones[p.zone]
		if z.order[p.place] != uint16(i) || (p.class() > needy) != (int(p.place) >= z.ends[needy]) || (p.class() > whole) != (int(p.place) >= z.ends[whole]) {
			f.Fatalf("peer %d of class %d is at place %d of %v", i, p.class(), p.place, z.ends)
		}
		if at, there := f.find(p.addr.unpack()); !there || at != i {
			f.Fatalf("peer %d is found as %d", i, at)
		}
		complete, fed, waiting = complete+count(p.complete), fed+count(p.fed), waiting+count(p.waiting)
	}
	in := 0
	for _, z := range f.zones {
		in += len(z.order)
	}
	if complete != f.complete || fed != f.fed || waiting != len(f.waiting) || in != len(f.peers) || fed > OriginPlaces {
		f.Fatalf("%d complete, %d fed, %d waiting, %d in zones: the swarm has %d, %d, %d, %d",
			complete, fed, waiting, in, f.complete, f.fed, len(f.waiting), len(f.peers))
	}
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// reach returns how many peers can be reached from the first, and the mean and
// greatest number of steps from any of 50 to all others.
func (f *fleet) reach() (peers int, mean float64, most int) {
	pairs := 0
	for start := 0; start < len(f.peers); start += 1 + len(f.peers)/50 {
		steps := make([]int, len(f.peers)) // 0: not reached
		steps[start] = 1
		queue := []uint16{uint16(start)}
		for n := 0; n < len(queue); n++ {
			at := queue[n]
			p := &f.peers[at]
			for _, j := range p.edges[:p.degree] {
				if steps[j] == 0 {
					steps[j] = steps[at] + 1
					most = max(most, steps[at])
					mean += float64(steps[at])
					pairs++
					queue = append(queue, j)
				}
			}
		}
		if start == 0 {
			peers = len(queue)
		}
		if len(queue) != peers {
			f.Errorf("%d peers can be reached from one, %d from another", peers, len(queue))
		}
	}
	return peers, mean / float64(pairs), most
}

// degrees returns the least, mean and greatest number of neighbours.
func (f *fleet) degrees() (least int, mean float64, most int) {
	least = MaxDegree
	for _, p := range f.peers {
		least, most = min(least, int(p.degree)), max(most, int(p.degree))
		mean += float64(p.degree) / float64(len(f.peers))
	}
	return least, mean, most
}

func (f *fleet) mustBeGood() {
	f.Helper()
	least, mean, most := f.degrees()
	reached, steps, diameter := f.reach()
	f.Logf("degrees %d to %d, %.1f in the mean; %d connected, %.1f steps in the mean and %d at most",
		least, most, mean, reached, steps, diameter)
	if least < Degree || most > MaxDegree || reached != f.Len() || steps > 4 || diameter > 6 {
		f.Error("want degrees from 10 to 30, and all connected within 4 steps in the mean and 6 at most")
	}
}

func TestTenThousandMakeARandomGraph(t *testing.T) {
	const n = 10_000
	f := newFleet(t)
	for i := range n {
		if told := f.join(i, "", Degree); len(told) != min(i, Degree) {
			t.Fatalf("host %d was told of %d peers", i, len(told))
		}
	}
	f.check()
	f.mustBeGood()
}

func TestTheGraphHeals(t *testing.T) {
	const n = 10_000
	f := newFleet(t)
	for i := range n {
		f.join(i, "", Degree)
	}
	// A quarter dies. The others go on announcing, and when the dead have been
	// forgotten those who have too few ask for what they lack.
	dead := func(i int) bool { return i%4 == 0 }
	each := func(do func(i int)) {
		for i := range n {
			if !dead(i) {
				do(i)
			}
		}
	}
	f.now += lifetime
	each(func(i int) { f.join(i, "", 0) })
	f.now += time.Second
	f.Expire(f.now)
	if f.Len() != n-n/4 {
		t.Fatalf("%d are listed, want %d", f.Len(), n-n/4)
	}
	f.check()
	each(func(i int) { f.join(i, "", max(0, Degree-f.degree(i))) })
	f.check()
	for i := n; i < n+1000; i++ {
		if told := f.join(i, "", Degree); len(told) != Degree {
			t.Fatalf("a newcomer then was told of %d peers", len(told))
		}
	}
	f.mustBeGood()
}

func TestSameChanceSameGraph(t *testing.T) {
	told := func() (all []int) {
		f := newFleet(t)
		for i := range 500 {
			all = append(all, f.join(i, fmt.Sprint(i%3), Degree)...)
		}
		return all
	}
	if !slices.Equal(told(), told()) {
		t.Error("two swarms with the same generator give different peers")
	}
}

func TestManyAsAlways(t *testing.T) {
	// Ordinary clients ask for 50, again and again. Each is told of 50, and
	// still there is room for those who come.
	f := newFleet(t)
	for round := range 3 {
		for i := range 500 {
			if told := f.join(i, "", 50); len(told) != min(50, f.Len()-1) {
				t.Fatalf("round %d: host %d was told of %d peers", round, i, len(told))
			}
		}
		f.check()
	}
	_, _, open := f.room()
	t.Logf("%d of 500 have room", open)
	if open < 100 {
		t.Errorf("%d of 500 have room, want a fifth at least", open)
	}
}

func (f *fleet) room() (needy, whole, open int) {
	for _, z := range f.zones {
		needy, open = needy+z.ends[0], open+z.ends[1]
	}
	return needy, open - needy, open
}

func TestSmallSwarmsAreMeshes(t *testing.T) {
	f := newFleet(t)
	const n = 2*Degree + 1
	for i := range n {
		if told := f.join(i, "", 2*Degree); len(told) != i {
			t.Errorf("host %d was told of %d", i, len(told))
		}
	}
	f.check()
	if least, _, most := f.degrees(); least != 2*Degree || most != 2*Degree {
		t.Errorf("they have %d to %d neighbours, want all", least, most)
	}
	for i := n; i < 10*n; i++ {
		if told := f.join(i, "", 2*Degree); len(told) != Degree || f.degree(i) != Degree {
			t.Errorf("in a larger swarm a newcomer was told of %d, %d counted", len(told), f.degree(i))
		}
	}
}

func TestTwoSmallZones(t *testing.T) {
	f := newFleet(t)
	const n = Degree
	for round := range 3 {
		for i := range 2 * n {
			a := f.ask(i, fmt.Sprint(i%2), 2*Degree)
			a.Fresh = round > 0
			f.announce(a)
			f.Wait(a, func(Peer, bool) {})
		}
		f.check()
	}
	for _, p := range f.peers {
		if int(p.degree-p.across) != n-1 || p.across < across || p.across > Degree {
			t.Errorf("a peer has %d neighbours of %d in its own zone and %d in the other", p.degree-p.across, n-1, p.across)
		}
	}
}

func TestAskingAgainGivesOthers(t *testing.T) {
	f := newFleet(t)
	for i := range 100 {
		f.join(i, "", 0)
	}
	seen := make(map[int]bool)
	for _, n := range f.join(200, "", Degree) {
		seen[n] = true
	}
	for range 2 {
		for _, n := range f.join(200, "", 5) {
			if seen[n] {
				t.Errorf("told of %d a second time", n)
			}
			seen[n] = true
		}
	}
	f.check()
	small := newFleet(t)
	for i := range 4 {
		small.join(i, "", Degree)
	}
	if told := small.join(0, "", Degree); len(told) != 3 {
		t.Errorf("who knows all of a small swarm and asks again is told of %v, want them all", told)
	}
}

func TestZones(t *testing.T) {
	f := newFleet(t)
	zone := func(i int) string {
		if i%20 == 0 {
			return "small"
		}
		return "large"
	}
	for i := range 2000 {
		own, told := 0, f.join(i, zone(i), Degree)
		for _, n := range told {
			own += count(zone(n) == zone(i))
		}
		if i > 500 && (own != Degree-across && zone(i) == "small" || own < Degree-across || len(told) != Degree) {
			t.Errorf("host %d of the %s zone was told of %d, %d of its own", i, zone(i), len(told), own)
		}
	}
	f.check()
	crossing := 0
	for _, p := range f.peers {
		crossing += int(p.across)
	}
	t.Logf("%d neighbours of 100 hosts are across", crossing/2)
	if crossing/2 < 2*100 || crossing/2 > maxAcross*100+MaxDegree*12 {
		t.Errorf("%d neighbours of 100 hosts are across", crossing/2)
	}
	if reached, _, _ := f.reach(); reached != f.Len() {
		t.Errorf("%d of %d connected", reached, f.Len())
	}
	alone := f.join(3000, "alone", Degree)
	if len(alone) != Degree {
		t.Errorf("a zone of its own was told of %v", alone)
	}
}

func TestCompleteOnesAreNotGivenToEachOther(t *testing.T) {
	f := newFleet(t)
	whole := func(n, want int) *Ask {
		a := f.ask(n, "", want)
		a.Complete = true
		return a
	}
	for i := range 100 {
		f.announce(whole(i, 0))
	}
	if told := f.announce(whole(100, 50)); len(told) != 0 {
		t.Errorf("a complete peer was told of complete ones: %v", told)
	}
	for i := 200; i < 205; i++ {
		if told := f.join(i, "", Degree); len(told) != Degree {
			t.Errorf("a peer that lacks something was told of %v", told)
		}
	}
	if told := f.announce(whole(100, 50)); !slices.Equal(told, []int{200, 201, 202, 203, 204}) {
		t.Errorf("a complete peer was told of %v, want those who lack something", told)
	}
	for i := 200; i < 205; i++ { // what they were to each other and to the others ends
		f.announce(whole(i, 0))
		f.check()
	}
	if _, mean, _ := f.degrees(); mean != 0 || f.Complete() != f.Len() {
		t.Errorf("complete peers have %.1f neighbours; %d of %d are complete", mean, f.Complete(), f.Len())
	}
}

func TestPlacesAtTheOrigin(t *testing.T) {
	f := newFleet(t)
	at := func(n, want int, complete, fresh bool) bool {
		a := f.ask(n, "", want)
		a.Origin, a.Complete, a.Fresh = true, complete, fresh
		peers, origin := f.Announce(a, MaxPeers, nil)
		if got := len(peers) + count(origin); got > want {
			t.Errorf("host %d was told of %d, want %d", n, got, want)
		}
		return origin
	}
	for i := range OriginPlaces {
		if !at(i, Degree, false, false) {
			t.Fatalf("host %d of a small swarm was not told of the origin", i)
		}
	}
	if !at(98, Degree, false, false) {
		t.Error("nobody was told of the origin besides, though who has the places may be dead")
	}
	if at(100, Degree, false, false) {
		t.Error("two more than there are places were told of the origin at once")
	}
	if !at(1, 1, false, false) {
		t.Error("who has a place was not told again")
	}
	if at(1, 1, false, true) {
		t.Error("who has a place was told as if that were new")
	}
	if at(2, 0, false, false) {
		t.Error("who wants nobody was told of the origin")
	}
	at(1, 0, true, false)
	if !at(100, Degree, false, true) || at(101, Degree, false, false) {
		t.Error("a peer that has become complete has not left one place")
	}
	f.Leave(f.ask(2, "", 0))
	if !at(101, Degree, false, false) {
		t.Error("one that has left has not left its place")
	}
	if at(1, Degree, true, false) {
		t.Error("a complete peer was told of the origin")
	}
	later := f.ask(102, "", Degree)
	later.Origin, later.Now = true, spareEvery
	if _, origin := f.Announce(later, MaxPeers, nil); !origin {
		t.Error("nobody was told of the origin besides a second time")
	}
	f.check()
}

func TestWaiting(t *testing.T) {
	f := newFleet(t)
	var got []string
	wait := func(n int) *Waiter {
		return f.Wait(f.ask(n, "", 0), func(p Peer, ok bool) {
			if !ok {
				got = append(got, fmt.Sprintf("%d: over", n))
				return
			}
			got = append(got, fmt.Sprintf("%d: %d", n, number(p)))
		})
	}
	expect := func(want ...string) {
		t.Helper()
		f.check()
		if !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
		got = nil
	}
	if w := wait(1); w != nil {
		t.Error("one who is not listed may wait")
	}
	f.join(1, "", Degree)
	wait(1)
	if told := f.join(2, "", Degree); !slices.Equal(told, []int{1}) {
		t.Errorf("2 was told of %v", told)
	}
	expect("1: 2")
	f.join(3, "", Degree)
	expect()

	fresh := f.ask(1, "", Degree)
	fresh.Fresh = true
	if told := f.announce(fresh); len(told) != 0 {
		t.Errorf("1 was told of %v, whom it knows", told)
	}
	wait(1)
	wait(2)
	f.join(3, "", Degree) // knows both
	expect()
	whole := f.ask(4, "", 0)
	whole.Complete = true
	if told := f.announce(whole); len(told) != 0 {
		t.Errorf("who wants nobody was told of %v", told)
	}
	expect("1: 4", "2: 4")

	w := wait(1)
	wait(1)
	expect("1: over")
	f.Cancel(w)
	f.Cancel(w)
	f.Leave(f.ask(1, "", 0))
	expect("1: over")
	f.Cancel(wait(2))
	wait(3)
	f.now += 2 * lifetime
	f.Expire(f.now)
	expect("3: over")
	if f.Len() != 0 || len(f.waiting) != 0 {
		t.Errorf("%d peers and %d waiting are left", f.Len(), len(f.waiting))
	}
}

func TestBothAddressesOfAHost(t *testing.T) {
	f := newFleet(t)
	both := f.ask(1, "", Degree)
	both.Addrs = append(both.Addrs, netip.MustParseAddrPort("[fd00::1]:7081"))
	if told, _ := f.Announce(both, MaxPeers, nil); len(told) != 0 {
		t.Errorf("a host was told of %v, itself", told)
	}
	if told, _ := f.Announce(f.ask(2, "", Degree), MaxPeers, nil); len(told) != 2 {
		t.Errorf("told of %v, want both addresses", told)
	}
	f.check()
	both.ID[0] = 'x' // it was restarted
	f.Announce(both, MaxPeers, nil)
	f.check()
	f.Leave(both)
	if f.Len() != 1 {
		t.Errorf("%d peers after it has left, want 1", f.Len())
	}
}

func TestFullSwarm(t *testing.T) {
	f := newFleet(t)
	for i := range 10 {
		peers, _ := f.Announce(f.ask(i, "", Degree), 3, nil)
		if len(peers) != min(i, 3) {
			t.Errorf("host %d was told of %d peers", i, len(peers))
		}
	}
	if f.Len() != 3 {
		t.Errorf("%d are listed, want 3", f.Len())
	}
}

// FuzzSwarm does at random all that can be done to a swarm.
func FuzzSwarm(f *testing.F) {
	f.Add(uint64(1), 20, 3)
	f.Add(uint64(2), 400, 300)
	f.Fuzz(func(t *testing.T, seed uint64, hosts, zones int) {
		hosts, zones = 1+hosts&1023, 1+zones&1023
		r := rand.New(rand.NewPCG(seed, 0))
		fl := newFleet(t)
		for step := range 2000 {
			n := r.IntN(hosts)
			a := fl.ask(n, fmt.Sprint(r.IntN(zones)), r.IntN(51))
			a.Complete, a.Origin, a.Fresh = r.IntN(3) == 0, r.IntN(2) == 0, r.IntN(3) == 0
			a.ID[19] = byte(r.IntN(100) / 99)
			switch r.IntN(8) {
			case 0:
				fl.Leave(a)
			case 1:
				fl.now += time.Second / 4
				fl.Expire(fl.now)
			case 2:
				w := fl.Wait(a, func(Peer, bool) {})
				if r.IntN(2) == 0 {
					fl.Cancel(w)
				}
			default:
				fl.announce(a)
			}
			if step%100 == 0 {
				fl.check()
			}
		}
		fl.now += 2 * lifetime
		fl.Expire(fl.now)
		fl.check()
		if fl.Len() != 0 {
			t.Errorf("%d peers are left", fl.Len())
		}
	})
}

func BenchmarkAnnounce(b *testing.B) {
	f := newFleet(b)
	for i := range 10_000 {
		f.join(i, "", Degree)
	}
	asks := make([]*Ask, 10_000)
	for i := range asks {
		asks[i] = f.ask(i, "", 3)
	}
	var buf []Peer
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		buf, _ = f.Announce(asks[i%10_000], MaxPeers, buf[:0])
	}
}

// With the room that the collector leaves itself, memory is twice what lives.
func TestMemory(t *testing.T) {
	const swarms, hosts = 10, 10_000
	live := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := live()
	fleets := make([]*fleet, swarms)
	for i := range fleets {
		fleets[i] = newFleet(t)
		for n := range hosts {
			fleets[i].join(n, "", Degree)
		}
	}
	each := float64(live()-before) / (swarms * hosts)
	runtime.KeepAlive(fleets)
	t.Logf("%.0f bytes a peer", each)
	if each > 150 {
		t.Errorf("%.0f bytes a peer live, want at most 150", each)
	}
}
