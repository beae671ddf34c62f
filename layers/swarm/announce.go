package swarm

import (
	"container/heap"
	"context"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/murderp2p/murder/layers"
)

const (
	// announces is how many may be under way at once at one tracker, whatever the number
	// of swarms, those that it holds not counted.
	announces = 8
	// announceTimeout is how long a tracker may take for one.
	announceTimeout = 5 * time.Second
	// small is up to how many peers a swarm may have for us to wait for more, the seeder
	// and us included. Our tracker tells all of a small swarm of one another; those of a
	// larger one that it does not give us may find us, so we ask again later.
	small = 22
	// holdFor is how long a tracker is asked to hold an answer until there is a peer
	// to tell of; ours holds no longer.
	holdFor = 25 * time.Second
	// holds is how many announces a tracker may hold at once: each costs it and us a
	// connection.
	holds = 32
	// holdPause is between two held announces of a swarm: those who come together are
	// told of together.
	holdPause = 50 * time.Millisecond
	// needPause is the least time between two announces of a swarm that loses peers,
	// and gather how long it waits for more of them to go: a failing switch takes many.
	needPause, gather = 2 * time.Second, 200 * time.Millisecond
	// spread is what each swarm that is announced already adds to the time within
	// which one of a whole blob first is: those of a full cache, all shared at the
	// start, come over some seconds. Who lacks something is announced at once.
	spread = 10 * time.Millisecond
	// retryMin and retryMax bound the pause after a tracker that did not answer.
	retryMin, retryMax = time.Second, 30 * time.Second
	// pauseMin and pauseMax bound what a tracker may ask for.
	pauseMin, pauseMax = time.Second, time.Hour
)

// member is a swarm that this host is in, as the announcer sees it. Its methods must
// not call the announcer's.
type member interface {
	lacks() int64 // bytes missing; 0 is whole
	wants() int   // how many more peers are of use now
	// meet takes what a tracker tells: addresses of peers, and how many hosts have
	// the whole blob.
	meet(tracker string, addrs []netip.AddrPort, complete int)
}

// announcers are one of each tracker: one that hangs holds up none of the others.
type announcers struct {
	ask      tracker
	log      *slog.Logger
	retiring sync.WaitGroup // those of trackers that are not announced to any more
	mu       sync.Mutex     // guards the rest
	each     map[string]*announcer
}

// announcer tells a tracker which swarms this host is in and takes peers from it.
//
// A swarm that lacks peers and bytes is announced with the wish that the answer be
// held until there is a peer to tell of, again and again, if the tracker does that
// (ours does): so the first hosts of a swarm hear of the others as they come. A large
// one that lacks them is announced as often as the tracker allows (its "min interval"),
// and all others as often as it asks for.
//
// A tracker that was started anew knows nobody. It has another ID then, and all of its
// swarms are announced again soon once one answer has shown it.
type announcer struct {
	url     string
	ask     tracker
	log     *slog.Logger
	stop    context.CancelFunc
	running sync.WaitGroup
	changed chan struct{} // has room for one: the queue's head may be another now

	mu      sync.Mutex // guards the rest; held for queue work only
	queue   queue
	busy    int    // posts being announced
	holding int    // posts whose next answer, or the one under way, may be held
	closing bool   // run ends when the queue is empty
	silent  bool   // the tracker did not answer the last time
	id      string // of the tracker, if it has one
}

// post is one tracker of one swarm.
type post struct {
	of     *announcer
	swarm  member
	name   layers.InfoHash
	at     time.Time // when to announce next
	last   time.Time // when it was announced
	event  string    // what to say then (BEP 3)
	index  int       // in the queue; -1 when not there
	fails  int       // in a row
	listed bool      // the tracker lists us
	gone   bool      // the swarm is left
	hold   bool      // the answer may be held: the next, or the one under way
	needs  bool      // it has lost peers while it was being announced
	cut    func()    // ends the announce under way if it may be held; else nil
}

func newAnnouncers(cfg Config, port uint16, peerID [20]byte) *announcers {
	client := &http.Client{Transport: &http.Transport{
		DialTLSContext:      cfg.DialTLS,
		MaxIdleConnsPerHost: 2,                // each costs the tracker 20 KiB
		IdleConnTimeout:     90 * time.Second, // outlasts an interval
	}}
	return &announcers{
		ask: tracker{http: client, port: port, peerID: peerID, zone: cfg.Zone, advertise: cfg.Advertise},
		log: cfg.Log, each: make(map[string]*announcer),
	}
}

// of returns the announcer of the tracker at url.
func (all *announcers) of(url string) *announcer {
	all.mu.Lock()
	defer all.mu.Unlock()
	a := all.each[url]
	if a == nil {
		ctx, stop := context.WithCancel(context.Background())
		a = &announcer{url: url, ask: all.ask, log: all.log, stop: stop, changed: make(chan struct{}, 1)}
		a.running.Go(func() { a.run(ctx) })
		all.each[url] = a
	}
	return a
}

// add begins to announce a swarm under a name.
func (all *announcers) add(m member, name layers.InfoHash, trackers []string) []*post {
	posts := make([]*post, len(trackers))
	for i, url := range trackers {
		posts[i] = all.of(url).add(m, name)
	}
	return posts
}

// keep ends the announcers of all trackers but these, once they have said goodbye.
func (all *announcers) keep(trackers []string) {
	all.mu.Lock()
	defer all.mu.Unlock()
	for url, a := range all.each {
		if !slices.Contains(trackers, url) {
			delete(all.each, url)
			all.retiring.Go(func() { a.close(closeTimeout) })
		}
	}
}

// close waits until every goodbye has been said, but no longer than timeout, and
// stops. All swarms must have been removed.
func (all *announcers) close(timeout time.Duration) {
	all.mu.Lock()
	defer all.mu.Unlock()
	var closing sync.WaitGroup
	for _, a := range all.each {
		closing.Go(func() { a.close(timeout) })
	}
	closing.Wait()
	all.retiring.Wait()
	all.ask.http.CloseIdleConnections()
}

// add begins to announce a swarm under a name.
func (a *announcer) add(m member, name layers.InfoHash) *post {
	whole := m.lacks() == 0
	a.mu.Lock()
	defer a.mu.Unlock()
	p := &post{of: a, swarm: m, name: name, event: eventStarted, at: time.Now()}
	if whole {
		p.at = a.soon()
	}
	heap.Push(&a.queue, p)
	a.wake()
	return p
}

// soon is a time that is the farther away the more swarms there are. a.mu must be held.
func (a *announcer) soon() time.Time {
	return time.Now().Add(time.Duration(rand.Int64N(int64(spread)*int64(len(a.queue)+a.busy) + 1)))
}

// need announces a swarm that has lost peers before its time.
func (p *post) need() {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	switch at := p.needy(); {
	case p.cut != nil: // it waits for new ones; those it has lost may be there still
		p.interrupt()
	case p.index < 0:
		p.needs = true
	case p.fails == 0 && at.Before(p.at):
		p.of.move(p, at)
	}
}

// needy is when p is announced if it needs peers.
func (p *post) needy() time.Time {
	at, soon := p.last.Add(needPause), time.Now().Add(gather)
	if at.Before(soon) {
		return soon
	}
	return at
}

// completed announces at once that the swarm's blob is whole here.
func (p *post) completed() {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	underWay := p.index < 0
	if !p.gone && (p.event == eventNone || underWay) { // one not begun says it all with "started"
		p.event = eventCompleted
	}
	p.of.hurry(p)
}

// remove ends the announcing of a swarm, and says goodbye where it is listed.
func (p *post) remove() {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.gone, p.event = true, eventStopped
	p.of.hurry(p)
}

// hurry puts p at the head of the queue, if it waits there, or ends its announce if
// that may be held. a.mu must be held.
func (a *announcer) hurry(p *post) {
	p.interrupt()
	if p.index >= 0 {
		a.move(p, time.Now())
	}
}

// interrupt ends an announce under way that may be held. The announcer's mu must be held.
func (p *post) interrupt() {
	if p.cut != nil {
		p.cut()
		p.cut = nil
	}
}

// move sets when p is announced, which must be in the queue. a.mu must be held.
func (a *announcer) move(p *post, at time.Time) {
	p.at = at
	heap.Fix(&a.queue, p.index)
	a.wake()
}

func (a *announcer) wake() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// run announces what is due until ctx ends, or there is nothing left and a is being
// closed, and waits for what is under way.
func (a *announcer) run(ctx context.Context) {
	var workers sync.WaitGroup
	defer workers.Wait()
	slots := make(chan struct{}, announces)
	for {
		p, wait, done := a.next()
		if done {
			return
		}
		if p == nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			case <-a.changed:
			}
			continue
		}
		if p.hold {
			workers.Go(func() { a.announce(ctx, p) })
			continue
		}
		select {
		case <-ctx.Done():
			return
		case slots <- struct{}{}:
		}
		workers.Go(func() {
			defer func() { <-slots }()
			a.announce(ctx, p)
		})
	}
}

// next takes the post that is due off the queue, or tells when to ask again, or that
// no more will come.
func (a *announcer) next() (p *post, wait time.Duration, done bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.queue) > 0 {
		p := a.queue[0]
		if wait := time.Until(p.at); wait > 0 {
			return nil, wait, false
		}
		heap.Pop(&a.queue)
		if p.gone && !p.listed {
			continue // nobody to say goodbye to
		}
		a.busy++
		return p, 0, false
	}
	return nil, time.Hour, a.closing && a.busy == 0
}

// announce asks p's tracker, hands on the peers and puts p back into the queue.
func (a *announcer) announce(ctx context.Context, p *post) {
	ask := announceAsk{name: p.name, left: p.swarm.lacks()}
	if ask.left > 0 {
		ask.want = p.swarm.wants()
	}
	ctx, cut := context.WithCancel(ctx)
	defer cut()
	a.begin(p, &ask, cut)
	late, cancel := context.WithTimeout(ctx, announceTimeout+ask.wait)
	defer cancel()
	answer, err := a.ask.announce(late, a.url, ask)
	switch {
	case err == nil && ask.event != eventStopped:
		p.swarm.meet(a.url, answer.peers, answer.complete)
		fallthrough
	case ctx.Err() == nil: // else there is something to say that is more urgent
		a.report(err)
	}
	a.again(p, ask, answer, err, err != nil && ctx.Err() != nil)
}

// begin settles what is said in ask, and that cut ends it if it may be held.
func (a *announcer) begin(p *post, ask *announceAsk, cut func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p.last, p.needs = time.Now(), false
	ask.event = p.event
	if p.hold && ask.want > 0 && ask.event == eventNone {
		ask.wait = holdFor
		p.cut = cut
	}
}

// report logs when the tracker falls silent or speaks again: it has many swarms, and
// one line is enough.
func (a *announcer) report(err error) {
	a.mu.Lock()
	was := a.silent
	a.silent = err != nil
	a.mu.Unlock()
	switch {
	case err != nil && !was:
		a.log.Warn("tracker does not answer", "tracker", a.url, "err", err)
	case err != nil:
		a.log.Debug("announce", "tracker", a.url, "err", err)
	case was:
		a.log.Info("tracker answers again", "tracker", a.url)
	}
}

// again puts p back into the queue after ask. cut tells that it was ended for the sake
// of what is to be said now.
func (a *announcer) again(p *post, ask announceAsk, answer announceAnswer, err error, cut bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy--
	a.wake()
	a.mayHold(p, false)
	p.cut = nil
	if ask.event == eventStopped || p.gone && err != nil && !cut {
		return // heard or not: the tracker forgets us by itself
	}
	switch {
	case cut && p.event == eventNone:
		p.at = p.needy()
	case cut:
		p.at = time.Now()
	case err != nil:
		p.at = time.Now().Add(jitter(min(retryMin<<min(p.fails, 5), retryMax)))
		p.fails++
	default:
		a.heard(p, ask, answer)
	}
	heap.Push(&a.queue, p)
}

// heard settles when p is announced next, after a tracker has answered. a.mu must be held.
func (a *announcer) heard(p *post, ask announceAsk, answer announceAnswer) {
	a.recognize(answer.id)
	p.fails, p.listed = 0, true
	if p.event == ask.event { // else it has become another meanwhile
		p.event = eventNone
	}
	pause := answer.interval
	fewer := len(answer.peers) < ask.want
	// Then the tracker is about to end.
	early := ask.wait > 0 && len(answer.peers) == 0 && time.Since(p.last) < ask.wait/2
	switch {
	case fewer && answer.holds && answer.complete+answer.incomplete <= small && a.holding < holds && !early && !p.needs:
		a.mayHold(p, true)
		pause = holdPause
	case fewer: // by then it may have been found by others
		pause = answer.minInterval
	}
	p.at = time.Now().Add(jitter(pause))
	if at := p.needy(); p.needs && at.Before(p.at) {
		p.at = at
	}
	if p.event != eventNone {
		p.at = time.Now()
	}
}

// mayHold notes whether p's next answer may be held. a.mu must be held.
func (a *announcer) mayHold(p *post, hold bool) {
	if p.hold {
		a.holding--
	}
	if p.hold = hold; hold {
		a.holding++
	}
}

// recognize has all swarms announced again soon if the tracker is not the one it was.
// a.mu must be held.
func (a *announcer) recognize(id string) {
	was := a.id
	if id == "" || id == was {
		return
	}
	a.id = id
	if was == "" {
		return
	}
	for _, p := range a.queue {
		if at := a.soon(); p.fails == 0 && at.Before(p.at) {
			p.at = at
		}
	}
	heap.Init(&a.queue)
}

// jitter keeps hosts that began together from staying together: +-10 %.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration(rand.Int64N(int64(d)/5+1)) - d/10
}

// close is that of one tracker.
func (a *announcer) close(timeout time.Duration) {
	late := time.AfterFunc(timeout, a.stop)
	defer late.Stop()
	a.mu.Lock()
	a.closing = true
	a.mu.Unlock()
	a.wake()
	a.running.Wait()
}

// queue is posts by the time they are due. It implements heap.Interface.
type queue []*post

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push implements heap.Interface.
func (q *queue) Push(x any) {
	p := x.(*post)
	p.index = len(*q)
	*q = append(*q, p)
}

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	last := len(*q) - 1
	p := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	p.index = -1
	return p
}
