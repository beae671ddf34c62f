package tracker

import (
	"encoding/binary"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/anacrolix/torrent/bencode"
)

// announceAnswer is what an announce is told.
type announceAnswer struct {
	interval             time.Duration
	complete, incomplete int
	peers                []endpoint
}

// The forms on the wire. BEP 3 gives peers as dictionaries, BEP 23 as a string
// of six bytes each, BEP 7 adds a string of eighteen each for IPv6.
type (
	announceWire struct {
		Complete    int    `bencode:"complete"`
		Incomplete  int    `bencode:"incomplete"`
		Interval    int    `bencode:"interval"`     // seconds
		MinInterval int    `bencode:"min interval"` // seconds
		Peers       any    `bencode:"peers"`        // []byte or []peerWire
		Peers6      []byte `bencode:"peers6,omitempty"`
	}
	peerWire struct {
		ID   []byte `bencode:"peer id,omitempty"`
		IP   string `bencode:"ip"`
		Port uint16 `bencode:"port"`
	}
	failureWire struct {
		Reason string `bencode:"failure reason"`
	}
	scrapeAnswer struct {
		Files map[string]scraped `bencode:"files"`
	}
	scraped struct {
		Complete   int `bencode:"complete"`
		Downloaded int `bencode:"downloaded"`
		Incomplete int `bencode:"incomplete"`
	}
)

// encode puts the answer into the form that a asked for. Compact is also the
// form for those who do not say (BEP 23 suggests so).
func (an announceAnswer) encode(a *announce) announceWire {
	wire := announceWire{
		Complete:    an.complete,
		Incomplete:  an.incomplete,
		Interval:    seconds(an.interval),
		MinInterval: seconds(an.interval / 6), // for a client that has run out of peers
	}
	if a.compact {
		wire.Peers, wire.Peers6 = compact(an.peers)
	} else {
		wire.Peers = dictionaries(an.peers, a.noPeerID)
	}
	return wire
}

// seconds rounds up: the wire knows no fractions, and 0 would mean "at once".
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

func compact(peers []endpoint) (v4, v6 []byte) {
	v4 = []byte{} // always there, even when empty
	for _, p := range peers {
		if p.addr.Addr().Is4() {
			v4 = appendCompact(v4, p.addr)
		} else {
			v6 = appendCompact(v6, p.addr)
		}
	}
	return v4, v6
}

func appendCompact(b []byte, addr netip.AddrPort) []byte {
	b = append(b, addr.Addr().AsSlice()...)
	return binary.BigEndian.AppendUint16(b, addr.Port())
}

func dictionaries(peers []endpoint, noPeerID bool) []peerWire {
	list := make([]peerWire, len(peers))
	for i, p := range peers {
		list[i] = peerWire{IP: p.addr.Addr().String(), Port: p.addr.Port()}
		if !noPeerID && !p.noID {
			list[i].ID = p.id[:]
		}
	}
	return list
}

// refuse tells the client what is wrong with its request.
func (t *Tracker) refuse(w http.ResponseWriter, r *http.Request, err error) {
	t.cfg.Log.DebugContext(r.Context(), "refused", "peer", r.RemoteAddr, "err", err)
	t.write(w, r, failureWire{Reason: err.Error()})
}

// write sends v bencoded.
func (t *Tracker) write(w http.ResponseWriter, r *http.Request, v any) {
	b, err := bencode.Marshal(v)
	if err != nil { // our own types: cannot happen but by a mistake in this file
		t.cfg.Log.ErrorContext(r.Context(), "encode answer", "err", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8") // what trackers have always said
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b) // a client that has gone announces again
}
