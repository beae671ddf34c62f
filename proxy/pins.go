package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/registry"
)

// PinRequest is the body of POST /v1/pins.
type PinRequest struct {
	Image string `json:"image"`
	// Platforms as os/arch[/variant], or "all", are those that must be here; none is this
	// host's own, and whichever others are here in full.
	Platforms []string `json:"platforms,omitempty"`
}

// PinAnswer is one pinned image.
type PinAnswer struct {
	Image  string        `json:"image"`
	Digest digest.Digest `json:"digest"` // that the image had when it was pinned
	Pinned time.Time     `json:"pinned"`
	Blobs  int           `json:"blobs"` // manifests, configs and layers
	Bytes  int64         `json:"bytes"` // of those that are here
	// Missing are blobs that were lost with the disk; the next pull brings them again.
	Missing []digest.Digest `json:"missing,omitempty"`
}

// pinRoutes are the API of pins. It is for whoever may call the mirror's own API: what is
// pinned is served to nobody whom the registry does not admit.
func (m *Mirror) pinRoutes() {
	m.mux.HandleFunc("GET /v1/pins", m.servePins)
	m.mux.HandleFunc("POST /v1/pins", m.servePin)
	m.mux.HandleFunc("DELETE /v1/pins", m.serveUnpin)
}

func (m *Mirror) servePins(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, struct {
		Pins []PinAnswer `json:"pins"`
	}{m.Pins()})
}

// Pins lists the pinned images by name.
func (m *Mirror) Pins() []PinAnswer {
	answers := []PinAnswer{}
	for _, p := range m.cfg.Store.Pins() {
		answers = append(answers, m.pinAnswer(p))
	}
	return answers
}

func (m *Mirror) pinAnswer(p layers.Pin) PinAnswer {
	a := PinAnswer{Image: p.Image, Digest: p.Digest, Pinned: p.Pinned, Blobs: len(p.Blobs)}
	for _, d := range p.Blobs {
		if size, ok := m.cfg.Store.Stat(d); ok {
			a.Bytes += size
		} else {
			a.Missing = append(a.Missing, d)
		}
	}
	return a
}

// servePin pins one image that is here. It asks no registry, and fetches nothing.
func (m *Mirror) servePin(w http.ResponseWriter, r *http.Request) {
	var body PinRequest
	if !readJSON(w, r, "pin request", &body) {
		return
	}
	req, err := m.parseImage(PrefetchImage{Ref: body.Image})
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	wanted := cachedPlatforms{}
	if len(body.Platforms) > 0 {
		if wanted.must, err = parsePlatforms(body.Platforms); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		wanted.named = true
	}
	pin, err := m.pinCached(r.Context(), req, wanted)
	if err != nil {
		http.Error(w, err.Error(), pinStatus(err))
		return
	}
	writeJSON(w, m.pinAnswer(pin))
}

// serveUnpin answers DELETE /v1/pins?image=NAME.
func (m *Mirror) serveUnpin(w http.ResponseWriter, r *http.Request) {
	req, err := m.parseImage(PrefetchImage{Ref: r.URL.Query().Get("image")})
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := m.cfg.Store.UnpinImage(imageName(req)); err != nil {
		http.Error(w, err.Error(), pinStatus(err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// errNotHere is the error of an image, or a platform of it, that is not in the cache.
var errNotHere = errors.New("not in the cache")

// pinStatus is 404 for what is not here, and 500 for a disk that does not take the pin.
func pinStatus(err error) int {
	_, missing := errors.AsType[*layers.MissingError](err)
	if missing || errors.Is(err, errNotHere) || errors.Is(err, layers.ErrNotPinned) {
		return http.StatusNotFound
	}
	return http.StatusInternalServerError
}

// imageName is what an image is called in pins: in full, as `murder` itself writes it.
func imageName(req registry.Request) string {
	if req.Tag != "" {
		return req.Repo.String() + ":" + req.Tag
	}
	return req.Repo.String() + "@" + req.Digest.String()
}

// pinCached pins what the cache has of an image.
func (m *Mirror) pinCached(ctx context.Context, req registry.Request, wanted cachedPlatforms) (layers.Pin, error) {
	d := req.Digest
	if req.Tag != "" {
		var ok bool
		if d, ok = m.cfg.Store.Named(imageName(req)); !ok {
			return layers.Pin{}, fmt.Errorf("%w: nothing has been pulled under that name", errNotHere)
		}
	}
	blobs, err := wanted.parts(m.cfg.Store, d, 0)
	if err != nil {
		return layers.Pin{}, err
	}
	for _, blob := range blobs {
		m.settle(ctx, blob)
	}
	pin := layers.Pin{Image: imageName(req), Digest: d, Pinned: time.Now().UTC(), Blobs: blobs}
	return pin, m.cfg.Store.PinImage(pin)
}

// settle waits for the disk to take a blob that is all here. A client has been given it by
// then, and may have an image pinned that it has just pulled.
func (m *Mirror) settle(ctx context.Context, blob digest.Digest) {
	d, flying := m.flights.Get(blob)
	if !flying {
		return
	}
	select {
	case <-d.partial.Verified():
	default:
		return
	}
	select {
	case <-d.partial.Done():
	case <-ctx.Done():
	}
}

// cachedPlatforms are those meant of an image that is in the cache.
type cachedPlatforms struct {
	named bool      // the caller has named them
	must  platforms // those, if named
}

// parts lists the blobs of the manifest or index d, itself included.
func (c cachedPlatforms) parts(store *layers.Store, d digest.Digest, depth int) ([]digest.Digest, error) {
	_, content, err := store.Manifest(d)
	if err != nil {
		return nil, fmt.Errorf("%w: manifest %s", errNotHere, d)
	}
	manifest, err := parseManifest(d, content)
	if err != nil {
		return nil, err
	}
	if manifest.Manifests == nil {
		return append(manifest.blobs(), d), nil
	}
	if depth == maxManifestsDepth {
		return nil, fmt.Errorf("index %s: more than %d indexes deep", d, depth)
	}
	children, err := c.choose(store, manifest.Manifests, depth)
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", d, err)
	}
	parts := []digest.Digest{d}
	for _, child := range children {
		below, err := c.parts(store, child.Digest, depth+1)
		if err != nil {
			return nil, err
		}
		parts = append(parts, below...)
	}
	slices.Sort(parts)
	return slices.Compact(parts), nil
}

// choose returns the manifests of an index that are meant. Where the caller has named no
// platforms that of this host must be whole, if there is one, and of the others those
// count that are; at least one.
func (c cachedPlatforms) choose(store *layers.Store, manifests []ocispec.Descriptor, depth int) ([]ocispec.Descriptor, error) {
	if c.named {
		return c.must.choose(manifests)
	}
	own, _ := parsePlatforms(nil)
	chosen, _ := own.choose(manifests) // none is no error
	for _, child := range manifests {
		known := slices.ContainsFunc(chosen, func(has ocispec.Descriptor) bool { return has.Digest == child.Digest })
		if !known && c.whole(store, child.Digest, depth+1) {
			chosen = append(chosen, child)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no platform of it is %w in full", errNotHere)
	}
	return chosen, nil
}

// whole tells whether all of a manifest is here.
func (c cachedPlatforms) whole(store *layers.Store, d digest.Digest, depth int) bool {
	parts, err := c.parts(store, d, depth)
	return err == nil && !slices.ContainsFunc(parts, func(part digest.Digest) bool {
		_, ok := store.Stat(part)
		return !ok
	})
}

// imageManifest is what matters here of a manifest or an index.
type imageManifest struct {
	Manifests []ocispec.Descriptor `json:"manifests"` // of an index
	Config    ocispec.Descriptor   `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
}

func parseManifest(d digest.Digest, content []byte) (m imageManifest, err error) {
	if err := json.Unmarshal(content, &m); err != nil {
		return m, fmt.Errorf("manifest %s: %w", d, err)
	}
	for _, desc := range slices.Concat(m.Manifests, m.parts()) {
		if _, err := registry.ParseDigest(desc.Digest.String()); err != nil {
			return m, fmt.Errorf("manifest %s: %w", d, err)
		}
	}
	return m, nil
}

// parts are the config and the layers, but for layers with URLs, which are not the
// registry's.
func (m imageManifest) parts() (parts []ocispec.Descriptor) {
	if m.Manifests != nil {
		return nil
	}
	for _, blob := range append(slices.Clone(m.Layers), m.Config) {
		if len(blob.URLs) == 0 {
			parts = append(parts, blob)
		}
	}
	return parts
}

func (m imageManifest) blobs() (digests []digest.Digest) {
	for _, blob := range m.parts() {
		digests = append(digests, blob.Digest)
	}
	slices.Sort(digests)
	return slices.Compact(digests)
}
