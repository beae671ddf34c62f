package fleet

import (
	"cmp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"
)

// State is how far a host is with an order.
type State string

// The states of a host, in the order in which they come.
const (
	Waiting  State = "waiting"  // to be told: it is away, or has not answered
	Fetching State = "fetching" // also between two attempts
	Refused  State = "refused"  // the registry wants credentials, or others
	Loading  State = "loading"  // its engine pulls
	Ready    State = "ready"    // it has everything
	Failed   State = "failed"   // it has given up
)

// final tells whether nothing more comes after a state.
func (s State) final() bool { return s == Ready || s == Failed }

func (s State) known() bool {
	return s == Fetching || s == Refused || s == Loading || s.final()
}

// The states of a [Job].
const (
	Running   = "running"   // it holds, and not all hosts are done
	Done      = "done"      // all hosts are, well or not; hosts that come are told of it until it expires
	Expired   = "expired"   // its lifetime is over
	Cancelled = "cancelled" // by whoever could
)

// The bounds of a report.
const (
	maxError = 300  // bytes
	maxNeeds = 2048 // bytes of a challenge
	maxBytes = 1 << 48
	maxShown = 10 // targets of each kind in a Job without Targets
)

// Report is what a host says of an order.
type Report struct {
	Order string `json:"order"`
	Progress
	// Challenge is the registry's, of a host that is Refused, about Image.
	Challenge string `json:"challenge,omitempty"`
	Image     string `json:"image,omitempty"`
}

// Progress is how far a host is with an order.
type Progress struct {
	State     State   `json:"state"`
	Bytes     int64   `json:"bytes"` // of all blobs, as far as is known
	BytesDone int64   `json:"bytes_done"`
	From      Sources `json:"from"`
	// FirstByteMS is how long after the order something was there; 0 = nothing yet.
	FirstByteMS int64  `json:"first_byte_ms,omitempty"`
	TookMS      int64  `json:"took_ms,omitempty"` // of the host, once it is Ready or Failed
	Attempts    int    `json:"attempts,omitempty"`
	Error       string `json:"error,omitempty"` // of the last attempt
}

// Sources are bytes of whole blobs by where they came from.
type Sources struct {
	Cache    int64 `json:"cache,omitempty"` // they were there
	Peer     int64 `json:"peer"`
	Seeder   int64 `json:"seeder"`
	Upstream int64 `json:"upstream"`
}

// Plus adds t.
func (s Sources) Plus(t Sources) Sources {
	return Sources{s.Cache + t.Cache, s.Peer + t.Peer, s.Seeder + t.Seeder, s.Upstream + t.Upstream}
}

// Target is a host of an order.
type Target struct {
	Host string `json:"host"`
	Zone string `json:"zone,omitempty"`
	Away bool   `json:"away,omitempty"` // it holds no link now
	Progress
}

// Job is an order and how far the fleet is with it.
type Job struct {
	ID        string     `json:"id"`
	Images    []JobImage `json:"images"`
	Platforms []string   `json:"platforms,omitempty"`
	Pin       bool       `json:"pin,omitempty"`
	Load      bool       `json:"load,omitempty"`
	Select    Select     `json:"select"`
	State     string     `json:"state"`
	Created   time.Time  `json:"created"`
	Expires   time.Time  `json:"expires"`

	Hosts   int `json:"hosts"`   // that the order is for
	Ready   int `json:"ready"`   // of them
	Failed  int `json:"failed"`  // likewise
	Working int `json:"working"` // fetching, refused or loading, and not away
	Away    int `json:"away"`    // neither ready nor failed, and holding no link

	// Bytes is an estimate until all hosts know what they lack.
	Bytes     int64   `json:"bytes"`
	BytesDone int64   `json:"bytes_done"`
	From      Sources `json:"from"`

	Slowest  []Target `json:"slowest,omitempty"`  // of those at work, those with most to do
	Failures []Target `json:"failures,omitempty"` // some
	Missing  []Target `json:"missing,omitempty"`  // some that are away
	// Needs are challenges that hosts have been given and that nobody has answered.
	Needs []Need `json:"needs,omitempty"`
	// Targets are all hosts, by name, where that was asked for.
	Targets []Target `json:"targets,omitempty"`
}

// JobImage is an image as the registry knew it when it was ordered.
type JobImage struct {
	Ref    string        `json:"ref"`
	Digest digest.Digest `json:"digest"`
	// Private images were ordered with credentials.
	Private bool `json:"private,omitempty"`
}

// Need is a registry's challenge about an image.
type Need struct {
	Image     string `json:"image"`
	Challenge string `json:"challenge"`
}

// job is an order that was given.
type job struct {
	order   Order // Left and Every apart, and with credentials: never shown, never kept
	sel     Select
	private map[string]bool // refs that were ordered with credentials
	cutoff  uint64          // the highest rank of hosts that come later
	state   string
	created time.Time
	expires time.Time
	ended   time.Time
	targets map[string]*target // by host
}

// target is a host of a job.
type target struct {
	Zone string
	Progress
	need Need // of a host that is Refused
}

func newestFirst(a, b *job) int {
	return cmp.Or(b.created.Compare(a.created), strings.Compare(a.order.ID, b.order.ID))
}

// wants tells whether a host that has come is one of the job's.
func (j *job) wants(m Member) bool {
	_, ok := j.targets[m.Name]
	return ok || j.sel.matches(m) && rank(m.Name) <= j.cutoff
}

// holds tells whether hosts are told of the job.
func (j *job) holds(now time.Time) bool {
	return (j.state == Running || j.state == Done) && now.Before(j.expires)
}

// take notes a report about a target. The bounds are for who only says it is a host.
func (j *job) take(t *target, r Report) {
	p := r.Progress
	p.Error = clip(p.Error, maxError)
	p.Bytes = bound(p.Bytes, maxBytes)
	p.BytesDone = bound(p.BytesDone, p.Bytes)
	p.From = Sources{bound(p.From.Cache, maxBytes), bound(p.From.Peer, maxBytes), bound(p.From.Seeder, maxBytes), bound(p.From.Upstream, maxBytes)}
	t.Progress, t.need = p, Need{}
	if p.State == Refused && len(r.Challenge) <= maxNeeds && j.has(r.Image) {
		t.need = Need{r.Image, r.Challenge}
	}
}

// bound is n between 0 and most.
func bound(n, most int64) int64 { return min(max(n, 0), most) }

func (j *job) has(ref string) bool {
	return slices.ContainsFunc(j.order.Images, func(i OrderImage) bool { return i.Ref == ref })
}

// settled tells whether every target is.
func (j *job) settled() bool {
	for _, t := range j.targets {
		if !t.State.final() {
			return false
		}
	}
	return len(j.targets) > 0
}

// clip cuts text to n bytes, and control characters out of it: it goes to terminals.
func clip(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) { // it is shown in terminals, some of which take U+009B for an escape sequence
			return ' '
		}
		return r
	}, s)
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "..."
	}
	return strings.ToValidUTF8(s, "")
}

// public is the job for others. f.mu is held.
func (f *Fleet) public(j *job, all bool) Job {
	p := Job{
		ID: j.order.ID, Platforms: j.order.Platforms, Pin: j.order.Pin, Load: j.order.Load, Select: j.sel,
		State: j.state, Created: j.created, Expires: j.expires, Hosts: len(j.targets),
	}
	for _, i := range j.order.Images {
		p.Images = append(p.Images, JobImage{i.Ref, i.Digest, j.private[i.Ref]})
	}
	for _, t := range j.targets {
		if t.need != (Need{}) && len(p.Needs) < maxShown && !slices.Contains(p.Needs, t.need) {
			p.Needs = append(p.Needs, t.need)
		}
	}
	slices.SortFunc(p.Needs, func(a, b Need) int { return strings.Compare(a.Image, b.Image) })
	targets := f.targets(j)
	var most int64
	for _, t := range targets {
		most = max(most, t.Bytes)
	}
	for _, t := range targets {
		p.count(t, most)
	}
	slices.SortStableFunc(p.Slowest, func(a, b Target) int { return cmp.Compare(a.share(), b.share()) })
	p.Slowest = p.Slowest[:min(len(p.Slowest), maxShown)]
	if all {
		p.Targets = targets
	}
	return p
}

// targets are a job's, by name.
func (f *Fleet) targets(j *job) []Target {
	targets := make([]Target, 0, len(j.targets))
	for name, t := range j.targets {
		h := f.hosts[name]
		targets = append(targets, Target{Host: name, Zone: t.Zone, Away: h == nil || h.link == nil, Progress: t.Progress})
	}
	slices.SortFunc(targets, func(a, b Target) int { return strings.Compare(a.Host, b.Host) })
	return targets
}

// count adds a target to the job's sums. A host that does not know yet what it lacks is
// taken to lack as much as any other.
func (p *Job) count(t Target, most int64) {
	p.Bytes += cmp.Or(t.Bytes, most)
	p.BytesDone += t.BytesDone
	p.From = p.From.Plus(t.From)
	some := func(list *[]Target) {
		if len(*list) < maxShown {
			*list = append(*list, t)
		}
	}
	switch {
	case t.State == Ready:
		p.Ready++
	case t.State == Failed:
		p.Failed++
		some(&p.Failures)
	case t.Away:
		p.Away++
		some(&p.Missing)
	case t.State != Waiting:
		p.Working++
		p.Slowest = append(p.Slowest, t)
	}
}

// share is how much of its bytes a target has, from 0 to 1.
func (t Target) share() float64 {
	if t.Bytes <= 0 {
		return 0
	}
	return float64(t.BytesDone) / float64(t.Bytes)
}
