package engine

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// The engines themselves read what setup wrote, below temporary folders. This
// machine's own /etc is neither read for setup nor written to.

func needs(t *testing.T, programs ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("short")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s", p)
		}
	}
}

// command runs a program to its end and returns what it printed.
func command(t *testing.T, env []string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// startDaemon starts a program that runs until the test ends, and waits until
// ready, a command, succeeds.
func startDaemon(t *testing.T, ready []string, args ...string) *os.Process {
	t.Helper()
	logName := filepath.Join(t.TempDir(), "log")
	out, err := os.Create(logName)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			cmd.Process.Kill()
			<-done
		}
	})
	until(t, args[0]+" is up", func() bool {
		select {
		case <-done:
			b, _ := os.ReadFile(logName)
			t.Fatalf("%s ended:\n%s", args[0], b)
		default:
		}
		return exec.Command(ready[0], ready[1:]...).Run() == nil
	})
	return cmd.Process
}

// until waits for a condition in another process, which has no channel to us.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited a minute until %s", what)
		}
	}
}

// shortTemp is a folder whose name is short enough for Unix sockets in it.
func shortTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "setup")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// private is a command line that runs args with folders of its own in the
// place of those that dockerd and podman write to unasked: a copy of /etc, and
// empty caches.
func private(t *testing.T, args ...string) []string {
	t.Helper()
	if out, err := exec.Command("unshare", "--mount", "true").CombinedOutput(); err != nil {
		t.Skipf("needs unshare --mount: %v: %s", err, out)
	}
	const script = `set -e
		cp -a /etc "$0"
		mount --bind "$0/etc" /etc
		for dir in /var/lib/containers /run/libpod; do
			if test -d $dir; then mount -t tmpfs tmpfs $dir; fi
		done
		exec "$@"`
	return append([]string{"unshare", "--mount", "sh", "-c", script, shortTemp(t)}, args...)
}

// fakeMirror stands before a registry as a mirror does and keeps the requests
// it was sent.
type fakeMirror struct {
	*httptest.Server

	mu   sync.Mutex // guards seen
	seen []string
}

// newRegistry returns a registry's host:port with the image app:latest in it,
// and a mirror of it.
func newRegistry(t *testing.T) (string, *fakeMirror) {
	t.Helper()
	reg := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(reg.Close)
	host := strings.TrimPrefix(reg.URL, "http://")
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(host + "/app:latest")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(reg.URL)
	if err != nil {
		t.Fatal(err)
	}
	m := new(fakeMirror)
	forward := httputil.NewSingleHostReverseProxy(u)
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		m.seen = append(m.seen, r.URL.RequestURI())
		m.mu.Unlock()
		r.URL.RawQuery = ""
		r.URL.Path = strings.Replace(r.URL.Path, "/v2/registry.example/", "/v2/", 1)
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(m.Close)
	return host, m
}

func (m *fakeMirror) requests() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.seen)
}

func (m *fakeMirror) saw(part string) bool {
	return slices.ContainsFunc(m.requests(), func(uri string) bool { return strings.Contains(uri, part) })
}

// containerd takes what setup makes of each config.toml and finds config_path
// in it.
func TestContainerdReadsConfig(t *testing.T) {
	needs(t, "containerd")
	def := command(t, nil, "containerd", "config", "default")
	for what, content := range map[string]string{
		"missing":        "",
		"version 1":      "oom_score = 0\n",
		"version 1, cri": "[plugins.cri]\n  stream_idle_timeout = \"1h\"\n",
		"debian":         trees["as packages ship them"]["etc/containerd/config.toml"],
		"defaults":       def,
		"section":        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.headers]\n  X = [\"y\"]\n",
	} {
		t.Run(what, func(t *testing.T) {
			tr := tree{}
			if content != "" {
				tr["etc/containerd/config.toml"] = content
			}
			root := tr.lay(t)
			run(t, engines(t, root)["containerd"].Setup)
			out := command(t, nil, "containerd", "--config", filepath.Join(root, ContainerdConfig), "config", "dump")
			if !strings.Contains(out, `config_path = "/etc/containerd/certs.d"`) {
				t.Errorf("containerd's configuration lacks config_path:\n%s", out)
			}
		})
	}
}

// containerd asks the mirror first, names the registry to it, and goes to the
// registry itself when the mirror is gone.
func TestContainerdPulls(t *testing.T) {
	needs(t, "containerd", "ctr")
	dir := shortTemp(t)
	sock := filepath.Join(dir, "c.sock")
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, []byte("version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	startDaemon(t, []string{"ctr", "-a", sock, "version"}, "containerd", "--config", config, "--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state"), "--address", sock)

	for _, named := range []bool{false, true} {
		host, m := newRegistry(t)
		root := t.TempDir()
		c := Containerd{Root: root, Mirror: mirror(t, m.URL), ConfigPath: ContainerdConfig}
		if named {
			c.Registries = []string{host}
		}
		run(t, c.Setup)
		fetch := []string{"ctr", "-a", sock, "content", "fetch", "--plain-http", "--hosts-dir", filepath.Join(root, ContainerdCerts), host + "/app:latest"}
		command(t, nil, fetch...)
		if want := "/v2/app/manifests/latest?ns=" + url.QueryEscape(host); !m.saw(want) {
			t.Errorf("named %v: the mirror saw %q, want %s", named, m.requests(), want)
		}
		if !m.saw("/v2/app/blobs/sha256:") {
			t.Errorf("named %v: the mirror saw %q, want blobs", named, m.seen)
		}
		m.Close()
		command(t, nil, fetch...)
	}
}

// dockerd takes daemon.json up on SIGHUP, as the note says.
func TestDockerReloads(t *testing.T) {
	needs(t, "dockerd", "docker", "containerd")
	dir := shortTemp(t)
	sock := "unix://" + filepath.Join(dir, "d.sock")
	write(t, dir, "daemon.json", "{\n  \"registry-mirrors\": [\"https://cache.example\"],\n  \"debug\": false\n}\n")
	mirrors := func() string {
		out, _ := exec.Command("docker", "-H", sock, "info", "--format", "{{json .RegistryConfig.Mirrors}}").Output()
		return strings.TrimSpace(string(out))
	}
	args := private(t, "dockerd", "--config-file", filepath.Join(dir, "daemon.json"), "-H", sock,
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid"),
		"--bridge", "none", "--iptables=false", "--ip6tables=false", "--storage-driver", "vfs")
	p := startDaemon(t, []string{"docker", "-H", sock, "version"}, args...)

	d := Docker{Root: dir, Mirror: mirror(t, DefaultMirror), ConfigPath: "/daemon.json"}
	for _, step := range []struct {
		plan func() (*Plan, error)
		want string
	}{
		{d.Setup, `["http://127.0.0.1:7080/","https://cache.example/"]`},
		{d.Undo, `["https://cache.example/"]`},
	} {
		run(t, step.plan)
		if err := p.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		until(t, "dockerd's mirrors are "+step.want, func() bool { return mirrors() == step.want })
	}
}

// podman asks the mirror for a registry's image by the registry's name in the
// path.
func TestPodmanPulls(t *testing.T) {
	needs(t, "podman")
	dir := shortTemp(t)
	_, m := newRegistry(t)
	run(t, Podman{Root: dir, Mirror: mirror(t, m.URL), ConfDir: "/.config/containers/registries.conf.d", Registries: []string{"registry.example"}}.Setup)

	// A random image is no file tree, so podman cannot unpack what it pulls:
	// what counts is whom it asks.
	args := private(t, "podman", "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs",
		"pull", "registry.example/app:latest")
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME=")
	out, _ := cmd.CombinedOutput()
	for _, want := range []string{"/v2/registry.example/app/manifests/latest", "/v2/registry.example/app/blobs/sha256:"} {
		if !m.saw(want) {
			t.Errorf("the mirror saw %q, want %s; podman said\n%s", m.requests(), want, out)
		}
	}
}
