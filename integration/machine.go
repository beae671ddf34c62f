package integration

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/murderp2p/murder/integration/netlab"
)

// rootPrefix begins the name of each folder the harness makes below the
// system's temporary folder. The test binary's process id follows, so that a
// later run can tell and remove what a killed one left.
const rootPrefix = "murder-it-"

// needs skips the test unless every program is installed. It is also where
// long tests bow to -short.
func needs(t testing.TB, programs ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short leaves out tests with real programs")
	}
	for _, name := range programs {
		if _, err := lookProgram(name); err != nil {
			t.Skipf("needs %s, which is not installed", name)
		}
	}
}

// needsRoot skips the test unless it runs as root, which engines that mount
// need. Root of a container may lack the right to.
func needsRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if err := ownMountsWork(); err != nil {
		t.Skipf("needs mount namespaces: %v", err)
	}
}

var ownMountsWork = sync.OnceValue(func() error {
	cmd := exec.Command("true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return cmd.Run()
})

// lookProgram finds a program as root would: Debian keeps some engines in
// sbin, which a user's PATH may lack, and machines may have other things of
// the same name in /usr/local/bin.
func lookProgram(name string) (string, error) {
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/bin", "/sbin"} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return exec.LookPath(name)
}

// program is lookProgram for a test that has called needs.
func program(t testing.TB, name string) string {
	t.Helper()
	path, err := lookProgram(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// newRoot makes a folder that is removed at the end of the test. Its path is
// short, as the paths of unix sockets below it are limited to 107 bytes,
// which t.TempDir with its test's name may overrun.
func newRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", rootPrefix, os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove root: %v", err)
		}
	})
	return dir
}

// sweepRoots removes the folders of test binaries that no longer run.
func sweepRoots() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), rootPrefix+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), rootPrefix), "-")
		pid, err := strconv.Atoi(owner)
		if err != nil || syscall.Kill(pid, 0) == nil {
			continue
		}
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// mountsBelow lists the mount points under dir that the test's own mount
// namespace sees: the harness leaves none.
func mountsBelow(dir string) ([]string, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(info)) {
		fields := strings.Fields(line) // proc_pid_mountinfo(5): the fifth is the mount point
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	return points, nil
}

// inMounts returns args wrapped so that they run in the mount namespace of p,
// and with its root, which is another one when the tests run in a chroot.
func inMounts(p *process, args ...string) []string {
	return append([]string{"nsenter", "--target", strconv.Itoa(p.PID()), "--mount", "--root", "--"}, args...)
}

// seenBy is path as the mount namespace of p has it.
func seenBy(p *process, path string) string {
	return fmt.Sprintf("/proc/%d/root%s", p.PID(), path)
}

// overlayWorks tells whether the temporary folder can hold an overlay: not
// where it is itself on one without the needed xattrs, as in some containers.
var overlayWorks = sync.OnceValue(func() bool {
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", rootPrefix, os.Getpid()))
	if err != nil {
		return false
	}
	defer os.RemoveAll(dir)
	for _, sub := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return false
		}
	}
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)
	cmd := exec.Command("mount", "-t", "overlay", "overlay", "-o", options, dir+"/merged")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return cmd.Run() == nil
})

// shapingWorks tells why the test may not make network namespaces and limit the
// rate of their cards, if it may not.
var shapingWorks = sync.OnceValue(func() error {
	if os.Getuid() != 0 {
		return errors.New("needs root, for network namespaces")
	}
	for _, name := range []string{"ip", "tc"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("needs %s, which is not installed", name)
		}
	}
	cmd := exec.Command("tc", "qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("needs network namespaces and tc's htb: %w: %s", err, out)
	}
	return nil
})

// needsShaping skips the test where shapingWorks has a reason not to.
func needsShaping(t testing.TB) {
	t.Helper()
	needsRoot(t)
	if err := shapingWorks(); err != nil {
		t.Skip(err)
	}
}

// on runs f within the network of m; nil is the test's own.
func on(m *netlab.Machine, f func() error) error {
	if m == nil {
		return f()
	}
	return m.Do(f)
}

// listenOn listens within the network of m.
func listenOn(m *netlab.Machine, addr string) (ln net.Listener, err error) {
	err = on(m, func() error {
		ln, err = net.Listen("tcp", addr)
		return err
	})
	return ln, err
}

// transportOn connects from within the network of m. As plainClient's, it keeps
// no connections.
func transportOn(m *netlab.Machine) *http.Transport {
	t := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	if m != nil {
		t.DialContext = m.DialContext
	}
	return t
}

// freeAddr returns an address on host that nothing listens on now. Prefer port
// 0 and the program's word for it; this is for programs that cannot.
func freeAddr(t testing.TB, host string) string {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}
