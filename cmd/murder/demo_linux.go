package main

import "syscall"

// childAttr puts a daemon into a process group of its own, out of reach of a terminal's Ctrl-C, and has the kernel end it should this
// process die without having done so. (The signal comes when the thread that started the child ends; Go keeps its threads, see
// golang.org/issue/27505.)
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
