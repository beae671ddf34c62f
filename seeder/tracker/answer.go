package tracker

import (
	"encoding/binary"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/murderp2p/murder/seeder/tracker/handout"
)

// answer is what an announce is told.
type answer struct {
	tracker              string // who answers; another after a restart
	holds                bool   // wait= is heeded
	interval             time.Duration
	complete, incomplete int
	peers                []handout.Peer // the seeder beside the tracker has no ID
}

// encode appends the answer in the form that a asked for: BEP 3 gives peers as
// dictionaries, BEP 23 as a string of six bytes each, to which BEP 7 adds one
// of eighteen each for IPv6. Compact is also the form for those who do not say,
// as BEP 23 suggests. It is written by hand, keys in the order that bencode
// wants, since that takes a twentieth of the time that reflection takes.
func (an *answer) encode(b []byte, a *announce) []byte {
	b = append(b, "d8:completei"...)
	b = strconv.AppendInt(b, int64(an.complete), 10)
	b = append(b, "e10:incompletei"...)
	b = strconv.AppendInt(b, int64(an.incomplete), 10)
	b = append(b, "e8:intervali"...)
	b = strconv.AppendInt(b, seconds(an.interval), 10)
	b = append(b, "e12:min intervali"...)
	b = strconv.AppendInt(b, seconds(an.interval/6), 10) // for a client that has run out of peers
	b = append(b, "e5:peers"...)
	if a.compact {
		b = appendCompact(b, an.peers)
	} else {
		b = appendDictionaries(b, an.peers, a.noPeerID)
	}
	b = append(b, "10:tracker id"...)
	b = appendString(b, an.tracker)
	if an.holds {
		b = append(b, "4:waiti"...) // ours alone
		b = strconv.AppendInt(b, seconds(maxWait), 10)
		b = append(b, 'e')
	}
	return append(b, 'e')
}

// seconds rounds up: the wire knows no fractions, and 0 would mean "at once".
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

func appendString(b []byte, s string) []byte {
	b = strconv.AppendInt(b, int64(len(s)), 10)
	b = append(b, ':')
	return append(b, s...)
}

// appendCompact appends the value of "peers", which is there even when empty,
// and "peers6" if there are such.
func appendCompact(b []byte, peers []handout.Peer) []byte {
	n4 := 0
	for i := range peers {
		if peers[i].Addr.Addr().Is4() {
			n4++
		}
	}
	b = strconv.AppendInt(b, int64(n4*6), 10)
	b = append(b, ':')
	for i := range peers {
		if ip := peers[i].Addr.Addr(); ip.Is4() {
			bytes := ip.As4()
			b = appendPort(append(b, bytes[:]...), peers[i].Addr)
		}
	}
	if n4 == len(peers) {
		return b
	}
	b = append(b, "6:peers6"...)
	b = strconv.AppendInt(b, int64((len(peers)-n4)*18), 10)
	b = append(b, ':')
	for i := range peers {
		if ip := peers[i].Addr.Addr(); !ip.Is4() {
			bytes := ip.As16()
			b = appendPort(append(b, bytes[:]...), peers[i].Addr)
		}
	}
	return b
}

func appendPort(b []byte, addr netip.AddrPort) []byte {
	return binary.BigEndian.AppendUint16(b, addr.Port())
}

func appendDictionaries(b []byte, peers []handout.Peer, noPeerID bool) []byte {
	b = append(b, 'l')
	for _, p := range peers {
		b = append(b, "d2:ip"...)
		b = appendString(b, p.Addr.Addr().String())
		if !noPeerID && p.ID != ([20]byte{}) {
			b = append(b, "7:peer id20:"...)
			b = append(b, p.ID[:]...)
		}
		b = append(b, "4:porti"...)
		b = strconv.AppendUint(b, uint64(p.Addr.Port()), 10)
		b = append(b, "ee"...)
	}
	return append(b, 'e')
}

// refuse tells the client what is wrong with its request.
func (t *Tracker) refuse(w http.ResponseWriter, r *http.Request, err error) {
	t.cfg.Log.DebugContext(r.Context(), "refused", "peer", r.RemoteAddr, "err", err)
	write(w, append(appendString([]byte("d14:failure reason"), err.Error()), 'e'))
}

// plainText is what trackers have always said they send.
var plainText = []string{"text/plain; charset=utf-8"}

// write sends an answer.
func write(w http.ResponseWriter, b []byte) {
	w.Header()["Content-Type"] = plainText
	_, _ = w.Write(b) // a client that has gone announces again
}
