package mtls

import (
	"io"
	"net"
	"sync"

	"github.com/murderp2p/murder/layers/swarm/bulk"
)

const (
	// maxRecord is the most that one record of TLS holds, in bytes (RFC 8446, 5.1).
	maxRecord = 16 << 10
	// maxGathered bounds what is held back to be written at once, in bytes. The largest
	// chunk that a peer may ask for, 128 KiB, and what TLS adds to it fit in.
	maxGathered = 160 << 10
)

// wire is the connection below TLS. crypto/tls writes every record by itself, although a
// chunk of a piece and the head before it take five, of which the last is of some
// bytes. A wire makes one write of them, which costs a host a tenth less CPU in all.
type wire struct {
	net.Conn
	bulk io.Writer // where chunks go: Conn, unless there is better

	mu        sync.Mutex // guards the rest, and keeps what is written in order
	gathering bool
	out       *[]byte // what has been gathered; nil when nothing
}

func newWire(conn net.Conn) *wire {
	w := &wire{Conn: conn, bulk: conn}
	if tcp, ok := conn.(*net.TCPConn); ok {
		if b, err := bulk.NewWriter(tcp); err == nil {
			w.bulk = b
		}
	}
	return w
}

// outs are for wires that gather.
var outs = sync.Pool{New: func() any { return new([]byte) }}

// gather holds back what is written until release.
func (w *wire) gather() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gathering = true
	w.out = outs.Get().(*[]byte)
}

// release writes what has been held back.
func (w *wire) release() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.flush()
	outs.Put(w.out)
	w.gathering, w.out = false, nil
	return err
}

// flush is release for now. mu is held.
func (w *wire) flush() error {
	_, err := w.bulk.Write(*w.out)
	*w.out = (*w.out)[:0]
	return err
}

// Write implements net.Conn.
func (w *wire) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.gathering {
		return w.Conn.Write(b)
	}
	*w.out = append(*w.out, b...)
	if len(*w.out) >= maxGathered {
		return len(b), w.flush()
	}
	return len(b), nil
}
