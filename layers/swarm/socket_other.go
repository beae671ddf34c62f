//go:build !linux

package swarm

import (
	"io"
	"net"
	"os"
	"syscall"
)

func tune(syscall.RawConn) {}

type waker struct{}

func newWaker(syscall.RawConn) *waker { return nil }
func (w *waker) expect(int)           {}

type sender struct{ conn *net.TCPConn }

func newSender(conn *net.TCPConn) *sender { return &sender{conn} }

// send writes head and then n bytes of f from off on.
func (s *sender) send(head []byte, f *os.File, off, n int64) error {
	if _, err := s.conn.Write(head); err != nil {
		return err
	}
	_, err := io.Copy(s.conn, io.NewSectionReader(f, off, n))
	return err
}
