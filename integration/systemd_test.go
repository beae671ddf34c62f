package integration

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/integration/netlab"
)

// systemdBoot boots systemd as the first process of a host of its own: its processes, its
// mounts, over this machine's root of which it changes nothing, its cgroups, and the network
// that it is started in. It knows no unit but those below $1/units.
const systemdBoot = `
set -e
mkdir "$1/over" "$1/cgroup"
mount -t cgroup2 cgroup2 "$1/cgroup"
mkdir "$1/cgroup/$2"
echo 0 > "$1/cgroup/$2/cgroup.procs" # the root that it will see
exec unshare --mount --pid --fork --kill-child --uts --ipc --cgroup sh -ec '
	mount -t tmpfs tmpfs "$1/over"
	cd "$1/over"
	mkdir upper work root
	mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
	cd root
	mount -t proc proc proc
	mount --bind proc/sys proc/sys
	mount -o remount,ro,bind proc/sys
	for dir in run tmp dev sys; do mount -t tmpfs tmpfs $dir; done
	mkdir -p dev/shm dev/pts sys/fs/cgroup units etc/default
	mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
	ln -s pts/ptmx dev/ptmx
	for node in null zero full random urandom tty; do touch dev/$node; mount --bind /dev/$node dev/$node; done
	mount -t cgroup2 cgroup2 sys/fs/cgroup
	cp -a "$1"/units/. units/
	cp -a "$1"/default/. etc/default/
	install -m 755 "$1/murder" usr/local/bin/murder
	exec chroot . env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=murder-test \
		SYSTEMD_UNIT_PATH=/units SYSTEMD_LOG_TARGET=null /lib/systemd/systemd --system --unit=multi-user.target --show-status=0
' sh "$1"
`

// groupOfSecrets is one that Debian has, adm, and nobody is in.
const groupOfSecrets = 4

// systemdHost is a host with murder's units in its systemd.
type systemdHost struct {
	on     *netlab.Machine
	holder *process
}

// bootSystemd boots a host with both units, whose registry is reg. It skips the test where that cannot be done.
func bootSystemd(t *testing.T, on *netlab.Machine, reg string) *systemdHost {
	t.Helper()
	root := newRoot(t)
	for role, more := range map[string]string{"mirror": "MURDER_SEEDER=http://127.0.0.1:7070\n", "seeder": "MURDER_EVENTS_TOKEN_FILE=/etc/default/events-token\n"} {
		unit, err := os.ReadFile(filepath.Join("..", "deploy", "systemd", "murder-"+role+".service"))
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(root, "units", "murder-"+role+".service"), string(unit))
		writeFile(t, filepath.Join(root, "default", "murder-"+role), "MURDER_INSECURE_REGISTRY="+reg+"\n"+more)
	}
	// A secret of root's is given to the seeder as docs/OPERATIONS.md has it.
	token := filepath.Join(root, "default", "events-token")
	writeFile(t, token, strings.Repeat("s", 64))
	if err := errors.Join(os.Chown(token, 0, groupOfSecrets), os.Chmod(token, 0o640)); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(root, "units", "murder-seeder.service.d", "secrets.conf"), fmt.Sprintf("[Service]\nSupplementaryGroups=%d\n", groupOfSecrets))
	for _, target := range []string{"sysinit", "basic", "network-online", "shutdown"} {
		writeFile(t, filepath.Join(root, "units", target+".target"), "[Unit]\nDefaultDependencies=no\n")
	}
	writeFile(t, filepath.Join(root, "units", "multi-user.target"),
		"[Unit]\nDefaultDependencies=no\nWants=murder-mirror.service murder-seeder.service\n")
	binary, err := os.ReadFile(murderProgram(t))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(root, "murder"), string(binary))

	h := &systemdHost{on: on}
	cgroup := filepath.Base(root)
	h.holder = startProcess(t, processConfig{Name: "systemd", Args: []string{"sh", "-c", systemdBoot, "sh", root, cgroup}, OwnMounts: true, On: on})
	t.Cleanup(func() {
		h.holder.Kill() // SIGTERM means something else to it
		waitUntil(t, "systemd's cgroups are gone", func() error { return removeCgroup(root, cgroup) })
	})
	late := time.Now().Add(readyWithin / 2)
	waitUntil(t, "systemd is up", func() error {
		_, err := h.ctl("list-units")
		if h.holder.hasEnded() || time.Now().After(late) { // where it cannot do what it must it stands still
			t.Skipf("systemd cannot be booted here: %s; %v", h.holder.output.String(), err)
		}
		return err
	})
	return h
}

// removeCgroup removes a cgroup and those in it, which works once their last process has gone.
func removeCgroup(root, name string) error {
	cmd := exec.Command("sh", "-c", `mount -t cgroup2 cgroup2 "$1" || exit 0; [ ! -d "$1/$2" ] || find "$1/$2" -depth -type d -exec rmdir {} +`,
		"sh", filepath.Join(root, "cgroup"), name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// ctl runs systemctl on the host.
func (h *systemdHost) ctl(args ...string) (string, error) {
	pid, err := h.pid()
	if err != nil {
		return "", err
	}
	out, err := exec.Command("nsenter", append([]string{"--target", pid, "--mount", "--pid", "--cgroup", "--root", "--wd", "systemctl", "--no-pager"}, args...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("systemctl %v: %w\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out)), err
}

// pid is the host's first process, as this machine numbers it.
func (h *systemdHost) pid() (string, error) {
	holder := h.holder.PID()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", holder, holder))
	if err == nil && len(children) == 0 {
		err = errNotYet
	}
	return strings.TrimSpace(string(children)), err
}

// root is a file of the host, as this machine names it.
func (h *systemdHost) root(t *testing.T, path string) string {
	t.Helper()
	pid, err := h.pid()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join("/proc", pid, "root", path)
}

// property is what systemd says of a unit.
func (h *systemdHost) property(t *testing.T, unit, name string) string {
	t.Helper()
	value, err := h.ctl("show", "--value", "--property="+name, unit)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func (h *systemdHost) waitReady(t *testing.T, port string) {
	t.Helper()
	waitUntil(t, "ready on port "+port, func() error {
		if _, err := h.get("http://127.0.0.1:" + port + "/readyz"); err != nil {
			status, _ := h.ctl("status", "murder-*")
			return fmt.Errorf("%w\n%s", err, status)
		}
		return nil
	})
}

// get asks within the host's network.
func (h *systemdHost) get(url string) ([]byte, error) {
	resp, err := (&http.Client{Transport: transportOn(h.on)}).Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s = %d: %.300s", url, resp.StatusCode, body)
	}
	return body, err
}

// TestUnderSystemd has a real systemd run both units with all that they take from the daemons.
// A pull works; a reload ends neither; a mirror that is killed is started again, and has what it had; both stop cleanly.
func TestUnderSystemd(t *testing.T) {
	needs(t, "docker-registry", "/lib/systemd/systemd", "systemctl", "unshare", "nsenter", "ip")
	needsRoot(t)
	images := loadFixtures(t)
	namespace, err := netlab.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { namespace.Close() })
	on := &netlab.Machine{Namespace: namespace}
	const reg = "127.0.0.1:5000"
	startRegistry(t, registryConfig{Storage: images.Storage, On: on, Addr: reg})
	h := bootSystemd(t, on, reg)
	h.waitReady(t, "7070")
	h.waitReady(t, "7080")

	blob := layerBlobs(t, images.Public)[0]
	pull := func() {
		t.Helper()
		b, err := h.get(fmt.Sprintf("http://127.0.0.1:7080/v2/%s/blobs/%s?ns=%s", publicRepo, blob.Digest, reg))
		if got := digest.FromBytes(b); err != nil || got != blob.Digest {
			t.Fatalf("pulled %d bytes with the digest %s, %v; want %s", len(b), got, err, blob.Digest)
		}
	}
	pull()
	file := h.root(t, filepath.Join("/var/lib/murder/mirror/blobs/sha256", blob.Digest.Encoded()))
	waitUntil(t, "the blob is in the state directory", func() error { _, err := os.Stat(file); return err })
	for _, unit := range []string{"murder-mirror", "murder-seeder"} {
		status, err := os.ReadFile(h.root(t, "/proc/"+h.property(t, unit, "MainPID")+"/status"))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`Uid:(\t[1-9]\d*){4}`, `CapPrm:\t0+`, `CapEff:\t0+`, `CapBnd:\t0+`, `NoNewPrivs:\t1`, `Seccomp:\t2`} {
			if !regexp.MustCompile("(?m)^" + want + "$").Match(status) {
				t.Errorf("%s runs with more than it needs; want %q in\n%s", unit, want, status)
			}
		}
	}

	for _, unit := range []string{"murder-mirror", "murder-seeder"} {
		before := h.property(t, unit, "MainPID")
		if _, err := h.ctl("reload", unit); err != nil {
			t.Error(err)
		}
		if after := h.property(t, unit, "MainPID"); after != before || h.property(t, unit, "ActiveState") != "active" {
			t.Errorf("%s was process %s, and is %s after its reload", unit, before, after)
		}
	}
	if _, err := h.ctl("kill", "--signal=SIGKILL", "murder-mirror"); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the mirror is started again", func() error {
		if n := h.property(t, "murder-mirror", "NRestarts"); n != "1" {
			return fmt.Errorf("%s restarts", n)
		}
		return nil
	})
	h.waitReady(t, "7080")
	pull()
	fromCache := regexp.MustCompile(`(?m)^murder_pulls_total{.*source="cache"} 1$`)
	waitUntil(t, "a pull of what it had before it was killed", func() error {
		text, err := h.get("http://127.0.0.1:7080/metrics")
		if err == nil && !fromCache.Match(text) {
			err = fmt.Errorf("it counts %s", regexp.MustCompile(`(?m)^murder_pulls_total.*`).FindAll(text, -1))
		}
		return err
	})

	if _, err := h.ctl("stop", "murder-mirror", "murder-seeder"); err != nil {
		t.Fatal(err)
	}
	for _, unit := range []string{"murder-mirror", "murder-seeder"} {
		if result, code := h.property(t, unit, "Result"), h.property(t, unit, "ExecMainStatus"); result != "success" || code != "0" {
			t.Errorf("%s stops with %s and exit code %s", unit, result, code)
		}
	}
}

// TestSystemdUnits has systemd read the units and judge what they leave to the daemons.
func TestSystemdUnits(t *testing.T) {
	needs(t, "systemd-analyze")
	for _, role := range []string{"mirror", "seeder"} {
		content, err := os.ReadFile(filepath.Join("..", "deploy", "systemd", "murder-"+role+".service"))
		if err != nil {
			t.Fatal(err)
		}
		unit := filepath.Join(newRoot(t), "murder-"+role+".service")
		const installed = "/usr/local/bin/murder"
		if !strings.Contains(string(content), "\nExecStart="+installed+" "+role+"\n") {
			t.Errorf("%s starts something else", unit)
		}
		writeFile(t, unit, strings.Replace(string(content), "ExecStart="+installed, "ExecStart="+murderProgram(t), 1))
		for _, args := range [][]string{{"verify", "--man=no", unit}, {"security", "--offline=true", "--threshold=20", unit}} {
			out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
			if err != nil || args[0] == "verify" && len(out) > 0 {
				t.Errorf("systemd-analyze %v: %v\n%s", args, err, out)
			}
		}
		for _, line := range []string{"CapabilityBoundingSet=", "NoNewPrivileges=yes", "ProtectSystem=strict", "DynamicUser=yes", "StateDirectory=murder/" + role} {
			if !strings.Contains(string(content), "\n"+line+"\n") {
				t.Errorf("%s lacks %s", unit, line)
			}
		}
	}
}
