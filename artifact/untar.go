package artifact

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

const (
	// maxInflation bounds what becomes of a compressed tar, in times its size, and inflationFree what is always
	// admitted, in bytes: gzip makes a thousand bytes of one where they are alike, and programs no more than ten.
	maxInflation  = 100
	inflationFree = 16 << 20
)

// addTar unpacks the tar of a folder.
func (s *Stage) addTar(l Layer, r io.Reader) error {
	if l.Title != "." {
		if err := s.names.add(l.Title, true, s.mkdir); err != nil {
			return err
		}
	}
	content, err := decompress(r)
	if err != nil {
		return err
	}
	most := inflationFree + maxInflation*l.Size
	t := tar.NewReader(&bounded{content, most})
	files := &bounded{t, most} // apart: of a sparse file the tar has less than is written
	for {
		h, err := t.Next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("read the tar: %w", err)
		}
		if err := s.addEntry(l.Title, h, files); err != nil {
			return err
		}
	}
}

// decompress looks at the first bytes, as media types are what people type.
func decompress(r io.Reader) (io.Reader, error) {
	buffered := bufio.NewReaderSize(r, bufferSize)
	head, err := buffered.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(buffered)
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return nil, errors.New("the tar is compressed with zstd; gzip is known, or none")
	default:
		return buffered, nil
	}
}

// addEntry makes what one header of a tar tells of; title is the folder it must be in.
func (s *Stage) addEntry(title string, h *tar.Header, content *bounded) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	p := strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/")
	if isDir := h.Typeflag == tar.TypeDir; isDir && (p == "" || p == ".") && title == "." {
		return nil // the folder itself, which is the user's
	}
	if err := checkPath(p); err != nil {
		return err
	}
	if title != "." && p != title && !strings.HasPrefix(p, title+"/") {
		return fmt.Errorf("%q is not in the folder %q that the tar is said to be of", p, title)
	}
	mode := modeOf(h.Mode)
	switch h.Typeflag {
	case tar.TypeDir:
		return s.addDir(p, mode)
	case tar.TypeReg:
		if h.Size > content.left {
			return errInflated
		}
		return s.write(p, mode, true, content)
	case tar.TypeSymlink:
		return s.addLink(p, h.Linkname)
	case tar.TypeLink:
		return fmt.Errorf("%q is a hard link to %q: only files, folders and symlinks are unpacked", p, h.Linkname)
	default:
		return fmt.Errorf("%q is a special file (tar type %q): only files, folders and symlinks are unpacked", p, h.Typeflag)
	}
}

func (s *Stage) addDir(p string, mode fs.FileMode) error {
	if err := s.names.add(p, true, s.mkdir); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.modes[p] = mode
	return nil
}

func (s *Stage) addLink(p, target string) error {
	if err := checkLink(p, target); err != nil {
		return err
	}
	if err := s.names.add(p, false, s.mkdir); err != nil {
		return err
	}
	return s.stage.Symlink(target, p)
}

var errInflated = fmt.Errorf("it unpacks to more than %d times its size", maxInflation)

// bounded is r as long as no more than left bytes come.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errInflated
	}
	return n, err
}
