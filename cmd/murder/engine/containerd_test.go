package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	defaultHosts = "etc/containerd/certs.d/_default/hosts.toml"
	configFile   = "etc/containerd/config.toml"
	cri2         = "[plugins.\"io.containerd.grpc.v1.cri\".registry]\n"
)

// What setup makes of an owner's hosts.toml.
func TestHostsFile(t *testing.T) {
	const ours = "# murder setup: begin (`murder setup --undo` takes this part out)\n" +
		"[host.\"http://127.0.0.1:7080\"]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"1s\"\n" +
		"# murder setup: end\n"
	for _, tc := range []struct{ what, in, want string }{
		{"empty", "", ours},
		{"a server alone", "server = \"https://a\"", "server = \"https://a\"\n" + ours},
		{"a host", "server = \"https://a\"\n\n[host.\"https://b\"]\n", "server = \"https://a\"\n\n" + ours + "[host.\"https://b\"]\n"},
		{"hosts under a header of their own", "[host]\n[host.\"https://b\"]\n[host.\"https://b\".header]\nx = \"y\"\n",
			ours + "[host]\n[host.\"https://b\"]\n[host.\"https://b\".header]\nx = \"y\"\n"},
		{"a bracket that is no header", "ca = [\n[\"x\"]\n]\n[ host . 'https://b' ] # b\n", "ca = [\n[\"x\"]\n]\n" + ours + "[ host . 'https://b' ] # b\n"},
		{"us by hand", "[host.\"http://127.0.0.1:7080\"]\n", "[host.\"http://127.0.0.1:7080\"]\n"},
	} {
		root := tree{defaultHosts: tc.in, configFile: "version = 2\n" + cri2 + "config_path = \"/etc/containerd/certs.d\"\n"}.lay(t)
		run(t, engines(t, root)["containerd"].Setup)
		if got := read(t, root, defaultHosts); got != tc.want {
			t.Errorf("%s:\n%s\nwant\n%s", tc.what, got, tc.want)
		}
	}
}

// Hosts that are no tables of their own cannot be preceded by text.
func TestHostsFileInline(t *testing.T) {
	for _, in := range []string{"host = {\"https://b\" = {}}\n", "host.\"https://b\".capabilities = [\"pull\"]\n"} {
		root := tree{defaultHosts: in}.lay(t)
		_, err := engines(t, root)["containerd"].Setup()
		if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "add by hand") {
			t.Errorf("Setup with %s = %v, want a conflict with advice", in, err)
		}
	}
}

// containerd reads certificates by their suffix only while there is no
// hosts.toml, so ours names them.
func TestCertificatesBesideHosts(t *testing.T) {
	const dir = "etc/containerd/certs.d/registry.example/"
	root := tree{dir + "ca.crt": "", dir + "me.cert": "", dir + "me.key": "", dir + "both.cert": ""}.lay(t)
	c := Containerd{Root: root, Mirror: mirror(t, DefaultMirror), Registries: []string{"registry.example"}}
	run(t, c.Setup)
	got := read(t, root, dir+"hosts.toml")
	if want := "ca = [\"ca.crt\"]\nclient = [\"both.cert\", [\"me.cert\", \"me.key\"]]\n[host."; !strings.Contains(got, want) {
		t.Errorf("hosts.toml is\n%s\nwant in it\n%s", got, want)
	}
	if _, err := decodeTOML([]byte(got)); err != nil {
		t.Error(err)
	}
}

func TestConfigPath(t *testing.T) {
	const v2 = "version = 2\n"
	for _, tc := range []struct {
		what, in string
		want     string // in config.toml afterwards; "": as before
		says     string // in the output
	}{
		{"set already", v2 + cri2 + "config_path = \"/etc/containerd/certs.d\"\n", "", "config_path is set already"},
		{"empty", v2 + cri2 + "config_path = ''\n", "config_path = \"/etc/containerd/certs.d\"\n", "systemctl restart"},
		{"a list with empty folders", v2 + cri2 + "config_path = \"/etc/containerd/certs.d:/etc/docker/certs.d\"\n", "config_path = \"/etc/containerd/certs.d\"\n", "systemctl restart"},
		{"a list with a folder in use", v2 + cri2 + "config_path = \"/etc/containerd/certs.d:/srv/certs\"\n", "", "issue 12808"},
		{"dotted", v2 + "plugins.\"io.containerd.grpc.v1.cri\".registry.config_path = \"\"\n", "registry.config_path = \"/etc/containerd/certs.d\"\n", ""},
		{"headers beside", v2 + cri2 + "[plugins.\"io.containerd.grpc.v1.cri\".registry.headers]\nx = [\"y\"]\n", "  config_path = \"/etc/containerd/certs.d\"\n# murder setup: end\n[plugins", ""},
		{"empty mirrors", v2 + cri2 + "[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors]\n", "config_path =", ""},
		{"CRI off", "disabled_plugins = [\"cri\"]\n", "", "switched off"},
		{"version 3", "version = 3\n", "[plugins.\"io.containerd.cri.v1.images\".registry]\n  config_path =", ""},
		{"version 1", "oom_score = 1\n", "[plugins.cri.registry]\n  config_path =", ""},
		{"imports that do not matter", v2 + "imports = [\"conf.d/*.toml\", \"/none.toml\"]\n", "config_path =", ""},
	} {
		t.Run(tc.what, func(t *testing.T) {
			root := tree{configFile: tc.in, "etc/containerd/conf.d/a.toml": "version = 2\n[debug]\nlevel = \"info\"\n", "srv/certs/x": ""}.lay(t)
			said := run(t, engines(t, root)["containerd"].Setup)
			got := read(t, root, configFile)
			if tc.want == "" && got != tc.in || !strings.Contains(got, tc.want) {
				t.Errorf("config.toml is\n%s\nwant in it %q", got, tc.want)
			}
			if !strings.Contains(said, tc.says) {
				t.Errorf("setup said\n%s\nwant in it %q", said, tc.says)
			}
			if _, err := os.Stat(filepath.Join(root, defaultHosts)); err != nil {
				t.Error(err)
			}
		})
	}
}

// Settings that containerd does not take beside config_path, or that win over
// it: setup says so and what to write, and changes nothing.
func TestConfigPathConflicts(t *testing.T) {
	const v2 = "version = 2\n"
	for _, tc := range []struct{ what, in, imported, want string }{
		{"mirrors", v2 + "[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://a\"]\n", "", "registry.mirrors is set"},
		{"tls", v2 + "[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"a.example\".tls]\ninsecure_skip_verify = true\n", "", "\"a.example\".tls is set"},
		{"inline", v2 + "[plugins]\n\"io.containerd.grpc.v1.cri\" = {registry = {}}\n", "", "a way murder cannot add to"},
		{"import", v2 + "imports = [\"/etc/containerd/conf.d/*.toml\"]\n", v2 + "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"x\"\n", "conf.d/a.toml"},
		{"broken import", v2 + "imports = [\"conf.d/*.toml\"]\n", "x", "which"},
	} {
		t.Run(tc.what, func(t *testing.T) {
			root := tree{configFile: tc.in, "etc/containerd/conf.d/a.toml": tc.imported}.lay(t)
			before := look(t, root)
			_, err := engines(t, root)["containerd"].Setup()
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Setup = %v, want an error with %q", err, tc.want)
			}
			if tc.imported != "x" && (!errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), `config_path = "/etc/containerd/certs.d"`)) {
				t.Errorf("Setup = %v, want a conflict that says what to write", err)
			}
			sameTree(t, tc.what, look(t, root), before)
		})
	}
}

// An import that sets config_path decides where hosts.toml goes.
func TestConfigPathFromImport(t *testing.T) {
	root := tree{
		configFile:                     "version = 2\nimports = [\"conf.d/*.toml\"]\n",
		"etc/containerd/conf.d/a.toml": "version = 2\n" + cri2 + "config_path = \"/srv/certs\"\n",
	}.lay(t)
	before := look(t, root)
	c := engines(t, root)["containerd"].(Containerd)
	run(t, c.Setup)
	read(t, root, "srv/certs/_default/hosts.toml")
	run(t, c.Undo)
	sameTree(t, "undo", look(t, root), before)

	c.CertsDir = ContainerdCerts
	if _, err := c.Setup(); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "/srv/certs") {
		t.Errorf("Setup with another certs.d = %v, want a conflict that names /srv/certs", err)
	}
}

// Registries by name: folders as containerd looks for them, undone alone or
// with the rest.
func TestNamedRegistries(t *testing.T) {
	root := tree{"etc/containerd/certs.d/old.example_5000_/": "", "etc/containerd/certs.d/other.example/": ""}.lay(t)
	before := look(t, root)
	c := engines(t, root)["containerd"].(Containerd)
	said := run(t, c.Setup)
	if !strings.Contains(said, "old.example_5000_, other.example") {
		t.Errorf("setup of _default said\n%s\nwant it to name the registries it does not speak for", said)
	}
	defaults := look(t, root)

	c.Registries = []string{"ghcr.io", "old.example:5000", "new.example:5000"}
	run(t, c.Setup)
	for _, dir := range []string{"ghcr.io", "old.example_5000_", "new.example:5000"} {
		read(t, root, "etc/containerd/certs.d/"+dir+"/hosts.toml")
	}
	run(t, c.Undo)
	sameTree(t, "undo of the named", look(t, root), defaults)

	run(t, c.Setup)
	c.Registries = nil
	run(t, c.Undo)
	sameTree(t, "undo of all", look(t, root), before)
}

// Somebody took a line of ours away, so it cannot be told what is ours.
func TestUndoOfTornBlock(t *testing.T) {
	root := tree{}.lay(t)
	c := engines(t, root)["containerd"]
	run(t, c.Setup)
	s := read(t, root, defaultHosts)
	write(t, root, defaultHosts, strings.Replace(s, blockEnd, "", 1))
	if _, err := c.Undo(); err == nil || !strings.Contains(err.Error(), "is missing") || !strings.Contains(err.Error(), defaultHosts) {
		t.Errorf("Undo = %v, want an error about the missing line", err)
	}
}
