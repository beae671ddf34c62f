package seeder

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/seeder/fleet"
	"github.com/murderp2p/murder/seeder/page"
	"github.com/murderp2p/murder/seeder/tracker"
)

const (
	// maxShownSwarms and maxShownHosts bound what is looked at for a View, and sent: the
	// peers of a swarm are taken from under the tracker's locks.
	maxShownSwarms = 40
	maxShownHosts  = 5000
)

// viewer makes the page's View of what the seeder knows.
type viewer struct {
	seeder *Seeder

	mu     sync.Mutex // guards the rest; one View is made at a time
	swarms numbers[digest.Digest]
	hosts  numbers[string]
	zones  numbers[string]
	jobs   numbers[string]
}

// numbers gives each key a number that tells nothing of it, and stays.
type numbers[K comparable] struct {
	of   map[K]int
	last int
}

// maxNumbers bounds the keys that are remembered; then all get other numbers.
const maxNumbers = 100_000

func (n *numbers[K]) number(key K) int {
	if i, ok := n.of[key]; ok {
		return i
	}
	if n.of == nil || len(n.of) >= maxNumbers {
		n.of = make(map[K]int)
	}
	n.last++
	n.of[key] = n.last
	return n.last
}

// Totals implements page.Source.
func (v *viewer) Totals() page.Totals {
	received, _ := v.seeder.origin.ledger.Totals()
	moved := v.seeder.fleet.Moved()
	return page.Totals{
		Fleet:    moved.Peer + moved.Seeder + moved.Upstream,
		Registry: received[layers.FromUpstream] + moved.Upstream,
	}
}

// View implements page.Source.
func (v *viewer) View() page.View {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.seeder.fleet.Snapshot()
	roster := newRoster(now.Hosts)
	view := page.View{Jobs: v.viewJobs(now.Jobs), Fallbacks: v.fallbacks()}
	view.Now.Version, view.Now.Cached = v.seeder.cfg.Version, v.seeder.cfg.Store.Usage().Bytes
	view.Now.Fetching = v.seeder.origin.flights.Len()
	view.Swarms, view.Now.Swarms = v.viewSwarms(roster)
	view.Now.Hosts = len(roster.all)
	for _, h := range roster.all {
		shown := v.host(h)
		switch shown.State {
		case page.Ready:
			view.Now.Ready++
		case page.Pulling:
			view.Now.Pulling++
		case page.Away:
			view.Now.Away++
		}
		if len(view.Hosts) < maxShownHosts {
			view.Hosts = append(view.Hosts, shown)
		}
	}
	return view
}

func (v *viewer) fallbacks() (rows []page.Fallback) {
	for reason, n := range v.seeder.fleet.Moved().Fell {
		rows = append(rows, page.Fallback{Reason: reason, Count: n})
	}
	return rows
}

// roster is the hosts of a View: those of the fleet, and who else is in a swarm.
type roster struct {
	all      []*seen
	byAddr   map[netip.AddrPort]*seen
	byIP     map[netip.Addr]*seen // nil where a host's address does not tell which it is
	arriving map[digest.Digest][]arrival
}

// seen is one host.
type seen struct {
	fleet.Host
	addr  netip.AddrPort // of its swarm; invalid: not known
	lacks bool           // it is in a swarm without having everything
	in    *swarm         // that was looked at last
	have  int64          // bytes of it
}

// arrival is a blob on its way to a host.
type arrival struct {
	host *seen
	have int64
}

func newRoster(hosts []fleet.Host) *roster {
	r := &roster{byAddr: make(map[netip.AddrPort]*seen), byIP: make(map[netip.Addr]*seen), arriving: make(map[digest.Digest][]arrival)}
	for _, h := range hosts {
		s := &seen{Host: h, addr: h.PeerAddr()}
		r.all = append(r.all, s)
		if s.addr.IsValid() {
			r.byAddr[s.addr] = s
		}
		if from, err := netip.ParseAddrPort(h.Address); err == nil {
			ip := from.Addr().Unmap()
			if _, shared := r.byIP[ip]; shared {
				s = nil
			}
			r.byIP[ip] = s
		}
		for _, a := range h.Account.Arriving {
			d := digest.Digest(a.Digest)
			r.arriving[d] = append(r.arriving[d], arrival{r.all[len(r.all)-1], a.Have})
		}
	}
	return r
}

// at is the host that a tracker lists as p.
func (r *roster) at(p tracker.Peer) *seen {
	if h := r.byAddr[p.Addr]; h != nil {
		return h
	}
	if h := r.byIP[p.Addr.Addr()]; h != nil && !h.addr.IsValid() {
		return h
	}
	h := &seen{Host: fleet.Host{Address: p.Addr.String(), Zone: p.Zone, State: fleet.Connected}, addr: p.Addr}
	r.all = append(r.all, h)
	r.byAddr[p.Addr] = h
	return h
}

// host is a row of the View.
func (v *viewer) host(h *seen) page.Host {
	row := page.Host{
		ID: v.hosts.number(cmp.Or(h.Name, h.Address)), Name: h.Name, Addr: h.Address, ZoneName: h.Zone,
		State: page.Ready, Percent: 100, Whole: h.Account.Blobs,
	}
	if h.addr.IsValid() {
		row.Addr = h.addr.String()
	}
	if h.Zone != "" {
		row.Zone = v.zones.number(h.Zone)
	}
	if h.State == fleet.Away {
		row.State, row.Percent = page.Away, 0
		return row
	}
	var have, size int64
	for _, a := range h.Account.Arriving {
		have, size = have+min(a.Have, a.Size), size+a.Size
	}
	if h.lacks || size > 0 {
		row.State, row.Percent, row.Left = page.Pulling, percent(have, size), size-have
	}
	return row
}

// percent rounds down, so that 100 is all.
func percent(part, all int64) int {
	if all <= 0 {
		return 0
	}
	return int(max(0, min(100, float64(part)/float64(all)*100)))
}

// swarm is a blob on offer, which has two names while the registry sends it.
type swarm struct {
	digest  digest.Digest
	names   []layers.InfoHash
	lacking int
	record  layers.Record
}

// viewSwarms are those with most to do, then those that were on offer last; all is how
// many there are.
func (v *viewer) viewSwarms(hosts *roster) (rows []page.Swarm, all int) {
	swarms := v.onOffer()
	slices.SortFunc(swarms, func(a, b *swarm) int {
		return cmp.Or(cmp.Compare(b.lacking, a.lacking), cmp.Compare(v.swarms.number(b.digest), v.swarms.number(a.digest)))
	})
	for _, s := range swarms[:min(len(swarms), maxShownSwarms)] {
		rows = append(rows, v.swarm(s, hosts))
	}
	return rows, len(swarms)
}

// onOffer lists what hosts are in the swarm of, and what the registry is sending.
func (v *viewer) onOffer() (swarms []*swarm) {
	byDigest := make(map[digest.Digest]*swarm)
	get := func(d digest.Digest) *swarm {
		s := byDigest[d]
		if s == nil {
			s = &swarm{digest: d}
			byDigest[d] = s
			swarms = append(swarms, s)
		}
		return s
	}
	for _, r := range v.seeder.origin.ledger.Arriving(maxShownSwarms) {
		s := get(r.Digest)
		s.record, s.lacking = r, 1
	}
	shared := v.seeder.shared
	for _, t := range v.seeder.tracker.Swarms(func(ih [20]byte) bool { return shared.Has(ih) }) {
		if d, ok := shared.Blob(t.InfoHash); ok {
			s := get(d)
			s.names = append(s.names, t.InfoHash)
			s.lacking += t.Peers - t.Complete
		}
	}
	return swarms
}

// swarm is a row of the View. The hosts that are in it are noted to be.
func (v *viewer) swarm(s *swarm, hosts *roster) page.Swarm {
	if s.record.Size == 0 {
		if records := v.seeder.origin.ledger.Records(s.digest); len(records) > 0 {
			s.record = records[0]
		}
	}
	size, _ := v.seeder.origin.known(s.digest)
	row := page.Swarm{ID: v.swarms.number(s.digest), Digest: short(s.digest), Size: size, Fetched: 100}
	if s.record.Repository != "" {
		row.Name = s.record.Registry + "/" + s.record.Repository
	}
	if s.record.State == "arriving" {
		row.Fetched = percent(s.record.Received, s.record.Size)
	}
	members := v.members(s, size, hosts)
	row.Hosts = len(members)
	total := 0
	for _, h := range members {
		p := percent(h.have, size)
		total += p
		row.Fill[p/10]++
		h.lacks = h.lacks || h.have < size
	}
	if row.Hosts > 0 {
		row.Percent = total / row.Hosts
	}
	return row
}

// members are the hosts in a blob's swarm, with what they have of it.
func (v *viewer) members(s *swarm, size int64, hosts *roster) (members []*seen) {
	join := func(h *seen, has int64) {
		if h.in != s {
			h.in, h.have = s, 0
			members = append(members, h)
		}
		h.have = max(h.have, has)
	}
	var peers []tracker.Peer
	for _, name := range s.names {
		peers = v.seeder.tracker.Peers(name, peers)
	}
	for _, p := range peers {
		if p.Complete {
			join(hosts.at(p), size)
		} else {
			join(hosts.at(p), 0)
		}
	}
	for _, a := range hosts.arriving[s.digest] {
		join(a.host, a.have)
	}
	return members
}

// short is enough of a digest to tell it from others.
func short(d digest.Digest) string {
	return d.Algorithm().String() + ":" + d.Encoded()[:12]
}

func (v *viewer) viewJobs(jobs []fleet.Job) []page.Job {
	rows := make([]page.Job, 0, len(jobs))
	for _, j := range jobs {
		row := page.Job{
			ID: v.jobs.number(j.ID), Whom: whom(j.Select), State: j.State, Hosts: j.Hosts, Done: j.Ready, Failed: j.Failed,
			Have: j.BytesDone, Want: j.Bytes, Began: j.Created,
		}
		var images, slowest []string
		for _, i := range j.Images {
			images = append(images, i.Ref)
		}
		for _, t := range j.Slowest[:min(len(j.Slowest), 3)] {
			slowest = append(slowest, t.Host)
		}
		row.Images, row.Slowest = strings.Join(images, ", "), strings.Join(slowest, ", ")
		if len(j.Failures) > 0 {
			row.Error = j.Failures[0].Host + ": " + j.Failures[0].Error
		}
		rows = append(rows, row)
	}
	return rows
}

// whom says in words which hosts an order is for.
func whom(s fleet.Select) string {
	var words []string
	if len(s.Hosts) > 0 {
		words = append(words, strings.Join(s.Hosts[:min(len(s.Hosts), 3)], ", "))
	}
	if len(s.Zones) > 0 {
		words = append(words, "zone "+strings.Join(s.Zones, ", "))
	}
	for k, val := range s.Labels {
		words = append(words, k+"="+val)
	}
	slices.Sort(words)
	if s.Percent > 0 && s.Percent < 100 {
		words = append(words, strconv.Itoa(s.Percent)+"%")
	}
	if len(words) == 0 {
		return "all hosts"
	}
	return strings.Join(words, " · ")
}
