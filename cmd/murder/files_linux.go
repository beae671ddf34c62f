package main

import "syscall"

// openFiles is how many files, connections among them, the system lets this process have open.
func openFiles() int {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return plentyOfFiles
	}
	return int(min(limit.Cur, plentyOfFiles))
}
