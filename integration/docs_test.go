package integration

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/murderp2p/murder/integration/netlab"
)

// The commands of the documents run as they stand there, on a host of the test's own: a network namespace where the registry has port 80
// and all of murder's ports are free, and a mount namespace with an /etc, a /run and a /var/lib that go with it.

// TestQuickstart follows docs/QUICKSTART.md, with containerd, dockerd and podman; what it says of Kubernetes is deploy/check's.
func TestQuickstart(t *testing.T) {
	needs(t, "ctr", "containerd", "dockerd", "docker", "podman", "runc")
	h := newDocHost(t)
	before := h.engineFiles(t)
	h.startEngine(t, "containerd")
	h.startEngine(t, "docker")
	doc, _, _ := strings.Cut(readDoc(t, "QUICKSTART.md"), "\n## Kubernetes\n")
	pulls := 0
	for _, line := range shellLines(t, doc) {
		sent := h.sentToClients(t)
		h.do(t, line)
		if regexp.MustCompile(`^(ctr images|docker|podman) pull`).MatchString(line) {
			pulls++
			if h.sentToClients(t) == sent {
				t.Errorf("%s: nothing of it came through the mirror", line)
			}
		}
	}
	if after := h.engineFiles(t); !maps.Equal(before, after) { // the document ends with taking all back
		t.Errorf("engines' files were %v, and after --undo are %v", slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after)))
	}
	if pulls != 3 {
		t.Errorf("%d pulls were found in QUICKSTART.md, want one by each engine", pulls)
	}
}

// TestOperations runs the commands of the other documents beside a seeder and a mirror.
func TestOperations(t *testing.T) {
	for _, name := range []string{"OPERATIONS.md", "TROUBLESHOOTING.md"} {
		t.Run(name, func(t *testing.T) {
			h := newDocHost(t)
			h.do(t, "cp bin/murder /usr/local/bin/murder")
			h.do(t, "cp deploy/systemd/*.service /etc/systemd/system/")
			h.do(t, "murder seeder")
			h.do(t, "murder mirror --seeder http://seeder.example:7070")
			lines := shellLines(t, readDoc(t, name))
			if len(lines) == 0 {
				t.Error("no commands")
			}
			for _, line := range lines {
				h.do(t, line)
			}
		})
	}
}

func readDoc(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// shellLines are the lines of a document's sh blocks.
func shellLines(t *testing.T, doc string) (lines []string) {
	t.Helper()
	for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(doc, -1) {
		lines = append(lines, strings.Split(strings.TrimSpace(block[1]), "\n")...)
	}
	return lines
}

// docHost is the host that documents speak of: registry.example, seeder.example and a host of the fleet in one.
type docHost struct {
	on      *netlab.Machine
	holder  *process
	work    string // where the commands run: a checkout, as it seems
	env     []string
	running map[string]*process // seeder, mirror, containerd, docker
	started map[string][]string // by what command
}

// docHostMounts hides what commands might change behind what goes with the namespace.
const docHostMounts = `
set -e
cp -a /etc "$1/etc"
rm -rf "$1/etc/containerd" "$1/etc/docker" "$1/etc/containers/registries.conf.d"
echo '127.0.0.1 localhost registry.example seeder.example' > "$1/etc/hosts"
mkdir -p "$1/local" "$1/original" "$1/etc/default" "$1/etc/systemd/system"
mount --bind /usr/local/bin "$1/original"
mount --bind "$1/local" /usr/local/bin
mount --bind "$1/etc" /etc
for dir in /run /var/lib /opt; do mount -t tmpfs tmpfs $dir; done
echo the mounts are there
exec sleep infinity
`

func newDocHost(t *testing.T) *docHost {
	t.Helper()
	needs(t, "docker-registry", "nsenter", "ip", "curl")
	needsRoot(t)
	namespace, err := netlab.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { namespace.Close() })
	root := newRoot(t)
	h := &docHost{
		on: &netlab.Machine{Namespace: namespace}, work: filepath.Join(root, "work"),
		running: map[string]*process{}, started: map[string][]string{},
	}
	h.serveImage(t, filepath.Join(root, "storage"))
	h.layOut(t, root)
	h.holder = startProcess(t, processConfig{Name: "the host's mounts", Args: []string{"sh", "-c", docHostMounts, "sh", root}, OwnMounts: true, On: h.on})
	h.holder.waitLine(t, "its mounts", func(line string) bool { return line == "the mounts are there" })
	h.env = []string{
		"PATH=" + filepath.Join(root, "shims") + ":/usr/local/bin:" + filepath.Join(root, "original") + ":/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + filepath.Join(root, "home"),
		"MURDER_INSECURE_REGISTRY=registry.example",
		"CONTAINERD_SNAPSHOTTER=native",
		"CONTAINERS_STORAGE_CONF=" + filepath.Join(root, "storage.conf"),
		"CONTAINERS_CONF=" + filepath.Join(root, "containers.conf"),
	}
	return h
}

// serveImage has registry.example serve app:v2.
func (h *docHost) serveImage(t *testing.T, storage string) {
	t.Helper()
	images := loadFixtures(t)
	filling := startRegistry(t, registryConfig{Storage: storage})
	push(t, filling.Addr, "app:v2", images.Public, nil)
	startRegistry(t, registryConfig{Storage: storage, On: h.on, Addr: "127.0.0.1:80"})
}

// layOut makes the files that the host begins with.
func (h *docHost) layOut(t *testing.T, root string) {
	t.Helper()
	repository, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	// make is asked whether it knows the target; what it makes is made already.
	writeFile(t, filepath.Join(root, "shims", "make"), fmt.Sprintf("#!/bin/sh\nexec /usr/bin/make --dry-run -C %q \"$@\"\n", repository))
	// What systemctl does to daemons the test does itself, see do.
	writeFile(t, filepath.Join(root, "shims", "systemctl"), `#!/bin/sh
case "$*" in
daemon-reload) ;;
"enable --now murder-"*) test -s "/etc/systemd/system/$3.service" ;;
*) echo "systemctl $*: not in the test" >&2; exit 1 ;;
esac
`)
	for _, shim := range []string{"make", "systemctl"} {
		if err := os.Chmod(filepath.Join(root, "shims", shim), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(root, "storage.conf"), "[storage]\ndriver = \"vfs\"\ngraphroot = \"/var/lib/containers/storage\"\nrunroot = \"/run/containers/storage\"\n")
	writeFile(t, filepath.Join(root, "containers.conf"), "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = \"runc\"\n")
	for target, link := range map[string]string{
		murderProgram(t):                    filepath.Join(h.work, "bin", "murder"),
		filepath.Join(repository, "deploy"): filepath.Join(h.work, "deploy"),
	} {
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
}

var (
	daemonLine  = regexp.MustCompile(`^murder (seeder|mirror)( |$)`)
	restartLine = regexp.MustCompile(`^systemctl (restart|reload) (?:murder-)?(containerd|docker|seeder|mirror)$`)
	clusterLine = regexp.MustCompile(`^(helm|kubectl) `)
)

// do does what a line of a document says.
func (h *docHost) do(t *testing.T, line string) {
	t.Helper()
	if m := daemonLine.FindStringSubmatch(line); m != nil {
		h.start(t, m[1], strings.Fields(line), `msg=listening`)
		return
	}
	if m := restartLine.FindStringSubmatch(line); m != nil {
		h.again(t, m[1], m[2])
		return
	}
	if clusterLine.MatchString(line) {
		return // deploy/check looks at those
	}
	out, err := tryRun(t, processConfig{Args: h.inside("bash", "-euo", "pipefail", "-c", line)})
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
}

// inside is a command line that runs args on the host.
func (h *docHost) inside(args ...string) []string {
	enter := []string{"nsenter", "--target", fmt.Sprint(h.holder.PID()), "--mount", "--net", "--", "env", "--chdir=" + h.work}
	return append(append(enter, h.env...), args...)
}

// start starts a daemon and waits for a line of its output.
func (h *docHost) start(t *testing.T, name string, args []string, ready string) {
	t.Helper()
	h.started[name] = append([]string{ready}, args...)
	h.running[name] = startProcess(t, processConfig{Name: name, Args: h.inside(args...)})
	h.running[name].waitLine(t, ready, func(line string) bool { return strings.Contains(line, ready) })
}

// again does what systemctl would.
func (h *docHost) again(t *testing.T, verb, name string) {
	t.Helper()
	p := h.running[name]
	if p == nil {
		t.Fatalf("systemctl %s %s: it does not run", verb, name)
	}
	if verb == "reload" {
		p.Signal(t, syscall.SIGHUP)
		return
	}
	p.Stop(t)
	h.start(t, name, h.started[name][1:], h.started[name][0])
}

// startEngine starts containerd or dockerd as their packages do, as far as this machine allows.
func (h *docHost) startEngine(t *testing.T, name string) {
	t.Helper()
	switch name {
	case "containerd":
		h.start(t, name, []string{program(t, "containerd")}, "containerd successfully booted")
	case "docker":
		h.start(t, name, []string{program(t, "dockerd"), "--storage-driver", "vfs",
			"--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"}, "API listen on")
	}
}

// engineFiles are the engines' configuration files, by path.
func (h *docHost) engineFiles(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, dir := range []string{"/etc/containerd", "/etc/docker", "/etc/containers"} {
		err := filepath.WalkDir(seenBy(h.holder, dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || d.Name() == "key.json" {
				return nil // the folder may not be there; dockerd makes itself a key
			}
			b, err := os.ReadFile(path)
			files[path] = string(b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// sentToClients is how many bytes the mirror has given engines; 0 while there is none.
func (h *docHost) sentToClients(t *testing.T) (sent float64) {
	t.Helper()
	if h.running["mirror"] == nil {
		return 0
	}
	out := run(t, processConfig{Args: h.inside("curl", "-fsS", "http://127.0.0.1:7080/metrics")})
	m := regexp.MustCompile(`(?m)^murder_sent_bytes_total\{to="client"\} (.*)$`).FindStringSubmatch(out)
	if m == nil {
		t.Fatal("the mirror counts no bytes to clients")
	}
	fmt.Sscan(m[1], &sent)
	return sent
}
