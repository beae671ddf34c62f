package swarm

import (
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

// waker says when a reader of a socket is woken. It is for one goroutine; its call into
// the kernel is made once, so that chunks leave no garbage.
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
