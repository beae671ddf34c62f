package proxy

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/murderp2p/murder/registry"
)

// Export writes an image that has been prefetched, on this host's platform, as a tar that
// engines load: an OCI image layout, and beside it the manifest.json of docker save. The
// registry is asked as for a pull whether its caller may have it.
func (m *Mirror) Export(ctx context.Context, image PrefetchImage, w io.Writer) error {
	req, name, err := m.request(image)
	if err != nil {
		return err
	}
	desc, content, err := m.manifests.Get(ctx, req)
	if err != nil {
		return err
	}
	own, err := parsePlatforms(nil)
	if err != nil {
		return err
	}
	tree := &imageTree{mirror: m, req: req, platforms: own}
	if err := tree.walk(ctx, desc, content, 0); err != nil {
		return err
	}
	e := &export{mirror: m, tar: tar.NewWriter(w)}
	if err := e.index(tree, desc, name); err != nil {
		return err
	}
	for _, d := range tree.manifests {
		if err := e.manifest(d); err != nil {
			return err
		}
	}
	for _, blob := range tree.blobs {
		if err := e.blob(ctx, req, blob.Digest); err != nil {
			return fmt.Errorf("blob %s: %w", blob.Digest, err)
		}
	}
	return e.tar.Close()
}

// export is a tar that is being written.
type export struct {
	mirror *Mirror
	tar    *tar.Writer
}

func blobPath(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

// index writes what tells engines what the blobs are: containerd reads the first two,
// Docker the third.
func (e *export) index(tree *imageTree, desc ocispec.Descriptor, name string) error {
	desc.Annotations = map[string]string{"io.containerd.image.name": name, ocispec.AnnotationRefName: name}
	legacy, err := e.legacy(tree, name)
	if err != nil {
		return err
	}
	for path, v := range map[string]any{
		ocispec.ImageLayoutFile: ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion},
		ocispec.ImageIndexFile:  ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{desc}},
		"manifest.json":         legacy,
	} {
		content, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if err := e.file(path, int64(len(content)), bytes.NewReader(content)); err != nil {
			return err
		}
	}
	return nil
}

// legacyImage is an image in docker save's manifest.json.
type legacyImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// legacy is what Docker is told: the first image of this platform.
func (e *export) legacy(tree *imageTree, name string) ([]legacyImage, error) {
	for _, d := range tree.manifests {
		_, content, err := e.mirror.cfg.Store.Manifest(d)
		if err != nil {
			return nil, err
		}
		manifest, err := parseManifest(d, content)
		if err != nil {
			return nil, err
		}
		if manifest.Manifests != nil {
			continue
		}
		image := legacyImage{Config: blobPath(manifest.Config.Digest), RepoTags: []string{name}}
		for _, layer := range manifest.Layers {
			if len(layer.URLs) > 0 {
				return nil, errors.New("a layer of it is not the registry's to give")
			}
			image.Layers = append(image.Layers, blobPath(layer.Digest))
		}
		return []legacyImage{image}, nil
	}
	return nil, errors.New("it has no image for this host's platform")
}

func (e *export) manifest(d digest.Digest) error {
	_, content, err := e.mirror.cfg.Store.Manifest(d)
	if err != nil {
		return err
	}
	return e.file(blobPath(d), int64(len(content)), bytes.NewReader(content))
}

// blob writes a blob as a pull has it; one that has left the cache meanwhile comes again.
func (e *export) blob(ctx context.Context, req registry.Request, d digest.Digest) error {
	req.Kind, req.Tag, req.Digest = registry.Blob, "", d
	blob, err := e.mirror.OpenBlob(ctx, req)
	if err != nil {
		return err
	}
	defer blob.Close()
	if blob.Size() < 0 {
		return errors.New("its registry does not say how long it is")
	}
	return e.file(blobPath(d), blob.Size(), blob.Section(ctx, 0, blob.Size()))
}

func (e *export) file(path string, size int64, content io.Reader) error {
	if err := e.tar.WriteHeader(&tar.Header{Name: path, Size: size, Mode: 0o644, Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err := io.Copy(e.tar, content)
	return err
}
