package tracker

import (
	"context"
	"net/netip"
	"time"

	"github.com/murderp2p/murder/seeder/tracker/handout"
)

const (
	// maxWait bounds how long an answer is held: less than what proxies take for
	// a dead connection.
	maxWait = 25 * time.Second
	// maxHeld bounds the answers held at the same time, each of which costs a
	// connection and some 20 KiB. More are answered at once.
	maxHeld = 4096
)

// held is an answer that waits for a peer to tell of. An announce asks for it
// by wait=, which is in no BEP: so a host that is among the first hears of the
// others as they come, without polling.
type held struct {
	shard  *shard
	swarm  *handout.Swarm
	waiter *handout.Waiter
	told   chan handout.Peer // has room for one; closed without if nobody will come
}

// holdIn begins to hold the answer to req, unless too many are held. It returns
// nil then. s.mu must be held since there was found nobody to tell of.
func (t *Tracker) holdIn(s *shard, sw *handout.Swarm, req *request) *held {
	if t.held.Add(1) > maxHeld {
		t.held.Add(-1)
		return nil
	}
	h := &held{shard: s, swarm: sw, told: make(chan handout.Peer, 1)}
	h.waiter = sw.Wait(&req.ask, func(p handout.Peer, ok bool) {
		if ok {
			h.told <- p
		}
		close(h.told)
	})
	if h.waiter == nil {
		close(h.told) // the swarm is full, so that nobody is told of the asker either
	}
	return h
}

// cancel ends the wait, if it has not ended.
func (h *held) cancel() {
	h.shard.mu.Lock()
	defer h.shard.mu.Unlock()
	h.swarm.Cancel(h.waiter)
}

// hold waits for a peer and answers req with it. If none comes as long as req
// would wait, the answer has those it was told of before, to be tried again.
// It is empty if the client has gone or the tracker is ending.
func (t *Tracker) hold(ctx context.Context, req *request, h *held, self netip.AddrPort) {
	defer t.held.Add(-1)
	defer h.cancel()
	late := time.NewTimer(req.wait)
	defer late.Stop()
	select {
	case p, ok := <-h.told:
		if ok {
			req.told = append(req.told[:0], p)
			req.answer.peers = req.told
		}
	case <-late.C:
		h.cancel()
		req.wait, req.ask.Fresh = 0, false
		_, _ = t.list(req, self) // or there are too many swarms, and it has no peers
	case <-ctx.Done():
	case <-t.ended:
	}
}
