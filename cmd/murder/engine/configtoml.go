package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// configToml is containerd's own configuration, of which setup needs one key:
// config_path of the CRI plugin's registry section, a list of folders with
// colons between.
type configToml struct {
	root, path string
	file       *file
	doc        map[string]any
	version    int64
	section    []string // the table that config_path belongs in, in this version
	dirs       []string // what config_path says, in this file or one it imports
	from       string   // the file that says so
}

// The CRI plugin's registry section, in each version of config.toml. A newer
// containerd takes an older version and migrates it (2.4 still takes 1), so a
// file that setup makes is of version 2, which 1.3 and later read.
var (
	sectionV1 = []string{"plugins", "cri", "registry"}
	sectionV2 = []string{"plugins", "io.containerd.grpc.v1.cri", "registry"}
	sectionV3 = []string{"plugins", "io.containerd.cri.v1.images", "registry"}
)

func parseConfigToml(root, path string, f *file) (*configToml, error) {
	doc, err := decodeTOML(f.data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.path, err)
	}
	t := &configToml{root: root, path: path, file: f, doc: doc}
	t.version, _ = doc["version"].(int64)
	switch {
	case t.version > 2:
		t.section = sectionV3
	case t.version == 2 || len(doc) == 0:
		t.section = sectionV2
	default:
		t.section = sectionV1
	}
	t.dirs, t.from = pathList(lookup(doc, t.key()...)), f.path
	return t, t.readImports()
}

func (t *configToml) key() []string {
	return append(slices.Clone(t.section), "config_path")
}

func pathList(v any) []string {
	s, _ := v.(string)
	return slices.DeleteFunc(filepath.SplitList(s), func(dir string) bool { return dir == "" })
}

// readImports looks for the section in the files that config.toml imports.
// What an imported file says wins: up to containerd 1.7 its plugin section
// replaces the whole of the one here, so that is where config_path must be.
func (t *configToml) readImports() error {
	imports, _ := t.doc["imports"].([]any)
	for _, v := range imports {
		pattern, _ := v.(string)
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(t.path), pattern)
		}
		files, err := filepath.Glob(filepath.Join(t.root, pattern))
		if err != nil {
			return fmt.Errorf("%s: imports %q: %w", t.file.path, pattern, err)
		}
		for _, name := range files {
			if err := t.readImport(name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *configToml) readImport(name string) error {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	doc, err := decodeTOML(data)
	if err != nil {
		return fmt.Errorf("%s, which %s imports: %w", name, t.file.path, err)
	}
	for _, section := range [][]string{sectionV1, sectionV2, sectionV3} {
		if lookup(doc, section[:2]...) == nil {
			continue
		}
		t.section, t.from = section, name
		t.dirs = pathList(lookup(doc, append(slices.Clone(section), "config_path")...))
	}
	return nil
}

// setup plans what config.toml needs so that certs is looked into.
func (t *configToml) setup(p *Plan, certs string) error {
	ours := t.file.rec != nil
	switch {
	case t.criOff():
		p.note("The CRI plugin is switched off in %s, so no kubelet pulls through this containerd; the file is left as it is.", t.file.path)
		return nil
	case len(t.dirs) > 0 && !slices.Contains(t.dirs, certs) && !ours:
		return fmt.Errorf("%s: %w: config_path there names %s, not %s; give the former as --certs-dir, or change config_path",
			t.from, ErrConflict, strings.Join(t.dirs, ":"), certs)
	case len(t.dirs) > 1 && !t.othersEmpty(certs):
		p.note("%s names several folders in config_path. containerd 2.1 and later take such a list for the name of one folder when the kubelet pulls (containerd issue 12808) and then find no hosts.toml: keep to one folder there.", t.from)
		return nil
	case len(t.dirs) == 1 && !ours:
		p.steps = append(p.steps, step{file: t.file, why: ": config_path is set already"})
		return nil
	case t.from != t.file.path:
		return errByHand(t.from, "this imported file configures the CRI plugin", t.section, certs)
	}
	if err := t.againstMirrors(certs); err != nil {
		return err
	}
	if err := p.setup(t.file, t.edit(certs)); err != nil {
		return err
	}
	if p.steps[len(p.steps)-1].kind == set {
		p.note("config.toml is read when containerd starts: `systemctl restart containerd` (containers go on running).")
	}
	return nil
}

// undo plans the way back.
func (t *configToml) undo(p *Plan) error {
	if t.file.rec == nil {
		return nil
	}
	if err := p.undo(t.file, t.edit("")); err != nil {
		return err
	}
	p.note("config.toml is read when containerd starts: `systemctl restart containerd` (containers go on running).")
	return nil
}

// criOff reports whether containerd has been told not to load the plugin that
// config_path is for, as Docker's packages of containerd do.
func (t *configToml) criOff() bool {
	off, _ := t.doc["disabled_plugins"].([]any)
	return slices.Contains(off, any("cri")) || slices.Contains(off, any(t.section[1])) ||
		slices.Contains(off, any("io.containerd.grpc.v1.cri"))
}

// othersEmpty reports whether none of the listed folders but certs holds
// anything, so that the list may be made the one folder without loss.
func (t *configToml) othersEmpty(certs string) bool {
	for _, dir := range t.dirs {
		if entries, _ := os.ReadDir(filepath.Join(t.root, dir)); dir != certs && len(entries) > 0 {
			return false
		}
	}
	return true
}

// againstMirrors refuses the settings that containerd does not allow beside
// config_path: it would start without its CRI plugin.
func (t *configToml) againstMirrors(certs string) error {
	registry, _ := lookup(t.doc, t.section...).(map[string]any)
	if mirrors, _ := registry["mirrors"].(map[string]any); len(mirrors) > 0 {
		return errByHand(t.file.path, "registry.mirrors is set, beside which containerd refuses config_path; move these mirrors to hosts.toml files", t.section, certs)
	}
	configs, _ := registry["configs"].(map[string]any)
	for host, v := range configs {
		if config, _ := v.(map[string]any); config["tls"] != nil {
			return errByHand(t.file.path, fmt.Sprintf("registry.configs.%q.tls is set, beside which containerd refuses config_path; move it to hosts.toml", host), t.section, certs)
		}
	}
	return nil
}

func (t *configToml) edit(certs string) edit {
	return edit{
		add:   func(base []byte) ([]byte, record, error) { return t.add(base, certs) },
		cut:   t.cut,
		blank: blankTOML,
	}
}

// add sets config_path with as little change as the text allows: the value in
// place if the key is there, a line in the section if that is there, else the
// section at the end.
func (t *configToml) add(base []byte, certs string) ([]byte, record, error) {
	rec := record{Mirror: certs}
	line := fmt.Sprintf("  config_path = %q\n", certs)
	var data []byte
	if start, end, ok := literal(base, t.key()...); ok {
		rec.Was = string(base[start:end])
		data = slices.Concat(base[:start], fmt.Appendf(nil, "%q", certs), base[end:])
	} else if h, ok := t.header(base); ok {
		data = insert(base, h.end, block(line))
	} else if doc, err := decodeTOML(base); err == nil && len(doc) == 0 {
		data = insert(base, len(base), block("version = 2\n"+tableName(t.section)+"\n"+line))
		return data, rec, nil
	} else {
		data = insert(base, len(base), block(tableName(t.section)+"\n"+line))
	}
	if !sameBut(base, data, t.key()...) {
		return nil, rec, errByHand(t.file.path, "the CRI plugin's section is written in a way murder cannot add to", t.section, certs)
	}
	return data, rec, nil
}

func (t *configToml) header(data []byte) (header, bool) {
	list := headers(data)
	i := slices.IndexFunc(list, func(h header) bool { return slices.Equal(h.path, t.section) })
	if i < 0 {
		return header{}, false
	}
	return list[i], true
}

// cut takes our part out: the block, or the value that we put in the place of
// another if it is still ours.
func (t *configToml) cut(data []byte, rec record) ([]byte, error) {
	data, err := cutBlock(data)
	if err != nil || rec.Was == "" {
		return data, err
	}
	start, end, ok := literal(data, t.key()...)
	if !ok || string(data[start:end]) != fmt.Sprintf("%q", rec.Mirror) {
		return data, nil
	}
	return slices.Concat(data[:start], []byte(rec.Was), data[end:]), nil
}
