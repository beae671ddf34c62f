package layers

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// tempPrefix marks files that are being written. OpenStore removes what a crash left.
const tempPrefix = "tmp-"

// buffers are what whole blobs are read through: large enough that the system calls
// do not show, pooled so that memory does not grow with the count of blobs.
var buffers = sync.Pool{New: func() any { b := make([]byte, 1<<20); return &b }}

// readSmall returns the content of a file of ours, unless what lies there is none, or larger
// than any of its kind: to read that could take all memory, or for ever.
func readSmall(path string, most int64) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > most {
		return nil, fmt.Errorf("%s is no file of at most %d bytes", path, most)
	}
	return os.ReadFile(path)
}

// writeFile gives content the name path, all of it or nothing: it is written to a new
// file in tempDir, which must be on the same file system, and renamed when it is on
// disk. A crash leaves the old file or the new one.
func writeFile(tempDir, path string, content []byte) error {
	temp, err := writeTemp(tempDir, content)
	if err != nil {
		return err
	}
	if err := renameTemp(temp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// replaceFile is writeFile without a wait for the disk, which may be busy with other files for
// minutes: the process may crash, but a power failure may leave anything at path.
func replaceFile(tempDir, path string, content []byte) error {
	temp, err := createTemp(tempDir, content, func(*os.File) error { return nil })
	if err != nil {
		return err
	}
	return renameTemp(temp, path)
}

func renameTemp(temp, path string) error {
	err := os.Rename(temp, path)
	if err != nil {
		os.Remove(temp)
	}
	return err
}

// writeTemp writes content to a new file in dir, down to the disk.
func writeTemp(dir string, content []byte) (path string, err error) {
	return createTemp(dir, content, (*os.File).Sync)
}

func createTemp(dir string, content []byte, sync func(*os.File) error) (path string, err error) {
	f, err := os.CreateTemp(dir, tempPrefix)
	if err != nil {
		return "", err
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(content); err != nil {
		return "", err
	}
	// CreateTemp's 0600 would keep skopeo, run by another user, out.
	if err := f.Chmod(0o644); err != nil {
		return "", err
	}
	return f.Name(), sync(f)
}

// syncDir makes names given and taken in dir last over a power failure.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
