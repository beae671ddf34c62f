package fleet

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"
)

// Refusal is why an order is not taken.
type Refusal struct {
	Status  int    `json:"-"` // of the answer
	Message string `json:"error"`
	// Image is what the registry refused, if it did, and Challenge what it wants.
	Image     string `json:"image,omitempty"`
	Challenge string `json:"challenge,omitempty"`
}

func (r *Refusal) Error() string { return r.Message }

func refuse(status int, format string, args ...any) *Refusal {
	return &Refusal{Status: status, Message: fmt.Sprintf(format, args...)}
}

// Order takes an order of the seeder's own. The error may be a [*Refusal].
func (f *Fleet) Order(ctx context.Context, r Request) (Job, error) { return f.give(ctx, r) }

// give takes an order, once the registry has let its giver read each image.
func (f *Fleet) give(ctx context.Context, r Request) (Job, error) {
	if err := r.check(); err != nil {
		return Job{}, refuse(http.StatusBadRequest, "%v", err)
	}
	if !f.cfg.Credentials && slices.ContainsFunc(r.Images, func(i RequestImage) bool { return i.Authorization != "" }) {
		return Job{}, refuse(http.StatusForbidden, "an order takes credentials to every host, and without TLS whoever reaches the seeder can call itself one: "+
			"start seeder and mirrors with --tls-cert, --tls-key and --tls-ca, or name the mirrors with --mirror")
	}
	images := make([]OrderImage, len(r.Images))
	for i, image := range r.Images {
		d, err := f.cfg.Resolve(ctx, image)
		if err != nil {
			return Job{}, err
		}
		images[i] = OrderImage{image.Ref, d, image.Authorization}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if j := f.jobs[r.ID]; j != nil {
		return f.again(j, r, images)
	}
	return f.newJob(r, images)
}

// newJob gives an order that is not there yet. f.mu is held.
func (f *Fleet) newJob(r Request, images []OrderImage) (Job, error) {
	if f.ended {
		return Job{}, refuse(http.StatusServiceUnavailable, "the seeder is stopping")
	}
	if !f.room() {
		return Job{}, refuse(http.StatusTooManyRequests, "%d orders hold; try again later", maxJobs)
	}
	now := time.Now()
	j := &job{
		order: Order{ID: r.ID, Images: images, Platforms: r.Platforms, Pin: r.Pin, Load: r.Load},
		sel:   r.Select, state: Running, created: now, expires: now.Add(time.Duration(r.Lifetime)),
		private: make(map[string]bool), targets: make(map[string]*target),
	}
	if r.ID == "" {
		j.order.ID = NewID()
	}
	if r.Lifetime == 0 {
		j.expires = now.Add(DefaultLifetime)
	}
	for _, image := range images {
		j.private[image.Ref] = image.Authorization != ""
	}
	known := make([]Member, 0, len(f.hosts))
	for _, h := range f.hosts {
		known = append(known, h.Member)
	}
	names, cutoff := j.sel.choose(known)
	j.cutoff = cutoff
	for _, name := range names {
		f.addTarget(j, name)
	}
	f.jobs[j.order.ID] = j
	f.changed()
	for name := range j.targets {
		f.tell(name, j)
	}
	f.cfg.Log.Info("prefetch ordered", "order", j.order.ID, "images", len(images), "hosts", len(names), "lifetime", j.expires.Sub(now))
	return f.public(j, false), nil
}

// addTarget makes a host one of the job's. f.mu is held.
func (f *Fleet) addTarget(j *job, name string) {
	t := &target{Progress: Progress{State: Waiting}}
	if h := f.hosts[name]; h != nil {
		t.Zone = h.Zone
	}
	j.targets[name] = t
}

// room makes some among the jobs by forgetting those that are over. f.mu is held.
func (f *Fleet) room() bool {
	for len(f.jobs) >= maxJobs {
		var oldest *job
		for _, j := range f.jobs {
			if j.state != Running && (oldest == nil || j.ended.Before(oldest.ended)) {
				oldest = j
			}
		}
		if oldest == nil {
			return false
		}
		delete(f.jobs, oldest.order.ID)
	}
	return true
}

// again is an order said once more, by who waits for it: it has newer credentials, or
// has heard nothing from a seeder that has gone. f.mu is held.
func (f *Fleet) again(j *job, r Request, images []OrderImage) (Job, error) {
	refs := func(list []OrderImage) (refs []string) {
		for _, i := range list {
			refs = append(refs, i.Ref)
		}
		return refs
	}
	if !slices.Equal(refs(images), refs(j.order.Images)) {
		return Job{}, refuse(http.StatusConflict, "order %s is for other images", r.ID)
	}
	now := time.Now()
	if !j.holds(now) {
		return f.public(j, false), nil
	}
	j.order.Images = slices.Clone(j.order.Images) // messages of it may be on their way
	for i := range images {                       // the digest stays: all hosts bring the same
		j.order.Images[i].Authorization = images[i].Authorization
		j.private[images[i].Ref] = j.private[images[i].Ref] || images[i].Authorization != ""
	}
	f.changed()
	for name, t := range j.targets {
		t.need = Need{}
		if !t.State.final() {
			f.tell(name, j)
		}
	}
	return f.public(j, false), nil
}

// tell tells a host of a job, if it is here. f.mu is held.
func (f *Fleet) tell(name string, j *job) {
	h := f.hosts[name]
	if h == nil || h.link == nil {
		return
	}
	order := j.order
	order.Left = Duration(time.Until(j.expires))
	order.Every = Duration(reportEvery(len(j.targets)))
	h.link.send(message{Order: &order})
}

// reportEvery keeps the reports of many hosts to what one seeder reads in passing.
func reportEvery(hosts int) time.Duration {
	return max(500*time.Millisecond, time.Duration(hosts)*time.Second/maxReporting)
}

// cancel ends a job before its time.
func (f *Fleet) cancel(id string) (Job, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	j := f.jobs[id]
	if j == nil {
		return Job{}, noOrder(id)
	}
	if j.holds(time.Now()) {
		f.endJob(j, Cancelled, time.Now())
	}
	return f.public(j, false), nil
}

func noOrder(id string) *Refusal {
	return refuse(http.StatusNotFound, "there is no order %.40q; they are forgotten an hour after their end", id)
}

// endJob ends a job, and has hosts leave it that are at work. f.mu is held.
func (f *Fleet) endJob(j *job, state string, now time.Time) {
	j.state, j.ended = state, now
	f.changed()
	if state == Done { // hosts that come are still told
		return
	}
	j.forgetCredentials()
	for name, t := range j.targets {
		if h := f.hosts[name]; h != nil && h.link != nil && !t.State.final() {
			h.link.send(message{Cancel: j.order.ID})
		}
	}
}

// forgetCredentials is called when nobody is told of the job any more.
func (j *job) forgetCredentials() {
	j.order.Images = slices.Clone(j.order.Images) // messages of it may be on their way
	for i := range j.order.Images {
		j.order.Images[i].Authorization = ""
	}
}

// job tells how a job is.
func (f *Fleet) job(id string, all bool) (Job, uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	j := f.jobs[id]
	if j == nil {
		return Job{}, f.rev, noOrder(id)
	}
	return f.public(j, all), f.rev, nil
}

// report takes in what a host says.
func (f *Fleet) report(l *link, r Report) {
	f.mu.Lock()
	defer f.mu.Unlock()
	j := f.jobs[r.Order]
	if f.hosts[l.member.Name] == nil || f.hosts[l.member.Name].link != l || j == nil || !r.State.known() {
		return
	}
	t := j.targets[l.member.Name]
	if t == nil || t.State.final() || !j.holds(time.Now()) {
		return
	}
	j.take(t, r)
	f.rev++
	if !t.State.final() {
		return
	}
	f.changed()
	if j.state == Running && j.settled() {
		f.endJob(j, Done, time.Now())
	}
}

// arrived tells a host that has come of what it is to do. f.mu is held.
func (f *Fleet) arrived(h *host) {
	now := time.Now()
	for _, j := range slices.SortedFunc(maps.Values(f.jobs), newestFirst) {
		if !j.holds(now) || !j.wants(h.Member) {
			continue
		}
		if j.targets[h.Name] == nil {
			f.addTarget(j, h.Name)
			j.state = Running
		}
		t := j.targets[h.Name]
		t.Zone = h.Zone
		if !t.State.final() {
			f.tell(h.Name, j)
		}
	}
}
