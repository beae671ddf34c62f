package engine

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseMirror(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"http://127.0.0.1:7080", "http://127.0.0.1:7080"},
		{"http://127.0.0.1:7080/", "http://127.0.0.1:7080"},
		{"https://mirror.example", "https://mirror.example"},
		{"http://[::1]:7080", "http://[::1]:7080"},
		{"127.0.0.1:7080", ""},
		{"ftp://127.0.0.1", ""},
		{"http://", ""},
		{"http://:7080", ""},
		{"http://host:7080/v2", ""},
		{"http://user:pass@host", ""},
		{"http://host?x=y", ""},
		{"http://ho\"st", ""},
		{"http://ho st", ""},
	} {
		u, err := ParseMirror(tc.in)
		if got := text(u); got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("ParseMirror(%q) = %q, %v, want %q", tc.in, got, err, tc.want)
		}
	}
}

func text(u *url.URL) string {
	if u == nil {
		return ""
	}
	return u.String()
}

func TestParseRegistry(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"docker.io", "docker.io"},
		{"index.docker.io", "docker.io"},
		{"registry-1.docker.io", "docker.io"},
		{"GHCR.io", "ghcr.io"},
		{"localhost:5000", "localhost:5000"},
		{"[::1]:5000", "[::1]:5000"},
		{"", ""},
		{"..", ""},
		{"../etc", ""},
		{"ghcr.io/org", ""},
		{"https://ghcr.io", ""},
		{"host:port", ""},
		{"_default", ""},
		{"a\nb", ""},
	} {
		got, err := ParseRegistry(tc.in)
		if got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("ParseRegistry(%q) = %q, %v, want %q", tc.in, got, err, tc.want)
		}
	}
}

func TestParsePathRegistry(t *testing.T) {
	for in, ok := range map[string]bool{"ghcr.io": true, "localhost": true, "localhost:5000": false, "registry": false, "[::1]": false, "a/b": false} {
		if _, err := ParsePathRegistry(in); (err == nil) != ok {
			t.Errorf("ParsePathRegistry(%q) = %v, want an error: %v", in, err, !ok)
		}
	}
}

// A tree is a machine's files: path below the root to content.
type tree map[string]string

func (tr tree) lay(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	for name, content := range tr {
		write(t, root, name, content)
	}
	return root
}

func write(t *testing.T, root, name, content string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(name, "/") {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, root, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// look is all there is under root: folders with a slash at their end, files
// with mode and content.
func look(t *testing.T, root string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() {
			found[rel+"/"] = ""
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		found[rel] = info.Mode().String() + "\n" + string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func sameTree(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	if maps.Equal(got, want) {
		return
	}
	for name := range got {
		if w, ok := want[name]; !ok || w != got[name] {
			t.Errorf("%s: %s is\n%s\nwant\n%s", what, name, got[name], w)
		}
	}
	for name := range want {
		if _, ok := got[name]; !ok {
			t.Errorf("%s: %s is missing", what, name)
		}
	}
}

func mirror(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := ParseMirror(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// engines are all three with their default paths below root.
func engines(t *testing.T, root string) map[string]Engine {
	m := mirror(t, DefaultMirror)
	return map[string]Engine{
		"containerd": Containerd{Root: root, Mirror: m, ConfigPath: ContainerdConfig},
		"docker":     Docker{Root: root, Mirror: m, ConfigPath: DockerConfig},
		"podman":     Podman{Root: root, Mirror: m, ConfDir: PodmanConfDir},
	}
}

func run(t *testing.T, plan func() (*Plan, error)) string {
	t.Helper()
	p, err := plan()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := p.Run(&out); err != nil {
		t.Fatal(err)
	}
	return out.String() + strings.Join(p.Notes, "\n")
}

// Trees that a setup must come back from to the last byte.
var trees = map[string]tree{
	"fresh": {},
	"empty folders": {
		"etc/containerd/certs.d/_default/": "", "etc/docker/": "", "etc/containers/registries.conf.d/": "",
	},
	"as packages ship them": {
		"etc/containerd/config.toml":                       "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n",
		"etc/docker/daemon.json":                           "{}\n",
		"etc/containers/registries.conf.d/shortnames.conf": "[aliases]\n  \"alpine\" = \"docker.io/library/alpine\"\n",
	},
	"with the owner's settings": {
		"etc/containerd/config.toml":                 "# mine\nversion = 3\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'overlayfs'\n  [plugins.'io.containerd.cri.v1.images'.registry]\n    config_path = '' # none yet\n",
		"etc/containerd/certs.d/_default/hosts.toml": "# mine\nserver = \"https://upstream.example\" # stays\n\n# the first host\n[host.\"https://cache.example\"]\n  capabilities = [\"pull\"]",
		"etc/docker/daemon.json":                     "{\n\t\"zeta\": 1,\n\t\"registry-mirrors\": [\n\t\t\"https://cache.example\"\n\t],\n\t\"alpha\": {\"b\": [1, 2.50, \"\\u00e9\"]}\n}",
		"etc/containers/registries.conf":             "unqualified-search-registries = [\"docker.io\"]\n[[registry]]\nlocation = \"registry.example\"\n",
	},
}

func TestSetupTwiceAndUndo(t *testing.T) {
	for name, tr := range trees {
		for engine := range engines(t, "/") {
			t.Run(name+"/"+engine, func(t *testing.T) {
				root := tr.lay(t)
				before := look(t, root)
				e := engines(t, root)[engine]

				first := run(t, e.Setup)
				after := look(t, root)
				if maps.Equal(before, after) {
					t.Fatalf("setup changed nothing and said\n%s", first)
				}
				second := run(t, e.Setup)
				sameTree(t, "second setup", look(t, root), after)
				if !strings.Contains(second, "unchanged") {
					t.Errorf("second setup said\n%s", second)
				}
				run(t, e.Undo)
				sameTree(t, "undo", look(t, root), before)
				if again := run(t, e.Undo); strings.Contains(again, "restored") || strings.Contains(again, "removed") {
					t.Errorf("second undo said\n%s", again)
				}
				sameTree(t, "second undo", look(t, root), before)
			})
		}
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	for name, tr := range trees {
		for engine := range engines(t, "/") {
			t.Run(name+"/"+engine, func(t *testing.T) {
				root := tr.lay(t)
				e := engines(t, root)[engine]
				before := look(t, root)
				if out := dry(t, e.Setup); !strings.Contains(out, "\n+") {
					t.Errorf("dry setup shows no added line:\n%s", out)
				}
				sameTree(t, "dry setup", look(t, root), before)
				run(t, e.Setup)
				after := look(t, root)
				if out := dry(t, e.Undo); !strings.Contains(out, "\n-") {
					t.Errorf("dry undo shows no removed line:\n%s", out)
				}
				sameTree(t, "dry undo", look(t, root), after)
			})
		}
	}
}

func dry(t *testing.T, plan func() (*Plan, error)) string {
	t.Helper()
	p, err := plan()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	p.Diff(&out)
	return out.String()
}

// The owner edits the files after setup: undo keeps the edit and takes our
// part only, also when another setup, with another mirror, came in between.
func TestUndoAfterEdit(t *testing.T) {
	for _, tc := range []struct {
		engine, path string
		edit         func(string) string
		want         string // "": no such file
	}{
		{"containerd", "etc/containerd/certs.d/_default/hosts.toml", add("# later\n"),
			"# mine\nserver = \"https://upstream.example\" # stays\n\n# the first host\n[host.\"https://cache.example\"]\n  capabilities = [\"pull\"]\n# later\n"},
		{"containerd", "etc/containerd/config.toml", add("# later\n"),
			"# mine\nversion = 3\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'overlayfs'\n  [plugins.'io.containerd.cri.v1.images'.registry]\n    config_path = '' # none yet\n# later\n"},
		{"docker", "etc/docker/daemon.json", func(s string) string { return strings.Replace(s, "\"zeta\": 1", "\"zeta\": 2", 1) },
			"{\n\t\"zeta\": 2,\n\t\"registry-mirrors\": [\n\t\t\"https://cache.example\"\n\t],\n\t\"alpha\": {\"b\": [1, 2.50, \"\\u00e9\"]}\n}"},
		{"podman", "etc/containers/registries.conf.d/50-murder.conf", add("# later\n"), "# later\n"},
	} {
		t.Run(tc.engine+" "+filepath.Base(tc.path), func(t *testing.T) {
			root := trees["with the owner's settings"].lay(t)
			e := engines(t, root)[tc.engine]
			run(t, e.Setup)
			s := read(t, root, tc.path)
			if !strings.HasSuffix(s, "\n") && tc.engine != "docker" {
				s += "\n"
			}
			write(t, root, tc.path, tc.edit(s))
			run(t, other(t, e).Setup)
			if got := read(t, root, tc.path); strings.Contains(got, ":7080") {
				t.Errorf("after a setup with another mirror:\n%s", got)
			}
			said := run(t, e.Undo)
			if !strings.Contains(said, "edited since") {
				t.Errorf("undo said\n%s", said)
			}
			if got := read(t, root, tc.path); got != tc.want {
				t.Errorf("after undo:\n%s\nwant\n%s", got, tc.want)
			}
			for name := range look(t, root) {
				if strings.Contains(name, "murder-") {
					t.Errorf("undo left %s", name)
				}
			}
		})
	}
}

func add(line string) func(string) string { return func(s string) string { return s + line } }

// other is e for another mirror.
func other(t *testing.T, e Engine) Engine {
	m := mirror(t, "http://10.0.0.1:7999")
	switch e := e.(type) {
	case Containerd:
		e.Mirror = m
		return e
	case Docker:
		e.Mirror = m
		return e
	case Podman:
		e.Mirror = m
		return e
	}
	t.Fatalf("unknown engine %T", e)
	return nil
}

// An unedited file goes back to the backup's bytes after any number of setups.
func TestUndoAfterSecondMirror(t *testing.T) {
	for engine := range engines(t, "/") {
		root := trees["with the owner's settings"].lay(t)
		before := look(t, root)
		e := engines(t, root)[engine]
		run(t, e.Setup)
		run(t, other(t, e).Setup)
		run(t, e.Undo)
		sameTree(t, engine, look(t, root), before)
	}
}

func TestBrokenFiles(t *testing.T) {
	for _, tc := range []struct {
		engine, path, content string
		want                  []string
	}{
		{"containerd", "etc/containerd/config.toml", "version = 2\n[plugins\n", []string{"config.toml", "line 2"}},
		{"containerd", "etc/containerd/certs.d/_default/hosts.toml", "server = \n", []string{"hosts.toml", "line 1"}},
		{"docker", "etc/docker/daemon.json", "{\n  \"a\": 1,\n}\n", []string{"daemon.json", "line 3, column 1 (byte 13)"}},
		{"docker", "etc/docker/daemon.json", "{\"a\": 1", []string{"daemon.json", "byte 7"}},
		{"docker", "etc/docker/daemon.json", "[]", []string{"daemon.json", "not a JSON object"}},
		{"docker", "etc/docker/daemon.json", "null", []string{"daemon.json", "not a JSON object"}},
		{"docker", "etc/docker/daemon.json", "{} {}", []string{"daemon.json", "not valid JSON"}},
		{"docker", "etc/docker/daemon.json", `{"registry-mirrors": "x"}`, []string{"daemon.json", "not a list of strings"}},
		{"docker", "etc/docker/daemon.json", `{"registry-mirrors": [1]}`, []string{"daemon.json", "not a list of strings"}},
		{"docker", "etc/docker/daemon.json", `{"registry-mirrors": null}`, []string{"daemon.json", "not a list of strings"}},
		{"docker", "etc/docker/daemon.json", `{"registry-mirrors": [], "registry-mirrors": []}`, []string{"daemon.json", "twice"}},
		{"podman", "etc/containers/registries.conf.d/10-mine.conf", "x", []string{"10-mine.conf", "line 1"}},
		{"podman", "etc/containers/registries.conf", "x", []string{"registries.conf", "line 1"}},
	} {
		root := tree{tc.path: tc.content}.lay(t)
		before := look(t, root)
		_, err := engines(t, root)[tc.engine].Setup()
		if err == nil {
			t.Errorf("%s with %q: no error", tc.path, tc.content)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s with %q: error %q lacks %q", tc.path, tc.content, err, want)
			}
		}
		sameTree(t, tc.path, look(t, root), before)
	}
}

func TestSymbolicLinks(t *testing.T) {
	t.Run("the file", func(t *testing.T) {
		root := tree{"real.json": "{}", "etc/docker/": ""}.lay(t)
		if err := os.Symlink("../../real.json", filepath.Join(root, DockerConfig)); err != nil {
			t.Fatal(err)
		}
		_, err := engines(t, root)["docker"].Setup()
		if err == nil || !strings.Contains(err.Error(), "symbolic link to ../../real.json") {
			t.Errorf("Setup = %v, want an error that names the link's target", err)
		}
	})
	t.Run("a folder out of the root", func(t *testing.T) {
		outside := t.TempDir()
		root := tree{"etc/": ""}.lay(t)
		if err := os.Symlink(outside, filepath.Join(root, "etc/docker")); err != nil {
			t.Fatal(err)
		}
		if _, err := engines(t, root)["docker"].Setup(); err == nil || !strings.Contains(err.Error(), "leads out of") {
			t.Errorf("Setup = %v, want a refusal", err)
		}
	})
	t.Run("a folder within the root", func(t *testing.T) {
		root := tree{"etc/": "", "opt/docker/": ""}.lay(t)
		if err := os.Symlink("../opt/docker", filepath.Join(root, "etc/docker")); err != nil {
			t.Fatal(err)
		}
		run(t, engines(t, root)["docker"].Setup)
		if got := read(t, root, "opt/docker/daemon.json"); !strings.Contains(got, DefaultMirror) {
			t.Errorf("daemon.json is %s", got)
		}
	})
}

// A file that cannot be written: an error with its path, and nothing half
// done beside it.
func TestUnwritable(t *testing.T) {
	for engine, dir := range map[string]string{"containerd": "etc/containerd/certs.d", "docker": "etc/docker", "podman": "etc/containers/registries.conf.d"} {
		t.Run(engine, func(t *testing.T) {
			root := tree{dir: "a file where a folder should be"}.lay(t)
			before := look(t, root)
			e := engines(t, root)[engine]
			p, err := e.Setup()
			if err == nil {
				err = p.Run(&bytes.Buffer{})
			}
			if err == nil || !strings.Contains(err.Error(), dir) {
				t.Errorf("Setup = %v, want an error about %s", err, dir)
			}
			sameTree(t, engine, look(t, root), before)
		})
	}
	t.Run("read-only folder", func(t *testing.T) {
		if os.Geteuid() == 0 {
			t.Skip("root writes to read-only folders")
		}
		root := tree{"etc/docker/daemon.json": "{}"}.lay(t)
		dir := filepath.Join(root, "etc/docker")
		if err := os.Chmod(dir, 0o555); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Chmod(dir, 0o755) })
		p, err := engines(t, root)["docker"].Setup()
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Run(&bytes.Buffer{}); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), dir) {
			t.Errorf("Run = %v, want a refusal that names %s", err, dir)
		}
	})
}

// A backup from somebody else is not overwritten.
func TestForeignBackup(t *testing.T) {
	root := tree{"etc/docker/daemon.json": "{}", "etc/docker/daemon.json" + backupSuffix: "{\"old\": 1}"}.lay(t)
	p, err := engines(t, root)["docker"].Setup()
	if err != nil {
		t.Fatal(err)
	}
	before := look(t, root)
	if err := p.Run(&bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("Run = %v, want a refusal", err)
	}
	sameTree(t, "foreign backup", look(t, root), before)
}

// The owner removed the file after setup: undo does not bring it back.
func TestUndoOfRemovedFile(t *testing.T) {
	root := tree{"etc/docker/daemon.json": "{\"a\": 1}"}.lay(t)
	e := engines(t, root)["docker"]
	run(t, e.Setup)
	if err := os.Remove(filepath.Join(root, DockerConfig)); err != nil {
		t.Fatal(err)
	}
	if said := run(t, e.Undo); !strings.Contains(said, "which is gone") {
		t.Errorf("undo said\n%s", said)
	}
	if got := read(t, root, "etc/docker/daemon.json"+backupSuffix); got != "{\"a\": 1}" {
		t.Errorf("backup is %s", got)
	}
}

// Mode and owner survive; a file of ours is for all to read.
func TestModes(t *testing.T) {
	root := tree{"etc/docker/daemon.json": "{}"}.lay(t)
	path := filepath.Join(root, DockerConfig)
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, e := range engines(t, root) {
		run(t, e.Setup)
	}
	for name, want := range map[string]fs.FileMode{
		DockerConfig:                             0o600,
		DockerConfig + backupSuffix:              0o600,
		PodmanConfDir + "/" + podmanFile:         0o644,
		ContainerdCerts + "/_default/hosts.toml": 0o644,
	} {
		info, err := os.Stat(filepath.Join(root, name))
		if err != nil || info.Mode() != want {
			t.Errorf("mode of %s = %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
}
