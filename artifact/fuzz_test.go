package artifact

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Whatever a manifest says, each of its names is one inside of a folder, and no two are at odds.
func FuzzParse(f *testing.F) {
	f.Add(hostile(fileLayer("a", "x"), fileLayer("d/b", "y"), tarLayer("t", reg("t/x", 1))).manifest)
	f.Add(hostile(fileLayer("../a", "x")).manifest)
	f.Add(hostile(tarLayer("./conf/../", reg("a", 1))).manifest)
	f.Add([]byte(`{"layers":[{"digest":"sha256:../../x","size":-1,"annotations":{"org.opencontainers.image.title":"a"}}]}`))
	f.Add([]byte(`{"manifests":[{}]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		a, err := Parse(content)
		if err != nil {
			return
		}
		names := make(map[string]bool)
		for _, l := range a.Layers {
			if l.Size < 0 || l.Digest.Validate() != nil {
				t.Errorf("layer %+v", l)
			}
			if l.Title != "." && (!fs.ValidPath(l.Title) || !filepath.IsLocal(l.Title)) {
				t.Errorf("title %q", l.Title)
			}
			if !l.Tar && (names[l.Title] || l.Title == ".") {
				t.Errorf("%q is there twice", l.Title)
			}
			names[l.Title] = names[l.Title] || !l.Tar
		}
		if a.Bytes() < 0 {
			t.Errorf("%d bytes", a.Bytes())
		}
	})
}

// Whatever a tar says, nothing appears beside the folder, and in it nothing that leads out.
func FuzzTar(f *testing.F) {
	for _, title := range []string{".", "d"} {
		f.Add(title, tarOf(reg("d/a", 3), dirHeader("d/e/", 0o7777), link("d/l", "e"), link("d/up", "../d/a")))
		f.Add(title, tarOf(reg("../a", 3)))
		f.Add(title, tarOf(link("d/l", "..")))
		f.Add(title, tarOf(link("d/l", ".."), link("d/x", "l/../.."), reg("d/x/y", 1)))
		f.Add(title, tarOf(tar.Header{Name: "d/h", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}))
		f.Add(title, append(make([]byte, 512), "d/x"...))
	}
	above := f.TempDir()
	out := filepath.Join(above, "out")
	f.Fuzz(func(t *testing.T, title string, blob []byte) {
		l := Layer{Digest: digest.FromBytes(blob), Size: int64(len(blob)), Title: title, Tar: true}
		if title != "." && checkPath(title) != nil || strings.Count(title, "/") > 10 {
			return
		}
		defer os.RemoveAll(out)
		s, err := OpenStage(out, StageOptions{KeepSetuid: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if s.Add(t.Context(), l, bytes.NewReader(blob), nil) != nil {
			return
		}
		if _, _, err := s.moves(); err != nil {
			t.Errorf("what was taken cannot be moved: %v", err)
		}
		if entries, err := os.ReadDir(above); err != nil || len(entries) != 1 {
			t.Errorf("beside the folder there is now %v, %v", entries, err)
		}
		staged := filepath.Join(out, stageDir)
		err = fs.WalkDir(s.stage.FS(), ".", func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.Type()&fs.ModeSymlink == 0 {
				return err
			}
			if to, err := filepath.EvalSymlinks(filepath.Join(staged, p)); err == nil && to != staged && !strings.HasPrefix(to, staged+"/") {
				t.Errorf("symlink %q leads to %s", p, to)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// Modes survive the way through text.
func FuzzMode(f *testing.F) {
	f.Add("0755")
	f.Add("07777")
	f.Add("-1")
	f.Fuzz(func(t *testing.T, text string) {
		l, _, err := parseLayer(ocispec.Descriptor{Digest: digest.FromString(""), Annotations: map[string]string{
			ocispec.AnnotationTitle: "a", annotationMode: text,
		}})
		if err == nil && octal(modeOf(octal(l.mode))) != octal(l.mode) {
			t.Errorf("mode %q becomes %v", text, l.mode)
		}
	})
}
