package artifact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/opencontainers/go-digest"
)

// stageDir is where files lie below their folder until all of them are there and right. What a killed run has left of
// it is removed by the next.
const stageDir = ".murder-fetch"

var (
	// ErrNotEmpty is the error of [OpenStage] for a folder in which there is something already.
	ErrNotEmpty = errors.New("is not empty")
	// ErrBusy is its error while another Stage is at work in the folder.
	ErrBusy = errors.New("another fetch is at work in it")
	// ErrDiskFull is in the chain of errors of a disk without room.
	ErrDiskFull = errors.New("the disk is full")
)

// StageOptions say how an artifact becomes a folder.
type StageOptions struct {
	// Overwrite admits a folder that is not empty: files of the same names are replaced, others stay.
	Overwrite bool
	// KeepSetuid keeps the setuid, setgid and sticky bits of files and folders, which are dropped otherwise.
	KeepSetuid bool
}

// Stage is a folder that gets the files of an artifact: all of them at [Stage.Commit], once they are verified, or none.
//
// Whatever the artifact says, nothing is written outside of the folder, nor through a symlink; no symlink is made that
// leads out of it; nothing is made but files, folders and symlinks, and each name once.
type Stage struct {
	opts  StageOptions
	dir   string   // as the user named it
	made  bool     // dir was not there
	root  *os.Root // of dir
	stage *os.Root // of stageDir in it
	lock  *os.File
	names *names

	mu    sync.Mutex // guards what follows
	modes map[string]fs.FileMode
	files int
}

// OpenStage makes dir, if it is not there, and a place in it for what is to come.
func OpenStage(dir string, opts StageOptions) (*Stage, error) {
	s := &Stage{opts: opts, dir: dir, names: newNames(), modes: make(map[string]fs.FileMode)}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return nil, err
		}
		s.made = true
	}
	var err error
	if s.root, err = os.OpenRoot(dir); err != nil {
		return nil, err
	}
	if !opts.Overwrite {
		err = s.checkEmpty()
	}
	if err == nil {
		err = s.openStage()
	}
	if err != nil {
		s.release()
		return nil, err
	}
	return s, nil
}

// checkEmpty wants nothing in the folder but what a run has left, and what a file system has of itself.
func (s *Stage) checkEmpty() error {
	entries, err := fs.ReadDir(s.root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); name != stageDir && name != "lost+found" {
			return fmt.Errorf("%s %w: there is %q", s.dir, ErrNotEmpty, name)
		}
	}
	return nil
}

// openStage takes stageDir for this run, and removes what a killed one has left there.
func (s *Stage) openStage() error {
	if err := s.root.Mkdir(stageDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return s.diskError(err)
	}
	if info, err := s.root.Lstat(stageDir); err != nil || !info.IsDir() {
		return fmt.Errorf("%s is in the way: %s is murder's own, and a folder", path.Join(s.dir, stageDir), stageDir)
	}
	var err error
	if s.stage, err = s.root.OpenRoot(stageDir); err != nil {
		return err
	}
	if s.lock, err = s.stage.Open("."); err != nil {
		return err
	}
	if err := lock(s.lock); err != nil {
		s.stage.Close()
		s.stage = nil // it is the other's to remove
		return fmt.Errorf("%s: %w", s.dir, err)
	}
	if now, err := s.root.Stat(stageDir); err != nil || !sameFile(now, s.lock) { // its end was at this moment
		s.stage.Close()
		s.stage = nil
		return fmt.Errorf("%s: %w", s.dir, ErrBusy)
	}
	left, err := fs.ReadDir(s.stage.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := removeAll(s.stage, e.Name()); err != nil {
			return err
		}
	}
	return nil
}

func sameFile(info fs.FileInfo, f *os.File) bool {
	other, err := f.Stat()
	return err == nil && os.SameFile(info, other)
}

// removeAll removes also what lies in folders that were made without the right to write to them.
func removeAll(root *os.Root, name string) error {
	if root.RemoveAll(name) == nil {
		return nil
	}
	fs.WalkDir(root.FS(), name, func(p string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			root.Chmod(p, 0o700)
		}
		return nil
	})
	return root.RemoveAll(name)
}

// Close removes what has not been committed, and the folder if it was made for that.
func (s *Stage) Close() error {
	if s.root == nil {
		return nil
	}
	s.release()
	s.root = nil
	return nil
}

func (s *Stage) release() {
	if s.stage != nil {
		s.stage.Close()
		removeAll(s.root, stageDir)
	}
	if s.lock != nil {
		s.lock.Close()
	}
	s.root.Close()
	if s.made {
		os.Remove(s.dir) // if it is empty
	}
}

// Files is how many files there are so far.
func (s *Stage) Files() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files
}

// Add takes a layer, of a manifest that [Parse] has read, as r brings it. Several may be added at the same time. An
// error ends the whole artifact.
func (s *Stage) Add(ctx context.Context, l Layer, r io.Reader, read func(n int)) error {
	blob := &verified{ctx: ctx, r: r, digester: l.Digest.Algorithm().Digester(), left: l.Size, read: read}
	var err error
	if l.Tar {
		err = s.addTar(l, blob)
	} else {
		err = s.addFile(l, blob)
	}
	if err == nil {
		err = blob.finish(l)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", l.Title, s.diskError(err))
	}
	return nil
}

func (s *Stage) addFile(l Layer, r io.Reader) error {
	mode := l.mode
	if mode == 0 {
		return s.write(l.Title, defaultFileMode, false, r)
	}
	return s.write(l.Title, mode&^modeSaid, true, r)
}

// write makes a file; a mode that was not said is subject to the umask, as all that people make.
func (s *Stage) write(p string, mode fs.FileMode, said bool, r io.Reader) error {
	if err := s.names.add(p, false, s.mkdir); err != nil {
		return err
	}
	f, err := s.stage.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode.Perm())
	if err != nil {
		return err
	}
	_, err = copyTo(context.Background(), f, r, nil) // r ends with the context
	if err == nil && said {
		err = f.Chmod(s.allowed(mode))
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	s.count()
	return err
}

func (s *Stage) count() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files++
}

func (s *Stage) allowed(mode fs.FileMode) fs.FileMode {
	if s.opts.KeepSetuid {
		return mode
	}
	return mode.Perm()
}

func (s *Stage) mkdir(p string) error { return s.stage.Mkdir(p, defaultDirMode) }

// verified is a layer's blob as it is read: no more than its size, until its context ends.
type verified struct {
	ctx      context.Context
	r        io.Reader
	digester digest.Digester
	left     int64
	read     func(n int)
}

func (v *verified) Read(b []byte) (int, error) {
	if v.ctx.Err() != nil {
		return 0, context.Cause(v.ctx)
	}
	if v.left == 0 {
		return 0, io.EOF
	}
	n, err := v.r.Read(b[:min(int64(len(b)), v.left)])
	v.digester.Hash().Write(b[:n])
	v.left -= int64(n)
	if n > 0 && v.read != nil {
		v.read(n)
	}
	switch {
	case v.left == 0:
		err = nil // finish looks whether this is the end
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// finish reads what nobody wanted of the blob, and tells whether it is the right one.
func (v *verified) finish(l Layer) error {
	if _, err := copyTo(v.ctx, io.Discard, v, nil); err != nil {
		return err
	}
	if got := v.digester.Digest(); got != l.Digest {
		return fmt.Errorf("the bytes that came are not those of %s", l.Digest)
	}
	return nil
}

// diskError says of an error of the disk whose it is.
func (s *Stage) diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %s: %w", ErrDiskFull, s.dir, err)
	}
	return err
}

// Commit gives all that was added its name in the folder, and returns the names, of what was there before, that now
// stand for something else. On an error that is found before the first name is given the folder is as it was.
func (s *Stage) Commit() (overwritten []string, err error) {
	if err := flush(s.lock); err != nil {
		return nil, s.diskError(err)
	}
	moves, overwritten, err := s.moves()
	if err != nil {
		return nil, err
	}
	for i, p := range moves {
		if err := s.root.Rename(path.Join(stageDir, p), p); err != nil {
			return nil, s.diskError(fmt.Errorf("after %d of %d had been moved into %s: %w", i, len(moves), s.dir, err))
		}
	}
	if err := s.chmod(); err != nil {
		return nil, err
	}
	s.made = false
	return overwritten, s.diskError(flush(s.lock))
}

// moves are the renames that take all into the folder: of whole folders, where they are new. Nothing is in their way
// but files and symlinks where files and symlinks are to be, and folders where folders are.
func (s *Stage) moves() (moves, overwritten []string, err error) {
	var all []string
	for p := range s.names.dir {
		if p != "." {
			all = append(all, p)
		}
	}
	slices.Sort(all)
	moved := make(map[string]bool)
	for _, p := range all {
		if moved[path.Dir(p)] {
			moved[p] = s.names.dir[p]
			continue
		}
		isDir := s.names.dir[p]
		info, err := s.root.Lstat(p)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			moves = append(moves, p)
			moved[p] = isDir
		case err != nil:
			return nil, nil, err
		case isDir && info.IsDir():
		case isDir || info.IsDir() || !info.Mode().IsRegular() && info.Mode()&fs.ModeSymlink == 0:
			return nil, nil, fmt.Errorf("%s: %q is a %s there, and a %s of the artifact; nothing has been changed",
				s.dir, p, wordOf(info.Mode()), map[bool]string{true: "folder", false: "file"}[isDir])
		default:
			moves, overwritten = append(moves, p), append(overwritten, p)
		}
	}
	return moves, overwritten, nil
}

func wordOf(m fs.FileMode) string {
	switch {
	case m.IsRegular():
		return "file"
	case m&fs.ModeSymlink != 0:
		return "symlink"
	default:
		return kindOf(m)
	}
}

// chmod gives folders their modes at last, those below first: one may be without the right to write to it.
func (s *Stage) chmod() error {
	var dirs []string
	for p := range s.modes {
		dirs = append(dirs, p)
	}
	slices.SortFunc(dirs, func(a, b string) int { return strings.Compare(b, a) })
	for _, p := range dirs {
		if err := s.root.Chmod(p, s.allowed(s.modes[p])); err != nil {
			return err
		}
	}
	return nil
}
