package integration

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// goTree is the tree every machine that runs these tests has at hand: the Go
// distribution, some 11,000 files and 200 MiB of text and programs.
func goTree() (string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	return strings.TrimSpace(string(out)), err
}

// Parts of the big image's tree. Each is a layer; together they are more than
// 200 MB, which the image maker makes sure of with filler.
const (
	bigTreeBytes = 210e6
	goPrefix     = "usr/lib/go"
)

// bigImage is the image that the engines pull.
type bigImage struct {
	Index  v1.ImageIndex
	Images map[string]v1.Image // by platform, "linux/amd64" and "linux/arm64"
	Tree   tree                // what a container of linux/amd64 sees
}

// makeBigImage makes, in dir, a multi-platform image of a real file tree: the
// Go distribution and a folder of awkward files on top of it. Three layers are
// gzipped and one is not; the last one differs between the platforms. The Tree
// comes from the files themselves, not from the layers made of them.
func makeBigImage(dir string) (*bigImage, error) {
	awkward := filepath.Join(dir, "awkward")
	if err := makeAwkwardFiles(awkward); err != nil {
		return nil, fmt.Errorf("make files: %w", err)
	}
	common, want, err := makeCommonLayers(dir, awkward)
	if err != nil {
		return nil, fmt.Errorf("make layers: %w", err)
	}
	big := &bigImage{Index: mutate.IndexMediaType(empty.Index, types.OCIImageIndex), Images: map[string]v1.Image{}, Tree: want}
	for _, arch := range []string{"amd64", "arm64"} {
		own := filepath.Join(dir, "own-"+arch)
		if err := writeRandom(filepath.Join(own, "etc/platform"), "platform "+arch, 3<<20); err != nil {
			return nil, err
		}
		last, err := makeLayer(filepath.Join(dir, arch+".tar.gz"), true, func(w *layerWriter) error { return w.addDir(own, "", keepAll) })
		if err != nil {
			return nil, err
		}
		image, err := assemble(arch, append(common[:len(common):len(common)], last)...)
		if err != nil {
			return nil, err
		}
		big.Images["linux/"+arch] = image
		big.Index = mutate.AppendManifests(big.Index, mutate.IndexAddendum{
			Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	return big, want.addDir(filepath.Join(dir, "own-amd64"), "", keepAll)
}

// makeCommonLayers makes the layers that both platforms share, and the tree
// that they amount to.
func makeCommonLayers(dir, awkward string) ([]v1.Layer, tree, error) {
	goRoot, err := goTree()
	if err != nil {
		return nil, nil, fmt.Errorf("find the Go distribution: %w", err)
	}
	inCmd := func(rel string) bool { return rel == "cmd" || strings.HasPrefix(rel, "cmd/") }
	notInCmd := func(rel string) bool { return !inCmd(rel) }
	parts := []struct {
		name   string
		zipped bool
		dirs   map[string]string // prefix to folder
		keep   func(string) bool
	}{
		{"library.tar.gz", true, map[string]string{goPrefix + "/src": filepath.Join(goRoot, "src")}, notInCmd},
		{"commands.tar.gz", true, map[string]string{goPrefix + "/src": filepath.Join(goRoot, "src")}, inCmd},
		{"programs.tar", false, map[string]string{goPrefix + "/bin": filepath.Join(goRoot, "bin"), goPrefix + "/pkg": filepath.Join(goRoot, "pkg")}, keepAll},
	}
	want := tree{}
	var layers []v1.Layer
	for _, part := range parts {
		l, err := makeLayer(filepath.Join(dir, part.name), part.zipped, func(w *layerWriter) error {
			for _, prefix := range slices.Sorted(maps.Keys(part.dirs)) {
				if err := w.addDir(part.dirs[prefix], prefix, part.keep); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
		layers = append(layers, l)
		for prefix, source := range part.dirs {
			if err := want.addDir(source, prefix, part.keep); err != nil {
				return nil, nil, err
			}
		}
	}
	if err := writeRandom(filepath.Join(awkward, "var/filler"), "filler", max(bigTreeBytes-want.Size(), 1<<20)); err != nil {
		return nil, nil, err
	}
	top, err := makeLayer(filepath.Join(dir, "awkward.tar.gz"), true, func(w *layerWriter) error {
		if err := w.addDir(awkward, "", keepAll); err != nil {
			return err
		}
		return w.addWhiteouts(deletedFile, deletedDir)
	})
	if err != nil {
		return nil, nil, err
	}
	for _, name := range []string{deletedFile, deletedDir} {
		if _, ok := want[name]; !ok {
			return nil, nil, fmt.Errorf("%s, which a layer deletes, is not in this Go distribution", name)
		}
		want.remove(name, true)
	}
	return append(layers, top), want, want.addDir(awkward, "", keepAll)
}

// What the fourth layer does to the ones below it.
const (
	deletedFile  = goPrefix + "/src/cmd/README.vendor"
	deletedDir   = goPrefix + "/src/cmd/go/testdata"
	replacedFile = goPrefix + "/src/make.bash"
)

// keepAll is for addDir.
func keepAll(string) bool { return true }

// addDir adds the files below dir as prefix, as layerWriter.addDir does.
func (tr tree) addDir(dir, prefix string, keep func(rel string) bool) error {
	found, err := readTree(dir)
	if err != nil {
		return err
	}
	for rel, n := range found {
		if !keep(rel) {
			continue
		}
		n.UID, n.GID = 0, 0
		if n.Group != "" {
			n.Group = path.Join(prefix, n.Group)
		}
		tr[path.Join(prefix, rel)] = n
	}
	// The layer has the folder itself too, but not the ones above it: those
	// the engines make as they like.
	if prefix == "" {
		return nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	n, err := readNode(dir, info)
	n.UID, n.GID = 0, 0
	tr[prefix] = n
	return err
}

// makeAwkwardFiles writes what is easily lost on the way: links of both kinds,
// odd modes, odd names, empty things, a file that replaces one below.
func makeAwkwardFiles(dir string) error {
	long := strings.Repeat("a-long-name/", 18)
	files := []struct {
		name string
		mode fs.FileMode
		body string
	}{
		{"etc/motd", 0o644, "hello\n"},
		{"etc/shadow", 0o600, "root:*:1:0:99999:7:::\n"},
		{"etc/empty", 0o644, ""},
		{"bin/su", 0o755 | fs.ModeSetuid, "#!/bin/sh\n"},
		{"bin/wall", 0o755 | fs.ModeSetgid, "#!/bin/sh\n"},
		{"srv/with space/and\ttab", 0o444, "names\n"},
		{"srv/日本語/ünï", 0o640, "utf-8\n"},
		{"srv/" + long + "end", 0o644, "PAX\n"},
		{replacedFile, 0o700, "replaced\n"},
	}
	for _, f := range files {
		file := filepath.Join(dir, f.name)
		err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(f.body), 0o600), os.Chmod(file, f.mode))
		if err != nil {
			return err
		}
	}
	return errors.Join(
		os.MkdirAll(filepath.Join(dir, "tmp"), 0o755),
		os.Chmod(filepath.Join(dir, "tmp"), 0o777|fs.ModeSticky),
		os.Symlink("../etc/motd", filepath.Join(dir, "bin/motd")),
		os.Symlink("/no/such/place", filepath.Join(dir, "etc/dangling")),
		os.Symlink("usr/lib/go", filepath.Join(dir, "go")),
		os.Link(filepath.Join(dir, "bin/su"), filepath.Join(dir, "bin/sudo")),
		os.Link(filepath.Join(dir, "bin/su"), filepath.Join(dir, "srv/su")),
		setTimes(dir, time.Unix(1700000000, 0)),
	)
}

// setTimes gives the files below dir one time: the image is the same at each
// run.
func setTimes(dir string, when time.Time) error {
	return filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		at := unix.NsecToTimeval(when.UnixNano())
		return unix.Lutimes(file, []unix.Timeval{at, at}) // the links' own times
	})
}

// writeRandom writes size bytes that do not compress and follow from seed.
func writeRandom(file, seed string, size int64) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.NewChaCha8(sha256.Sum256([]byte(seed))), size)
	when := time.Unix(1700000000, 0)
	return errors.Join(err, f.Close(), os.Chtimes(file, when, when))
}

// assemble makes an OCI image of layers for linux/arch.
func assemble(arch string, layers ...v1.Layer) (v1.Image, error) {
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.AppendLayers(image, layers...)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Config.Cmd = []string{"/bin/su"} // docker create wants a command
	return mutate.ConfigFile(image, config)
}

// makeImage makes an image of linux/amd64 in dir, with one layer of size
// random bytes for each size. Its blobs are this seed's alone.
func makeImage(dir, seed string, sizes ...int64) (v1.Image, error) {
	var layers []v1.Layer
	for i, size := range sizes {
		name := fmt.Sprintf("%s-%d", seed, i)
		own := filepath.Join(dir, name)
		if err := writeRandom(filepath.Join(own, "data", name), name, size); err != nil {
			return nil, err
		}
		l, err := makeLayer(own+".tar", false, func(w *layerWriter) error { return w.addDir(own, "", keepAll) })
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	image, err := assemble("amd64", layers...)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.Config.Labels = map[string]string{"seed": seed} // the config, too, is this seed's alone
	return mutate.ConfigFile(image, config)
}
