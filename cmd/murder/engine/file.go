package engine

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Beside FILE lie FILE.murder-backup, the file as it was before the first
// setup, and FILE.murder-setup, a record. No engine reads either: containerd
// looks for hosts.toml and certificates by suffix, podman for *.conf.
const (
	backupSuffix = ".murder-backup"
	recordSuffix = ".murder-setup"
)

// record is what Undo must know about a file that Setup wrote.
type record struct {
	// Mirror is the address that was written into the file.
	Mirror string `json:"mirror"`
	// Created says that there was no file before; then there is no backup.
	Created bool `json:"created"`
	// Wrote is the SHA-256 of the file as setup left it. Empty when a later
	// setup found edits of somebody else's: then the backup is too old to be
	// put back whole.
	Wrote string `json:"wrote,omitempty"`
	// Was is what stood where our part stands, if anything did. Its meaning
	// is the edit's.
	Was string `json:"was,omitempty"`
	// Folders are those that setup made for the file, outermost first.
	Folders []string `json:"folders,omitempty"`
}

// file is a configuration file as it was found.
type file struct {
	root string
	path string      // with the root before it
	data []byte      // empty when there is no file
	info fs.FileInfo // nil when there is no file
	rec  *record     // nil when no setup has touched it
}

// openFile reads the file at path below root. A path that leads somewhere
// else by a symbolic link is refused: replacing the link would part it from
// its target, and writing through it would change a file nobody named.
func openFile(root, path string) (*file, error) {
	f := &file{root: root, path: filepath.Join(root, path)}
	if err := f.inside(); err != nil {
		return nil, err
	}
	info, err := os.Lstat(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return f, f.readRecord()
	case err != nil:
		return nil, err
	case info.Mode()&fs.ModeSymlink != 0:
		target, _ := os.Readlink(f.path)
		return nil, fmt.Errorf("%s is a symbolic link to %s: name the file itself, or replace the link by a file", f.path, target)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", f.path)
	}
	f.info = info
	if f.data, err = os.ReadFile(f.path); err != nil {
		return nil, err
	}
	return f, f.readRecord()
}

// inside refuses a path that leaves the root by a symbolic link, as an
// absolute link inside an image's file tree does: it would reach the files of
// the machine that builds the image.
func (f *file) inside() error {
	if filepath.Clean(f.root) == "/" {
		return nil
	}
	root, err := filepath.EvalSymlinks(f.root)
	if err != nil {
		return fmt.Errorf("%s: %w", f.root, err)
	}
	dir := f.path
	for missing := true; missing; {
		dir = filepath.Dir(dir)
		_, err := os.Lstat(dir)
		missing = errors.Is(err, fs.ErrNotExist) && len(dir) > len(f.root)
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if real != root && !strings.HasPrefix(real, root+"/") {
		return fmt.Errorf("%s leads out of %s to %s by a symbolic link", dir, f.root, real)
	}
	return nil
}

func (f *file) readRecord() error {
	b, err := os.ReadFile(f.path + recordSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	f.rec = new(record)
	if err := json.Unmarshal(b, f.rec); err != nil {
		return fmt.Errorf("%s: %w", f.path+recordSuffix, err)
	}
	return nil
}

func sum(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

// unedited reports whether the file is byte for byte what setup wrote.
func (f *file) unedited() bool {
	return f.rec.Wrote == sum(f.data)
}

// merge completes the record of a setup that is going to write data.
func (f *file) merge(rec record, data []byte) record {
	rec.Wrote = sum(data)
	rec.Folders = f.missingFolders()
	if f.rec == nil {
		rec.Created = f.info == nil
		return rec
	}
	rec.Created = f.rec.Created
	rec.Folders = append(slices.Clone(f.rec.Folders), rec.Folders...)
	if f.info != nil && !f.unedited() {
		rec.Wrote = ""
	}
	return rec
}

// missingFolders are those above the file that do not exist, outermost first.
func (f *file) missingFolders() []string {
	var dirs []string
	for dir := filepath.Dir(f.path); ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); err == nil || dir == filepath.Dir(dir) {
			slices.Reverse(dirs)
			return dirs
		}
		rel, _ := filepath.Rel(f.root, dir)
		dirs = append(dirs, "/"+rel)
	}
}

// folders are those that setup made for the file, with the root before them.
func (f *file) folders() []string {
	var dirs []string
	for _, dir := range f.rec.Folders {
		dirs = append(dirs, filepath.Join(f.root, dir))
	}
	return dirs
}

// removeEmpty removes those of the folders that are empty, the inner ones
// first. One that holds something is in use, and stays.
func removeEmpty(dirs []string) {
	slices.SortFunc(dirs, func(a, b string) int { return len(b) - len(a) })
	for _, dir := range dirs {
		syscall.Rmdir(dir)
	}
}

// put writes the file as setup wants it. Backup and record come first, so
// that a crash in between leaves a file that undo can still take back.
func (f *file) put(data []byte, rec record) error {
	if err := os.MkdirAll(filepath.Dir(f.path), 0o755); err != nil {
		return err
	}
	if f.rec == nil && !rec.Created {
		if err := f.backup(); err != nil {
			return err
		}
	}
	b, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(f.path+recordSuffix, append(b, '\n'), nil); err != nil {
		return err
	}
	return writeFile(f.path, data, f.info)
}

// backup keeps the file as it is. A backup that lies there already is left
// alone: it is somebody's only copy of something.
func (f *file) backup() error {
	path := f.path + backupSuffix
	old, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return writeFile(path, f.data, f.info)
	case err != nil:
		return err
	case !bytes.Equal(old, f.data):
		return fmt.Errorf("%s is left from an earlier setup and differs from %s: move it away first", path, f.path)
	}
	return nil
}

// before is the file's content without our part: the backup where nobody
// edited the file since, else the file less our part.
func (f *file) before(e edit) ([]byte, kind, error) {
	if f.unedited() {
		data, err := os.ReadFile(f.path + backupSuffix)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return data, restore, err
		}
	}
	data, err := e.cut(f.data, *f.rec)
	if err == nil && f.rec.Created && e.blank(data) {
		return nil, remove, nil
	}
	return data, cut, err
}

// takeBack writes the file as undo wants it and drops what lay beside it.
func (f *file) takeBack(data []byte) error {
	if !bytes.Equal(data, f.data) {
		if err := writeFile(f.path, data, f.info); err != nil {
			return err
		}
	}
	return f.forgetAll()
}

// removeAll removes a file that setup made.
func (f *file) removeAll() error {
	if err := os.Remove(f.path); err != nil {
		return err
	}
	return f.forgetAll()
}

func (f *file) forgetAll() error {
	if !f.rec.Created {
		if err := os.Remove(f.path + backupSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return f.forget()
}

// forget drops the record. The backup of a file that its owner removed stays:
// it may be the only copy.
func (f *file) forget() error {
	return os.Remove(f.path + recordSuffix)
}

// writeFile puts data at path whole or not at all: a temporary file in the
// same folder, fsync, rename. Mode and owner are those of like, or 0644 and
// ours when like is nil.
func writeFile(path string, data []byte, like fs.FileInfo) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".murder-setup-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if _, err := tmp.Write(data); err != nil {
		return err
	}
	if err := dress(tmp, like); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// dress gives tmp the owner and mode of like. The owner goes first: a change
// of owner clears set-id bits.
func dress(tmp *os.File, like fs.FileInfo) error {
	if like == nil {
		return tmp.Chmod(0o644)
	}
	if st, ok := like.Sys().(*syscall.Stat_t); ok {
		now, err := tmp.Stat()
		if err != nil {
			return err
		}
		if n, ok := now.Sys().(*syscall.Stat_t); ok && (n.Uid != st.Uid || n.Gid != st.Gid) {
			if err := tmp.Chown(int(st.Uid), int(st.Gid)); err != nil {
				return err
			}
		}
	}
	return tmp.Chmod(like.Mode().Perm())
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
