package sim

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/murderp2p/murder/seeder/tracker/handout"
)

// wanted is how many neighbours a host looks for, as in package swarm. When more
// than it keeps connect to it, it parts from a random one.
const (
	wanted  = 11
	kept    = 14
	keptFar = 6
)

// tracker is the real handout, asked as a host asks it.
type tracker struct {
	w     *world
	swarm *handout.Swarm
}

func newTracker(w *world) *tracker {
	return &tracker{w: w, swarm: handout.New(w.rand)}
}

// announce says that n is there, and returns the peers that it is told of.
func (t *tracker) announce(n *node) (peers []*node, source bool) {
	a := handout.Ask{
		Addrs: []netip.AddrPort{address(n.id)}, Zone: string(rune('a' + n.zone)),
		Complete: n.done != 0, Completed: n.done != 0, Origin: len(t.w.source) > 0,
		Now: t.w.time(), Expires: t.w.time() + 75*time.Second,
	}
	binary.BigEndian.PutUint32(a.ID[:], uint32(n.id))
	if n.done == 0 {
		a.Want = max(t.w.conf.neighbours-len(n.sides), 0)
	}
	t.swarm.Expire(t.w.time())
	told, source := t.swarm.Announce(&a, t.w.conf.hosts, nil)
	for _, p := range told {
		peers = append(peers, t.w.hosts[binary.BigEndian.Uint32(p.ID[:])])
	}
	return peers, source
}

func address(id int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(id >> 16), byte(id >> 8), byte(id)}), 6881)
}
