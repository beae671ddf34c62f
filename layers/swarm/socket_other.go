//go:build !linux

package swarm

import (
	"io"
	"net"
	"os"
	"syscall"
)

func tune(syscall.RawConn)        {}
func expect(syscall.RawConn, int) {}

// sendFile writes head and then n bytes of f from off on.
func sendFile(conn *net.TCPConn, head []byte, f *os.File, off, n int64) error {
	if _, err := conn.Write(head); err != nil {
		return err
	}
	_, err := io.Copy(conn, io.NewSectionReader(f, off, n))
	return err
}
