package artifact

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Source is a layer that is to be made of files. It yields the same bytes each time it is opened, or an error when a
// file has changed since the folder was looked through.
type Source struct {
	title   string
	tar     bool
	entries []*entry // of a layer that is no tar, its file
	root    *os.Root
}

// Title is the path of its file, or a way to write "." for a tar of small ones.
func (s *Source) Title() string { return s.title }

// Bytes is how much is read of files for it.
func (s *Source) Bytes() (n int64) {
	for _, e := range s.entries {
		n += e.size
	}
	return n
}

// Describe reads the layer once to know its digest.
func (s *Source) Describe(ctx context.Context, read func(n int)) (ocispec.Descriptor, error) {
	r, err := s.Open()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer r.Close()
	digester := digest.SHA256.Digester()
	size, err := copyTo(ctx, digester.Hash(), r, read)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{
		MediaType: mediaTypeFile, Digest: digester.Digest(), Size: size,
		Annotations: map[string]string{ocispec.AnnotationTitle: s.title},
	}
	if s.tar {
		desc.MediaType = mediaTypeTar
		desc.Annotations[annotationUnpack] = "true"
	} else if mode := s.entries[0].mode; octal(mode) != int64(defaultFileMode) {
		desc.Annotations[annotationMode] = "0" + strconv.FormatInt(octal(mode), 8)
	}
	return desc, nil
}

// Manifest is the manifest of the layers that descs describe, in the order of the folder's Sources.
func (f *Folder) Manifest(artifactType string, descs []ocispec.Descriptor) ([]byte, error) {
	return makeManifest(artifactType, descs)
}

// Open returns the bytes of the layer.
func (s *Source) Open() (io.ReadCloser, error) {
	if !s.tar {
		return s.open(s.entries[0])
	}
	r, w := io.Pipe()
	t := &tarStream{PipeReader: r, done: make(chan struct{})}
	go func() {
		defer close(t.done)
		w.CloseWithError(s.writeTar(w))
	}()
	return t, nil
}

// tarStream is a tar while it is written.
type tarStream struct {
	*io.PipeReader
	done chan struct{} // closed when the writer has ended
}

func (t *tarStream) Close() error {
	err := t.PipeReader.Close()
	<-t.done
	return err
}

func (s *Source) writeTar(w io.Writer) error {
	buffered := newWriter(w)
	// Stored blocks, see the package's comment.
	zip, err := gzip.NewWriterLevel(buffered, gzip.NoCompression)
	if err != nil {
		return err
	}
	t := tar.NewWriter(zip)
	for _, e := range s.entries {
		if err := s.writeEntry(t, e); err != nil {
			return err
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	if err := zip.Close(); err != nil {
		return err
	}
	return buffered.Flush()
}

func (s *Source) writeEntry(t *tar.Writer, e *entry) error {
	h := &tar.Header{Name: e.path, Mode: octal(e.mode), Size: e.size, Typeflag: tar.TypeReg}
	switch {
	case e.mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, e.path+"/"
	case e.link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.link, 0o777
	}
	if err := t.WriteHeader(h); err != nil {
		return fmt.Errorf("%q: %w", e.path, err)
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	f, err := s.open(e)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = copyTo(context.Background(), t, f, nil)
	return err
}

// open opens the file of e.
func (s *Source) open(e *entry) (io.ReadCloser, error) {
	var f *os.File
	var err error
	if e.outside != "" {
		f, err = os.Open(e.outside)
	} else {
		f, err = s.root.Open(e.path)
	}
	if err != nil {
		return nil, err
	}
	u := &unchanged{file: f, entry: e, left: e.size}
	if err := u.check(); err != nil {
		f.Close()
		return nil, err
	}
	return u, nil
}

// unchanged is a file that must be what it was when the folder was looked through.
type unchanged struct {
	file  *os.File
	entry *entry
	left  int64
}

func (u *unchanged) Close() error { return u.file.Close() }

// Read implements io.Reader. It looks once more at the end: what comes later is not read.
func (u *unchanged) Read(b []byte) (int, error) {
	if u.left == 0 {
		if err := u.check(); err != nil {
			return 0, err
		}
		return 0, io.EOF
	}
	n, err := u.file.Read(b[:min(int64(len(b)), u.left)])
	u.left -= int64(n)
	if err == io.EOF {
		return n, fmt.Errorf("%q %w", u.entry.path, errChanged)
	}
	return n, err
}

func (u *unchanged) check() error {
	info, err := u.file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() != u.entry.size || !info.ModTime().Equal(u.entry.modified) {
		return fmt.Errorf("%q %w", u.entry.path, errChanged)
	}
	return nil
}
