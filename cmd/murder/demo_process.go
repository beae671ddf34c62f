package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// startTimeout bounds how long a daemon may take to listen; on a busy machine of two cores it takes well under a second.
	startTimeout = 30 * time.Second
	// endTimeout bounds how long a daemon may take to end by itself when asked to.
	endTimeout = 5 * time.Second
	// logTail is how much of a failed daemon's log is shown, in bytes.
	logTail = 4 << 10
)

// family is the daemons of a demo: child processes, each in a process group of its own so that a terminal's Ctrl-C reaches the demo only.
type family struct {
	stderr io.Writer

	mu       sync.Mutex // guards children
	children []*child
}

// child is one daemon.
type child struct {
	name     string
	addr     string // of its HTTP API, once listening has returned
	cmd      *exec.Cmd
	log      *daemonLog
	exited   chan struct{} // closed when it has ended and its log is complete
	exitedAs error         // valid then
}

// start starts exe with args, its log going to the file log. The environment's MURDER_ variables are for other daemons.
func (f *family) start(name, log, exe string, args []string) (*child, error) {
	file, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	c := &child{
		name:   name,
		cmd:    exec.Command(exe, args...),
		log:    &daemonLog{file: file, listening: make(chan listening, 1)},
		exited: make(chan struct{}),
	}
	c.cmd.Stdout, c.cmd.Stderr = c.log, c.log
	c.cmd.SysProcAttr = childAttr()
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "MURDER_") {
			c.cmd.Env = append(c.cmd.Env, kv)
		}
	}
	if err := c.cmd.Start(); err != nil {
		file.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		c.exitedAs = c.cmd.Wait()
		file.Close()
		close(c.exited)
	}()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.children = append(f.children, c)
	return c, nil
}

// listening waits until the daemon says where it listens.
func (c *child) listening(ctx context.Context) error {
	timeout := time.NewTimer(startTimeout)
	defer timeout.Stop()
	select {
	case l := <-c.log.listening:
		c.addr = l.Addr
		return nil
	case <-c.exited:
		return c.failure("ended before it listened")
	case <-timeout.C:
		return c.failure("does not listen after " + startTimeout.String())
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// failure is an error about the daemon that shows the end of its log.
func (c *child) failure(what string) error {
	return fmt.Errorf("%s %s; the end of its log:\n%s", c.name, what, c.log.tail())
}

// explain adds to an error of a pull what daemons have died, since that may be why.
func (f *family) explain(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.children {
		select {
		case <-c.exited:
			return fmt.Errorf("%w; %w", err, c.failure(fmt.Sprintf("has ended (%v)", c.exitedAs)))
		default:
		}
	}
	return err
}

// end asks all daemons to end, waits for them, and kills what is still there after endTimeout.
func (f *family) end() {
	f.signal(syscall.SIGTERM)
	killer := time.AfterFunc(endTimeout, f.kill)
	defer killer.Stop()
	f.mu.Lock()
	children := f.children
	f.mu.Unlock()
	for _, c := range children {
		<-c.exited
	}
}

// kill ends all daemons without asking.
func (f *family) kill() { f.signal(syscall.SIGKILL) }

func (f *family) signal(s syscall.Signal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.children {
		c.cmd.Process.Signal(s) // an error means that it has ended: Process knows, so no other process is hit
	}
}

// listening is the line with which a daemon's log says that its ports are bound.
type listening struct {
	Msg  string `json:"msg"`
	Addr string `json:"addr"`
}

// daemonLog keeps a daemon's log in a file and looks out for its line about listening.
type daemonLog struct {
	listening chan listening // gets the first one

	mu   sync.Mutex // guards what follows; the file is written under it to keep the order
	file *os.File
	line []byte // the last line as far as it has come
	last []byte // the end of the log
}

func (l *daemonLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = append(l.last, b...)
	l.last = l.last[max(0, len(l.last)-logTail):]
	l.line = append(l.line, b...)
	for {
		line, rest, ok := bytes.Cut(l.line, []byte("\n"))
		if !ok {
			break
		}
		l.look(line)
		l.line = rest
	}
	return l.file.Write(b)
}

func (l *daemonLog) look(line []byte) {
	var said listening
	if json.Unmarshal(line, &said) != nil || said.Msg != "listening" || said.Addr == "" {
		return
	}
	select {
	case l.listening <- said:
	default:
	}
}

func (l *daemonLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.last)
}
