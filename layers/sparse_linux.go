package layers

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// Values of lseek(2)'s whence.
const (
	seekData = 3
	seekHole = 4
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

// allocated returns the bytes a file takes on disk, which for a sparse one is less
// than its size.
func allocated(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return min(fi.Size(), st.Blocks*512) // 512 whatever the block size: stat(2)
	}
	return fi.Size()
}
