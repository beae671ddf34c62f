package swarm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/anacrolix/torrent/metainfo"
	"github.com/anacrolix/torrent/mse"
	"github.com/anacrolix/torrent/peer_protocol"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/layers/swarm/bulk"
)

const (
	// dialTimeout bounds connecting and greeting: the peers are in one data centre.
	dialTimeout = 3 * time.Second
	// greetTimeout bounds both handshakes, BitTorrent's and the encryption's.
	greetTimeout = 10 * time.Second
	// readBuffer holds the small messages that come between chunks. What of a chunk
	// is in it is copied once more, so it is small.
	readBuffer = 4 << 10
)

// Dialer connects to a peer. The connection may be more than TCP: what the far end
// sends and is sent passes through it untouched.
type Dialer func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)

func dialTCP(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr.String())
}

var errStranger = errors.New("handshake: of a swarm that is not ours")

// link is a connection whose far end has said which swarm it means.
type link struct {
	conn net.Conn
	r    *bufio.Reader
	w    io.Writer
	// tcp is where chunks come and go as they are, by bulk; nil when bytes change on the
	// way.
	tcp  *net.TCPConn
	bulk *bulk.Writer
	// waker is the reader's, of the socket below all.
	waker *waker

	name    layers.InfoHash
	id      [20]byte
	fast    bool // speaks BEP 6
	extends bool // speaks BEP 10
	dialed  bool // by us
}

// extensions are those we speak.
var extensions = peer_protocol.NewPeerExtensionBytes(peer_protocol.ExtensionBitFast, peer_protocol.ExtensionBitLtep)

// hail greets a peer that we have dialed, for the swarm of that name.
func hail(ctx context.Context, conn net.Conn, name layers.InfoHash, id [20]byte) (*link, error) {
	l := newLink(conn)
	l.dialed = true
	return l, l.greet(ctx, name, id)
}

// answer greets a peer that has dialed us, if ours says that the swarm it names is. secrets
// are the names of our swarms, which encrypting peers are told apart by.
func answer(ctx context.Context, conn net.Conn, id [20]byte, secrets mse.SecretKeyIter, ours func(layers.InfoHash) bool) (*link, error) {
	l := newLink(conn)
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	if err := conn.SetDeadline(time.Now().Add(greetTimeout)); err != nil {
		return nil, err
	}
	start, err := l.r.Peek(len(peer_protocol.Protocol))
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	if string(start) != peer_protocol.Protocol {
		rw, _, err := mse.ReceiveHandshake(ctx, readWriter{l.r, conn}, secrets, mse.DefaultCryptoSelector)
		if err != nil {
			return nil, fmt.Errorf("encrypted handshake: %w", err)
		}
		l.r, l.w, l.tcp, l.bulk = bufio.NewReaderSize(rw, readBuffer), rw, nil, nil
	}
	return l, l.reply(id, ours)
}

// reply hears the handshake of BEP 3 and answers it. The library's answers before one can
// look whether the swarm is known: strangers would learn who we are, and a peer that
// tries two names of a swarm would take the first for right.
func (l *link) reply(id [20]byte, ours func(layers.InfoHash) bool) error {
	const n = len(peer_protocol.Protocol)
	var b [n + 8 + 20 + 20]byte
	if _, err := io.ReadFull(l.r, b[:]); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	bits := peer_protocol.PeerExtensionBits(b[n:])
	l.name, l.id = layers.InfoHash(b[n+8:]), [20]byte(b[n+28:])
	l.fast, l.extends = bits.SupportsFast(), bits.SupportsExtended()
	if string(b[:n]) != peer_protocol.Protocol || !ours(l.name) {
		return errStranger
	}
	copy(b[n:], extensions[:])
	copy(b[n+28:], id[:])
	if _, err := l.w.Write(b[:]); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	return l.conn.SetDeadline(time.Time{})
}

type readWriter struct {
	io.Reader
	io.Writer
}

func newLink(conn net.Conn) *link {
	l := &link{conn: conn, r: bufio.NewReaderSize(conn, readBuffer), w: conn}
	if l.tcp, _ = conn.(*net.TCPConn); l.tcp != nil {
		l.bulk, _ = bulk.NewWriter(l.tcp) // fails when it is closed, as the next write will
	}
	socket := socketOf(conn)
	tune(socket)
	l.waker = newWaker(socket)
	return l
}

// socketOf returns the socket below conn, which may be TLS, or nil.
func socketOf(conn net.Conn) syscall.RawConn {
	if over, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = over.NetConn()
	}
	if socket, ok := conn.(syscall.Conn); ok {
		if raw, err := socket.SyscallConn(); err == nil {
			return raw
		}
	}
	return nil
}

// greet exchanges the handshake of BEP 3.
func (l *link) greet(ctx context.Context, name layers.InfoHash, id [20]byte) error {
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	if err := l.conn.SetDeadline(time.Now().Add(greetTimeout)); err != nil {
		return err
	}
	res, err := peer_protocol.Handshake(ctx, readWriter{l.r, l.w}, (*metainfo.Hash)(&name), id, extensions)
	if err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	l.name, l.id = layers.InfoHash(res.Hash), res.PeerID
	l.fast, l.extends = res.SupportsFast(), res.SupportsExtended()
	if l.name != name {
		return errStranger
	}
	return l.conn.SetDeadline(time.Time{})
}

// chunk fills b, whose bytes the peer has begun to send.
func (l *link) chunk(b []byte) error {
	if l.tcp == nil {
		_, err := io.ReadFull(l.r, b)
		return err
	}
	n, err := io.ReadFull(l.r, b[:min(len(b), l.r.Buffered())])
	for n < len(b) && err == nil {
		l.waker.expect(len(b) - n)
		var more int
		more, err = l.tcp.Read(b[n:])
		n += more
	}
	l.waker.expect(1)
	return noEOF(err)
}

// sendBuffers hold what is sent through this process: heads and chunks.
var sendBuffers = sync.Pool{New: func() any { return new([]byte) }}

// send writes head and then n bytes of f from off on.
func (l *link) send(head []byte, f *os.File, off, n int64) error {
	if l.bulk != nil && l.bulk.Fast() {
		return l.bulk.WriteFile(head, f, off, n)
	}
	return l.sendCopied(head, f, off, n)
}

// sendCopied is send for what has to pass through this process.
func (l *link) sendCopied(head []byte, from io.ReaderAt, off, n int64) error {
	buf := sendBuffers.Get().(*[]byte)
	defer sendBuffers.Put(buf)
	*buf = slices.Grow(append((*buf)[:0], head...), int(n))[:len(head)+int(n)]
	if _, err := from.ReadAt((*buf)[len(head):], off); err != nil {
		return fmt.Errorf("read what a peer asked for: %w", err)
	}
	if l.bulk != nil {
		_, err := l.bulk.Write(*buf)
		return err
	}
	_, err := l.w.Write(*buf)
	return err
}

// remote is the far end's address.
func (l *link) remote() netip.AddrPort {
	a, err := netip.ParseAddrPort(l.conn.RemoteAddr().String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
