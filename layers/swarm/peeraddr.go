package swarm

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"sync"
	"time"
)

// banned for at most banEpoch: the age at which aliases change.
const banEpoch = time.Hour

// peerAddr is a peer's address under an alias. The library bans a peer that sent
// wrong bytes by its IP, for as long as the process lives: all hosts behind one
// NAT, or all of a test on loopback, for the fault of one, and a host with bad
// memory long after that was changed. So the library is shown a made-up IPv6
// address (fd00::/8, RFC 4193) that follows from whom we mean:
//
//   - a peer we dial: its address with the port;
//   - one that dialled us: its IP, since the port is new each time and a ban has
//     to outlast a reconnect; but on loopback the port too;
//   - and the hour, so that a ban is over with it.
//
// A peer whose alias has changed may be dialled although it is connected under the
// old one. That is once an hour, and ends as a duplicate peer ID.
type peerAddr struct {
	real, alias netip.AddrPort
}

// Network implements net.Addr.
func (peerAddr) Network() string { return "tcp" }

// String returns the alias, which is what the library knows the peer by.
func (a peerAddr) String() string { return a.alias.String() }

// book gives aliases, and knows who is meant by those that can be dialled.
type book struct {
	salt [16]byte // so that nobody can aim for another's alias

	mu    sync.Mutex // guards the rest; held for map work only
	epoch int64      // the hour since 1970 that dials began with
	// dials and the hour before's: an alias may be waiting in the library.
	dials, older map[netip.AddrPort]netip.AddrPort
}

// maxDials bounds the aliases of one hour. A tracker would have to name as many
// different addresses.
const maxDials = 1 << 16

func newBook() *book {
	b := &book{dials: make(map[netip.AddrPort]netip.AddrPort)}
	_, _ = rand.Read(b.salt[:]) // never fails
	return b
}

// dialable names a peer to be dialled at addr.
func (b *book) dialable(addr netip.AddrPort) peerAddr {
	epoch := time.Now().Unix() / int64(banEpoch/time.Second)
	a := peerAddr{real: addr, alias: b.alias("dial", addr, addr.Port(), epoch)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.epoch != epoch || len(b.dials) >= maxDials {
		b.older, b.dials, b.epoch = b.dials, make(map[netip.AddrPort]netip.AddrPort), epoch
	}
	b.dials[a.alias] = addr
	return a
}

// accepted names a peer that dialled us from addr.
func (b *book) accepted(addr netip.AddrPort) peerAddr {
	epoch := time.Now().Unix() / int64(banEpoch/time.Second)
	from := netip.AddrPortFrom(addr.Addr(), 0)
	if addr.Addr().IsLoopback() {
		from = addr
	}
	return peerAddr{real: addr, alias: b.alias("accept", from, addr.Port(), epoch)}
}

// real returns whom to dial for an alias.
func (b *book) real(alias string) (netip.AddrPort, bool) {
	a, err := netip.ParseAddrPort(alias)
	if err != nil {
		return netip.AddrPort{}, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if addr, ok := b.dials[a]; ok {
		return addr, true
	}
	addr, ok := b.older[a]
	return addr, ok
}

// alias makes an address of its own for every kind, addr and epoch.
func (b *book) alias(kind string, addr netip.AddrPort, port uint16, epoch int64) netip.AddrPort {
	h := sha256.New()
	h.Write(b.salt[:])
	h.Write([]byte(kind))
	h.Write([]byte(addr.String()))
	_ = binary.Write(h, binary.BigEndian, epoch) // to a hash: never fails
	ip := [16]byte(h.Sum(nil))
	ip[0] = 0xfd
	return netip.AddrPortFrom(netip.AddrFrom16(ip), port)
}
