//go:build !linux

package gate

import (
	"syscall"
	"time"
)

func bound(time.Duration) func(network, addr string, raw syscall.RawConn) error { return nil }
