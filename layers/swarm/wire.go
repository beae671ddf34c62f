package swarm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// listener accepts peers and names them by their aliases. Neither it nor the dialer
// sets socket buffers: Linux grows them with the transfer (tcp_rmem, tcp_wmem), and a
// size set by hand ends that, at what net.core.rmem_max allows, mostly 208 KiB.
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
	return &conn{Conn: c, addr: l.names.accepted(remote(c))}, nil
}

func remote(c net.Conn) netip.AddrPort {
	a := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// keepAliveEvery is how often a silent connection really says that it is alive. BEP 3
// has peers hang up after two minutes.
const keepAliveEvery = time.Minute

// conn is a connection whose far end goes by its alias, and on which the library's
// keep-alives do not show; see wakeWriters.
type conn struct {
	net.Conn
	addr  peerAddr
	wrote atomic.Int64 // when something last went out, in nanoseconds since 1970
}

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.addr }

// keepAlive is how BEP 3 writes it. The library sends it by itself, in one Write.
var keepAlive = make([]byte, 4)

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	now := time.Now().UnixNano()
	if bytes.Equal(b, keepAlive) && now-c.wrote.Load() < int64(keepAliveEvery) {
		return len(b), nil
	}
	c.wrote.Store(now)
	return c.Conn.Write(b)
}

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
	return &conn{Conn: c, addr: peerAddr{real: addr, alias: netip.MustParseAddrPort(alias)}}, nil
}
