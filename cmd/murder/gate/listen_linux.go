package gate

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bound sets TCP_USER_TIMEOUT (RFC 5482, tcp(7)) on a listener, from which its
// connections have it: how long bytes may be without an acknowledgement, or
// wait for a window that stays closed. A kernel without it is as another system.
func bound(stall time.Duration) func(network, addr string, raw syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(stall.Milliseconds()))
		})
	}
}
