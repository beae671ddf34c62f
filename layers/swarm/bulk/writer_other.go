//go:build !linux

package bulk

import (
	"fmt"
	"io"
	"net"
	"os"
)

// Writer writes bulk to a connection. It is for one goroutine at a time.
type Writer struct{ *net.TCPConn }

// NewWriter returns a Writer to conn, whose deadlines hold for it.
func NewWriter(conn *net.TCPConn) (*Writer, error) { return &Writer{conn}, nil }

// Fast tells whether the connection may have long packets, as those of WriteFile are.
func (w *Writer) Fast() bool { return true }

// WriteFile writes head and then n bytes of f from off on.
func (w *Writer) WriteFile(head []byte, f *os.File, off, n int64) error {
	if _, err := w.Write(head); err != nil {
		return err
	}
	sent, err := io.Copy(w.TCPConn, io.NewSectionReader(f, off, n))
	if err == nil && sent < n {
		err = fmt.Errorf("read what a peer asked for: %w", io.ErrUnexpectedEOF)
	}
	return err
}
