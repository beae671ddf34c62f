package swarm

import (
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// unsentLimit is how many bytes may wait in a socket that the kernel has not put on the
// wire yet. What we tell a peer waits behind them, and a HAVE that is late leaves the
// peer idle: at 25 Mbit/s these are 10 ms. Flows of some Gbit/s need no more, as the
// kernel asks for more when half are left.
const unsentLimit = 32 << 10

// tune sets what a connection of many small messages among bulk needs. It leaves
// buffers to the kernel, which lets them grow with the flow.
func tune(raw syscall.RawConn) {
	if raw != nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLimit)
		})
	}
}

// maxExpected bounds expect in bytes: more would make the kernel enlarge its buffer.
const maxExpected = 64 << 10

// waker says when a reader of a socket is woken. It is for one goroutine, as sender is;
// their calls into the kernel are made once, so that chunks leave no garbage.
type waker struct {
	raw syscall.RawConn
	n   int
	set func(fd uintptr)
}

func newWaker(raw syscall.RawConn) *waker {
	w := &waker{raw: raw}
	w.set = func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, w.n) }
	return w
}

// expect has the reader woken when n bytes are there, and not for each packet, of which
// a chunk has dozens. It is for bytes that are sure to come: what comes after them must
// be waited for with an n of 1.
func (w *waker) expect(n int) {
	if w.raw != nil {
		w.n = min(n, maxExpected)
		_ = w.raw.Control(w.set)
	}
}

// sender sends files over a connection without a copy through this process.
type sender struct {
	out  syscall.RawConn
	file *os.File        // that was last sent of
	in   syscall.RawConn // its

	// What is being sent, and how the last call fared.
	head   []byte
	fd     int
	off    int64
	left   int64
	sent   int
	failed error

	writeHead, writeBody func(fd uintptr) bool
	sendBody             func(fd uintptr)
}

func newSender(conn *net.TCPConn) *sender {
	out, err := conn.SyscallConn()
	if err != nil {
		return nil // not a socket: it is closed
	}
	s := &sender{out: out}
	s.writeHead = func(fd uintptr) bool {
		s.sent, s.failed = unix.SendmsgN(int(fd), s.head, nil, nil, unix.MSG_MORE|unix.MSG_NOSIGNAL)
		return s.failed != unix.EAGAIN
	}
	s.writeBody = func(fd uintptr) bool {
		s.sent, s.failed = unix.Sendfile(int(fd), s.fd, &s.off, int(s.left))
		return s.failed != unix.EAGAIN
	}
	s.sendBody = func(fd uintptr) {
		s.fd = int(fd)
		s.failed = s.body()
	}
	return s
}

// send writes head and then n bytes of f from off on. Unlike io.Copy it leaves f's offset
// alone, so that all peers share one descriptor; and it holds on to that, so that a number
// which is closed meanwhile never stands for another file.
func (s *sender) send(head []byte, f *os.File, off, n int64) (err error) {
	if s.file != f {
		if s.in, err = f.SyscallConn(); err != nil {
			return err
		}
		s.file = f
	}
	s.head, s.off, s.left = head, off, n
	// The head leaves in one segment with what follows.
	for len(s.head) > 0 {
		if err := s.call("sendmsg", s.writeHead); err != nil {
			return err
		}
		s.head = s.head[s.sent:]
	}
	if err := s.in.Control(s.sendBody); err != nil {
		return err
	}
	return s.failed
}

func (s *sender) body() error {
	for s.left > 0 {
		if err := s.call("sendfile", s.writeBody); err != nil {
			return err
		}
		if s.sent == 0 {
			return fmt.Errorf("read what a peer asked for: %w", io.ErrUnexpectedEOF)
		}
		s.left -= int64(s.sent)
	}
	return nil
}

// call waits until the socket takes something; s.sent is how much.
func (s *sender) call(name string, write func(fd uintptr) bool) error {
	for {
		if err := s.out.Write(write); err != nil {
			return err
		}
		switch s.failed {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return os.NewSyscallError(name, s.failed)
		}
	}
}
