package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// scratch is the container image, as far as a folder can be one: a root file system with the static binary and nothing else, read-only but
// for the mounts that a pod gives it.
type scratch struct {
	root, node string
	sees       map[string]string // folders of the node that it may read, by where they are in there
	groups     string            // that it is in besides its own
}

func newScratch(t *testing.T) scratch {
	t.Helper()
	needs(t, "setpriv", "chroot", "unshare", "docker-registry")
	needsRoot(t)
	s := scratch{root: newRoot(t), node: newRoot(t)} // with mount points that not all pods use
	// At the path of the other binary, which startDaemon names; that one may have the race detector, and then is not static.
	build := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(s.root, murderProgram(t)), "github.com/murderp2p/murder/cmd/murder")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build murder: %v\n%s", err, out)
	}
	if err := os.Chmod(s.root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, mount := range []string{"engine", "content"} {
		if err := os.Mkdir(filepath.Join(s.root, mount), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, mount := range []string{"data", "certs"} {
		for _, dir := range []string{filepath.Join(s.root, mount), filepath.Join(s.node, mount)} { // root's alone, as the kubelet makes it
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

// through is the command line that runs murder in there as uid, with group 65534, and without a capability but the one that chroot needs.
// Data and certs are the node's.
func (s scratch) through(uid int, mounts ...string) []string {
	// A namespace of its own, as startDaemon gives none.
	script := "set -e\nmount --bind \"$1\" \"$1\"\nmount -o remount,ro,bind \"$1\"\n"
	for _, m := range mounts {
		script += fmt.Sprintf("mount --bind %q %q\n", filepath.Join(s.node, m), filepath.Join(s.root, m))
	}
	for at, dir := range s.sees {
		at = filepath.Join(s.root, at)
		script += fmt.Sprintf("mount --bind %q %q\nmount -o remount,ro,bind %q\n", dir, at, at)
	}
	script += `shift; exec "$@"`
	return []string{"unshare", "--mount", "sh", "-c", script, "sh", s.root, "setpriv", "--bounding-set=-all,+setuid,+setgid,+sys_chroot", "--inh-caps=-all", "--no-new-privs",
		"chroot", fmt.Sprintf("--userspec=%d:65534", uid), "--groups=" + s.groups, s.root}
}

// TestPod does what the Helm chart's pod does, container by container, with the rights that it gives them: the data folder is made ready,
// the mirror serves a pull from there, and containerd's folder is written and put back.
func TestPod(t *testing.T) {
	s := newScratch(t)
	images := loadFixtures(t)
	reg := startRegistry(t, registryConfig{Storage: images.Storage})
	seeder := startSeeder(t, daemonConfig{Insecure: []string{reg.Addr}})
	run := func(through []string, args ...string) *process {
		return startProcess(t, processConfig{Name: "murder " + args[0], Args: append(append(through, murderProgram(t)), args...)})
	}

	before := run(s.through(65534, "data"), "mirror", "--data-dir=/data/mirror", "--listen=127.0.0.1:0", "--peer-listen=127.0.0.1:0")
	before.waitLine(t, "that the folder is root's", func(line string) bool { return strings.Contains(line, "permission denied") })
	ready := run(s.through(0, "data"), "setup", "data", "--data-dir=/data", "--gid=65534")
	ready.waitLine(t, "the data folder", func(line string) bool { return line == "/data is group 65534's" })

	mirror := startDaemon(t, "mirror", daemonConfig{
		Seeders: []string{seeder.URL()}, Insecure: []string{reg.Addr}, Default: reg.Addr, DataDir: "/data/mirror",
		Through: s.through(65534, "data"),
	})
	if _, err := pullImage(t, mirror, reg.Addr, publicRepo, fixtureTag); err != nil {
		t.Error(err)
	}
	waitUntil(t, "the image in the node's cache", func() error { // a blob gets its name when the client may have all of it already
		blobs, err := filepath.Glob(filepath.Join(s.node, "data/mirror/blobs/sha256/*"))
		if err == nil && len(blobs) < 3 {
			err = errNotYet
		}
		return err
	})

	held := run(s.through(0, "certs"), "setup", "containerd", "--hold", "--root=/", "--config-path=", "--certs-dir=/certs")
	held.waitLine(t, "its setup", func(line string) bool { return strings.HasPrefix(line, "note: hosts.toml is read") })
	if _, err := os.Stat(filepath.Join(s.node, "certs/_default/hosts.toml")); err != nil {
		t.Error(err)
	}
	held.Stop(t)
	if left, err := os.ReadDir(filepath.Join(s.node, "certs")); err != nil || len(left) > 0 {
		t.Errorf("after the pod, %v is left, %v", left, err)
	}
}

// TestPodAndItsEngine: a mirror in such a pod, nobody, but in root's group, to which the engine's folders are read-only, has containerd pull by
// CRI, and then shares the layers from where containerd keeps them.
func TestPodAndItsEngine(t *testing.T) {
	s := newScratch(t)
	images := loadFixtures(t)
	c := startContainerd(t, newContainerd(t))
	if err := os.Chmod(c.root, 0o711); err != nil { // as /run/containerd is
		t.Fatal(err)
	}
	s.groups = "0"
	s.sees = map[string]string{"engine": c.root, "content": c.contentStore()}
	data := filepath.Join(s.node, "data")
	if err := os.Chown(data, 65534, -1); err != nil {
		t.Fatal(err)
	}
	f := &fleetOf{fleet: startFleet(t, fleetConfig{Registry: registryConfig{Storage: images.Storage}})}
	ref := f.Registry.Addr + "/" + bigRepo + ":" + fixtureTag
	m := startDaemon(t, "mirror", daemonConfig{
		Seeders: []string{f.Seeder.URL()}, Insecure: []string{f.name()}, Default: f.name(), DataDir: "/data/mirror", Through: s.through(65534, "data"),
		Flags: []string{"--load-into=cri=/engine/containerd.sock", "--engine-store=/content"},
	})
	c.Mirror(t, f.Registry.Addr, m.Addr)
	f.waitLinked(t, 1)
	f.prefetch(t, nil, "--load", ref).must(t, "loaded", 0, 1)
	f.checkEachBlobOnce(t, allBlobs(t, images.Big.Images["linux/amd64"])...)
	waitUntil(t, "what containerd has is shared from there, and the pod's folder is empty", func() error {
		if blobs := diskUsed(t, data); shelfBytes(t, m) == 0 || blobs > 1<<20 {
			return fmt.Errorf("%d bytes are, and it takes %d", shelfBytes(t, m), blobs)
		}
		return nil
	})
}
