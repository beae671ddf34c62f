package netlab

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace that has no name in the file system. It
// ends with its last process and our descriptor, and its network cards with
// it, so that none is left behind however the program ends.
type Namespace struct {
	file *os.File
}

// NewNamespace makes a namespace whose loopback is up. It needs root.
func NewNamespace() (*Namespace, error) {
	n := &Namespace{}
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace (needs root): %w", err)
		}
		var err error
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := n.tune(); err != nil {
		n.Close()
		return nil, err
	}
	return n, n.IP("link set lo up")
}

func (n *Namespace) Close() { n.file.Close() }

// kernelDefaults are what an untuned Linux has, so that runs on machines that
// are tuned otherwise can be compared. Paths are relative to /proc/sys/net.
var kernelDefaults = map[string]string{
	"ipv4/tcp_rmem":                  "4096 131072 6291456",
	"ipv4/tcp_wmem":                  "4096 16384 4194304",
	"ipv6/conf/all/disable_ipv6":     "1", // its chatter would only be noise in the counters
	"bridge/bridge-nf-call-iptables": "0", // frames that a bridge passes on are no business of the machine's firewall
}

// tune gives n the kernel's default settings. What a kernel does not have is
// left out.
func (n *Namespace) tune() error {
	return n.Do(func() error {
		for name, value := range kernelDefaults {
			err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0)
			if err != nil && !os.IsNotExist(err) {
				return err
			}
		}
		return nil
	})
}

// path names n for programs that take a namespace's file.
func (n *Namespace) path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd())
}

// Do runs f on a thread that is inside n. Sockets that f opens and processes
// that it starts stay in n.
func (n *Namespace) Do(f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// DialContext connects from within n. It has the form that http.Transport
// takes; addr must not need a name server.
func (n *Namespace) DialContext(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = n.Do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// IP runs iproute2's commands, as `ip` takes them, inside n.
func (n *Namespace) IP(commands ...string) error { return n.batch("ip", commands) }

// TC runs commands of traffic control inside n.
func (n *Namespace) TC(commands ...string) error { return n.batch("tc", commands) }

func (n *Namespace) batch(program string, commands []string) error {
	cmd := exec.Command(program, "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	var out []byte
	err := n.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		return fmt.Errorf("%s -batch: %w\n%s\n%s", program, err, strings.Join(commands, "\n"), out)
	}
	return nil
}

// onOwnThread runs f on a thread that nothing else uses meanwhile, and gives
// that thread its network namespace back, which f may change.
func onOwnThread(f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return fmt.Errorf("leave a network namespace: %w", back) // still locked: no other goroutine may have this thread
	}
	runtime.UnlockOSThread()
	return err
}
