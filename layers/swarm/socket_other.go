//go:build !linux

package swarm

import "syscall"

func tune(syscall.RawConn) {}

type waker struct{}

func newWaker(syscall.RawConn) *waker { return nil }
func (w *waker) expect(int)           {}
