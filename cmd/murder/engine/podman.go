package engine

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// PodmanConfDir is where podman, buildah, skopeo and CRI-O read registries
// from, every *.conf in the order of names, after registries.conf beside it
// (containers-registries.conf.d(5)).
const PodmanConfDir = "/etc/containers/registries.conf.d"

// podmanFile comes after a distribution's short names (000-) and before what
// owners like to have the last word (99-).
const podmanFile = "50-murder.conf"

// PodmanRegistries are the registries set up where none is named. The format
// has no entry for all registries, so these are the large public ones.
func PodmanRegistries() []string {
	return []string{"docker.io", "gcr.io", "ghcr.io", "mcr.microsoft.com", "public.ecr.aws", "quay.io", "registry.k8s.io"}
}

// Podman points podman, buildah, skopeo and CRI-O at a mirror, by a file of
// ours in registries.conf.d.
type Podman struct {
	Root       string   // before all paths; "/" for this machine
	Mirror     *url.URL // from ParseMirror
	Registries []string // from ParsePathRegistry; none: PodmanRegistries
	ConfDir    string   // registries.conf.d; registries.conf is beside it
}

// Setup implements Engine.
func (d Podman) Setup() (*Plan, error) {
	if len(d.Registries) == 0 {
		d.Registries = PodmanRegistries()
	}
	f, err := openFile(d.Root, d.path())
	if err != nil {
		return nil, err
	}
	taken, err := d.taken()
	if err != nil {
		return nil, err
	}
	p := new(Plan)
	if d.Registries = slices.DeleteFunc(slices.Clone(d.Registries), func(r string) bool { return slices.Contains(taken, r) }); len(d.Registries) == 0 {
		p.note("All of these registries have the mirror in entries of your own already.")
		return p, nil
	}
	if err := p.setup(f, d.edit()); err != nil {
		return nil, err
	}
	p.note("podman, buildah and skopeo read the file at each pull; CRI-O when told to: `systemctl reload crio`.")
	p.note("Registries set up: %s. Others need naming: --registry HOST, which replaces this list.", strings.Join(d.Registries, ", "))
	p.note("podman asks the mirror without credentials and takes private images from the registry itself.")
	return p, nil
}

// Undo implements Engine. It takes all registries back, whatever Registries
// says.
func (d Podman) Undo() (*Plan, error) {
	p := new(Plan)
	f, err := openFile(d.Root, d.path())
	if err != nil {
		return nil, err
	}
	return p, p.undo(f, d.edit())
}

func (d Podman) path() string { return filepath.Join(d.ConfDir, podmanFile) }

func (d Podman) edit() edit {
	return edit{
		add:   d.add,
		cut:   func(data []byte, _ record) ([]byte, error) { return cutBlock(data) },
		blank: blankTOML,
	}
}

func (d Podman) add(base []byte) ([]byte, record, error) {
	var body strings.Builder
	for i, registry := range d.Registries {
		if i > 0 {
			body.WriteByte('\n')
		}
		fmt.Fprintf(&body, "[[registry]]\nprefix = %q\nlocation = %q\n\n%s", registry, registry, d.mirrorTable(registry))
	}
	data := insert(base, len(base), block(body.String()))
	if _, err := decodeTOML(data); err != nil {
		return nil, record{}, fmt.Errorf("%w: its own entries leave no room for murder's: %w", ErrConflict, err)
	}
	return data, record{Mirror: d.Mirror.String()}, nil
}

func (d Podman) location(registry string) string { return d.Mirror.Host + "/" + registry }

// mirrorTable is the mirror's entry for a registry. The mirror finds the
// registry's name in the path, as podman sends no ns. insecure lets podman
// speak plain HTTP to it.
func (d Podman) mirrorTable(registry string) string {
	return fmt.Sprintf("[[registry.mirror]]\nlocation = %q\ninsecure = %t\n", d.location(registry), d.Mirror.Scheme == "http")
}

// registriesConf is what of containers-registries.conf(5) matters here.
type registriesConf struct {
	Registry []struct {
		Prefix   string
		Location string
		Mirror   []struct{ Location string }
	}
}

// taken returns the registries whose entries, in files of the owner's, have
// the mirror already. An entry without it is a conflict: of two entries for
// one prefix podman takes the later file's and drops the other whole, with
// its mirrors, its insecure and its blocked.
func (d Podman) taken() ([]string, error) {
	var taken []string
	for _, name := range d.files() {
		conf, err := readRegistriesConf(name)
		if err != nil {
			return nil, err
		}
		for _, r := range conf.Registry {
			prefix := cmp.Or(r.Prefix, r.Location)
			if !slices.Contains(d.Registries, prefix) {
				continue
			}
			if !slices.ContainsFunc(r.Mirror, func(m struct{ Location string }) bool { return m.Location == d.location(prefix) }) {
				return nil, fmt.Errorf("%s: %w: it has an entry for %s, and podman would drop one of the two; nothing was changed. Add to that entry: %s. Or leave %s out by naming the other registries with --registry",
					name, ErrConflict, prefix, strings.ReplaceAll(strings.TrimSpace(d.mirrorTable(prefix)), "\n", " "), prefix)
			}
			taken = append(taken, prefix)
		}
	}
	return taken, nil
}

// files are the owner's files, that is all but ours.
func (d Podman) files() []string {
	files, _ := filepath.Glob(filepath.Join(d.Root, d.ConfDir, "*.conf"))
	files = slices.DeleteFunc(files, func(name string) bool { return filepath.Base(name) == podmanFile })
	return append(files, filepath.Join(d.Root, filepath.Dir(d.ConfDir), "registries.conf"))
}

func readRegistriesConf(name string) (conf registriesConf, err error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return conf, nil
	}
	if err != nil {
		return conf, err
	}
	if err := unmarshalTOML(data, &conf); err != nil {
		return conf, fmt.Errorf("%s: %w", name, err)
	}
	return conf, nil
}
