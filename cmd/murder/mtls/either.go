package mtls

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
)

// handshakeRecord is the first byte of whoever speaks TLS (RFC 8446, 5.1), which none of HTTP is.
const handshakeRecord = 0x16

// Either takes connections from l in plain and by TLS, as the client begins: a mirror's, of
// engines on its host, which have no certificate, and of operators elsewhere, who have one
// of the CA and say nothing in clear. Who begins TLS without one gets nothing. Whoever
// reads first waits for the client, and sets the deadline.
func (id *Identity) Either(l net.Listener) net.Listener {
	config := &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return id.now().orders, nil
	}}
	return eithers{listener{l, config, id.files.Cert}}
}

type eithers struct{ listener }

// Accept implements net.Listener.
func (l eithers) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &either{Conn: raw, listener: l.listener}, nil
}

// either is a connection of which the first byte will tell what it is.
type either struct {
	net.Conn
	listener listener
	begun    bool     // the first byte has been read
	inside   net.Conn // TLS; nil for plain
}

// Read implements net.Conn. It is called first, and not by two at once, as net/http does.
func (c *either) Read(b []byte) (int, error) {
	switch {
	case c.inside != nil:
		return c.inside.Read(b)
	case c.begun || len(b) == 0:
		return c.Conn.Read(b)
	}
	n, err := c.Conn.Read(b[:1])
	if n == 0 {
		return n, err
	}
	c.begun = true
	if b[0] != handshakeRecord {
		return n, err
	}
	w := newWire(unread{c.Conn, io.MultiReader(bytes.NewReader([]byte{handshakeRecord}), c.Conn)})
	c.inside = &conn{tls.Server(w, c.listener.config), w, c.listener.own}
	return c.inside.Read(b)
}

// Write implements net.Conn.
func (c *either) Write(b []byte) (int, error) {
	if c.inside != nil {
		return c.inside.Write(b)
	}
	return c.Conn.Write(b)
}

// ReadFrom implements io.ReaderFrom: a file goes out in plain by sendfile.
func (c *either) ReadFrom(r io.Reader) (int64, error) {
	if c.inside != nil {
		return io.Copy(c.inside, r)
	}
	return io.Copy(c.Conn, r)
}

// unread is a connection of which something was read too early.
type unread struct {
	net.Conn
	rest io.Reader
}

func (u unread) Read(b []byte) (int, error) { return u.rest.Read(b) }
