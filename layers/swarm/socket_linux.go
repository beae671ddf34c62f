package swarm

import (
	"errors"
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

// expect has a reader of the socket woken when n bytes are there, and not for each
// packet, of which a chunk has dozens. It is for bytes that are sure to come: what
// comes after them must be waited for with an n of 1.
func expect(raw syscall.RawConn, n int) {
	if raw != nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, min(n, maxExpected))
		})
	}
}

// sendFile writes head and then n bytes of f from off on, without a copy through this
// process. Unlike io.Copy it leaves f's offset alone, so that all peers share one
// descriptor; and it holds on to that, so that a number which is closed meanwhile never
// stands for another file.
func sendFile(conn *net.TCPConn, head []byte, f *os.File, off, n int64) error {
	out, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	in, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if err := sendHead(out, head); err != nil {
		return err
	}
	held := in.Control(func(fd uintptr) { err = sendFrom(out, int(fd), off, n) })
	return errors.Join(held, err)
}

func sendFrom(out syscall.RawConn, in int, off, n int64) error {
	for n > 0 {
		var sent int
		var failed error
		err := out.Write(func(fd uintptr) bool {
			sent, failed = unix.Sendfile(int(fd), in, &off, int(n))
			return failed != unix.EAGAIN
		})
		switch {
		case err != nil:
			return err
		case failed == unix.EINTR:
			continue
		case failed != nil:
			return os.NewSyscallError("sendfile", failed)
		case sent == 0:
			return fmt.Errorf("read what a peer asked for: %w", io.ErrUnexpectedEOF)
		}
		n -= int64(sent)
	}
	return nil
}

// sendHead writes head so that it leaves in one segment with what follows.
func sendHead(raw syscall.RawConn, head []byte) error {
	for len(head) > 0 {
		var sent int
		var failed error
		err := raw.Write(func(fd uintptr) bool {
			sent, failed = unix.SendmsgN(int(fd), head, nil, nil, unix.MSG_MORE|unix.MSG_NOSIGNAL)
			return failed != unix.EAGAIN
		})
		switch {
		case err != nil:
			return err
		case failed == unix.EINTR:
			continue
		case failed != nil:
			return os.NewSyscallError("sendmsg", failed)
		}
		head = head[sent:]
	}
	return nil
}
