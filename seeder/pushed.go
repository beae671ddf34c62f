package seeder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/seeder/pushes"
)

// pushedTree is what an image or another artifact is made of, on the platforms wanted.
type pushedTree struct {
	warmer    *warmer
	repo      registry.Repository
	manifests int
	blobs     []ocispec.Descriptor // each once
	known     map[digest.Digest]bool
}

// pushedManifest is what matters here of a manifest or an index.
type pushedManifest struct {
	Manifests []ocispec.Descriptor `json:"manifests"` // of an index
	Config    ocispec.Descriptor   `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
}

// walk fetches a manifest and those below it, and collects their blobs. An index tells of
// its children's platforms; of another manifest its config does.
func (t *pushedTree) walk(ctx context.Context, p pushes.Push, depth int, chosen bool) error {
	if t.manifests++; t.manifests > maxWarmManifests || depth > maxWarmDepth {
		return fmt.Errorf("%s has more than %d manifests, or more than %d indexes within one another", p.Image(), maxWarmManifests, maxWarmDepth)
	}
	desc, content, err := t.warmer.manifest(ctx, p)
	if err != nil {
		return err
	}
	m, err := parsePushed(desc.Digest, content)
	if err != nil {
		return err
	}
	if !chosen && m.Manifests == nil {
		if wanted, err := t.wantsConfig(ctx, m.Config); err != nil || !wanted {
			return err
		}
	}
	if err := t.add(m); err != nil {
		return fmt.Errorf("%s: %w", p.Image(), err)
	}
	for _, child := range m.Manifests {
		if child.Platform != nil && !t.warmer.wants(*child.Platform) {
			continue
		}
		err := t.walk(ctx, pushes.Push{Repo: t.repo, Kind: registry.Manifest, Digest: child.Digest}, depth+1, child.Platform != nil)
		if err != nil && !notThere(err) {
			return err
		}
	}
	return nil
}

func parsePushed(d digest.Digest, content []byte) (m pushedManifest, err error) {
	if err := json.Unmarshal(content, &m); err != nil {
		return m, fmt.Errorf("manifest %s: %w", d, err)
	}
	parts := slices.Concat(m.Manifests, m.Layers)
	if m.Config.Digest != "" { // an index has none
		parts = append(parts, m.Config)
	}
	for _, part := range parts {
		if _, err := registry.ParseDigest(part.Digest.String()); err != nil {
			return m, fmt.Errorf("manifest %s: %w", d, err)
		}
	}
	return m, nil
}

// add notes the blobs of a manifest, but for those with URLs, which are not the registry's.
func (t *pushedTree) add(m pushedManifest) error {
	for _, blob := range append(slices.Clone(m.Layers), m.Config) {
		if blob.Digest == "" || len(blob.URLs) > 0 || t.known[blob.Digest] {
			continue
		}
		t.known[blob.Digest] = true
		if t.blobs = append(t.blobs, blob); len(t.blobs) > maxWarmBlobs {
			return fmt.Errorf("more than %d blobs", maxWarmBlobs)
		}
	}
	return nil
}

// wants tells whether content of a platform is to be fetched.
func (w *warmer) wants(has ocispec.Platform) bool {
	p := v1.Platform{OS: has.OS, Architecture: has.Architecture, Variant: has.Variant, OSVersion: has.OSVersion}
	return len(w.platforms) == 0 || slices.ContainsFunc(w.platforms, func(wanted v1.Platform) bool { return p.Satisfies(wanted) })
}

// maxConfig bounds the config of an image in bytes.
const maxConfig = 4 << 20

// wantsConfig is wants for the image of a config, which is fetched to see. What is no
// image has no platform, and is wanted.
func (t *pushedTree) wantsConfig(ctx context.Context, config ocispec.Descriptor) (bool, error) {
	isImage := strings.HasSuffix(config.MediaType, "image.config.v1+json") || strings.HasSuffix(config.MediaType, "container.image.v1+json")
	if len(t.warmer.platforms) == 0 || !isImage || config.Size > maxConfig {
		return true, nil
	}
	if err := t.warmer.blob(ctx, t.repo, config.Digest); err != nil {
		return false, err
	}
	blob, err := t.warmer.seeder.cfg.Store.Open(config.Digest)
	if err != nil {
		return false, err
	}
	defer blob.Close()
	var has ocispec.Platform // its fields are those of a config (OCI image spec, "Image Configuration")
	if err := json.NewDecoder(io.LimitReader(blob.File(), maxConfig)).Decode(&has); err != nil {
		return true, nil // no config that we know
	}
	return has.OS == "" || t.warmer.wants(has), nil
}

// notThere is true of a platform that an index lists and the registry does not have:
// some copy images without all of them.
func notThere(err error) bool {
	e, ok := errors.AsType[*registry.Error](err)
	return ok && e.Status == http.StatusNotFound
}
