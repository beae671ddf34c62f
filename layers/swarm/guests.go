package swarm

import (
	"net"
	"net/netip"
	"sync"
)

// guests counts the connections that others have made to us.
type guests struct {
	most, mostOfOne int

	mu   sync.Mutex // guards below
	all  int
	from map[netip.Addr]int
}

func newGuests(most, mostOfOne int) *guests {
	return &guests{most: most, mostOfOne: mostOfOne, from: make(map[netip.Addr]int)}
}

// enter counts conn in unless there are too many. leave is to be called when it has ended.
func (g *guests) enter(conn net.Conn) (leave func(), ok bool) {
	addr, _ := netip.ParseAddrPort(conn.RemoteAddr().String()) // what is no IP counts as one
	ip := addr.Addr().Unmap().WithZone("")
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all >= g.most || g.from[ip] >= g.mostOfOne {
		return nil, false
	}
	g.all++
	g.from[ip]++
	return func() { g.leave(ip) }, true
}

func (g *guests) leave(ip netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all--
	if g.from[ip]--; g.from[ip] == 0 {
		delete(g.from, ip)
	}
}
