package layers

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Values of lseek(2)'s whence, and a mode of fallocate(2).
const (
	seekData = 3
	seekHole = 4

	fallocKeepSize  = 1
	fallocPunchHole = 2
)

// dataAfter returns the first run [from, to) of f at or after off that may hold data;
// ok is false when only a hole follows. Where the file system cannot tell holes, all
// is data.
func dataAfter(f *os.File, off int64) (from, to int64, ok bool, err error) {
	from, err = f.Seek(off, seekData)
	if errors.Is(err, syscall.ENXIO) {
		return 0, 0, false, nil
	}
	if err != nil {
		return 0, 0, false, err
	}
	to, err = f.Seek(from, seekHole)
	return from, to, err == nil, err
}

// taken returns the bytes a file takes on disk, which for a sparse one is less than its
// size, and more where some are reserved.
func taken(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512 // 512 whatever the block size: stat(2)
	}
	return fi.Size()
}

// reserve takes the blocks that n bytes of f from off on need. f's length stays what it
// is. Where the file system cannot, nothing is reserved.
func reserve(f *os.File, off, n int64) error {
	err := syscall.Fallocate(int(f.Fd()), fallocKeepSize, off, n)
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return os.NewSyscallError("fallocate", err)
}

// giveBack undoes reserve for n bytes of f from off on, to which nothing was written that
// is of use. f's length stays what it is.
func giveBack(f *os.File, off, n int64) error {
	fi, err := f.Stat()
	if err == nil && off < fi.Size() {
		err = syscall.Fallocate(int(f.Fd()), fallocPunchHole|fallocKeepSize, off, n)
	}
	if err == nil && off+n > fi.Size() {
		err = f.Truncate(fi.Size()) // what is reserved behind the end goes by this alone
	}
	return err
}

// openQuietly opens a file for reading without that being noted as its atime, where we
// may.
func openQuietly(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOATIME, 0)
	if errors.Is(err, syscall.EPERM) {
		return os.Open(path)
	}
	return f, err
}

// forgetCached lets the kernel drop what it has cached of n bytes of f from off on.
func forgetCached(f *os.File, off, n int64) {
	_ = unix.Fadvise(int(f.Fd()), off, n, unix.FADV_DONTNEED)
}

// diskFree returns how many bytes an ordinary user may still write to the disk of dir.
func diskFree(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, os.NewSyscallError("statfs", err)
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// device returns the device that path lies on.
func device(path string) (uint64, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return uint64(st.Dev), nil
}

// lock takes f for this process, until f is closed. It returns errLocked when another
// process has it.
func lock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return errLocked
	}
	return os.NewSyscallError("flock", err)
}

// stampOf returns what tells this state of a file from others.
func stampOf(fi fs.FileInfo) stamp {
	st := stamp{size: fi.Size(), mtime: fi.ModTime().UnixNano(), ctime: changedAt(fi).UnixNano()}
	if sys, ok := fi.Sys().(*syscall.Stat_t); ok {
		st.device, st.inode = uint64(sys.Dev), sys.Ino
	}
	return st
}

// changedAt returns when a file was changed last, by whatever call.
func changedAt(fi fs.FileInfo) time.Time {
	if sys, ok := fi.Sys().(*syscall.Stat_t); ok {
		return time.Unix(sys.Ctim.Unix())
	}
	return fi.ModTime()
}
