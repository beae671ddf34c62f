package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/murderp2p/murder/integration/netlab"
)

const (
	// readyWithin bounds each wait for a program to come up or a condition to
	// hold. It is long because two cores run several engines at once, under
	// the race detector; a passing test never waits it out.
	readyWithin = 90 * time.Second

	// stopWithin is what a program gets between SIGTERM and SIGKILL at the
	// end of a test. The contract allows murder 10 s; a busy machine takes longer.
	stopWithin = time.Minute

	// dataRace is how the race detector begins a report.
	dataRace = "WARNING: DATA RACE"

	// promptExit keeps programs with the race detector from sleeping a second
	// before they exit.
	promptExit = "GORACE=atexit_sleep_ms=0"

	// keptOutput is how much of a program's output is kept for the test's
	// log, in bytes; more than that is dropped from the front.
	keptOutput = 256 << 10
)

// processConfig says what to start.
type processConfig struct {
	Name string   // for messages; the program's base name when empty
	Args []string // program and arguments
	Env  []string // added to the environment of the test
	Dir  string   // working folder; the test's own when empty

	// OwnMounts gives the program a mount namespace, so that what it mounts
	// goes when it goes. Needs root.
	OwnMounts bool

	On *netlab.Machine // whose network it has; nil is the test's own
}

// process is one running program. It is ended, with its whole process group,
// when the test that started it ends.
type process struct {
	name   string
	cmd    *exec.Cmd
	output *output
	exited chan struct{} // closed once err is set
	err    error         // what Wait returned
}

// startProcess starts a program and returns once it has been forked; wait for
// it to be of use with waitLine or waitUntil.
func startProcess(t testing.TB, cfg processConfig) *process {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = filepath.Base(cfg.Args[0])
	}
	p := &process{name: cfg.Name, output: newOutput(), exited: make(chan struct{})}
	p.cmd = exec.Command(cfg.Args[0], cfg.Args[1:]...)
	p.cmd.Env = append(append(os.Environ(), promptExit), cfg.Env...)
	p.cmd.Dir = cfg.Dir
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.WaitDelay = stopWithin // a grandchild may hold the pipe open
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if cfg.OwnMounts {
		p.cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	}
	if err := on(cfg.On, p.cmd.Start); err != nil {
		t.Fatalf("start %s: %v", cfg.Name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
		p.output.Close()
	}()
	t.Cleanup(func() {
		p.Stop(t)
		if strings.Contains(p.output.String(), dataRace) {
			t.Errorf("%s has a data race", p.name)
		}
		if t.Failed() || os.Getenv("INTEGRATION_LOGS") != "" {
			t.Logf("output of %s:\n%s", p.name, p.output.String())
		}
	})
	return p
}

// PID is the process id; the process group has the same number.
func (p *process) PID() int { return p.cmd.Process.Pid }

// Signal sends sig to the program alone, not to its children.
func (p *process) Signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("send %v to %s: %v", sig, p.name, err)
	}
}

// Kill ends the program at once, as a crash would, and waits until it is gone.
func (p *process) Kill() {
	_ = syscall.Kill(-p.PID(), syscall.SIGKILL) // ESRCH: already gone
	<-p.exited
}

// hasEnded tells whether the program runs no more.
func (p *process) hasEnded() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// Stop asks the program to end and kills whatever is left of its group. It
// may be called more than once. A program that had to be killed fails the
// test: a clean stop is part of what murder promises, and an engine that
// hangs is a leak.
func (p *process) Stop(t testing.TB) {
	t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Process.Signal(syscall.SIGCONT) // a stopped one cannot act on it
	select {
	case <-p.exited:
	case <-time.After(stopWithin):
		t.Errorf("%s did not end within %v of SIGTERM", p.name, stopWithin)
	}
	p.Kill()
}

// waitLine returns the first line of output that match accepts.
func (p *process) waitLine(t testing.TB, what string, match func(line string) bool) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyWithin)
	defer cancel()
	line, err := p.output.find(ctx, match)
	if err != nil {
		t.Fatalf("%s: wait for %s: %v", p.name, what, err)
	}
	return line
}

// waitUntil polls until ready returns nil, and gives up when the program has
// ended.
func (p *process) waitUntil(t testing.TB, what string, ready func() error) {
	t.Helper()
	waitUntil(t, p.name+": "+what, func() error {
		select {
		case <-p.exited:
			return permanentError{fmt.Errorf("the program ended: %w", errors.Join(p.err, errEnded))}
		default:
			return ready()
		}
	})
}

var (
	errEnded  = errors.New("no longer running")
	errNotYet = errors.New("not yet") // for conditions that have nothing more to say
)

// permanentError ends a waitUntil early.
type permanentError struct{ error }

// waitUntil polls until ready returns nil. The test fails with ready's last
// error after readyWithin.
func waitUntil(t testing.TB, what string, ready func() error) {
	t.Helper()
	deadline := time.NewTimer(readyWithin)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return
		}
		var permanent permanentError
		if errors.As(err, &permanent) {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s: not within %v: %v", what, readyWithin, err)
		}
	}
}

// run runs a program to its end and returns its standard output. A failure
// fails the test with the program's words.
func run(t testing.TB, cfg processConfig) string {
	t.Helper()
	out, err := tryRun(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// tryRun is run for programs that may fail; the error carries standard error.
func tryRun(t testing.TB, cfg processConfig) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, cfg.Args[0], cfg.Args[1:]...)
	cmd.Env = append(append(os.Environ(), promptExit), cfg.Env...)
	cmd.Dir = cfg.Dir
	cmd.WaitDelay = stopWithin
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if cfg.OwnMounts {
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(cfg.Args, " "), err, stderr.String())
	}
	return stdout.String(), err
}

// output keeps the last of what a program wrote and lets a test wait for a
// line of it. Safe for concurrent use.
type output struct {
	mu     sync.Mutex // guards the rest
	buf    []byte
	seen   int           // bytes dropped from the front of buf
	more   chan struct{} // closed and replaced at each write
	closed bool
}

func newOutput() *output { return &output{more: make(chan struct{})} }

// Write implements io.Writer. It never fails.
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf = append(o.buf, b...)
	if extra := len(o.buf) - keptOutput; extra > keptOutput {
		o.buf = append([]byte(nil), o.buf[extra:]...)
		o.seen += extra
	}
	close(o.more)
	o.more = make(chan struct{})
	return len(b), nil
}

// Close says that no more will be written.
func (o *output) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	close(o.more)
	o.more = make(chan struct{})
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.buf)
}

// from returns the whole lines at and after the absolute offset at, the offset
// behind them, and what to wait on for more.
func (o *output) from(at int) (lines []string, next int, more <-chan struct{}, closed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	start := max(at-o.seen, 0)
	end := bytes.LastIndexByte(o.buf, '\n') + 1
	if start < end {
		lines = strings.Split(strings.TrimSuffix(string(o.buf[start:end]), "\n"), "\n")
	}
	return lines, o.seen + max(start, end), o.more, o.closed
}

// find waits for a line that match accepts, beginning with the oldest kept.
func (o *output) find(ctx context.Context, match func(string) bool) (string, error) {
	at := 0
	for {
		lines, next, more, closed := o.from(at)
		for _, line := range lines {
			if match(line) {
				return line, nil
			}
		}
		if closed {
			return "", errEnded
		}
		at = next
		select {
		case <-more:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}
