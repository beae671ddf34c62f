package swarm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// listener accepts peers and names them by their aliases.
type listener struct {
	net.Listener
	names *book
}

func listen(addr string, names *book) (*listener, error) {
	if addr == "" {
		addr = ":0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &listener{l, names}, nil
}

func (l *listener) port() uint16 { return uint16(l.Addr().(*net.TCPAddr).Port) }

// acceptPause keeps the library from spinning when no connection can be accepted,
// as when all file descriptors are taken: it just calls again.
const acceptPause = 50 * time.Millisecond

// Accept implements torrent.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		if !errors.Is(err, net.ErrClosed) {
			time.Sleep(acceptPause)
		}
		return nil, err
	}
	return conn{c, l.names.accepted(remote(c))}, nil
}

func remote(c net.Conn) netip.AddrPort {
	a := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// conn is a connection whose far end goes by its alias.
type conn struct {
	net.Conn
	addr peerAddr
}

// RemoteAddr implements net.Conn.
func (c conn) RemoteAddr() net.Addr { return c.addr }

// dialer dials peers by their aliases. It implements torrent.Dialer.
type dialer struct {
	names *book
}

// DialerNetwork implements torrent.Dialer.
func (*dialer) DialerNetwork() string { return "tcp" }

// Dial implements torrent.Dialer.
func (d *dialer) Dial(ctx context.Context, alias string) (net.Conn, error) {
	addr, ok := d.names.real(alias)
	if !ok {
		return nil, fmt.Errorf("dial %s: not one of our aliases", alias)
	}
	var nd net.Dialer
	c, err := nd.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	return conn{c, peerAddr{real: addr, alias: netip.MustParseAddrPort(alias)}}, nil
}
