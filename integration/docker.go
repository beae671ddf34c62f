package integration

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// docker is a dockerd with folders, socket, containerd and mounts of its own,
// and without a network.
type docker struct {
	*process
	host   string // -H of the client
	config string // the client's folder, with its credentials
	cli    string
}

// dockerConfig is what of daemon.json a test may want to say.
type dockerConfig struct {
	Mirrors  []string `json:"registry-mirrors,omitempty"`
	Insecure []string `json:"insecure-registries,omitempty"` // 127.0.0.0/8 is so by itself
}

// startDocker starts a dockerd and returns when it answers.
func startDocker(t testing.TB, cfg dockerConfig) *docker {
	t.Helper()
	needs(t, "dockerd", "docker", "containerd", "runc")
	needsRoot(t)
	root := newRoot(t)
	content, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(root, "daemon.json"), string(content))
	d := &docker{host: "unix://" + filepath.Join(root, "docker.sock"), config: filepath.Join(root, "client"), cli: program(t, "docker")}
	storage := "vfs"
	if overlayWorks() {
		storage = "overlay2"
	}
	d.process = startProcess(t, processConfig{OwnMounts: true, Args: []string{program(t, "dockerd"),
		"--config-file", filepath.Join(root, "daemon.json"), "--host", d.host,
		"--data-root", filepath.Join(root, "data"), "--exec-root", filepath.Join(root, "exec"), "--pidfile", filepath.Join(root, "docker.pid"),
		"--storage-driver", storage, "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
	}})
	d.waitUntil(t, "docker version", func() error {
		_, err := d.Run(t, "version")
		return err
	})
	return d
}

// Run runs the docker client.
func (d *docker) Run(t testing.TB, args ...string) (string, error) {
	t.Helper()
	return tryRun(t, processConfig{Args: append([]string{d.cli, "--config", d.config, "--host", d.host}, args...)})
}

// Login stores credentials for a registry, as docker login does, without
// asking the registry.
func (d *docker) Login(t testing.TB, registry, userPassword string) {
	t.Helper()
	writeFile(t, filepath.Join(d.config, "config.json"), authFile(t, map[string]string{registry: userPassword}))
}

// Tree reads the files of an image that has been pulled, by way of a container
// that is created and never started.
func (d *docker) Tree(t testing.TB, ref string) tree {
	t.Helper()
	id, err := d.Run(t, "create", "--network", "none", ref)
	if err != nil {
		t.Fatal(err)
	}
	id = strings.TrimSpace(id)
	defer d.Run(t, "rm", id)
	tr, err := treeFromCommand(d.cli, "--host", d.host, "export", id)
	if err != nil {
		t.Fatal(err)
	}
	for _, made := range []string{ // by docker create
		".dockerenv", "dev", "dev/console", "dev/pts", "dev/shm", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf", "proc", "sys",
	} {
		delete(tr, made)
	}
	return tr
}

// treeFromCommand reads the tar that a program writes to its standard output.
func treeFromCommand(name string, args ...string) (tree, error) {
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	tr := tree{}
	if err := tr.apply(out); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, err
	}
	if _, err := io.Copy(io.Discard, out); err != nil { // a tar's padding
		return nil, err
	}
	return tr, cmd.Wait()
}
