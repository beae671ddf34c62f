package swarm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/murderp2p/murder/layers"
)

// The events of BEP 3.
const (
	eventNone      = ""
	eventStarted   = "started"
	eventStopped   = "stopped"
	eventCompleted = "completed"
)

// maxAnswer bounds what a tracker may say, in bytes: 2,000 peers.
const maxAnswer = 64 << 10

// tracker asks trackers over HTTP (BEP 3, 7 and 23). The library has such a client,
// which reads answers of any length, panics at some of them, checks no certificate
// and opens a connection for every question.
type tracker struct {
	http      *http.Client
	port      uint16
	peerID    [20]byte
	zone      string
	advertise netip.AddrPort
}

// announceAsk is what a tracker is told.
type announceAsk struct {
	name  layers.InfoHash
	event string
	left  int64         // bytes missing
	want  int           // peers
	wait  time.Duration // for how long the answer may be held until there is a new peer
}

// announceAnswer is what a tracker says.
type announceAnswer struct {
	id          string // of the tracker; another when it has been started anew
	holds       bool   // it holds answers for those who ask for that
	interval    time.Duration
	minInterval time.Duration // for who has run out of peers
	complete    int           // hosts that have the whole blob
	incomplete  int           // and that have not
	peers       []netip.AddrPort
}

// announce tells the tracker at trackerURL that we are in a swarm.
func (t tracker) announce(ctx context.Context, trackerURL string, ask announceAsk) (announceAnswer, error) {
	u, err := url.Parse(trackerURL)
	if err != nil {
		return announceAnswer{}, fmt.Errorf("announce: %w", err)
	}
	query := t.query(ask)
	if u.RawQuery != "" {
		query = u.RawQuery + "&" + query
	}
	u.RawQuery = query
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return announceAnswer{}, fmt.Errorf("announce: %w", err)
	}
	res, err := t.http.Do(req)
	if err != nil {
		var ue *url.Error // its text has the whole query in it
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return announceAnswer{}, fmt.Errorf("announce: %w", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return announceAnswer{}, fmt.Errorf("read answer: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return announceAnswer{}, fmt.Errorf("announce: %s", res.Status)
	}
	return parseAnswer(body)
}

func (t tracker) query(ask announceAsk) string {
	q := url.Values{
		"info_hash":  {string(ask.name[:])},
		"peer_id":    {string(t.peerID[:])},
		"port":       {strconv.Itoa(int(t.port))},
		"uploaded":   {"0"}, // our trackers keep no accounts
		"downloaded": {"0"},
		"left":       {strconv.FormatInt(ask.left, 10)},
		"numwant":    {strconv.Itoa(ask.want)},
		"compact":    {"1"},
	}
	if ask.event != eventNone {
		q.Set("event", ask.event)
	}
	if ask.wait > 0 {
		q.Set("wait", strconv.Itoa(int(ask.wait/time.Second)))
	}
	if t.zone != "" {
		q.Set("zone", t.zone)
	}
	if ip := t.advertise.Addr(); ip.IsValid() && !ip.IsUnspecified() {
		q.Set("ip", ip.String())
	}
	if port := t.advertise.Port(); port != 0 {
		q.Set("port", strconv.Itoa(int(port)))
	}
	return strings.ReplaceAll(q.Encode(), "+", "%20") // not every tracker reads + as a space
}

// parseAnswer reads a compact answer. Foreign bytes: it is a fuzz target.
func parseAnswer(b []byte) (announceAnswer, error) {
	var wire struct {
		Failure     string `bencode:"failure reason"`
		Complete    int    `bencode:"complete"`
		Incomplete  int    `bencode:"incomplete"`
		Interval    int64  `bencode:"interval"`
		MinInterval int64  `bencode:"min interval"`
		Peers       []byte `bencode:"peers"`
		Peers6      []byte `bencode:"peers6"`
		ID          string `bencode:"tracker id"`
		Wait        int64  `bencode:"wait"` // seconds; ours alone
	}
	if err := decode(b, &wire); err != nil {
		return announceAnswer{}, fmt.Errorf("parse answer: %w", err)
	}
	if wire.Failure != "" {
		return announceAnswer{}, fmt.Errorf("tracker refuses: %q", wire.Failure)
	}
	an := announceAnswer{
		id: wire.ID, holds: wire.Wait > 0, complete: max(0, wire.Complete), incomplete: max(0, wire.Incomplete),
		interval: pause(wire.Interval, 30*time.Second),
	}
	an.minInterval = min(an.interval, pause(wire.MinInterval, 5*time.Second))
	an.peers = appendPeers(an.peers, wire.Peers, 4)
	an.peers = appendPeers(an.peers, wire.Peers6, 16)
	return an, nil
}

// pause is a time in seconds as a tracker gives it, within reason.
func pause(seconds int64, fallback time.Duration) time.Duration {
	if seconds <= 0 {
		return fallback
	}
	return min(max(time.Duration(min(seconds, 1<<20))*time.Second, pauseMin), pauseMax)
}

// appendPeers reads compact addresses of n bytes and a port each. What is left over
// at the end is dropped.
func appendPeers(peers []netip.AddrPort, b []byte, n int) []netip.AddrPort {
	for ; len(b) >= n+2; b = b[n+2:] {
		ip, _ := netip.AddrFromSlice(b[:n])
		port := binary.BigEndian.Uint16(b[n:])
		if port != 0 && !ip.IsUnspecified() && !ip.IsMulticast() {
			peers = append(peers, netip.AddrPortFrom(ip.Unmap(), port))
		}
	}
	return peers
}
