package mtls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// dialTimeout bounds connecting and the handshake: what is called is in one data
// centre.
const dialTimeout = 3 * time.Second

// DialHTTPS connects to a seeder, as http.Transport.DialTLSContext wants it.
func (id *Identity) DialHTTPS(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	return id.DialHTTPSAs(ctx, network, addr, host)
}

// DialHTTPSAs connects to a seeder whose certificate must be for name, a DNS name or an
// IP address, wherever addr is.
func (id *Identity) DialHTTPSAs(ctx context.Context, network, addr, name string) (net.Conn, error) {
	config := id.now().asks.Clone()
	config.ServerName = name
	return id.dial(ctx, network, addr, config)
}

// DialPeer connects to a peer.
func (id *Identity) DialPeer(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	return id.dial(ctx, "tcp", addr.String(), id.now().calls)
}

func (id *Identity) dial(ctx context.Context, network, addr string, config *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	w := newWire(raw)
	c := &conn{tls.Client(w, config), w, id.files.Cert}
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, c.blame(err)
	}
	return c, nil
}

// PeerListener takes connections of peers from l. The handshake is done by who first
// reads, so that a stranger who is slow holds up nobody; whoever reads sets the
// deadline.
func (id *Identity) PeerListener(l net.Listener) net.Listener {
	config := &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return id.now().takes, nil
	}}
	return listener{l, config, id.files.Cert}
}

type listener struct {
	net.Listener
	config *tls.Config
	own    string
}

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	w := newWire(raw)
	return &conn{tls.Server(w, l.config), w, l.own}, nil
}

// conn is a connection whose errors say whose fault they are.
type conn struct {
	*tls.Conn
	wire *wire
	own  string // the file of our certificate
}

// Read implements net.Conn. A peer that refuses our certificate does so only here: in
// TLS 1.3 the handshake ends for who calls before its certificate is looked at.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	return n, c.blame(err)
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	if len(b) > maxRecord {
		c.wire.gather()
	}
	n, err := c.Conn.Write(b)
	if len(b) > maxRecord {
		if e := c.wire.release(); err == nil {
			err = e
		}
	}
	return n, c.blame(err)
}

// Close implements net.Conn. It says no goodbye, for which it might have to wait: what
// is told over it says itself where it ends.
func (c *conn) Close() error { return c.wire.Close() }

// NetConn is the connection below, whose socket has options.
func (c *conn) NetConn() net.Conn { return c.wire.Conn }

// blame says of an error whose certificate is the reason, if one is.
func (c *conn) blame(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("the certificate of %s is refused: %w", c.RemoteAddr(), err)
	}
	// crypto/tls keeps the type of its alerts to itself.
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "remote error" && strings.Contains(e.Err.Error(), "certificate") {
		return fmt.Errorf("%s refuses the certificate of this host, %s: %w", c.RemoteAddr(), c.own, err)
	}
	if e, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fmt.Errorf("%s does not speak TLS: %w", c.RemoteAddr(), e)
	}
	return err
}
