package engine

import (
	"cmp"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// DefaultRegistry stands for every registry that has no folder of its own
// under containerd's certs.d.
const DefaultRegistry = "_default"

// The places containerd's own documentation uses.
const (
	ContainerdConfig = "/etc/containerd/config.toml"
	ContainerdCerts  = "/etc/containerd/certs.d"
)

// Containerd points containerd at a mirror: a hosts.toml for each registry,
// and registry.config_path in config.toml, without which the kubelet's pulls
// do not look for one.
type Containerd struct {
	Root       string   // before all paths; "/" for this machine
	Mirror     *url.URL // from ParseMirror
	Registries []string // from ParseRegistry, or DefaultRegistry; none: DefaultRegistry, and for Undo all there are
	ConfigPath string   // of config.toml; "" leaves config.toml alone
	CertsDir   string   // "": the folder config.toml names, else ContainerdCerts
}

// Setup implements Engine.
func (c Containerd) Setup() (*Plan, error) {
	p := new(Plan)
	toml, err := c.configToml()
	if err != nil {
		return nil, err
	}
	certs := c.certsDir(toml)
	names := c.Registries
	if len(names) == 0 {
		names = []string{DefaultRegistry}
	}
	for _, name := range names {
		if err := c.eachHosts(hostFolder(c.Root, certs, name), p.setup); err != nil {
			return nil, err
		}
	}
	if slices.Contains(names, DefaultRegistry) {
		c.noteOthers(p, certs, names)
	}
	if toml != nil {
		if err := toml.setup(p, certs); err != nil {
			return nil, err
		}
	}
	p.note("hosts.toml is read at each pull: containerd needs no restart for it. `ctr` reads it with --hosts-dir %s, nerdctl by itself.", certs)
	return p, nil
}

// Undo implements Engine. With Registries set it takes back those alone, and
// config.toml with the last of them: no other needs it then.
func (c Containerd) Undo() (*Plan, error) {
	p := new(Plan)
	toml, err := c.configToml()
	if err != nil {
		return nil, err
	}
	certs := c.certsDir(toml)
	undone := c.undoFolders(certs)
	for _, dir := range undone {
		if err := c.eachHosts(dir, p.undo); err != nil {
			return nil, err
		}
	}
	others := slices.ContainsFunc(c.setFolders(certs), func(dir string) bool { return !slices.Contains(undone, dir) })
	if toml != nil && !others {
		if err := toml.undo(p); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (c Containerd) eachHosts(dir string, plan func(*file, edit) error) error {
	f, err := openFile(c.Root, filepath.Join(dir, "hosts.toml"))
	if err != nil {
		return err
	}
	return plan(f, hostsFile{mirror: c.Mirror, dir: filepath.Join(c.Root, dir)}.edit())
}

// undoFolders are the folders to take our hosts out of: those of Registries,
// or every one that a setup has been in.
func (c Containerd) undoFolders(certs string) []string {
	var dirs []string
	for _, name := range c.Registries {
		dirs = append(dirs, hostFolder(c.Root, certs, name))
	}
	if len(dirs) == 0 {
		dirs = c.setFolders(certs)
	}
	if len(dirs) == 0 {
		dirs = append(dirs, filepath.Join(certs, DefaultRegistry))
	}
	return dirs
}

// setFolders are the registries' folders that a setup has been in.
func (c Containerd) setFolders(certs string) []string {
	return slices.DeleteFunc(c.folders(certs), func(dir string) bool {
		_, err := os.Lstat(filepath.Join(c.Root, dir, "hosts.toml"+recordSuffix))
		return err != nil
	})
}

// folders are the registries' folders under certs.d.
func (c Containerd) folders(certs string) []string {
	entries, _ := os.ReadDir(filepath.Join(c.Root, certs))
	var dirs []string
	for _, e := range entries {
		dirs = append(dirs, filepath.Join(certs, e.Name()))
	}
	return dirs
}

// noteOthers names the registries that _default does not speak for, since
// they have folders of their own without the mirror in it.
func (c Containerd) noteOthers(p *Plan, certs string, names []string) {
	var others []string
	for _, dir := range c.folders(certs) {
		name := filepath.Base(dir)
		info, err := os.Stat(filepath.Join(c.Root, dir))
		if err != nil || !info.IsDir() || name == DefaultRegistry || slices.Contains(names, name) {
			continue
		}
		data, _ := os.ReadFile(filepath.Join(c.Root, dir, "hosts.toml"))
		doc, _ := decodeTOML(data)
		if lookup(doc, "host", c.Mirror.String()) == nil {
			others = append(others, name)
		}
	}
	if len(others) > 0 {
		p.note("containerd does not ask _default for registries with a folder of their own in %s: %s. Name them with --registry to have them use the mirror too.",
			certs, strings.Join(others, ", "))
	}
}

func (c Containerd) configToml() (*configToml, error) {
	if c.ConfigPath == "" {
		return nil, nil
	}
	f, err := openFile(c.Root, c.ConfigPath)
	if err != nil {
		return nil, err
	}
	return parseConfigToml(c.Root, c.ConfigPath, f)
}

// certsDir is where hosts.toml files go: where we are told, else where
// containerd looks already.
func (c Containerd) certsDir(t *configToml) string {
	found := ""
	if t != nil && len(t.dirs) > 0 {
		found = t.dirs[0]
	}
	return cmp.Or(c.CertsDir, found, ContainerdCerts)
}

// errByHand is the error for a config.toml that setup may not touch.
func errByHand(path, why string, section []string, certs string) error {
	return fmt.Errorf("%s: %w: %s; nothing was changed. What has to be in it: %s config_path = %q. Then restart containerd and run setup again, or pass --config-path= to leave the file alone",
		path, ErrConflict, why, tableName(section), certs)
}

// tableName writes a table's header.
func tableName(path []string) string {
	quoted := slices.Clone(path)
	for i, key := range quoted {
		if strings.Contains(key, ".") {
			quoted[i] = fmt.Sprintf("%q", key)
		}
	}
	return "[" + strings.Join(quoted, ".") + "]"
}
