//go:build labprofile

package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"
)

// A murder built for `make profile` profiles itself when the lab says so: the
// first SIGUSR1 begins a CPU profile in the file that LAB_PROFILE names, the
// second ends it, and writes a heap profile beside it. No other build has this.
func init() {
	file := os.Getenv("LAB_PROFILE")
	if file == "" {
		return
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGUSR1)
	go func() {
		if err := profile(file, signals); err != nil {
			fmt.Fprintln(os.Stderr, "profile:", err)
		}
	}()
}

func profile(file string, signals <-chan os.Signal) error {
	<-signals
	cpu, err := os.Create(file + ".cpu")
	if err != nil {
		return err
	}
	defer cpu.Close()
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return err
	}
	<-signals
	pprof.StopCPUProfile()
	heap, err := os.Create(file + ".part")
	if err != nil {
		return err
	}
	if err := errors.Join(pprof.WriteHeapProfile(heap), heap.Close()); err != nil {
		return err
	}
	return os.Rename(heap.Name(), file+".heap") // the sign that both are whole
}
