//go:build !linux

package main

import "syscall"

// childAttr puts a daemon into a process group of its own, out of reach of a terminal's Ctrl-C.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
