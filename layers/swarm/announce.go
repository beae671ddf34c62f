package swarm

import (
	"container/heap"
	"context"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/murderp2p/murder/layers"
)

const (
	// announces is how many may be under way at once, whatever the number of swarms.
	announces = 8
	// announceTimeout is how long a tracker may take for one.
	announceTimeout = 5 * time.Second
	// spread is what each swarm that is announced already adds to the time within
	// which a new one first is. One blob is announced at once; those of a full
	// cache, all shared at the start, over some seconds.
	spread = 10 * time.Millisecond
	// retryMin and retryMax bound the pause after a tracker that did not answer.
	retryMin, retryMax = time.Second, 30 * time.Second
	// pauseMin and pauseMax bound what a tracker may ask for.
	pauseMin, pauseMax = time.Second, time.Hour
)

// announcer tells trackers which swarms this host is in and takes peers from them.
// The library announces at most once a minute, and a pull is over by then.
type announcer struct {
	tracker tracker
	log     *slog.Logger
	stop    context.CancelFunc
	running sync.WaitGroup
	changed chan struct{} // has room for one: the queue's head may be another now

	mu      sync.Mutex // guards the rest; held for queue work only
	queue   queue
	busy    int             // posts being announced
	closing bool            // run ends when the queue is empty
	silent  map[string]bool // trackers that did not answer the last time
}

// post is one tracker of one swarm.
type post struct {
	url    string
	swarm  *exchange
	name   layers.InfoHash
	at     time.Time // when to announce next
	event  string    // what to say then (BEP 3)
	index  int       // in the queue; -1 when not there
	fails  int       // in a row
	listed bool      // the tracker lists us
	gone   bool      // the swarm is left
}

func newAnnouncer(cfg Config, port uint16, peerID [20]byte) *announcer {
	if cfg.HTTP == nil {
		cfg.HTTP = &http.Client{Transport: &http.Transport{
			MaxIdleConnsPerHost: announces,
			IdleConnTimeout:     90 * time.Second, // outlasts an interval
		}}
	}
	ctx, stop := context.WithCancel(context.Background())
	a := &announcer{
		tracker: tracker{http: cfg.HTTP, port: port, peerID: peerID, zone: cfg.Zone, advertise: cfg.Advertise},
		log:     cfg.Log, stop: stop,
		changed: make(chan struct{}, 1),
		silent:  make(map[string]bool),
	}
	a.running.Go(func() { a.run(ctx) })
	return a
}

// add begins to announce a swarm.
func (a *announcer) add(x *exchange, name layers.InfoHash, trackers []string) []*post {
	a.mu.Lock()
	defer a.mu.Unlock()
	posts := make([]*post, len(trackers))
	for i, url := range trackers {
		delay := time.Duration(rand.Int64N(int64(spread)*int64(len(a.queue)+a.busy) + 1))
		posts[i] = &post{url: url, swarm: x, name: name, event: eventStarted, at: time.Now().Add(delay)}
		heap.Push(&a.queue, posts[i])
	}
	a.wake()
	return posts
}

// completed announces at once that the swarm's blob is whole here.
func (a *announcer) completed(posts []*post) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range posts {
		underWay := p.index < 0
		if !p.gone && (p.event == eventNone || underWay) { // one not begun says it all with "started"
			p.event = eventCompleted
		}
		a.hurry(p)
	}
}

// remove ends the announcing of a swarm, and says goodbye where it is listed.
func (a *announcer) remove(posts []*post) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range posts {
		p.gone, p.event = true, eventStopped
		a.hurry(p)
	}
}

// hurry puts p at the head of the queue, if it waits there. a.mu must be held.
func (a *announcer) hurry(p *post) {
	p.at = time.Now()
	if p.index >= 0 {
		heap.Fix(&a.queue, p.index)
	}
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
	a.mu.Lock()
	event := p.event
	a.mu.Unlock()
	left := p.swarm.lacks()
	ctx, cancel := context.WithTimeout(ctx, announceTimeout)
	defer cancel()
	answer, err := a.tracker.announce(ctx, p.url, p.name, event, left)
	a.report(p, err)
	if err == nil && event != eventStopped {
		p.swarm.meet(answer.peers, answer.complete)
	}
	a.again(p, event, answer, left > 0, err)
}

// report logs when a tracker falls silent or speaks again: it has many swarms, and
// one line is enough.
func (a *announcer) report(p *post, err error) {
	a.mu.Lock()
	was := a.silent[p.url]
	a.silent[p.url] = err != nil
	a.mu.Unlock()
	switch {
	case err != nil && !was:
		a.log.Warn("tracker does not answer", "tracker", p.url, "err", err)
	case err != nil:
		a.log.Debug("announce", "infohash", p.name, "tracker", p.url, "err", err)
	case was:
		a.log.Info("tracker answers again", "tracker", p.url)
	}
}

// again puts p back into the queue after event was announced.
func (a *announcer) again(p *post, event string, answer announceAnswer, incomplete bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy--
	a.wake()
	if event == eventStopped || p.gone && err != nil {
		return // heard or not: the tracker forgets us by itself
	}
	pause := answer.interval
	if err != nil {
		pause = min(retryMin<<min(p.fails, 5), retryMax)
		p.fails++
	} else {
		p.fails, p.listed = 0, true
		if p.event == event { // else it has become another meanwhile
			p.event = eventNone
		}
		if incomplete && len(answer.peers) == 0 {
			pause = answer.minInterval
		}
	}
	p.at = time.Now().Add(jitter(pause))
	if p.event != eventNone && err == nil {
		p.at = time.Now()
	}
	heap.Push(&a.queue, p)
}

// jitter keeps hosts that began together from staying together: +-10 %.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration(rand.Int64N(int64(d)/5+1)) - d/10
}

// close waits until every goodbye has been said, but no longer than timeout, and
// stops. All swarms must have been removed.
func (a *announcer) close(timeout time.Duration) {
	late := time.AfterFunc(timeout, a.stop)
	defer late.Stop()
	a.mu.Lock()
	a.closing = true
	a.mu.Unlock()
	a.wake()
	a.running.Wait()
	a.tracker.http.CloseIdleConnections()
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
