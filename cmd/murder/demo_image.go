package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// demoImage is an image of one platform, ready to be pushed and to be compared with.
type demoImage struct {
	blobs     []demoBlob // the config, then the layers
	manifest  []byte
	mediaType string // of the manifest
}

// demoBlob is a config or layer; open may be called more than once and yields the same bytes.
type demoBlob struct {
	digest digest.Digest
	size   int64
	open   func() (io.ReadCloser, error)
}

// size is what a pull moves, in bytes: blobs and manifest.
func (i *demoImage) size() int64 {
	n := int64(len(i.manifest))
	for _, b := range i.blobs {
		n += b.size
	}
	return n
}

// image takes the image that the user names, or makes one.
func (d *demo) image(ctx context.Context) (*demoImage, error) {
	if d.source == "" {
		if err := d.checkSpace(d.size); err != nil {
			return nil, err
		}
		return makeImage(ctx, d.size)
	}
	img, err := openImage(d.source, filepath.Join(d.dir, "unpacked"))
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", d.source, err)
	}
	taken, err := takeImage(img)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", d.source, err)
	}
	return taken, d.checkSpace(taken.size())
}

// layerShares are the parts of an image that its layers have, in percent: a large base, dependencies, and less and less above them.
var layerShares = []int64{40, 25, 20, 10, 5}

// minDemoImage is the least size of an image that is made, in bytes: each layer has some hundred.
const minDemoImage = 64 << 10

// makeImage makes an image of about size bytes. Its layers are tar files, each with one file of bytes that do not compress and are the
// same in each run; they are made anew when read, so no layer ever is in memory.
func makeImage(ctx context.Context, size int64) (*demoImage, error) {
	layers := make([]demoBlob, len(layerShares))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, share := range layerShares {
		g.Go(func() (err error) {
			layers[i], err = makeLayer(ctx, byte(i), size*share/100)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.digest) // the layers are not compressed
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.digest, Size: l.size})
	}
	rawConfig, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	blob := blobOf(rawConfig)
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: blob.digest, Size: blob.size}
	rawManifest, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &demoImage{blobs: append([]demoBlob{blob}, layers...), manifest: rawManifest, mediaType: m.MediaType}, nil
}

func blobOf(content []byte) demoBlob {
	return demoBlob{
		digest: digest.FromBytes(content),
		size:   int64(len(content)),
		open:   func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
	}
}

// makeLayer makes the layer of a number whose file has size bytes.
func makeLayer(ctx context.Context, number byte, size int64) (demoBlob, error) {
	header := new(bytes.Buffer)
	name := fmt.Sprintf("opt/demo/layer-%d", number)
	if err := tar.NewWriter(header).WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size}); err != nil {
		return demoBlob{}, err
	}
	const block = 512 // tar pads files to blocks, and ends with two empty ones
	padding := (block-size%block)%block + 2*block
	layer := demoBlob{
		size: int64(header.Len()) + size + padding,
		open: func() (io.ReadCloser, error) {
			noise := rand.NewChaCha8([32]byte{'m', 'u', 'r', 'd', 'e', 'r', number})
			return io.NopCloser(io.MultiReader(
				bytes.NewReader(header.Bytes()), io.LimitReader(noise, size), bytes.NewReader(make([]byte, padding)),
			)), nil
		},
	}
	r, err := layer.open()
	if err != nil {
		return demoBlob{}, err
	}
	layer.digest, err = digest.FromReader(withContext(ctx, r))
	return layer, err
}

// withContext is r until ctx ends.
func withContext(ctx context.Context, r io.Reader) io.Reader {
	return readerFunc(func(b []byte) (int, error) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return r.Read(b)
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// openImage opens an OCI layout, a tarball of one (which it unpacks to dir), or what `docker save` writes.
func openImage(path, dir string) (v1.Image, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return imageOfLayout(path)
	}
	// `docker save` writes both forms into one tarball since version 25; its own is the one that ggcr reads without unpacking.
	img, dockerErr := tarball.ImageFromPath(path, nil)
	if dockerErr == nil {
		return img, nil
	}
	if err := untar(path, dir); err != nil {
		return nil, err
	}
	img, err = imageOfLayout(dir)
	if err != nil {
		return nil, fmt.Errorf("is neither a tarball of Docker (%w) nor of an OCI layout (%w)", dockerErr, err)
	}
	return img, nil
}

// imageOfLayout is the layout's image for this machine, or its first.
func imageOfLayout(dir string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	var first v1.Image
	for depth := 0; depth < 3; depth++ { // a layout's index may name an index, and that one another
		m, err := index.IndexManifest()
		if err != nil {
			return nil, err
		}
		var below v1.ImageIndex
		for _, desc := range m.Manifests {
			switch {
			case desc.MediaType.IsIndex() && below == nil:
				below, err = index.ImageIndex(desc.Digest)
			case desc.MediaType.IsImage():
				var img v1.Image
				if img, err = index.Image(desc.Digest); err == nil && first == nil {
					first = img
				}
				if p := desc.Platform; err == nil && p != nil && p.OS == "linux" && p.Architecture == runtime.GOARCH {
					return img, nil
				}
			}
			if err != nil {
				return nil, err
			}
		}
		if below == nil {
			break
		}
		index = below
	}
	if first == nil {
		return nil, errors.New("there is no image in it")
	}
	return first, nil
}

// untar unpacks the files of a tarball of an OCI layout: regular ones at most two folders deep. [os.Root] keeps them within dir.
func untar(path, dir string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for t := tar.NewReader(f); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("is no tarball: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := unpack(root, h.Name, t); err != nil {
			return err
		}
	}
}

func unpack(root *os.Root, name string, r io.Reader) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := root.Create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// takeImage makes a demo's image of one that ggcr has opened.
func takeImage(img v1.Image) (*demoImage, error) {
	manifest, err := img.RawManifest()
	if err != nil {
		return nil, err
	}
	mediaType, err := img.MediaType()
	if err != nil {
		return nil, err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return nil, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	taken := &demoImage{manifest: manifest, mediaType: string(mediaType), blobs: []demoBlob{blobOf(config)}}
	for _, l := range layers {
		hash, err := l.Digest()
		if err != nil {
			return nil, err
		}
		size, err := l.Size()
		if err != nil {
			return nil, err
		}
		taken.blobs = append(taken.blobs, demoBlob{digest: digest.Digest(hash.String()), size: size, open: l.Compressed})
	}
	return taken, nil
}
