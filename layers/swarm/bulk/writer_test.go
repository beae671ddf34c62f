package bulk

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// pair returns both ends of a connection over loopback, whose packets are up to 64 KiB
// long.
func pair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	f, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return c.(*net.TCPConn), f.(*net.TCPConn)
}

func newWriter(t *testing.T, conn *net.TCPConn) *Writer {
	t.Helper()
	w, err := NewWriter(conn)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// A file that is shorter than it was is an error, not a connection that waits.
func TestFileEnds(t *testing.T) {
	near, _ := pair(t)
	f, err := os.Create(filepath.Join(t.TempDir(), "short"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := newWriter(t, near).WriteFile([]byte("head"), f, 0, 1); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("WriteFile = %v, want unexpected EOF", err)
	}
}
