package tracker

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// maxQuery bounds the query of an announce. The longest in use, 20 bytes
	// escaped three times over with every optional field, is some 500 bytes.
	maxQuery = 2048
	// maxZone bounds a zone's name in bytes.
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
	left     int64         // bytes it lacks; 0 makes it complete
	want     int           // peers it asks for, at most maxWant
	wait     time.Duration // how long it would wait for one, at most maxWait
	compact  bool
	noPeerID bool
}

// mayHold reports whether the answer may be held when there is nobody new to
// tell of.
func (a *announce) mayHold() bool {
	return a.wait > 0 && a.left != 0 && a.want > 0 && a.event != eventStopped
}

// errAnnounce marks what is wrong with a client's query, in words for it.
var errAnnounce = errors.New("bad announce")

// parse reads an announce that came from remote into a.
func (a *announce) parse(raw string, remote netip.Addr) error {
	if len(raw) > maxQuery {
		return fmt.Errorf("%w: query too long", errAnnounce)
	}
	q := query(raw)
	*a = announce{
		addrs: a.addrs[:0], zone: unescape(q.get("zone")),
		compact: q.get("compact") != "0", noPeerID: q.get("no_peer_id") == "1",
	}
	if len(a.zone) > maxZone {
		return fmt.Errorf("%w: zone too long", errAnnounce)
	}
	if !unescapeAll(a.infohash[:], q.get("info_hash")) {
		return fmt.Errorf("%w: info_hash is not 20 bytes", errAnnounce)
	}
	if !unescapeAll(a.peerID[:], q.get("peer_id")) {
		return fmt.Errorf("%w: peer_id is not 20 bytes", errAnnounce)
	}
	if err := a.parseState(q); err != nil {
		return err
	}
	port, err := strconv.ParseUint(q.get("port"), 10, 16)
	if err != nil || port == 0 && a.event != eventStopped {
		return fmt.Errorf("%w: port", errAnnounce)
	}
	return a.parseAddrs(q, remote, uint16(port))
}

// parseState reads what the peer has and wants.
func (a *announce) parseState(q query) (err error) {
	switch a.event = q.get("event"); a.event {
	case eventNone, eventStarted, eventStopped, eventCompleted:
	case "empty", "paused": // BEP 3 allows the first for none; the second is BEP 21's
		a.event = eventNone
	default:
		return fmt.Errorf("%w: event", errAnnounce)
	}
	if a.left, err = q.number("left", 1); err != nil {
		return err
	}
	want, err := q.number("numwant", defaultWant)
	if err != nil {
		return err
	}
	if want < 0 { // the library sends -1 for "you choose"
		want = defaultWant
	}
	a.want = int(min(want, maxWant))
	wait, err := q.number("wait", 0)
	a.wait = time.Duration(min(max(wait, 0), int64(maxWait/time.Second))) * time.Second
	return err
}

// parseAddrs reads where the peer listens. That is where the request came from;
// ip= (BEP 3) replaces it, for peers whose address is another than the one
// their requests come from, and ipv4= and ipv6= (BEP 7) add one of that
// version. There is at most one of each. Names are not looked up: a tracker
// that resolves names for strangers can be turned against others.
func (a *announce) parseAddrs(q query, remote netip.Addr, port uint16) error {
	a.claim(q, "ip", remote, port)
	if len(a.addrs) == 0 && remote.IsValid() {
		a.addAddr(remote.Unmap().WithZone(""), port)
	}
	a.claim(q, "ipv4", remote, port)
	a.claim(q, "ipv6", remote, port)
	if len(a.addrs) == 0 {
		return fmt.Errorf("%w: ip", errAnnounce)
	}
	return nil
}

// claim adds the literal addresses that a peer may claim. A loopback one makes
// sense only from a peer on this host; from afar it would send everyone to
// themselves.
func (a *announce) claim(q query, field string, remote netip.Addr, port uint16) {
	for claimed := range q.all(field) {
		ip, err := netip.ParseAddr(unescape(claimed))
		ip = ip.Unmap().WithZone("")
		switch {
		case err != nil, ip.IsUnspecified(), ip.IsMulticast():
		case ip.IsLoopback() && !remote.Unmap().IsLoopback():
		case ip.IsLinkLocalUnicast() && !remote.IsLinkLocalUnicast(): // where clouds answer machines
		default:
			a.addAddr(ip, port)
		}
	}
}

func (a *announce) addAddr(ip netip.Addr, port uint16) {
	sameVersion := func(b netip.AddrPort) bool { return b.Addr().Is4() == ip.Is4() }
	if !slices.ContainsFunc(a.addrs, sameVersion) {
		a.addrs = append(a.addrs, netip.AddrPortFrom(ip, port))
	}
}

// query is a query as it came. It is searched for each field anew: url.ParseQuery
// would make a map and some twenty strings of it, at more than all else that an
// announce costs.
type query string

// all yields the values of a field, escaped as they are.
func (q query) all(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		rest := string(q)
		for rest != "" {
			var field string
			field, rest, _ = strings.Cut(rest, "&")
			value, is := strings.CutPrefix(field, name)
			if is && (value == "" || value[0] == '=') && !yield(strings.TrimPrefix(value, "=")) {
				return
			}
		}
	}
}

// get returns the first value of a field, escaped as it is, or "".
func (q query) get(name string) string {
	for value := range q.all(name) {
		return value
	}
	return ""
}

// number reads a decimal field; one that is missing is fallback.
func (q query) number(name string, fallback int64) (int64, error) {
	s := q.get(name)
	if s == "" {
		return fallback, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return n, nil // the library sends an unknown rest as a huge one
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %s", errAnnounce, name)
	}
	return n, nil
}

// unescape undoes a value's escapes; one that is malformed is as good as none.
func unescape(s string) string {
	if !strings.ContainsAny(s, "%+") {
		return s
	}
	s, err := url.QueryUnescape(s)
	if err != nil {
		return ""
	}
	return s
}

// unescapeAll undoes s's escapes, and reports whether that just fills dst.
func unescapeAll(dst []byte, s string) bool {
	n := 0
	for ; s != ""; n++ {
		c := s[0]
		s = s[1:]
		switch {
		case n == len(dst):
			return false
		case c == '+':
			c = ' '
		case c == '%':
			if len(s) < 2 || unhex[s[0]] < 0 || unhex[s[1]] < 0 {
				return false
			}
			c, s = byte(unhex[s[0]]<<4|unhex[s[1]]), s[2:]
		}
		dst[n] = c
	}
	return n == len(dst)
}

// unhex is the value of a hexadecimal digit, or -1.
var unhex = func() (table [256]int16) {
	for c := range table {
		table[c] = int16(strings.IndexByte("0123456789abcdef", byte(c)))
	}
	for c := byte('A'); c <= 'F'; c++ {
		table[c] = int16(c-'A') + 10
	}
	return table
}()
