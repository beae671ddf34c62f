package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// authFile is a Docker config.json (or containers auth.json) with one
// "name:password" for each registry.
func authFile(t testing.TB, logins map[string]string) string {
	t.Helper()
	type login struct {
		Auth string `json:"auth"`
	}
	file := map[string]map[string]login{"auths": {}}
	for registry, userPassword := range logins {
		file["auths"][registry] = login{base64.StdEncoding.EncodeToString([]byte(userPassword))}
	}
	content, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// containersConfig is the files that podman and skopeo share, in a folder of
// the test's own.
type containersConfig struct{ dir string }

func newContainersConfig(t testing.TB) containersConfig {
	t.Helper()
	c := containersConfig{dir: newRoot(t)}
	writeFile(t, filepath.Join(c.dir, "policy.json"), `{"default": [{"type": "insecureAcceptAnything"}]}`)
	writeFile(t, filepath.Join(c.dir, "auth.json"), "{}")
	c.Mirror(t, "", "")
	return c
}

// Mirror writes a registries.conf by which images of registry come through
// mirror (host:port, and a path if need be), as `murder setup podman` would.
func (c containersConfig) Mirror(t testing.TB, registry, mirror string) {
	t.Helper()
	conf := "unqualified-search-registries = []\n"
	if registry != "" {
		conf += fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", registry)
	}
	if mirror != "" {
		conf += fmt.Sprintf("[[registry.mirror]]\nlocation = %q\ninsecure = true\n", mirror)
	}
	writeFile(t, filepath.Join(c.dir, "registries.conf"), conf)
}

// Login stores credentials for registries.
func (c containersConfig) Login(t testing.TB, logins map[string]string) {
	t.Helper()
	writeFile(t, filepath.Join(c.dir, "auth.json"), authFile(t, logins))
}

// env is the environment that leads podman and skopeo to the files.
func (c containersConfig) env() []string {
	return []string{
		"CONTAINERS_REGISTRIES_CONF=" + filepath.Join(c.dir, "registries.conf"),
		"CONTAINERS_STORAGE_CONF=" + filepath.Join(c.dir, "storage.conf"),
		"REGISTRY_AUTH_FILE=" + filepath.Join(c.dir, "auth.json"),
		"XDG_RUNTIME_DIR=" + filepath.Join(c.dir, "run"),
		"HOME=" + filepath.Join(c.dir, "home"),
	}
}

// podman runs podman with storage of its own. It has no daemon: a sleeping
// process holds the mount namespace that its commands share.
type podman struct {
	containersConfig
	holder *process
	global []string
}

// newPodman prepares podman.
func newPodman(t testing.TB) *podman {
	t.Helper()
	needs(t, "podman", "runc", "nsenter")
	needsRoot(t)
	p := &podman{containersConfig: newContainersConfig(t)}
	driver := "vfs"
	if overlayWorks() {
		driver = "overlay"
	}
	root, runRoot := filepath.Join(p.dir, "root"), filepath.Join(p.dir, "runroot")
	writeFile(t, filepath.Join(p.dir, "storage.conf"), fmt.Sprintf("[storage]\ndriver = %q\ngraphroot = %q\nrunroot = %q\n", driver, root, runRoot))
	p.global = []string{program(t, "podman"), "--root", root, "--runroot", runRoot, "--tmpdir", filepath.Join(p.dir, "tmp"),
		"--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", program(t, "runc")}
	p.holder = startProcess(t, processConfig{Name: "podman's mounts", Args: []string{"sleep", "infinity"}, OwnMounts: true})
	return p
}

// Run runs a podman command.
func (p *podman) Run(t testing.TB, args ...string) (string, error) {
	t.Helper()
	return tryRun(t, processConfig{Args: inMounts(p.holder, append(p.global, args...)...), Env: p.env()})
}

// Pull pulls ref for linux/amd64.
func (p *podman) Pull(t testing.TB, ref string) error {
	t.Helper()
	_, err := p.Run(t, "pull", "--quiet", "--signature-policy", filepath.Join(p.dir, "policy.json"), "--platform", "linux/amd64", ref)
	return err
}

// Tree reads the files of an image that has been pulled.
func (p *podman) Tree(t testing.TB, ref string) tree {
	t.Helper()
	at, err := p.Run(t, "image", "mount", ref)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Run(t, "image", "unmount", ref)
	tr, err := readTree(seenBy(p.holder, strings.TrimSpace(at)))
	if err != nil {
		t.Fatal(err)
	}
	return tr
}
