package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containerdPrograms is a containerd and the ctr that belongs to it.
type containerdPrograms struct{ daemon, ctr string }

// debianContainerd is Debian's containerd, 1.6.
func debianContainerd(t testing.TB) containerdPrograms {
	t.Helper()
	needs(t, "containerd", "ctr", "runc")
	return containerdPrograms{daemon: program(t, "containerd"), ctr: program(t, "ctr")}
}

// newContainerd is the containerd 2.x that `make test` builds; the environment
// says where it is.
func newContainerd(t testing.TB) containerdPrograms {
	t.Helper()
	needs(t)
	dir := os.Getenv("CONTAINERD2_DIR")
	p := containerdPrograms{daemon: filepath.Join(dir, "containerd"), ctr: filepath.Join(dir, "ctr")}
	if _, err := os.Stat(p.daemon); dir == "" || err != nil {
		t.Skip("needs containerd 2, which `make containerd2` builds")
	}
	return p
}

// containerd is a containerd with folders, socket and mounts of its own.
type containerd struct {
	*process
	root        string
	ctr         string
	socket      string
	snapshotter string
	hosts       string // the certs.d folder
	local       bool   // ctr needs --local for --hosts-dir, as of 2.1
	images      cri.ImageServiceClient
}

// startContainerd starts a containerd and returns when it answers ctr and CRI.
// Its certs.d folder is read at each pull: see Mirror.
func startContainerd(t testing.TB, programs containerdPrograms) *containerd {
	t.Helper()
	needsRoot(t)
	root := newRoot(t)
	c := &containerd{
		root: root, ctr: programs.ctr, socket: filepath.Join(root, "containerd.sock"),
		hosts: filepath.Join(root, "certs.d"), snapshotter: "native",
	}
	if overlayWorks() {
		c.snapshotter = "overlayfs"
	}
	version := run(t, processConfig{Args: []string{programs.daemon, "--version"}})
	v2 := strings.Contains(version, " v2.") || strings.Contains(version, " 2.") || strings.Contains(version, "+unknown")
	c.local = v2
	config := filepath.Join(root, "config.toml")
	writeFile(t, config, c.configTOML(v2))
	c.process = startProcess(t, processConfig{Args: []string{programs.daemon, "--config", config}, OwnMounts: true})
	conn, err := grpc.NewClient("unix://"+c.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c.images = cri.NewImageServiceClient(conn)
	c.waitUntil(t, "CRI image service", func() error {
		_, err := c.images.ImageFsInfo(t.Context(), &cri.ImageFsInfoRequest{})
		return err
	})
	return c
}

// configTOML is the daemon's configuration. What pulls do not need is off:
// some of it does not run in every sandbox.
func (c *containerd) configTOML(v2 bool) string {
	head := fmt.Sprintf("root = %q\nstate = %q\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n",
		filepath.Join(c.root, "root"), filepath.Join(c.root, "state"), c.socket, c.socket+".ttrpc")
	if v2 {
		return "version = 3\ndisabled_plugins = [\"io.containerd.nri.v1.nri\"]\n" + head + fmt.Sprintf(
			"[plugins.'io.containerd.cri.v1.images']\nsnapshotter = %q\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = %q\n",
			c.snapshotter, c.hosts)
	}
	return "version = 2\ndisabled_plugins = [\"io.containerd.internal.v1.opt\"]\n" + head + fmt.Sprintf(
		"[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = %q\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = %q\n",
		c.snapshotter, c.hosts)
}

// Mirror makes the containerd pull images of registry (host:port) through
// mirror (host:port), as `murder setup containerd` would. An empty mirror
// leads straight to the registry.
func (c *containerd) Mirror(t testing.TB, registry, mirror string) {
	t.Helper()
	toml := fmt.Sprintf("server = %q\n", "http://"+registry)
	if mirror != "" {
		toml += fmt.Sprintf("[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", "http://"+mirror)
	}
	writeFile(t, filepath.Join(c.hosts, registry, "hosts.toml"), toml)
}

// Ctr runs ctr in the namespace that CRI uses.
func (c *containerd) Ctr(t testing.TB, args ...string) (string, error) {
	t.Helper()
	all := append([]string{c.ctr, "-a", c.socket, "-n", "k8s.io"}, args...)
	return tryRun(t, processConfig{Args: inMounts(c.process, all...)})
}

// Pull pulls and unpacks ref for linux/amd64 with ctr. user is "name:password"
// or empty.
func (c *containerd) Pull(t testing.TB, ref, user string) error {
	t.Helper()
	args := []string{"images", "pull", "--snapshotter", c.snapshotter, "--hosts-dir", c.hosts, "--platform", "linux/amd64"}
	if c.local {
		args = append(args, "--local")
	}
	if user != "" {
		args = append(args, "--user", user)
	}
	_, err := c.Ctr(t, append(args, ref)...)
	return err
}

// PullCRI pulls ref as the kubelet does.
func (c *containerd) PullCRI(t testing.TB, ref string, auth *cri.AuthConfig) error {
	t.Helper()
	_, err := c.images.PullImage(t.Context(), &cri.PullImageRequest{
		Image: &cri.ImageSpec{Image: ref}, Auth: auth,
	})
	return err
}

// Tree reads the files of an image that has been pulled.
func (c *containerd) Tree(t testing.TB, ref string) tree {
	t.Helper()
	target, err := os.MkdirTemp(c.root, "tree")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Ctr(t, "images", "mount", "--snapshotter", c.snapshotter, ref, target); err != nil {
		t.Fatal(err)
	}
	defer c.Ctr(t, "images", "unmount", target)
	tr, err := readTree(seenBy(c.process, target))
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// Remove drops an image and what only it needed from the content store.
func (c *containerd) Remove(t testing.TB, ref string) {
	t.Helper()
	if _, err := c.Ctr(t, "images", "rm", "--sync", ref); err != nil {
		t.Fatal(err)
	}
}
