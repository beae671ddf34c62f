package integration

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// tree is what a file tree holds, by slash-separated path without a leading
// slash. Two trees are the same files when sameTree finds no difference.
type tree map[string]node

// node is one file, folder or link of a tree.
type node struct {
	Mode     fs.FileMode // type, permissions, setuid, setgid, sticky
	UID, GID int
	Size     int64    // regular files
	Sum      [32]byte // SHA-256 of a regular file's bytes
	Target   string   // of a symbolic link
	Modified int64    // Unix seconds; 0 for folders, whose times unpacking changes
	Group    string   // first path of the hard links to one file; "" for a single one
}

// modeBits are the parts of a mode that an image carries.
const modeBits = fs.ModeType | fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky

// readTree reads the files below dir.
func readTree(dir string) (tree, error) {
	tr := tree{}
	groups := map[uint64]string{} // inode to first path
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || file == dir {
			return err
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		n, err := readNode(file, info)
		if err != nil {
			return err
		}
		if stat := info.Sys().(*syscall.Stat_t); stat.Nlink > 1 && info.Mode().IsRegular() {
			if groups[stat.Ino] == "" {
				groups[stat.Ino] = name // WalkDir goes in lexical order
			}
			n.Group = groups[stat.Ino]
		}
		tr[name] = n
		return nil
	})
	tr.dropSingleGroups()
	return tr, err
}

func readNode(file string, info fs.FileInfo) (node, error) {
	stat := info.Sys().(*syscall.Stat_t)
	n := node{Mode: info.Mode() & modeBits, UID: int(stat.Uid), GID: int(stat.Gid)}
	if !info.IsDir() {
		n.Modified = info.ModTime().Unix()
	}
	var err error
	switch {
	case info.Mode().IsRegular():
		n.Size = info.Size()
		n.Sum, err = sumFile(file)
	case info.Mode()&fs.ModeSymlink != 0:
		n.Target, err = os.Readlink(file)
	}
	return n, err
}

func sumFile(file string) (sum [32]byte, err error) {
	f, err := os.Open(file)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return [32]byte(h.Sum(nil)), err
}

// The marks of deleted files in a layer (image-spec, layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	opaqueMark     = ".wh..wh..opq"
)

// apply puts a layer on the tree, deletions included.
func (tr tree) apply(layer io.Reader) error {
	r := tar.NewReader(layer)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			tr.dropSingleGroups()
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.Trim(path.Clean("/"+h.Name), "/")
		base := path.Base(name)
		switch {
		case name == "":
		case base == opaqueMark:
			tr.remove(path.Dir(name), false)
		case strings.HasPrefix(base, whiteoutPrefix):
			tr.remove(path.Join(path.Dir(name), strings.TrimPrefix(base, whiteoutPrefix)), true)
		default:
			if err := tr.add(name, h, r); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
}

func (tr tree) add(name string, h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeLink {
		target := strings.Trim(path.Clean("/"+h.Linkname), "/")
		n, ok := tr[target]
		if !ok {
			return fmt.Errorf("hard link to %s, which is not there", target)
		}
		if n.Group == "" {
			n.Group = target
			tr[target] = n
		}
		tr[name] = n
		return nil
	}
	info := h.FileInfo()
	n := node{Mode: info.Mode() & modeBits, UID: h.Uid, GID: h.Gid}
	if !info.IsDir() {
		n.Modified = h.ModTime.Unix()
		if _, replaces := tr[name]; replaces {
			tr.remove(name, true)
		}
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		n.Target = h.Linkname
	case tar.TypeReg:
		sum := sha256.New()
		size, err := io.Copy(sum, content)
		if err != nil {
			return err
		}
		n.Size, n.Sum = size, [32]byte(sum.Sum(nil))
	}
	tr[name] = n
	return nil
}

// remove drops what is below name, and name itself too when self is set.
func (tr tree) remove(name string, self bool) {
	if n, ok := tr[name]; ok && !n.Mode.IsDir() { // nothing below it: spare the walk
		delete(tr, name)
		return
	}
	if self {
		delete(tr, name)
	}
	for other := range tr {
		if strings.HasPrefix(other, name+"/") {
			delete(tr, other)
		}
	}
}

// dropSingleGroups names each group after its first member and forgets the
// groups of one, so that trees read in different ways compare equal.
func (tr tree) dropSingleGroups() {
	members := map[string][]string{}
	for name, n := range tr {
		if n.Group != "" {
			members[n.Group] = append(members[n.Group], name)
		}
	}
	for _, names := range members {
		slices.Sort(names)
		for _, name := range names {
			n := tr[name]
			n.Group = names[0]
			if len(names) == 1 {
				n.Group = ""
			}
			tr[name] = n
		}
	}
}

// Size is the sum of the files' bytes.
func (tr tree) Size() int64 {
	var sum int64
	for _, n := range tr {
		sum += n.Size
	}
	return sum
}

// sameTree fails the test with the first differences between the two trees.
func sameTree(t testing.TB, what string, got, want tree) {
	t.Helper()
	const shown = 20
	differences := 0
	names := maps.Clone(want)
	maps.Copy(names, got)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		g, inGot := got[name]
		w, inWant := want[name]
		if inGot == inWant && g == w {
			continue
		}
		if differences++; differences > shown {
			continue
		}
		switch {
		case !inGot:
			t.Errorf("%s: %s is missing", what, name)
		case !inWant:
			t.Errorf("%s: %s is there and should not be", what, name)
		default:
			t.Errorf("%s: %s = %+v, want %+v", what, name, g, w)
		}
	}
	if differences > shown {
		t.Errorf("%s: %d differences in all", what, differences)
	}
}

// contains tells where word is: "the log", a file below dir, or "" for nowhere.
func contains(t testing.TB, log, dir, word string) (where string) {
	t.Helper()
	if strings.Contains(log, word) {
		return "the log"
	}
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // a daemon at work removes files
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if strings.Contains(string(content), word) {
			where = file
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return where
}
