package engine

import (
	"errors"
	"strings"
	"testing"
)

const ourConf = "etc/containers/registries.conf.d/50-murder.conf"

func TestPodmanFile(t *testing.T) {
	root := t.TempDir()
	d := Podman{Root: root, Mirror: mirror(t, DefaultMirror), ConfDir: PodmanConfDir, Registries: []string{"docker.io", "ghcr.io"}}
	run(t, d.Setup)
	const want = "# murder setup: begin (`murder setup --undo` takes this part out)\n" +
		"[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n\n" +
		"[[registry.mirror]]\nlocation = \"127.0.0.1:7080/docker.io\"\ninsecure = true\n\n" +
		"[[registry]]\nprefix = \"ghcr.io\"\nlocation = \"ghcr.io\"\n\n" +
		"[[registry.mirror]]\nlocation = \"127.0.0.1:7080/ghcr.io\"\ninsecure = true\n" +
		"# murder setup: end\n"
	if got := read(t, root, ourConf); got != want {
		t.Errorf("%s is\n%s\nwant\n%s", ourConf, got, want)
	}
	d.Mirror, d.Registries = mirror(t, "https://m.example"), d.Registries[:1]
	run(t, d.Setup)
	if got := read(t, root, ourConf); strings.Contains(got, "ghcr.io") || !strings.Contains(got, "location = \"m.example/docker.io\"\ninsecure = false\n") {
		t.Errorf("after a setup with other registries and TLS:\n%s", got)
	}
}

// An entry of the owner's for the same registry, in any file podman reads.
func TestPodmanConflicts(t *testing.T) {
	for _, name := range []string{"etc/containers/registries.conf", "etc/containers/registries.conf.d/10-a.conf", "etc/containers/registries.conf.d/99-z.conf"} {
		for _, entry := range []string{"[[registry]]\nprefix = \"quay.io\"\nlocation = \"quay.example\"\n", "[[registry]]\nlocation = \"quay.io\"\ninsecure = true\n"} {
			root := tree{name: entry}.lay(t)
			before := look(t, root)
			_, err := engines(t, root)["podman"].Setup()
			if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), `location = "127.0.0.1:7080/quay.io"`) {
				t.Errorf("Setup with %s in %s = %v, want a conflict that says what to add where", entry, name, err)
			}
			sameTree(t, name, look(t, root), before)
		}
	}
}

// An owner's entry that names the mirror is left to do its work, and one for
// a part of a registry is no conflict.
func TestPodmanEntriesThatFit(t *testing.T) {
	root := tree{"etc/containers/registries.conf": "[[registry]]\nprefix = \"quay.io/org\"\nlocation = \"quay.example\"\n" +
		"[[registry]]\nlocation = \"quay.io\"\n[[registry.mirror]]\nlocation = \"127.0.0.1:7080/quay.io\"\ninsecure = true\n"}.lay(t)
	d := engines(t, root)["podman"].(Podman)
	run(t, d.Setup)
	if got := read(t, root, ourConf); strings.Contains(got, "quay.io") || !strings.Contains(got, "docker.io") {
		t.Errorf("%s is\n%s\nwant docker.io in it and not quay.io", ourConf, got)
	}
	d.Registries = []string{"quay.io"}
	run(t, d.Undo)
	p, err := d.Setup()
	if err != nil || !p.Empty() || len(p.Notes) != 1 {
		t.Errorf("Setup for a registry that has the mirror = %+v, %v, want nothing to do", p, err)
	}
}
