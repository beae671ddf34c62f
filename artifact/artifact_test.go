package artifact

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// packed is an artifact in memory.
type packed struct {
	manifest []byte
	descs    []ocispec.Descriptor
	blobs    map[digest.Digest][]byte
}

// pack makes an artifact of dir, reading each layer twice as a push does.
func pack(t testing.TB, dir string, opts PackOptions) packed {
	t.Helper()
	f, err := Pack(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := packed{blobs: make(map[digest.Digest][]byte)}
	for _, s := range f.Sources {
		desc, err := s.Describe(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Open()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if digest.FromBytes(b) != desc.Digest || int64(len(b)) != desc.Size {
			t.Fatalf("%s: the second reading is not what the first described", s.Title())
		}
		p.descs, p.blobs[desc.Digest] = append(p.descs, desc), b
	}
	if p.manifest, err = f.Manifest(Type, p.descs); err != nil {
		t.Fatal(err)
	}
	return p
}

// titles are the layers' names, those of tars with a slash.
func (p packed) titles() (names []string) {
	for _, d := range p.descs {
		name := d.Annotations[ocispec.AnnotationTitle]
		if d.Annotations[annotationUnpack] == "true" {
			name += "/"
		}
		names = append(names, name)
	}
	return names
}

// unpack makes a folder of the artifact, with all layers at the same time.
func (p packed) unpack(t testing.TB, dir string, opts StageOptions) (overwritten []string, err error) {
	t.Helper()
	a, err := Parse(p.manifest)
	if err != nil {
		return nil, err
	}
	s, err := OpenStage(dir, opts)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	errs := make(chan error)
	for _, l := range a.Layers {
		go func() { errs <- s.Add(t.Context(), l, bytes.NewReader(p.blobs[l.Digest]), nil) }()
	}
	for range a.Layers {
		err = errors.Join(err, <-errs)
	}
	if err != nil {
		return nil, err
	}
	return s.Commit()
}

func write(t testing.TB, dir, name, content string, mode fs.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t testing.TB, dir, name string, mode fs.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func symlink(t testing.TB, dir, name, target string) {
	t.Helper()
	if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

// list is a folder as text: each name with its mode and its content.
func list(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&b, "%s %v", rel, info.Mode())
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %s", target)
		case info.Mode().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d %s", len(content), digest.FromBytes(content).Encoded()[:12])
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// model is a folder with few files, some odd things among them.
func model(t testing.TB) string {
	dir := t.TempDir()
	write(t, dir, "weights.bin", strings.Repeat("weights", 300_000), 0o644)
	write(t, dir, "config.json", "{}", 0o644)
	write(t, dir, "bin/run", "#!/bin/sh\n", 0o755)
	write(t, dir, "secret", "s", 0o600)
	write(t, dir, "none", "", 0o444)
	write(t, dir, "sub/deep/er/x", "x", 0o644)
	write(t, dir, "Ünïcode \\ and: more\n", "u", 0o640)
	symlink(t, dir, "latest", "weights.bin")
	symlink(t, dir, "sub/deep/up", "../../bin/run")
	symlink(t, dir, "sub/dangling", "nowhere")
	mkdir(t, dir, "empty", 0o755)
	mkdir(t, dir, "sub/sealed/in", 0o700)
	mkdir(t, dir, "sub/sealed", 0o555)
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "sub/sealed"), 0o755) })
	return dir
}

// service is a folder with many small files and two larger ones.
func service(t testing.TB) string {
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 14 {
		for j := range 30 {
			b := make([]byte, 8, 20_000)
			binary.LittleEndian.PutUint64(b, r.Uint64())
			b = bytes.Repeat(b, 1+r.IntN(3_600))
			write(t, dir, fmt.Sprintf("lib/%02d/%02d", i, j), string(b), 0o644)
		}
	}
	write(t, dir, "lib/07/large", strings.Repeat("0123456789abcdef", 1<<17), 0o755)
	write(t, dir, "main", strings.Repeat("main", 1<<19), 0o755)
	return dir
}

func TestFolderComesBackAsItWas(t *testing.T) {
	for name, make := range map[string]func(testing.TB) string{"model": model, "service": service} {
		t.Run(name, func(t *testing.T) {
			dir, out := make(t), filepath.Join(t.TempDir(), "a", "b")
			p := pack(t, dir, PackOptions{})
			if over, err := p.unpack(t, out, StageOptions{}); err != nil || len(over) > 0 {
				t.Fatalf("unpack = %q, %v", over, err)
			}
			t.Cleanup(func() { os.Chmod(filepath.Join(out, "sub/sealed"), 0o755) })
			if got, want := list(t, out), list(t, dir); got != want {
				t.Errorf("the folder has\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// Where the files lie, and when they were written, is not in the artifact; the golden digest fails when another version
// of a library, or of Go, makes other bytes of the same files: then users push anew what they have pushed.
func TestSameFolderSameArtifact(t *testing.T) {
	first, second := pack(t, model(t), PackOptions{}), pack(t, model(t), PackOptions{})
	if !bytes.Equal(first.manifest, second.manifest) {
		t.Errorf("manifests of two copies differ:\n%s\n%s", first.manifest, second.manifest)
	}
	const golden = "sha256:40c69b317a81912f963ce5dfb30314cb5d33a8258ce80f3d456cc07de0577372"
	if got := digest.FromBytes(first.manifest); got != golden {
		t.Errorf("the manifest is %s, want %s:\n%s", got, golden, first.manifest)
	}
}

func TestLayersOfFolders(t *testing.T) {
	got := pack(t, model(t), PackOptions{}).titles()
	want := []string{"./", "bin/run", "config.json", "secret", "sub/deep/er/x", "weights.bin", "Ünïcode \\ and: more\n"}
	if !slices.Equal(got, want) {
		t.Errorf("layers of few files = %q, want %q", got, want)
	}
	got = pack(t, service(t), PackOptions{}).titles()
	if n := len(got); n < 3 || got[0] != "./" || !slices.Equal(got[n-2:], []string{"lib/07/large", "main"}) {
		t.Errorf("layers of many files = %q, want tars and the large ones", got)
	}
	plain := t.TempDir()
	write(t, plain, "models/a", "a", 0o644)
	if got := pack(t, plain, PackOptions{}).titles(); !slices.Equal(got, []string{"models/a"}) {
		t.Errorf("layers of a plain folder = %q, want its file alone", got)
	}
	if got := pack(t, filepath.Join(plain, "models", "a"), PackOptions{}).titles(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("layers of a file = %q, want it alone", got)
	}
}

// A file that changes, comes or goes takes no more than a tar or two with it.
func TestChangesStayLocal(t *testing.T) {
	dir := t.TempDir()
	for i := range 400 {
		write(t, dir, fmt.Sprintf("d%d/%d", i%20, i), fmt.Sprint(i, strings.Repeat("x", 100_000)), 0o644)
	}
	before := pack(t, dir, PackOptions{})
	if n := len(before.descs); n < 5 || n > 40 {
		t.Fatalf("40 MB are %d tars", n)
	}
	for name, change := range map[string]func(){
		"change": func() { write(t, dir, "d7/7", "changed", 0o644) },
		"come":   func() { write(t, dir, "d0/00", strings.Repeat("new", 10_000), 0o644) },
		"go":     func() { os.Remove(filepath.Join(dir, "d3/103")) },
	} {
		change()
		after, moved := pack(t, dir, PackOptions{}), 0
		for d := range after.blobs {
			if before.blobs[d] == nil {
				moved++
			}
		}
		if moved == 0 || moved > 2 {
			t.Errorf("%s: %d of %d tars are new, want one or two", name, moved, len(after.blobs))
		}
		before = after
	}
}

func TestPlanOfVeryManyFiles(t *testing.T) {
	var entries []*entry
	for i := range 300 {
		dir := fmt.Sprintf("d%03d", i)
		entries = append(entries, &entry{path: dir, mode: fs.ModeDir | 0o755})
		for j := range 100 {
			entries = append(entries, &entry{path: fmt.Sprintf("%s/%03d", dir, j), mode: 0o644, size: 3 << 20})
		}
	}
	sources := plan(entries)
	if n := len(sources); n < 2000 || n > maxOwn+2*maxTars {
		t.Errorf("90 GB in 30,000 files are %d layers", n)
	}
	var total int64
	for _, s := range sources {
		total += s.Bytes()
	}
	titles := make(map[string]bool)
	for _, s := range sources {
		if titles[s.title] || s.tar && filepath.Clean(s.title) != "." {
			t.Errorf("a second layer is called %q, or it is not one of the folder", s.title)
		}
		titles[s.title] = true
	}
	if want := int64(30_000) * 3 << 20; total != want {
		t.Errorf("the layers have %d bytes of files, want %d", total, want)
	}
}

func TestPackRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		make func(dir string)
		want string
	}{
		"nothing":         {func(string) {}, "is empty"},
		"a pipe":          {func(dir string) { syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644) }, `"pipe" is a named pipe`},
		"absolute link":   {func(dir string) { symlink(t, dir, "l", "/etc/passwd") }, `symlink "l" leads to "/etc/passwd"`},
		"link outside":    {func(dir string) { mkdir(t, dir, "d", 0o755); symlink(t, dir, "d/l", "../../x") }, `symlink "d/l" leads to "../../x"`},
		"link up and on":  {func(dir string) { symlink(t, dir, "l", "d/../../x") }, `symlink "l"`},
		"not UTF-8":       {func(dir string) { write(t, dir, "\xff", "x", 0o644) }, `"\xff" is no name`},
		"murder's folder": {func(dir string) { mkdir(t, dir, stageDir, 0o755) }, "murder's own"},
	} {
		dir := t.TempDir()
		test.make(dir)
		if _, err := Pack(dir, PackOptions{}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: Pack = %v, want %q", name, err, test.want)
		}
	}
	if _, err := Pack("/nowhere", PackOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Pack(/nowhere) = %v", err)
	}
}

// A cache of models is a folder of symlinks to files elsewhere.
func TestFollowLinks(t *testing.T) {
	elsewhere, dir, out := t.TempDir(), t.TempDir(), t.TempDir()
	write(t, elsewhere, "blob", "weights", 0o640)
	symlink(t, dir, "model.bin", filepath.Join(elsewhere, "blob"))
	if _, err := pack(t, dir, PackOptions{FollowLinks: true}).unpack(t, out, StageOptions{}); err != nil {
		t.Fatal(err)
	}
	want := t.TempDir()
	write(t, want, "model.bin", "weights", 0o640)
	if got, want := list(t, out), list(t, want); got != want {
		t.Errorf("the folder has\n%swant\n%s", got, want)
	}
	symlink(t, dir, "folder", elsewhere)
	if _, err := Pack(dir, PackOptions{FollowLinks: true}); err == nil || !strings.Contains(err.Error(), `symlink "folder"`) {
		t.Errorf("Pack with a symlink to a folder = %v", err)
	}
}

// What is pushed is what was described, or nothing.
func TestChangedWhilePacked(t *testing.T) {
	for _, content := range []string{"shorter", "as long as it was!!", "longer than it was before", ""} {
		dir := t.TempDir()
		write(t, dir, "a", "as long as it was..", 0o644)
		mkdir(t, dir, "empty", 0o755)
		f, err := Pack(dir, PackOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		write(t, dir, "a", content, 0o644)
		os.Chtimes(filepath.Join(dir, "a"), f.Sources[1].entries[0].modified.Add(1), f.Sources[1].entries[0].modified.Add(1))
		if _, err := f.Sources[1].Describe(t.Context(), nil); !errors.Is(err, errChanged) {
			t.Errorf("Describe of a file that is now %q = %v, want that it has changed", content, err)
		}
	}
}

func TestCancelled(t *testing.T) {
	p := pack(t, service(t), PackOptions{})
	a, err := Parse(p.manifest)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	s, err := OpenStage(out, StageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("interrupted")
	err = s.Add(ctx, a.Layers[0], bytes.NewReader(p.blobs[a.Layers[0].Digest]), func(int) { cancel(cause) })
	if !errors.Is(err, cause) {
		t.Errorf("Add = %v, want the reason why it was to end", err)
	}
	s.Close()
	if _, err := os.Stat(out); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder that was made is still there: %v", err)
	}
}
