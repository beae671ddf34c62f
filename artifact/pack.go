package artifact

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"
)

// PackOptions say how a folder becomes an artifact.
type PackOptions struct {
	// FollowLinks takes symlinks to files for the files themselves, wherever they lie.
	FollowLinks bool
}

// Folder is a folder on its way to be an artifact.
type Folder struct {
	Sources []*Source // one for each layer, in the manifest's order
	Files   int
	root    *os.Root
}

// Close releases the folder.
func (f *Folder) Close() error { return f.root.Close() }

// Bytes is how much is to be read of all files together.
func (f *Folder) Bytes() (n int64) {
	for _, s := range f.Sources {
		n += s.Bytes()
	}
	return n
}

// entry is a file, a folder or a symlink as the folder was looked through.
type entry struct {
	path     string // below the folder
	mode     fs.FileMode
	size     int64
	modified time.Time
	link     string // of a symlink
	outside  string // where a file lies whose symlink is followed; "" = at path
	empty    bool   // of a folder
}

// Pack looks through dir, which may be a single file as well, and says of which layers it will be. Nothing is read of
// the files yet. An error names what cannot be kept.
func Pack(dir string, opts PackOptions) (*Folder, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return packFile(dir, info)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	f := &Folder{root: root}
	entries, err := f.scan(opts)
	if err == nil && len(entries) == 0 {
		err = fmt.Errorf("%s is empty", dir)
	}
	if err != nil {
		root.Close()
		return nil, err
	}
	f.Sources = plan(entries)
	for _, s := range f.Sources {
		s.root = root
	}
	return f, nil
}

func packFile(file string, info fs.FileInfo) (*Folder, error) {
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is neither a folder nor a file", file)
	}
	file, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	e := &entry{path: filepath.Base(file), mode: info.Mode(), size: info.Size(), modified: info.ModTime(), outside: file}
	if err := checkPath(e.path); err != nil {
		root.Close()
		return nil, err
	}
	return &Folder{root: root, Files: 1, Sources: []*Source{{title: e.path, entries: []*entry{e}, root: root}}}, nil
}

// scan lists what is in the folder, in the order of its names.
func (f *Folder) scan(opts PackOptions) ([]*entry, error) {
	var entries []*entry
	parents := make(map[string]*entry)
	err := fs.WalkDir(f.root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == "." {
			return err
		}
		if err := checkPath(p); err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		e, err := f.entryOf(p, info, opts)
		if err != nil {
			return err
		}
		if parent := parents[path.Dir(p)]; parent != nil {
			parent.empty = false
		}
		if e.mode.IsDir() {
			e.empty = true
			parents[p] = e
		}
		if e.mode.IsRegular() {
			f.Files++
		}
		if entries = append(entries, e); len(entries) > maxEntries {
			return fmt.Errorf("%s holds more than %d files and folders", f.root.Name(), maxEntries)
		}
		return nil
	})
	return entries, err
}

func (f *Folder) entryOf(p string, info fs.FileInfo, opts PackOptions) (*entry, error) {
	e := &entry{path: p, mode: info.Mode(), size: info.Size(), modified: info.ModTime()}
	switch {
	case e.mode.IsDir():
		e.size = 0
		return e, nil
	case e.mode.IsRegular():
		return e, nil
	case e.mode&fs.ModeSymlink == 0:
		return nil, fmt.Errorf("%q is a %s: only files, folders and symlinks can be sent", p, kindOf(e.mode))
	}
	target, err := f.root.Readlink(p)
	if err != nil {
		return nil, err
	}
	if opts.FollowLinks {
		outside := filepath.Join(f.root.Name(), filepath.FromSlash(p))
		info, err := os.Stat(outside)
		if err != nil {
			return nil, fmt.Errorf("follow symlink %q: %w", p, err)
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("symlink %q leads to %q, a %s: only those to files can be followed", p, target, kindOf(info.Mode()))
		}
		return &entry{path: p, mode: info.Mode(), size: info.Size(), modified: info.ModTime(), outside: outside}, nil
	}
	target = filepath.ToSlash(target)
	if err := checkLink(p, target); err != nil {
		return nil, err
	}
	e.link, e.size = target, 0
	return e, nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "folder"
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeDevice != 0:
		return "device"
	default:
		return "special file"
	}
}

const (
	fewFiles = 64      // a folder of no more has each as a layer, whatever its size
	ownLayer = 1 << 20 // bytes from which on a file is a layer of its own
	// maxOwn bounds those layers: each costs some 300 bytes of a manifest of 4 MiB. The largest files have them.
	maxOwn = 2000
	// A tar has about so many bytes, and so has what is sent for one changed file; more, where that would be too many.
	tarUnit = 4 << 20
	// maxTars is how many are about too many.
	maxTars = 1024
)

// plan divides entries, in the order of their paths, into layers.
func plan(entries []*entry) []*Source {
	own := ownLayers(entries)
	var sources []*Source
	var rest []*entry
	folders := make(map[string]*entry)
	for _, e := range entries {
		if e.mode.IsDir() {
			folders[e.path] = e
		}
		switch {
		case own[e]:
			sources = append(sources, &Source{title: e.path, entries: []*entry{e}})
		case !e.mode.IsDir(), e.empty, octal(e.mode) != int64(defaultDirMode): // others make themselves
			rest = append(rest, e)
		}
	}
	for i, part := range cut(rest) {
		sources = append(sources, &Source{title: nameOfTar(i), tar: true, entries: withFolders(part, folders)})
	}
	sortSources(sources)
	return sources
}

// cut divides entries into parts of about [tarUnit]. A part ends where the hash of a name says so, and not where so many
// bytes are full: what comes or goes moves the next border at the most, and the parts after it stay what they were.
func cut(entries []*entry) (parts [][]*entry) {
	var total int64
	for _, e := range entries {
		total += tarSize(e)
	}
	unit := int64(tarUnit)
	for unit*maxTars < total { // doubled, so that a few bytes more do not move all borders
		unit *= 2
	}
	begin, size := 0, int64(0)
	for i, e := range entries {
		size += tarSize(e)
		hash := sha256.Sum256([]byte(e.path))
		chance := uint64(tarSize(e)) << 32 / uint64(unit) // one border in unit bytes, whatever the files' sizes
		if size >= 4*unit || size >= unit/4 && uint64(binary.BigEndian.Uint32(hash[:])) < chance {
			parts = append(parts, entries[begin:i+1])
			begin, size = i+1, 0
		}
	}
	if begin < len(entries) {
		parts = append(parts, entries[begin:])
	}
	return parts
}

// nameOfTar is the title of the i-th tar. All are of the folder itself, but ORAS wants names of which no two are alike:
// they are ways to write ".", with the digits of i after it.
func nameOfTar(i int) string {
	title := "."
	for ; i > 0; i /= 2 {
		title += []string{"/", "/."}[i%2]
	}
	return title
}

// withFolders is a part with the folders above each entry, which ORAS does not make of itself.
func withFolders(part []*entry, folders map[string]*entry) []*entry {
	var all []*entry
	listed := make(map[string]bool)
	var add func(e *entry)
	add = func(e *entry) {
		if e == nil || listed[e.path] {
			return
		}
		listed[e.path] = true
		add(folders[path.Dir(e.path)])
		all = append(all, e)
	}
	for _, e := range part {
		add(e)
	}
	return all
}

// ownLayers are the files that are layers of their own. Registries do not like empty ones.
func ownLayers(entries []*entry) map[*entry]bool {
	least, files := int64(ownLayer), 0
	for _, e := range entries {
		if e.mode.IsRegular() {
			files++
		}
	}
	if files <= fewFiles {
		least = 1
	}
	var large []*entry
	for _, e := range entries {
		if e.mode.IsRegular() && e.size >= least {
			large = append(large, e)
		}
	}
	slices.SortStableFunc(large, func(a, b *entry) int {
		switch {
		case a.size > b.size:
			return -1
		case a.size < b.size:
			return 1
		}
		return 0
	})
	own := make(map[*entry]bool)
	for _, e := range large[:min(len(large), maxOwn)] {
		own[e] = true
	}
	return own
}

// tarSize is about what an entry takes of a tar.
func tarSize(e *entry) int64 { return 512 + e.size }

var errChanged = errors.New("has changed while it was read")
