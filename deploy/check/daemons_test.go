package check

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
)

// patience is how long a program may take to come up or to end; a test that passes does not wait it out.
const patience = time.Minute

// built is where TestMain wants the binary; it removes it, too.
var built string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "murder-check-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	built = filepath.Join(dir, "murder")
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

var build = sync.OnceValue(func() error {
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", built, "./cmd/murder")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build murder: %w\n%s", err, out)
	}
	return nil
})

// murder is the path of the built binary.
func murder(t *testing.T) string {
	t.Helper()
	if err := build(); err != nil {
		t.Fatal(err)
	}
	return built
}

// runMurder runs it to its end.
func runMurder(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), murder(t), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("murder %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// started is a running murder and the lines that it has written.
type started struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	done  context.CancelFunc
}

// start starts murder with env alone, as in a container, and ends it with the test.
func start(t *testing.T, env []string, args ...string) *started {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	cmd := exec.CommandContext(ctx, murder(t), args...)
	cmd.Env = append(env, "HOME="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &started{cmd: cmd, lines: bufio.NewScanner(pipe), done: cancel}
	t.Cleanup(func() { cancel(); cmd.Wait() })
	return s
}

// next returns the next line with all of words.
func (s *started) next(t *testing.T, words ...string) string {
	t.Helper()
	var seen []string
line:
	for s.lines.Scan() {
		seen = append(seen, s.lines.Text())
		for _, w := range words {
			if !strings.Contains(s.lines.Text(), w) {
				continue line
			}
		}
		return s.lines.Text()
	}
	t.Fatalf("murder has ended without a line of %q:\n%s", words, strings.Join(seen, "\n"))
	return ""
}

// end asks it to end and returns what it still had to say.
func (s *started) end(t *testing.T) string {
	t.Helper()
	s.cmd.Process.Signal(syscall.SIGTERM)
	var rest strings.Builder
	for s.lines.Scan() {
		fmt.Fprintln(&rest, s.lines.Text())
	}
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("murder ended with %v:\n%s", err, rest.String())
	}
	return rest.String()
}

// TestDaemonsTakeTheirFlags starts both daemons with the chart's own arguments, but for folders and ports, and does what the kubelet and
// Prometheus will: ask the probes' paths at the ports that the manifests name for them.
func TestDaemonsTakeTheirFlags(t *testing.T) {
	eachSet(t, func(t *testing.T, m *manifests) {
		certs := t.TempDir()
		runMurder(t, "certs", "--dir", certs, "--host", "127.0.0.1")
		for role, pod := range m.pods() {
			c := pod.Containers[0]
			args := append(c.Args, "--listen=127.0.0.1:0", "--peer-listen=127.0.0.1:0", "--data-dir="+t.TempDir())
			if flagOf(c, "metrics-listen") != "" {
				args = append(args, "--metrics-listen=127.0.0.1:0")
			}
			if flagOf(c, "tls-cert") != "" {
				args = append(args, "--tls-cert="+certs+"/127.0.0.1.crt", "--tls-key="+certs+"/127.0.0.1.key", "--tls-ca="+certs+"/ca.crt")
			}
			if flagOf(c, "events-token-file") != "" {
				token := filepath.Join(certs, "token")
				if err := os.WriteFile(token, []byte("a-token-of-the-operator\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				args = append(args, "--events-token-file="+token)
			}
			daemon := start(t, []string{"MURDER_ADVERTISE=127.0.0.1", "MURDER_ZONE=", "MURDER_HOST_NAME=node-1"}, args...)
			addrs := map[string]string{"http": addrIn(t, daemon.next(t, `"listening"`))}
			if flagOf(c, "metrics-listen") != "" {
				addrs["metrics"] = addrIn(t, daemon.next(t, "metrics are answered apart"))
				ask(t, core.URISchemeHTTP, addrs["metrics"], "/metrics", http.StatusOK)
				ask(t, core.URISchemeHTTP, addrs["metrics"], "/v1/status", http.StatusNotFound)
				ask(t, core.URISchemeHTTP, addrs["metrics"], "/v2/", http.StatusNotFound)
			}
			for _, p := range []*core.Probe{c.ReadinessProbe, c.LivenessProbe} {
				ask(t, p.HTTPGet.Scheme, addrs[p.HTTPGet.Port.StrVal], p.HTTPGet.Path, http.StatusOK)
			}
			if s, ok := m.monitors["murder-"+role]; ok {
				e := s.Spec.Endpoints[0]
				scheme := core.URISchemeHTTP
				if e.Scheme != nil {
					scheme = core.URIScheme(strings.ToUpper(string(*e.Scheme)))
				}
				ask(t, scheme, addrs[e.Port], e.Path, http.StatusOK)
			}
			daemon.end(t)
		}
	})
}

func addrIn(t *testing.T, line string) string {
	t.Helper()
	var said struct{ Addr string }
	if err := json.Unmarshal([]byte(line), &said); err != nil || said.Addr == "" {
		t.Fatalf("no address in %s", line)
	}
	return said.Addr
}

func ask(t *testing.T, scheme core.URIScheme, addr, path string, want int) {
	t.Helper()
	if scheme == "" {
		scheme = core.URISchemeHTTP
	}
	// As the kubelet does, which does not check certificates.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	url := strings.ToLower(string(scheme)) + "://" + addr + path
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Get(url)
	if err != nil {
		t.Error(err)
		return
	}
	resp.Body.Close()
	if resp.StatusCode != want {
		t.Errorf("GET %s = %d, want %d", url, resp.StatusCode, want)
	}
}

// TestNodeIsPutBack runs the containers that touch a node on a folder that stands for its files.
func TestNodeIsPutBack(t *testing.T) {
	eachSet(t, func(t *testing.T, m *manifests) {
		pod := m.mirror.Spec.Template.Spec
		node := t.TempDir()
		data := filepath.Join(node, "data")
		runMurder(t, append(pod.InitContainers[0].Args, "--data-dir="+data, fmt.Sprint("--gid=", os.Getgid()))...)
		if info, err := os.Stat(data); err != nil || info.Mode().Perm() != 0o770 || info.Mode()&os.ModeSetgid == 0 {
			t.Errorf("data folder = %v, %v; want one for its group", info, err)
		}
		c, ok := leadsContainerd(pod)
		if !ok {
			return
		}
		certs := filepath.Join(node, flagOf(c, "certs-dir"))
		if err := os.MkdirAll(certs, 0o755); err != nil { // as the kubelet does
			t.Fatal(err)
		}
		held := start(t, nil, append(c.Args, "--root="+node)...)
		held.next(t, "note: hosts.toml is read at each pull")
		files, _ := filepath.Glob(certs + "/*/hosts.toml")
		if len(files) == 0 {
			t.Error("no hosts.toml while the pod is there")
		}
		for _, f := range files {
			if b, err := os.ReadFile(f); err != nil || !strings.Contains(string(b), flagOf(c, "mirror")) {
				t.Errorf("%s does not lead to the mirror: %s, %v", f, b, err)
			}
		}
		said := held.end(t)
		if left, _ := os.ReadDir(certs); len(left) > 0 || !strings.Contains(said, "removed ") {
			t.Errorf("after the pod, %v is left:\n%s", left, said)
		}
	})
}

// TestPortsAreFree: what the defaults of the chart take of a node, no other default of it takes.
func TestPortsAreFree(t *testing.T) {
	c := mustRender(t, valueSets["default"]).mirror.Spec.Template.Spec.Containers[0]
	taken := map[string]string{}
	for _, flag := range []string{"listen", "peer-listen", "metrics-listen"} {
		_, port, err := net.SplitHostPort(flagOf(c, flag))
		if err != nil || taken[port] != "" {
			t.Errorf("--%s is at %s as is --%s (%v)", flag, port, taken[port], err)
		}
		taken[port] = flag
	}
}

// TestImage: the image that the chart runs has nothing in it but murder, and its user is the chart's.
func TestImage(t *testing.T) {
	b, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	stages := strings.Split(string(b), "\nFROM ")
	last := stages[len(stages)-1]
	user := mustRender(t, valueSets["default"]).mirror.Spec.Template.Spec.Containers[0].SecurityContext
	for _, want := range []string{"scratch\n", fmt.Sprintf("\nUSER %d:%d\n", *user.RunAsUser, *user.RunAsGroup), "\nENTRYPOINT [\"/murder\"]\n"} {
		if !strings.Contains(last, want) {
			t.Errorf("the image's last stage lacks %q", want)
		}
	}
	if strings.Contains(last, "\nRUN ") {
		t.Error("the image runs something while it is built for another platform")
	}
}
