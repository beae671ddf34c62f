package integration

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// layer is a layer in a file. It implements v1.Layer.
type layer struct {
	path      string
	digest    v1.Hash
	diffID    v1.Hash
	size      int64
	mediaType types.MediaType
}

func (l *layer) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *layer) DiffID() (v1.Hash, error)             { return l.diffID, nil }
func (l *layer) Compressed() (io.ReadCloser, error)   { return os.Open(l.path) }
func (l *layer) Size() (int64, error)                 { return l.size, nil }
func (l *layer) MediaType() (types.MediaType, error)  { return l.mediaType, nil }
func (l *layer) Uncompressed() (io.ReadCloser, error) { return openLayer(l.path) }

// openLayer opens a layer's tar, packed or not. Unpacking is done by the
// machine's gzip, for the reason that newLayerWriter gives.
func openLayer(file string) (io.ReadCloser, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	magic := make([]byte, 2)
	if _, err := f.ReadAt(magic, 0); err != nil || magic[0] != 0x1f || magic[1] != 0x8b {
		return f, nil
	}
	unzip := exec.Command("gzip", "-dc")
	unzip.Stdin = f
	out, err := unzip.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := unzip.Start(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &unzipped{Reader: out, cmd: unzip, file: f}, nil
}

// unzipped is the output of a gzip process.
type unzipped struct {
	io.Reader
	cmd  *exec.Cmd
	file *os.File
}

// Close ends the process. Its failure shows as a tar that is cut short.
func (u *unzipped) Close() error {
	_ = u.cmd.Process.Kill()
	_ = u.cmd.Wait()
	return u.file.Close()
}

// layerWriter writes a layer's tar into a file, gzipped or as it is.
type layerWriter struct {
	*tar.Writer
	buf   *bufio.Writer
	file  *os.File
	plain hash.Hash
	zip   *exec.Cmd      // nil for an uncompressed layer
	pipe  io.WriteCloser // to zip
}

func newLayerWriter(file string, zipped bool) (*layerWriter, error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	w := &layerWriter{file: f, plain: sha256.New()}
	var out io.Writer = f
	if zipped {
		// The machine's gzip: under the race detector Go's own takes half of
		// the tests' time. -1, as the tests need a true gzip stream and not a
		// small one; -n leaves name and time out.
		w.zip = exec.Command("gzip", "-1", "-n")
		w.zip.Stdout = f
		if w.pipe, err = w.zip.StdinPipe(); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if err := w.zip.Start(); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		out = w.pipe
	}
	w.buf = bufio.NewWriterSize(io.MultiWriter(out, w.plain), 1<<20)
	w.Writer = tar.NewWriter(w.buf)
	return w, nil
}

// close ends tar, gzip and file, as far as they were begun.
func (w *layerWriter) close() error {
	errs := []error{w.Close(), w.buf.Flush()}
	if w.zip != nil {
		errs = append(errs, w.pipe.Close(), w.zip.Wait())
	}
	return errors.Join(append(errs, w.file.Close())...)
}

// finish closes the file and returns the layer.
func (w *layerWriter) finish() (*layer, error) {
	if err := w.close(); err != nil {
		return nil, err
	}
	l := &layer{path: w.file.Name(), mediaType: types.OCIUncompressedLayer}
	if w.zip != nil {
		l.mediaType = types.OCILayer
	}
	info, err := os.Stat(l.path)
	if err != nil {
		return nil, err
	}
	packed, err := sumFile(l.path)
	l.size = info.Size()
	l.digest = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(packed[:])}
	l.diffID = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(w.plain.Sum(nil))}
	return l, err
}

// addDir adds dir and what is below it as prefix, as far as keep (given paths
// relative to dir) agrees. Owners become root and times lose their fractions,
// as in images; hard links within dir stay hard links.
func (w *layerWriter) addDir(dir, prefix string, keep func(rel string) bool) error {
	links := map[[2]uint64]string{} // device and inode to first name
	return filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		if rel != "." && !keep(rel) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if name := path.Join(prefix, rel); name != "." {
			return w.addFile(name, file, info, links)
		}
		return nil
	})
}

// linkID identifies a file that has more than one name.
func linkID(info fs.FileInfo) (id [2]uint64, linked bool) {
	stat := info.Sys().(*syscall.Stat_t)
	return [2]uint64{uint64(stat.Dev), stat.Ino}, info.Mode().IsRegular() && stat.Nlink > 1
}

func (w *layerWriter) addFile(name, file string, info fs.FileInfo, links map[[2]uint64]string) error {
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		var err error
		if target, err = os.Readlink(file); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name, h.Format = name, tar.FormatPAX
	h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
	h.ModTime, h.AccessTime, h.ChangeTime = info.ModTime().Truncate(time.Second), time.Time{}, time.Time{}
	if info.IsDir() {
		h.Name += "/"
	}
	if id, linked := linkID(info); linked {
		if first := links[id]; first != "" {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return w.WriteHeader(h)
		}
		links[id] = name
	}
	if err := w.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// addWhiteouts deletes files of the layers below.
func (w *layerWriter) addWhiteouts(names ...string) error {
	for _, name := range names {
		err := w.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: path.Join(path.Dir(name), whiteoutPrefix+path.Base(name)),
			Mode: 0o600, ModTime: time.Unix(1, 0), Format: tar.FormatPAX,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// makeLayer makes a layer of what fill adds.
func makeLayer(file string, zipped bool, fill func(*layerWriter) error) (*layer, error) {
	w, err := newLayerWriter(file, zipped)
	if err != nil {
		return nil, err
	}
	if err := fill(w); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w.finish()
}
