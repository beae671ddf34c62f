package main

import (
	"math"
	"slices"
	"time"

	"github.com/murderp2p/murder/integration/netlab"
)

// result is what one run took and cost, as it is written into its JSON file.
// Times are seconds; shares are of one.
type result struct {
	Scenario  string
	Contender string // murder, library, direct, floor
	Title     string
	Time      time.Time
	Version   string // of murder

	Hosts      int
	Size       int64 // bytes each host pulls
	Rate       int64 // of an ordinary host's link, bits a second
	QueueMS    int   // of each cable
	Congestion string
	Folder     string // where data was kept
	Seconds    float64

	Groups   []group
	Each     []hostResult
	Timeline []moment

	Sent        map[string]int64 // bytes at the card, by role, headers included
	SentByHost  []int64          // likewise
	Crossed     int64            // bytes at the cable into the far zone, headers included
	CopiesCard  map[string]float64
	Copies      map[string]float64 // of the content, headers left out, by role; hosts: the mean of all
	Payload     payload
	Retransmits float64 // share of TCP segments
	Drops       drops

	Roles    []roleCost
	Machine  float64 // share of all cores in use, whoever used it
	Lab      float64 // share that the programs of the run used
	CPUBound bool    // above which figures say little about the network
	Warnings []string
	Errors   []string
}

// cpuBound is the share of the machine from which on a run is marked.
const cpuBound = 0.90

// hostResult is how one host fared.
type hostResult struct {
	Host  int
	Group string
	Limit float64 // seconds its own link needs at the least; 0 if unlimited
	pulled
	CPU       float64 // seconds, of its mirror
	PeakRSS   int64   // bytes, likewise
	Error     string  `json:",omitempty"`
	Uncounted bool    `json:",omitempty"` // killed, or not waited for
}

// group sums up the hosts of a group that were to finish.
type group struct {
	Name      string
	Hosts     int
	Unit      string // of Completed and At: the limit of each one's link, or seconds
	Completed spread
	FirstByte spread // in seconds
	Stall     spread // likewise
	At        [len(marks)]spread
	PerGiB    float64 // CPU seconds of the hosts' mirrors for each GiB they received
}

// spread is a distribution: nearest-rank percentiles.
type spread struct {
	P50, P90, Max float64
}

func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	slices.Sort(values)
	rank := func(p float64) float64 { return values[int(math.Ceil(p*float64(len(values))))-1] }
	return spread{P50: rank(0.5), P90: rank(0.9), Max: values[len(values)-1]}
}

// roleCost is what the programs of a role cost.
type roleCost struct {
	Role    string
	CPU     float64 // seconds, all of them together
	PeakRSS int64   // bytes, of the one that had most
	GiB     float64 // received by hosts, sent by others
	PerGiB  float64 // CPU seconds
}

const gib = 1 << 30

func newResult(s *stage, before, after sample, hosts []hostResult, seconds float64) result {
	p := s.plan
	if len(hosts) == len(after.each) { // there are none where hosts pull directly
		for i, u := range after.each {
			hosts[i].CPU, hosts[i].PeakRSS = u.CPU-before.each[i].CPU, u.Peak
		}
	}
	r := result{
		Title: p.Title, Time: time.Now().UTC().Truncate(time.Second), Version: s.lab.version,
		Hosts: len(p.Hosts), Size: p.size(), Rate: p.Rate, QueueMS: netlab.QueueTime, Congestion: netlab.Congestion, Folder: s.lab.dir,
		Seconds: seconds, Each: hosts, Groups: groupsOf(hosts, p.size()),
		Sent: map[string]int64{}, Copies: map[string]float64{}, CopiesCard: map[string]float64{},
		Payload: after.payload.minus(before.payload), Warnings: s.warnings(),
	}
	var all traffic
	for role, t := range after.traffic {
		t = t.minus(before.traffic[role])
		r.Sent[role] = t.Sent
		r.CopiesCard[role] = float64(t.Sent) / float64(r.Size)
		all = all.plus(t)
	}
	for i, t := range after.hosts {
		r.SentByHost = append(r.SentByHost, t.Sent-before.hosts[i].Sent)
	}
	r.Crossed = after.cable.Sent - before.cable.Sent
	r.Retransmits = float64(all.Retransmits) / max(float64(all.Segments), 1)
	r.Drops = drops{after.drops.Cards - before.drops.Cards, after.drops.Switch - before.drops.Switch}
	r.Copies[roleRegistry] = float64(r.Payload.Registry) / float64(r.Size)
	r.Copies[roleSeeder] = float64(r.Payload.Seeder) / float64(r.Size)
	r.Machine = after.machine.since(before.machine)
	r.CPUBound = r.Machine > cpuBound && p.Rate > 0 // without limits the CPU is what there is to measure
	r.addRoles(before.usage, after.usage)
	r.Lab /= float64(s.lab.cores) * seconds
	for _, h := range hosts {
		if h.Error != "" && !h.Uncounted {
			r.Errors = append(r.Errors, h.Error)
		}
	}
	return r
}

// addRoles says what each role cost, for each GiB it moved.
func (r *result) addRoles(before, after map[string]usage) {
	moved := map[string]float64{
		roleRegistry: float64(r.Payload.Registry) / gib,
		roleSeeder:   float64(r.Payload.Seeder) / gib,
		roleHosts:    float64(r.Payload.Received) / gib,
		roleClients:  float64(r.Size) * float64(r.Hosts) / gib,
	}
	for _, role := range []string{roleRegistry, roleSeeder, roleHosts, roleClients} {
		cost := roleCost{Role: role, CPU: after[role].CPU - before[role].CPU, PeakRSS: after[role].Peak, GiB: moved[role]}
		if cost.GiB > 0.01 { // less says nothing
			cost.PerGiB = cost.CPU / cost.GiB
		}
		r.Lab += cost.CPU
		r.Roles = append(r.Roles, cost)
	}
}

// groupsOf sums up the hosts that were to finish and did, in the order of the
// groups' first hosts.
func groupsOf(hosts []hostResult, size int64) []group {
	var names []string
	for _, h := range hosts {
		if !slices.Contains(names, h.Group) {
			names = append(names, h.Group)
		}
	}
	var groups []group
	for _, name := range names {
		own := slices.DeleteFunc(slices.Clone(hosts), func(h hostResult) bool {
			return h.Group != name || h.Uncounted || h.Error != ""
		})
		if len(own) > 0 {
			groups = append(groups, groupOf(name, own, size))
		}
	}
	return groups
}

func groupOf(name string, hosts []hostResult, size int64) group {
	collect := func(value func(h hostResult) float64) spread {
		var values []float64
		for _, h := range hosts {
			values = append(values, value(h))
		}
		return spreadOf(values)
	}
	over := func(seconds float64, h hostResult) float64 {
		if h.Limit == 0 {
			return seconds
		}
		return seconds / h.Limit
	}
	g := group{
		Name: name, Hosts: len(hosts), Unit: "x limit",
		Completed: collect(func(h hostResult) float64 { return over(h.End, h) }),
		FirstByte: collect(func(h hostResult) float64 { return h.FirstByte }),
		Stall:     collect(func(h hostResult) float64 { return h.Stall }),
	}
	if hosts[0].Limit == 0 {
		g.Unit = "s"
	}
	for _, h := range hosts {
		g.PerGiB += h.CPU * gib / float64(size) / float64(len(hosts))
	}
	for i := range marks {
		g.At[i] = collect(func(h hostResult) float64 { return over(h.At[i], h) })
	}
	return g
}
