package artifact

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"unicode/utf8"
)

const (
	maxPath    = 4096    // bytes of a name, Linux's PATH_MAX
	maxEntries = 1 << 20 // files, folders and symlinks of an artifact; some 100 bytes of memory each
)

// checkPath wants the name of something below a folder, of slashes: a/b/c.
func checkPath(p string) error {
	switch {
	case len(p) > maxPath:
		return fmt.Errorf("%q... is a name of %d bytes, more than %d", p[:64], len(p), maxPath)
	case p == ".", !fs.ValidPath(p), strings.ContainsRune(p, 0), !filepath.IsLocal(filepath.FromSlash(p)):
		return fmt.Errorf("%q is no name inside of a folder", p)
	}
	if first, _, _ := strings.Cut(p, "/"); strings.EqualFold(first, stageDir) {
		return fmt.Errorf("%q: the name %s is murder's own", p, stageDir)
	}
	return nil
}

// checkLink wants a symlink at p that leads nowhere out of the folder, whatever other symlinks of the folder it passes:
// it goes up only at its start, where the folders above it are real ones, and as far as the top at the most.
func checkLink(p, target string) error {
	rest, up := strings.TrimRight(target, "/"), 0 // of "/" nothing is left
	for rest == ".." || strings.HasPrefix(rest, "../") {
		rest = strings.TrimPrefix(strings.TrimPrefix(rest, ".."), "/")
		up++
	}
	inside := up <= strings.Count(p, "/") && (rest == "" && up > 0 || filepath.IsLocal(filepath.FromSlash(rest)) && rest == path.Clean(rest))
	if !inside || len(target) > maxPath || !utf8.ValidString(target) || strings.ContainsRune(target, 0) {
		return fmt.Errorf("symlink %q leads to %q: only those are kept that are relative and stay in the folder", p, target)
	}
	return nil
}

// names are what is in a folder, so that nothing is there twice and nothing lies below what is no folder. The folder
// itself is there from the start.
type names struct {
	mu  sync.Mutex // guards dir
	dir map[string]bool
}

func newNames() *names { return &names{dir: map[string]bool{".": true}} }

var errTwice = errors.New("is there twice")

// add takes p for a file, a symlink or a folder. The folders above it that were not there are given to mkdir, the
// uppermost first, and so is p when it is a new folder itself: before anyone else can put something into them.
func (n *names) add(p string, isDir bool, mkdir func(dir string) error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if wasDir, there := n.dir[p]; there && !(isDir && wasDir) {
		return fmt.Errorf("%q %w", p, errTwice)
	}
	var missing []string
	if isDir {
		missing = append(missing, p)
	}
	for up := path.Dir(p); ; up = path.Dir(up) {
		if wasDir, there := n.dir[up]; there {
			if !wasDir {
				return fmt.Errorf("%q lies below %q, which is no folder", p, up)
			}
			break
		}
		missing = append(missing, up)
	}
	for i := len(missing) - 1; i >= 0; i-- {
		if n.dir[missing[i]] {
			continue
		}
		if err := mkdir(missing[i]); err != nil {
			return err
		}
		n.dir[missing[i]] = true
	}
	n.dir[p] = isDir
	if len(n.dir) > maxEntries {
		return fmt.Errorf("more than %d files and folders", maxEntries)
	}
	return nil
}
