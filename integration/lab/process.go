package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/murderp2p/murder/integration/netlab"
)

// process is a program that runs on a machine. It dies with the lab.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    string        // file that has what it wrote
	exited chan struct{} // closed once it has ended and err is set
	err    error
}

// pipes are a program's input and output. Without an output it is logged;
// errors are in any case.
type pipes struct {
	in, out *os.File
}

// startProcess starts a program on m, which logs into a file in logs.
func startProcess(m *netlab.Machine, logs, name string, io pipes, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(logs, name+".log"), exited: make(chan struct{})}
	file, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Env = plainEnvironment()
	p.cmd.Stdout, p.cmd.Stderr = file, file
	if io.out != nil {
		p.cmd.Stdout = io.out
	}
	if io.in != nil {
		p.cmd.Stdin = io.in
	}
	// A group of its own keeps a terminal's Ctrl-C for the lab, which ends it in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := m.Do(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// plainEnvironment is the lab's own without what is meant for other murders.
func plainEnvironment() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "MURDER_") {
			env = append(env, kv)
		}
	}
	return env
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// kill ends p at once and waits until it is gone. It may be called again.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // os.ErrProcessDone: that is what we want
	<-p.exited
}

// tail is the end of what p wrote.
func (p *process) tail() string {
	const most = 2 << 10
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-most):])
}

// usage is what a process has cost so far.
type usage struct {
	CPU  float64 // seconds
	Peak int64   // bytes of memory that were resident at most
}

// usage reads what p has used. A process that has ended keeps its figures.
func (p *process) usage() (usage, error) {
	select {
	case <-p.exited:
		state := p.cmd.ProcessState
		rusage, ok := state.SysUsage().(*syscall.Rusage)
		if !ok {
			return usage{}, fmt.Errorf("%s: no resource usage", p.name)
		}
		return usage{CPU: (state.UserTime() + state.SystemTime()).Seconds(), Peak: rusage.Maxrss << 10}, nil
	default:
		return readUsage(strconv.Itoa(p.pid()))
	}
}

// readUsage reads what a process ("self", or its id) has used.
func readUsage(pid string) (u usage, err error) {
	stat, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return u, err
	}
	_, rest, _ := bytes.Cut(stat, []byte(") ")) // the name may hold spaces
	fields := strings.Fields(string(rest))
	user, userErr := strconv.ParseFloat(fields[11], 64) // utime and stime are proc_pid_stat(5)'s 14 and 15
	system, systemErr := strconv.ParseFloat(fields[12], 64)
	const ticks = 100 // a second: USER_HZ on every Linux that Go runs on
	u.CPU = (user + system) / ticks
	peak, peakErr := findLine(filepath.Join("/proc", pid, "status"), "VmHWM:", 1)
	if err := errors.Join(userErr, systemErr, peakErr); err != nil {
		return u, err
	}
	u.Peak, err = strconv.ParseInt(peak[1], 10, 64)
	u.Peak <<= 10 // it is in KiB
	return u, err
}

// machineTime is the CPU time of all cores of this machine, in ticks.
type machineTime struct {
	busy, total float64
}

// readMachine reads the first line of /proc/stat: user, nice, system, idle,
// iowait, irq, softirq, steal. Guests' time is already within user's.
func readMachine() (t machineTime, err error) {
	fields, err := findLine("/proc/stat", "cpu", 1)
	if err != nil {
		return t, err
	}
	for i, field := range fields[1:min(9, len(fields))] {
		ticks, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return t, err
		}
		t.total += ticks
		if i != 3 && i != 4 {
			t.busy += ticks
		}
	}
	return t, nil
}

// since is the share of the machine that was in use after u.
func (t machineTime) since(u machineTime) float64 {
	return (t.busy - u.busy) / max(t.total-u.total, 1)
}
