package integration

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/murderp2p/murder/integration/netlab"
)

// registryConfig says how a docker-registry is to run. The zero value is an
// open registry over a folder of its own.
type registryConfig struct {
	Storage string            // folder of the blobs; a new one when empty
	Users   map[string]string // name to password; not empty turns htpasswd on
	Tokens  *tokenServer      // not nil turns token auth on
	Addr    string            // where its gate listens; a free port of 127.0.0.1 when empty

	On *netlab.Machine // whose network it has; nil is the test's own
}

// testRegistry is a CNCF distribution registry (Debian's docker-registry)
// behind a gate. Images are named after the gate's address.
type testRegistry struct {
	*gate
	Storage string
	process *process
	on      *netlab.Machine
	config  string // file
}

// listeningOn is how docker-registry 2.8 says where it listens.
var listeningOn = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// startRegistry starts a registry and returns when it answers.
func startRegistry(t testing.TB, cfg registryConfig) *testRegistry {
	t.Helper()
	root := newRoot(t)
	if cfg.Storage == "" {
		cfg.Storage = filepath.Join(root, "storage")
	}
	r := &testRegistry{Storage: cfg.Storage, on: cfg.On, config: filepath.Join(root, "config.yml")}
	writeFile(t, r.config, registryYAML(t, root, cfg))
	target := r.start(t)
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	r.gate = openGate(t, cfg.On, cfg.Addr, target)
	return r
}

// start starts the program and returns its address once it answers there.
func (r *testRegistry) start(t testing.TB) (addr string) {
	t.Helper()
	r.process = startProcess(t, processConfig{Args: []string{program(t, "docker-registry"), "serve", r.config}, On: r.on})
	line := r.process.waitLine(t, "its address", listeningOn.MatchString)
	addr = listeningOn.FindStringSubmatch(line)[1]
	client := &http.Client{Transport: transportOn(r.on)}
	r.process.waitUntil(t, "GET /v2/", func() error {
		resp, err := client.Get("http://" + addr + "/v2/")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	return addr
}

// Crash kills the program, and the gate with it, so that connections end as
// they do when there is no gate.
func (r *testRegistry) Crash() {
	r.process.Kill()
	r.Die()
}

// Restart brings it back after Crash.
func (r *testRegistry) Restart(t testing.TB) {
	t.Helper()
	r.Turn(r.start(t))
	r.Revive(t)
}

// Notify starts the registry anew, to tell a URL of what is pushed, with a header
// "Name: value" if there is one.
func (r *testRegistry) Notify(t testing.TB, url, header string) {
	t.Helper()
	config, err := os.ReadFile(r.config)
	if err != nil {
		t.Fatal(err)
	}
	headers := ""
	if name, value, ok := strings.Cut(header, ": "); ok {
		headers = fmt.Sprintf("%s: [%q]", name, value)
	}
	writeFile(t, r.config, string(config)+fmt.Sprintf(
		"notifications:\n  endpoints:\n  - {name: murder, url: %q, headers: {%s}, timeout: 5s, threshold: 3, backoff: 1s}\n", url, headers))
	r.Crash()
	r.Restart(t)
}

// registryYAML is the registry's configuration file.
func registryYAML(t testing.TB, root string, cfg registryConfig) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `version: 0.1
log: {level: info, formatter: text, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %q, maxthreads: 100}
  delete: {enabled: true}
http: {addr: "127.0.0.1:0", secret: integration}
`, cfg.Storage)
	if len(cfg.Users) > 0 {
		path := filepath.Join(root, "htpasswd")
		writeFile(t, path, htpasswd(t, cfg.Users))
		fmt.Fprintf(&b, "auth:\n  htpasswd: {realm: integration, path: %q}\n", path)
	}
	if cfg.Tokens != nil {
		path := filepath.Join(root, "token.pem")
		writeFile(t, path, cfg.Tokens.CertificatePEM())
		fmt.Fprintf(&b, "auth:\n  token: {realm: %q, service: %q, issuer: %q, rootcertbundle: %q}\n",
			cfg.Tokens.Realm, cfg.Tokens.Service, cfg.Tokens.Issuer, path)
	}
	return b.String()
}

// htpasswd is a password file; docker-registry takes bcrypt only.
func htpasswd(t testing.TB, users map[string]string) string {
	t.Helper()
	var b strings.Builder
	for name, password := range users {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s:%s\n", name, hash)
	}
	return b.String()
}

// writeFile writes a small file, with the folders above it.
func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
