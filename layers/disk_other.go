//go:build !linux

package layers

import (
	"errors"
	"io/fs"
	"os"
	"time"
)

// dataAfter takes all of f from off for data.
func dataAfter(f *os.File, off int64) (from, to int64, ok bool, err error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, 0, false, err
	}
	return off, fi.Size(), off < fi.Size(), nil
}

// taken takes a file for as large as it says.
func taken(fi fs.FileInfo) int64 { return fi.Size() }

// reserve reserves nothing.
func reserve(_ *os.File, _, _ int64) error { return nil }

func giveBack(*os.File, int64, int64) error { return nil }

// diskFree cannot tell.
func diskFree(string) (int64, error) { return 0, errors.ErrUnsupported }

// device takes all for one.
func device(path string) (uint64, error) {
	_, err := os.Stat(path)
	return 0, err
}

// lock locks nothing.
func lock(*os.File) error { return nil }

func openQuietly(path string) (*os.File, error) { return os.Open(path) }

func forgetCached(*os.File, int64, int64) {}

// stampOf goes by what all systems tell of a file.
func stampOf(fi fs.FileInfo) stamp {
	return stamp{size: fi.Size(), mtime: fi.ModTime().UnixNano()}
}

func changedAt(fi fs.FileInfo) time.Time { return fi.ModTime() }
