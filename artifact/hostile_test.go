package artifact

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// hostile is an artifact of layers that Pack would not make.
func hostile(layers ...layer) packed {
	p := packed{blobs: make(map[digest.Digest][]byte)}
	for _, l := range layers {
		desc := ocispec.Descriptor{MediaType: l.mediaType, Digest: digest.FromBytes(l.blob), Size: int64(len(l.blob)), Annotations: l.annotations}
		p.descs, p.blobs[desc.Digest] = append(p.descs, desc), l.blob
	}
	p.manifest, _ = json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: p.descs})
	return p
}

type layer struct {
	mediaType   string
	blob        []byte
	annotations map[string]string
}

func fileLayer(title, content string) layer {
	return layer{mediaTypeFile, []byte(content), map[string]string{ocispec.AnnotationTitle: title}}
}

func tarLayer(title string, headers ...tar.Header) layer {
	return layer{mediaTypeTar, tarOf(headers...), map[string]string{ocispec.AnnotationTitle: title, annotationUnpack: "true"}}
}

// tarOf is a compressed tar; files have zeros in them.
func tarOf(headers ...tar.Header) []byte {
	var b bytes.Buffer
	zip := gzip.NewWriter(&b)
	t := tar.NewWriter(zip)
	for _, h := range headers {
		t.WriteHeader(&h)
		io.CopyN(t, zeros{}, h.Size)
	}
	t.Close()
	zip.Close()
	return b.Bytes()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func reg(name string, size int64) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size}
}

func dirHeader(name string, mode int64) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}
}

func link(name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}
}

// No artifact gets out of its folder, or leaves anything in it when it is refused; the error names what is wrong.
func TestHostileArtifacts(t *testing.T) {
	long := strings.Repeat("x/", 3000) + "x"
	for name, test := range map[string]struct {
		layers []layer
		want   string
	}{
		"file above":              {[]layer{fileLayer("../evil", "x")}, `"../evil" is no name inside`},
		"file above, inside":      {[]layer{fileLayer("a/../../evil", "x")}, "is no name inside"},
		"absolute file":           {[]layer{fileLayer("/tmp/evil", "x")}, `"/tmp/evil" is no name`},
		"file that is the folder": {[]layer{fileLayer(".", "x")}, "is no name"},
		"NUL":                     {[]layer{fileLayer("a\x00b", "x")}, `"a\x00b" is no name`},
		"long":                    {[]layer{fileLayer(long, "x")}, "is a name of 6001 bytes"},
		"murder's":                {[]layer{fileLayer(".murder-fetch/x", "x")}, "murder's own"},
		"murder's, in a tar":      {[]layer{tarLayer(".", reg(".Murder-Fetch/x", 1))}, "murder's own"},
		"twice":                   {[]layer{fileLayer("a", "x"), fileLayer("a", "y")}, `"a" is there twice`},
		"twice, in a tar":         {[]layer{tarLayer(".", reg("a", 1), reg("a", 2))}, `"a" is there twice`},
		"twice, in both":          {[]layer{tarLayer(".", reg("a", 1)), fileLayer("a", "x")}, `"a" is there twice`},
		"below a file":            {[]layer{fileLayer("a", "x"), fileLayer("a/b", "y")}, "a/b"},
		"below a file of a tar":   {[]layer{tarLayer(".", reg("a", 1)), fileLayer("a/b", "y")}, `"a`},
		"below a link":            {[]layer{tarLayer(".", link("a", "."), reg("a/b", 1))}, `"a/b" lies below "a", which is no folder`},
		"below another's link":    {[]layer{tarLayer(".", link("a", "b")), fileLayer("a/x", "y")}, `"a`},
		"folder and link":         {[]layer{tarLayer(".", dirHeader("a/", 0o755), link("a", "b"))}, `"a" is there twice`},
		"tar above":               {[]layer{tarLayer("..", reg("../a", 1))}, `".." is no name`},
		"absolute tar":            {[]layer{tarLayer("/tmp", reg("/tmp/a", 1))}, `"/tmp" is no name`},
		"entry above":             {[]layer{tarLayer(".", reg("../a", 1))}, `"../a" is no name`},
		"absolute entry":          {[]layer{tarLayer(".", reg("/a", 1))}, `"/a" is no name`},
		"entry of another folder": {[]layer{tarLayer("conf", reg("bin/a", 1))}, `"bin/a" is not in the folder "conf"`},
		"entry beside the folder": {[]layer{tarLayer("conf", reg("conf.d", 1))}, `"conf.d" is not in the folder "conf"`},
		"link to the root":        {[]layer{tarLayer(".", link("a", "/"))}, `symlink "a" leads to "/"`},
		"link above":              {[]layer{tarLayer(".", link("d/a", "../../x"))}, `symlink "d/a"`},
		"link above by another":   {[]layer{tarLayer(".", link("d/l", ".."), link("x", "d/l/../.."))}, `symlink "x" leads to "d/l/../.."`},
		"hard link":               {[]layer{tarLayer(".", tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: "/etc/shadow"})}, `"a" is a hard link to "/etc/shadow"`},
		"device":                  {[]layer{tarLayer(".", tar.Header{Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8})}, `"sda" is a special file`},
		"pipe":                    {[]layer{tarLayer(".", tar.Header{Name: "p", Typeflag: tar.TypeFifo})}, `"p" is a special file`},
		"bomb":                    {[]layer{tarLayer(".", reg("zeros", 48<<20))}, "unpacks to more than 100 times its size"},
		"bomb of many":            {[]layer{tarLayer(".", bombs()...)}, "unpacks to more than 100 times its size"},
		"no tar":                  {[]layer{{mediaTypeTar, []byte(strings.Repeat("no tar", 200)), map[string]string{ocispec.AnnotationTitle: ".", annotationUnpack: "true"}}}, "read the tar"},
		"zstd":                    {[]layer{{mediaTypeTar, []byte("\x28\xb5\x2f\xfd...."), map[string]string{ocispec.AnnotationTitle: ".", annotationUnpack: "true"}}}, "zstd"},
		"odd mode":                {[]layer{{mediaTypeFile, []byte("x"), map[string]string{ocispec.AnnotationTitle: "a", annotationMode: "rwx"}}}, `the mode "rwx"`},
		"an image":                {[]layer{{ocispec.MediaTypeImageLayerGzip, tarOf(reg("a", 1)), nil}}, "it is no artifact of files"},
		"no layers":               {nil, "it is no artifact of files"},
	} {
		t.Run(name, func(t *testing.T) {
			above := t.TempDir()
			out := filepath.Join(above, "out")
			if err := os.Mkdir(out, 0o755); err != nil {
				t.Fatal(err)
			}
			_, err := hostile(test.layers...).unpack(t, out, StageOptions{KeepSetuid: true})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("unpack = %v, want %q", err, test.want)
			}
			if got, want := list(t, above), "out drwxr-xr-x\n"; got != want {
				t.Errorf("there is now\n%swant\n%s", got, want)
			}
		})
	}
}

// bombs are many files, none of which is one.
func bombs() (headers []tar.Header) {
	for i := range 48 {
		headers = append(headers, reg(fmt.Sprint(i), 1<<20))
	}
	return headers
}

// An error in one layer leaves nothing of those that were right.
func TestWrongBytes(t *testing.T) {
	right := hostile(fileLayer("a", "right"), fileLayer("b", "also right"), tarLayer("t", reg("t/x", 5)))
	for _, d := range right.descs {
		for name, blob := range map[string][]byte{
			"other": bytes.Repeat([]byte("x"), int(d.Size)), "short": right.blobs[d.Digest][:d.Size-1], "none": nil,
		} {
			out := t.TempDir()
			p := packed{manifest: right.manifest, blobs: map[digest.Digest][]byte{}}
			for k, v := range right.blobs {
				p.blobs[k] = v
			}
			p.blobs[d.Digest] = blob
			if _, err := p.unpack(t, out, StageOptions{}); err == nil {
				t.Errorf("%s bytes of %v were taken", name, d.Annotations)
			}
			if got := list(t, out); got != "" {
				t.Errorf("%s bytes of %v left\n%s", name, d.Annotations, got)
			}
		}
	}
}

func TestSetuid(t *testing.T) {
	p := hostile(
		layer{mediaTypeFile, []byte("su"), map[string]string{ocispec.AnnotationTitle: "su", annotationMode: "04755"}},
		tarLayer("t", tar.Header{Name: "t/", Typeflag: tar.TypeDir, Mode: 0o2750}, tar.Header{Name: "t/su", Typeflag: tar.TypeReg, Mode: 0o6711}),
	)
	for keep, want := range map[bool]map[string]fs.FileMode{
		false: {"su": 0o755, "t": fs.ModeDir | 0o750, "t/su": 0o711},
		true:  {"su": fs.ModeSetuid | 0o755, "t": fs.ModeDir | fs.ModeSetgid | 0o750, "t/su": fs.ModeSetuid | fs.ModeSetgid | 0o711},
	} {
		out := t.TempDir()
		if _, err := p.unpack(t, out, StageOptions{KeepSetuid: keep}); err != nil {
			t.Fatal(err)
		}
		for name, mode := range want {
			if info, err := os.Stat(filepath.Join(out, name)); err != nil || info.Mode() != mode {
				t.Errorf("kept %v: %s has mode %v, want %v (%v)", keep, name, info.Mode(), mode, err)
			}
		}
	}
}

func TestFolderThatIsNotEmpty(t *testing.T) {
	p := hostile(fileLayer("a", "new"), fileLayer("d/b", "new"), tarLayer(".", link("l", "a")), fileLayer("new", "n"))
	out := t.TempDir()
	write(t, out, "a", "old", 0o644)
	write(t, out, "d/b", "old", 0o600)
	write(t, out, "d/stays", "old", 0o644)
	symlink(t, out, "l", "d")
	before := list(t, out)
	if _, err := p.unpack(t, out, StageOptions{}); !errors.Is(err, ErrNotEmpty) || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("unpack = %v, want that it is not empty", err)
	}
	if got := list(t, out); got != before {
		t.Errorf("the folder has now\n%s", got)
	}
	over, err := p.unpack(t, out, StageOptions{Overwrite: true})
	if err != nil || fmt.Sprint(over) != "[a d/b l]" {
		t.Errorf("overwritten = %q, %v", over, err)
	}
	want := t.TempDir()
	write(t, want, "a", "new", 0o644)
	write(t, want, "d/b", "new", 0o644)
	write(t, want, "d/stays", "old", 0o644)
	write(t, want, "new", "n", 0o644)
	symlink(t, want, "l", "a")
	if got, want := list(t, out), list(t, want); got != want {
		t.Errorf("the folder has\n%swant\n%s", got, want)
	}
}

// What cannot be overwritten is found before anything is.
func TestOverwriteConflicts(t *testing.T) {
	elsewhere := t.TempDir()
	for name, test := range map[string]struct {
		make   func(dir string)
		layers []layer
		want   string
	}{
		"folder where a file is to be": {func(dir string) { mkdir(t, dir, "z", 0o755) }, []layer{fileLayer("z", "x")}, `"z" is a folder there, and a file`},
		"file where a folder is to be": {func(dir string) { write(t, dir, "z", "x", 0o644) }, []layer{fileLayer("z/x", "x")}, `"z" is a file there, and a folder`},
		"symlink to a folder":          {func(dir string) { symlink(t, dir, "z", elsewhere) }, []layer{fileLayer("z/x", "x")}, `"z" is a symlink there, and a folder`},
	} {
		out := t.TempDir()
		test.make(out)
		write(t, out, "a", "old", 0o644)
		before := list(t, out)
		_, err := hostile(append(test.layers, fileLayer("a", "new"))...).unpack(t, out, StageOptions{Overwrite: true})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: unpack = %v, want %q", name, err, test.want)
		}
		if got := list(t, out); got != before {
			t.Errorf("%s: the folder has now\n%s", name, got)
		}
	}
	if got := list(t, elsewhere); got != "" {
		t.Errorf("a folder outside has now\n%s", got)
	}
}

// What a killed run has left is no reason to refuse, and does not stay; a living one is.
func TestLeftovers(t *testing.T) {
	out := t.TempDir()
	mkdir(t, out, "lost+found", 0o700)
	write(t, out, stageDir+"/half/weights", "hal", 0o600)
	os.Chmod(filepath.Join(out, stageDir, "half"), 0o500)
	s, err := OpenStage(out, StageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStage(out, StageOptions{}); !errors.Is(err, ErrBusy) {
		t.Errorf("a second fetch = %v, want that another is at work", err)
	}
	a, err := Parse(hostile(fileLayer("half/weights", "whole")).manifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Add(context.Background(), a.Layers[0], strings.NewReader("whole"), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(out, "half/weights")); string(b) != "whole" {
		t.Errorf("the file has %q, %v", b, err)
	}
	if _, err := os.Lstat(filepath.Join(out, stageDir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", stageDir, err)
	}
}
