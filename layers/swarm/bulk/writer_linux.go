package bulk

import (
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// packet is about how many bytes a packet of a slow connection has.
const packet = 32 << 10

// Writer writes bulk to a connection. It is for one goroutine at a time; its calls into
// the kernel are made once, so that chunks leave no garbage.
type Writer struct {
	out   syscall.RawConn
	began time.Time
	flow  flow
	file  *os.File        // that was last sent of
	in    syscall.RawConn // its

	// What is being sent, and how the last call fared.
	bytes  []byte
	flags  int
	fd     int
	off    int64
	left   int64
	sent   int
	failed error

	writeBytes, writeFile func(fd uintptr) bool
	writeAll              func(fd uintptr)
}

// NewWriter returns a Writer to conn, whose deadlines hold for it. Small messages are
// written to conn itself, where they may share a packet.
func NewWriter(conn *net.TCPConn) (*Writer, error) {
	out, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	w := &Writer{out: out, began: time.Now()}
	w.writeBytes = func(fd uintptr) bool {
		w.sent, w.failed = unix.SendmsgN(int(fd), w.bytes, nil, nil, w.flags|unix.MSG_NOSIGNAL)
		return w.failed != unix.EAGAIN
	}
	w.writeFile = func(fd uintptr) bool {
		w.sent, w.failed = unix.Sendfile(int(fd), w.fd, &w.off, int(w.left))
		return w.failed != unix.EAGAIN
	}
	w.writeAll = func(fd uintptr) {
		w.fd = int(fd)
		w.failed = w.body()
	}
	return w, nil
}

// Fast tells whether the connection may have long packets, as those of WriteFile are.
func (w *Writer) Fast() bool { return w.flow.fast }

// Write implements io.Writer.
func (w *Writer) Write(b []byte) (n int, err error) {
	length, flags := len(b), 0
	if !w.flow.fast {
		length, flags = part(len(b)), unix.MSG_EOR
	}
	for n < len(b) && err == nil {
		var part int
		part, err = w.write(b[n:min(n+length, len(b))], flags)
		n += part
	}
	w.flow.add(n, time.Since(w.began))
	return n, err
}

// part returns how long the parts are that n bytes are sent in: all alike, as the few bytes
// before a chunk should be no packet of their own.
func part(n int) int {
	parts := max(1, (n+packet/2)/packet)
	return (n + parts - 1) / parts
}

// WriteFile writes head and then n bytes of f from off on. Unlike io.Copy it leaves f's
// offset alone, so that all connections share one descriptor; and it holds on to that, so
// that a number which is closed meanwhile never stands for another file.
func (w *Writer) WriteFile(head []byte, f *os.File, off, n int64) (err error) {
	if w.file != f {
		if w.in, err = f.SyscallConn(); err != nil {
			return err
		}
		w.file = f
	}
	// The head leaves in one segment with what follows.
	if _, err := w.write(head, unix.MSG_MORE); err != nil {
		return err
	}
	w.off, w.left = off, n
	if err := w.in.Control(w.writeAll); err != nil {
		return err
	}
	w.flow.add(len(head)+int(n-w.left), time.Since(w.began))
	return w.failed
}

// write sends b, and lets go of it.
func (w *Writer) write(b []byte, flags int) (n int, err error) {
	w.bytes, w.flags = b, flags
	defer func() { w.bytes = nil }()
	for len(w.bytes) > 0 {
		if err := w.call("sendmsg", w.writeBytes); err != nil {
			return n, err
		}
		n += w.sent
		w.bytes = b[n:]
	}
	return n, nil
}

// body sends what is left of a file.
func (w *Writer) body() error {
	for w.left > 0 {
		if err := w.call("sendfile", w.writeFile); err != nil {
			return err
		}
		if w.sent == 0 {
			return fmt.Errorf("read what a peer asked for: %w", io.ErrUnexpectedEOF)
		}
		w.left -= int64(w.sent)
	}
	return nil
}

// call waits until the socket takes something; w.sent is how much.
func (w *Writer) call(name string, write func(fd uintptr) bool) error {
	for {
		if err := w.out.Write(write); err != nil {
			return err
		}
		switch w.failed {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return os.NewSyscallError(name, w.failed)
		}
	}
}
