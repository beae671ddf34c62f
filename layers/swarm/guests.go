package swarm

import (
	"container/list"
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

// greetings are the connections that have come in and not said yet what they want. Who says
// nothing keeps nobody out: where there are too many, the one that has been silent for
// longest has to go.
type greetings struct {
	most int

	mu     sync.Mutex // guards silent
	silent list.List  // of net.Conn, the oldest first
}

// enter takes conn in. leave is to be called when it has said what it wants, or has ended.
func (g *greetings) enter(conn net.Conn) (leave func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.silent.Len() >= g.most {
		oldest := g.silent.Remove(g.silent.Front()).(net.Conn)
		oldest.Close()
	}
	place := g.silent.PushBack(conn)
	return func() { g.leave(place) }
}

func (g *greetings) leave(place *list.Element) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.silent.Remove(place) // nothing, if it had to go
}
