package main

import (
	"bytes"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/murderp2p/murder/cmd/murder/engine"
)

// engineSetup is how one engine on this host stands to the mirror.
type engineSetup struct {
	name    string
	uses    string // what it uses the mirror for; "" when it does not
	trouble string // why it does not, or not as it should
	mend    string
}

// checkEngines looks for engines on this host and whether their configuration leads to the mirror. One that does is enough: podman, say,
// is installed on many a host whose containers are containerd's.
func (d *doctor) checkEngines() {
	mirror, err := url.Parse(d.mirror.base)
	if err != nil {
		return
	}
	var setups []engineSetup
	for _, e := range []struct {
		programs []string
		look     func(mirror *url.URL) engineSetup
	}{
		{[]string{"containerd"}, d.containerd},
		{[]string{"dockerd"}, d.docker},
		{[]string{"podman", "crio"}, d.podman},
	} {
		if d.installed(e.programs...) {
			setups = append(setups, e.look(mirror))
		}
	}
	bad := stateFail
	for _, s := range setups {
		if s.uses != "" && s.trouble == "" {
			bad = stateWarn
		}
	}
	for _, s := range setups {
		if s.trouble == "" {
			d.found("engine", stateOK, "", "%s uses the mirror for %s", s.name, s.uses)
		} else {
			d.found("engine", bad, s.mend, "%s: %s", s.name, s.trouble)
		}
	}
	if len(setups) == 0 {
		d.found("engine", stateWarn, "", "neither containerd, Docker, podman nor CRI-O is on this host")
	}
}

// installed reports whether one of programs is below the root.
func (d *doctor) installed(programs ...string) bool {
	for _, p := range programs {
		for _, dir := range []string{"/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/bin", "/sbin"} {
			if _, err := os.Stat(filepath.Join(d.root, dir, p)); err == nil {
				return true
			}
		}
		if _, err := exec.LookPath(p); err == nil && d.root == "/" {
			return true
		}
	}
	return false
}

// judge says what a plan of `murder setup` means: there is nothing left to do, or there is.
func judge(name, uses string, plan *engine.Plan, err error) engineSetup {
	s := engineSetup{name: name, uses: uses, mend: "`murder setup " + name + "`, with --dry-run to see what it would change"}
	switch {
	case err != nil:
		s.trouble = err.Error()
	case !plan.Empty():
		s.trouble = "its configuration does not lead to the mirror"
	}
	return s
}

func (d *doctor) containerd(mirror *url.URL) engineSetup {
	c := engine.Containerd{Root: d.root, Mirror: mirror, ConfigPath: engine.ContainerdConfig}
	plan, err := c.Setup()
	if err == nil && plan.Empty() {
		return judge("containerd", "all registries", plan, nil)
	}
	// Not for all registries, then: perhaps for some, which is as good.
	files, _ := filepath.Glob(filepath.Join(d.root, engine.ContainerdCerts, "*", "hosts.toml"))
	for _, f := range files {
		if names(f, mirror.Host) {
			c.Registries = append(c.Registries, filepath.Base(filepath.Dir(f)))
		}
	}
	if len(c.Registries) == 0 {
		return judge("containerd", "", plan, err)
	}
	plan, err = c.Setup()
	s := judge("containerd", strings.Join(c.Registries, ", "), plan, err)
	if s.trouble != "" && err == nil {
		s.trouble = "the mirror is in " + engine.ContainerdCerts + ", but " + engine.ContainerdConfig + " does not lead there"
	}
	return s
}

func (d *doctor) docker(mirror *url.URL) engineSetup {
	plan, err := engine.Docker{Root: d.root, Mirror: mirror, ConfigPath: engine.DockerConfig}.Setup()
	return judge("docker", "docker.io", plan, err)
}

func (d *doctor) podman(mirror *url.URL) engineSetup {
	plan, err := engine.Podman{Root: d.root, Mirror: mirror, ConfDir: engine.PodmanConfDir}.Setup()
	if err == nil && plan.Empty() {
		return judge("podman", "the large public registries", plan, nil)
	}
	files, _ := filepath.Glob(filepath.Join(d.root, engine.PodmanConfDir, "*.conf"))
	for _, f := range append(files, filepath.Join(d.root, filepath.Dir(engine.PodmanConfDir), "registries.conf")) {
		if names(f, mirror.Host) {
			return engineSetup{name: "podman", uses: "the registries in " + f}
		}
	}
	return judge("podman", "", plan, err)
}

// names reports whether a configuration file speaks of the mirror outside of comments.
func names(file, host string) bool {
	b, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	for line := range bytes.Lines(b) {
		line, _, _ = bytes.Cut(line, []byte("#"))
		if bytes.Contains(line, []byte(host+"/")) || bytes.Contains(line, []byte(host+`"`)) {
			return true
		}
	}
	return false
}

// sets reports whether a configuration file has a line key = value.
func sets(file, key, value string) bool {
	b, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		k, v, ok := strings.Cut(line, "=")
		if ok && strings.TrimSpace(k) == key && strings.TrimSpace(v) == value {
			return true
		}
	}
	return false
}
