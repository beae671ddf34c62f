package tracker

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"
)

const (
	// maxQuery bounds the query of an announce. The longest in use, 20 bytes
	// escaped three times over with every optional field, is some 500 bytes.
	maxQuery = 2048
	// maxZone bounds a zone's name in bytes, since every peer keeps one.
	maxZone = 64

	// defaultWant and maxWant are the peers given to who does not say how
	// many, and at most: as many as a client keeps connections to.
	defaultWant = 50
	maxWant     = 50
)

// The events of BEP 3. An announce without one is a periodic one.
const (
	eventNone      = ""
	eventStarted   = "started"
	eventStopped   = "stopped"
	eventCompleted = "completed"
)

// announce is one parsed announce.
type announce struct {
	infohash [20]byte
	peerID   [20]byte
	addrs    []netip.AddrPort // where the peer listens: one, or one of each IP version
	zone     string
	event    string
	left     int64 // bytes it lacks; 0 makes it complete
	want     int   // peers it asks for, at most maxWant
	compact  bool
	noPeerID bool
}

// errAnnounce marks what is wrong with a client's query, in words for it.
var errAnnounce = errors.New("bad announce")

// parseAnnounce reads an announce that came from remote.
func parseAnnounce(query string, remote netip.Addr) (*announce, error) {
	if len(query) > maxQuery {
		return nil, fmt.Errorf("%w: query too long", errAnnounce)
	}
	q, err := url.ParseQuery(query)
	if err != nil {
		return nil, fmt.Errorf("%w: malformed query", errAnnounce)
	}
	a := &announce{zone: q.Get("zone"), compact: q.Get("compact") != "0", noPeerID: q.Get("no_peer_id") == "1"}
	if len(a.zone) > maxZone {
		return nil, fmt.Errorf("%w: zone too long", errAnnounce)
	}
	if err := a.parseIdentity(q); err != nil {
		return nil, err
	}
	if err := a.parseState(q); err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(q.Get("port"), 10, 16)
	if err != nil || port == 0 && a.event != eventStopped {
		return nil, fmt.Errorf("%w: port", errAnnounce)
	}
	a.addrs, err = addresses(q, remote, uint16(port))
	return a, err
}

func (a *announce) parseIdentity(q url.Values) error {
	if copy(a.infohash[:], q.Get("info_hash")) != 20 || len(q.Get("info_hash")) != 20 {
		return fmt.Errorf("%w: info_hash is not 20 bytes", errAnnounce)
	}
	if copy(a.peerID[:], q.Get("peer_id")) != 20 || len(q.Get("peer_id")) != 20 {
		return fmt.Errorf("%w: peer_id is not 20 bytes", errAnnounce)
	}
	return nil
}

// parseState reads what the peer has and wants.
func (a *announce) parseState(q url.Values) (err error) {
	switch a.event = q.Get("event"); a.event {
	case eventNone, eventStarted, eventStopped, eventCompleted:
	case "empty", "paused": // BEP 3 allows the first for none; the second is BEP 21's
		a.event = eventNone
	default:
		return fmt.Errorf("%w: event", errAnnounce)
	}
	if a.left, err = number(q, "left", 1); err != nil {
		return err
	}
	want, err := number(q, "numwant", defaultWant)
	if want < 0 { // the library sends -1 for "you choose"
		want = defaultWant
	}
	a.want = int(min(want, maxWant))
	return err
}

// number reads a decimal field; one that is missing is fallback.
func number(q url.Values, field string, fallback int64) (int64, error) {
	s := q.Get(field)
	if s == "" {
		return fallback, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return n, nil // the library sends an unknown rest as a huge one
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %s", errAnnounce, field)
	}
	return n, nil
}

// addresses says where the peer listens. That is where the request came from;
// ip= (BEP 3) replaces it, for peers whose address is another than the one
// their requests come from, and ipv4= and ipv6= (BEP 7) add one of that
// version. There is at most one of each. Names are not looked up: a tracker
// that resolves names for strangers can be turned against others.
func addresses(q url.Values, remote netip.Addr, port uint16) ([]netip.AddrPort, error) {
	from := usable(q["ip"], remote)
	if len(from) == 0 && remote.IsValid() {
		from = []netip.Addr{remote.Unmap().WithZone("")}
	}
	from = append(from, usable(slices.Concat(q["ipv4"], q["ipv6"]), remote)...)

	var addrs []netip.AddrPort
	for _, ip := range from {
		sameVersion := func(a netip.AddrPort) bool { return a.Addr().Is4() == ip.Is4() }
		if !slices.ContainsFunc(addrs, sameVersion) {
			addrs = append(addrs, netip.AddrPortFrom(ip, port))
		}
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%w: ip", errAnnounce)
	}
	return addrs, nil
}

// usable keeps the literal addresses that a peer may claim. A loopback one
// makes sense only from a peer on this host; from afar it would send everyone
// to themselves.
func usable(claims []string, remote netip.Addr) []netip.Addr {
	var ips []netip.Addr
	for _, claim := range claims {
		ip, err := netip.ParseAddr(claim)
		ip = ip.Unmap().WithZone("")
		switch {
		case err != nil, ip.IsUnspecified(), ip.IsMulticast():
		case ip.IsLoopback() && !remote.Unmap().IsLoopback():
		default:
			ips = append(ips, ip)
		}
	}
	return ips
}

// wants reports whether p is worth giving to the asker: not the asker itself,
// and somebody with whom there is something to exchange.
func (a *announce) wants(p *peer) bool {
	if p.id == a.peerID || slices.Contains(a.addrs, p.addr) {
		return false
	}
	return a.left != 0 || !p.complete
}

// ServeAnnounce answers GET /announce. What is wrong with a request is said as
// BEP 3 says it, as a failure reason with status 200, since clients show that
// and not the body of an error.
func (t *Tracker) ServeAnnounce(w http.ResponseWriter, r *http.Request) {
	remote, _ := netip.ParseAddrPort(r.RemoteAddr)
	a, err := parseAnnounce(r.URL.RawQuery, remote.Addr())
	if err != nil {
		t.refuse(w, r, err)
		return
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	answer, err := t.announced(a, local)
	if err != nil {
		t.refuse(w, r, err)
		return
	}
	t.announces.Add(1)
	t.cfg.Log.DebugContext(r.Context(), "announced", "peer", a.addrs[0], "event", a.event,
		"left", a.left, "zone", a.zone, "peers", len(answer.peers))
	t.write(w, r, answer.encode(a))
}

var errFull = errors.New("too many swarms here")

// announced takes a into its swarm and answers it. local is where the request
// came in.
func (t *Tracker) announced(a *announce, local net.Addr) (announceAnswer, error) {
	answer, err := t.list(a, time.Now())
	if err != nil || !t.cfg.Has(a.infohash) {
		return answer, err
	}
	answer.complete++
	self, ok := t.cfg.Self(local)
	if !ok || a.left == 0 || a.want == 0 || a.event == eventStopped || slices.Contains(a.addrs, self) {
		return answer, nil
	}
	// The seeder takes a place of its own: it is the one who surely has it all.
	answer.peers = append(answer.peers[:min(len(answer.peers), a.want-1)], endpoint{addr: self, noID: true})
	return answer, nil
}

// list enters a into its swarm, or takes it out, and picks peers for it.
func (t *Tracker) list(a *announce, now time.Time) (announceAnswer, error) {
	answer := announceAnswer{interval: t.interval(a)}
	s := t.shard(a.infohash)
	s.mu.Lock()
	defer s.mu.Unlock()
	sw := s.swarms[a.infohash]
	if sw == nil {
		if a.event == eventStopped {
			return answer, nil
		}
		if len(s.swarms) >= (t.cfg.MaxSwarms+shards-1)/shards {
			return answer, errFull
		}
		sw = newSwarm()
		s.swarms[a.infohash] = sw
	}
	if a.event == eventStopped {
		sw.stopped(a)
		s.dropEmpty(a.infohash, sw)
	} else {
		// One announce may be lost on the way, and the next come late.
		sw.announced(a, t.cfg.MaxPeers, now.Add(answer.interval*5/2))
		answer.peers = sw.pick(a, a.want)
	}
	answer.complete, answer.incomplete = sw.complete, len(sw.peers)-sw.complete
	return answer, nil
}
