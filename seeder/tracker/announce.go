package tracker

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"

	"github.com/murderp2p/murder/seeder/tracker/handout"
)

// request is what one announce is worked on with. They are used again, since a
// fleet announces some thousand times a second.
type request struct {
	announce
	ask    handout.Ask
	told   []handout.Peer
	answer answer
	buf    []byte
}

var requests = sync.Pool{New: func() any { return new(request) }}

// ServeAnnounce answers GET /announce. What is wrong with a request is said as
// BEP 3 says it, as a failure reason with status 200, since clients show that
// and not the body of an error.
func (t *Tracker) ServeAnnounce(w http.ResponseWriter, r *http.Request) {
	req := requests.Get().(*request)
	defer requests.Put(req)
	remote, _ := netip.ParseAddrPort(r.RemoteAddr)
	if !t.rates.allow(remote.Addr(), t.now()) {
		t.refuse(w, r, errTooOften)
		return
	}
	if err := req.parse(r.URL.RawQuery, remote.Addr()); err != nil {
		t.refuse(w, r, err)
		return
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if err := t.announced(r.Context(), req, local); err != nil {
		t.refuse(w, r, err)
		return
	}
	t.announces.Add(1)
	if t.cfg.Log.Enabled(r.Context(), slog.LevelDebug) {
		t.cfg.Log.DebugContext(r.Context(), "announced", "peer", req.addrs[0], "event", req.event,
			"left", req.left, "zone", req.zone, "peers", len(req.answer.peers))
	}
	req.buf = req.answer.encode(req.buf[:0], &req.announce)
	write(w, req.buf)
}

var errFull = errors.New("too many swarms here")

// announced takes the announce in req into its swarm and answers it there. It
// came in on local. The answer may be held until ctx ends.
func (t *Tracker) announced(ctx context.Context, req *request, local net.Addr) error {
	a := &req.announce
	has := t.cfg.Has(a.infohash)
	var self netip.AddrPort
	if has && a.left != 0 && a.want > 0 {
		self = t.self(a, local)
	}
	interval, now := t.interval(a), t.now()
	req.ask = handout.Ask{
		Addrs: a.addrs, ID: a.peerID, Zone: a.zone,
		Complete: a.left == 0, Completed: a.event == eventCompleted,
		Want: a.want, Fresh: a.mayHold(), Origin: self.IsValid(),
		// One announce may be lost on the way, and the next come late.
		Now: now, Expires: now + a.wait + interval*5/2,
	}
	req.answer = answer{tracker: t.id, holds: t.held.Load() < maxHeld, interval: interval}
	h, err := t.list(req, self)
	if h != nil {
		t.hold(ctx, req, h, self)
	}
	if has {
		req.answer.complete++
	}
	return err
}

// self is where the asker reaches the seeder beside the tracker, unless it is
// the seeder.
func (t *Tracker) self(a *announce, local net.Addr) netip.AddrPort {
	self, ok := t.cfg.Self(local)
	if !ok || slices.Contains(a.addrs, self) {
		return netip.AddrPort{}
	}
	return self
}

// list enters req into its swarm, or takes it out, and picks peers for it. If
// there are none and it would wait, it is held.
func (t *Tracker) list(req *request, self netip.AddrPort) (*held, error) {
	s := t.shard(req.infohash)
	s.mu.Lock()
	defer s.mu.Unlock()
	sw := s.swarms[req.infohash]
	if sw == nil {
		if req.event == eventStopped {
			return nil, nil
		}
		if len(s.swarms) >= (t.cfg.MaxSwarms+shards-1)/shards {
			return nil, errFull
		}
		sw = handout.New(s.rand)
		s.swarms[req.infohash] = sw
	}
	if req.event == eventStopped {
		s.change(sw, func() { sw.Leave(&req.ask) })
		s.dropEmpty(req.infohash, sw)
	} else {
		room := max(0, t.cfg.MaxTotal-int(t.peers.Load())) // passed by a few where many come at once
		s.change(sw, func() { req.pick(sw, min(t.cfg.MaxPeers, sw.Len()+room), self) })
	}
	req.answer.complete, req.answer.incomplete = sw.Complete(), sw.Len()-sw.Complete()
	if req.mayHold() && len(req.answer.peers) == 0 {
		return t.holdIn(s, sw, req), nil
	}
	return nil, nil
}

// pick enters req into sw and answers it with peers.
func (req *request) pick(sw *handout.Swarm, max int, self netip.AddrPort) {
	peers, origin := sw.Announce(&req.ask, max, req.told[:0])
	if origin {
		peers = append(peers, handout.Peer{Addr: self}) // known by its address alone
	}
	req.told, req.answer.peers = peers, peers
}
