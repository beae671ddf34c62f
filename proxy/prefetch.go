package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/registry"
)

const (
	maxRequestBody    = 1 << 20 // bytes of a request to the mirror's own API
	prefetchBlobs     = 4       // blobs of one image at a time, as engines do
	prefetchImages    = 4       // images of one request at a time
	progressInterval  = 250 * time.Millisecond
	firstInterval     = 20 * time.Millisecond // until there is any
	maxManifestsDepth = 4                     // indexes within indexes

	maxPrefetches = 32   // requests at a time
	maxPlatforms  = 64   // of one request
	maxManifests  = 1024 // of one image, all its platforms together
	maxBlobs      = 8192 // likewise
)

// PrefetchRequest is the body of POST /v1/prefetch.
type PrefetchRequest struct {
	Images []PrefetchImage `json:"images"`
	// Platforms as os/arch[/variant], or "all"; none is this host's own.
	Platforms []string `json:"platforms,omitempty"`
	// Pin keeps the images, once they are here, until they are unpinned.
	Pin bool `json:"pin,omitempty"`
}

// PrefetchImage is one image to bring, in the name of whoever the
// Authorization is of.
type PrefetchImage struct {
	Ref string `json:"ref"`
	// Digest is what to bring, and to call Ref; "" = what the registry has under it now.
	Digest        digest.Digest `json:"digest,omitempty"`
	Authorization string        `json:"authorization,omitempty"`
}

// PrefetchEvent is one line of the answer to POST /v1/prefetch. Event is
// resolved, progress, blob, done or error, each of one image, and in the last
// line end; an answer without that line has failed.
type PrefetchEvent struct {
	Event     string                  `json:"event"`
	Image     string                  `json:"image,omitempty"`
	Digest    digest.Digest           `json:"digest,omitempty"`
	Blobs     int                     `json:"blobs,omitempty"`
	Bytes     int64                   `json:"bytes,omitempty"`
	BytesDone int64                   `json:"bytes_done,omitempty"`
	From      map[layers.Source]int64 `json:"from,omitempty"` // bytes of a blob by source
	Error     string                  `json:"error,omitempty"`
	Status    int                     `json:"status,omitempty"`    // the registry's, of an error
	Challenge string                  `json:"challenge,omitempty"` // with status 401
	Pinned    bool                    `json:"pinned,omitempty"`    // of done
	OK        *bool                   `json:"ok,omitempty"`        // of end: all images are here
}

// servePrefetch answers POST /v1/prefetch: it brings images ahead of a pull,
// and tells how it goes, a JSON object a line.
func (m *Mirror) servePrefetch(w http.ResponseWriter, r *http.Request) {
	if m.prefetches.Add(1) > maxPrefetches {
		m.prefetches.Add(-1)
		w.Header().Set("Retry-After", "5")
		http.Error(w, fmt.Sprintf("%d prefetches are under way; try again later", maxPrefetches), http.StatusTooManyRequests)
		return
	}
	defer m.prefetches.Add(-1)
	var req PrefetchRequest
	if !readJSON(w, r, "prefetch request", &req) {
		return
	}
	platforms, err := parsePlatforms(req.Platforms)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	events := &eventWriter{w: w, flush: http.NewResponseController(w)}
	ok := m.prefetchAll(r.Context(), req, platforms, events.send)
	events.send(PrefetchEvent{Event: "end", OK: &ok})
}

// readJSON reads the body of a request, or answers that it cannot. It takes nothing but
// JSON, which a page in a browser cannot send to another site unasked.
func readJSON(w http.ResponseWriter, r *http.Request, what string, into any) bool {
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t != "application/json" {
		http.Error(w, "the body must be application/json", http.StatusUnsupportedMediaType)
		return false
	}
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequestBody))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		http.Error(w, what+": "+err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func writeJSON(w http.ResponseWriter, answer any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(answer) // fails only with the client
}

// eventWriter sends events of several images down one answer.
type eventWriter struct {
	mu    sync.Mutex // guards w
	w     http.ResponseWriter
	flush *http.ResponseController
}

// send drops what cannot be sent: when the client has left, its request's
// context ends the work.
func (e *eventWriter) send(event PrefetchEvent) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if json.NewEncoder(e.w).Encode(event) == nil {
		e.flush.Flush()
	}
}

// Prefetch brings images, and tells how it goes as the answer to POST /v1/prefetch does, but
// for the last line: ok tells whether all are here. The error is that of a request which
// cannot be understood.
func (m *Mirror) Prefetch(ctx context.Context, req PrefetchRequest, send func(PrefetchEvent)) (ok bool, err error) {
	platforms, err := parsePlatforms(req.Platforms)
	if err != nil {
		return false, err
	}
	var mu sync.Mutex // events come from several goroutines
	return m.prefetchAll(ctx, req, platforms, func(e PrefetchEvent) {
		mu.Lock()
		defer mu.Unlock()
		send(e)
	}), nil
}

func (m *Mirror) prefetchAll(ctx context.Context, req PrefetchRequest, platforms platforms, send func(PrefetchEvent)) bool {
	var group errgroup.Group
	group.SetLimit(prefetchImages)
	trees := make([]*imageTree, len(req.Images)) // of those that were brought
	for i, image := range req.Images {
		group.Go(func() error {
			tree, err := m.prefetch(ctx, image, platforms, req.Pin, send)
			if err != nil {
				send(errorEvent(image.Ref, err))
				return err
			}
			trees[i] = tree
			return nil
		})
	}
	ok := group.Wait() == nil
	for i, tree := range trees { // one may have gone for another
		if tree == nil {
			continue
		}
		if err := tree.here(); err != nil {
			send(errorEvent(req.Images[i].Ref, err))
			ok = false
		}
	}
	return ok
}

func errorEvent(image string, err error) PrefetchEvent {
	event := PrefetchEvent{Event: "error", Image: image, Error: err.Error()}
	if e, ok := errors.AsType[*registry.Error](err); ok {
		event.Status, event.Challenge = e.Status, e.Header.Get("Www-Authenticate")
	}
	return event
}

// request is the question for an image's manifest, by the digest if one is given, and the
// name that the image goes by.
func (m *Mirror) request(image PrefetchImage) (req registry.Request, name string, err error) {
	if req, err = m.parseImage(image); err != nil {
		return req, "", err
	}
	name = imageName(req)
	if image.Digest != "" {
		req.Tag = ""
		req.Digest, err = registry.ParseDigest(image.Digest.String())
	}
	return req, name, err
}

// ImageName is what an image is called in full, as docker.io/library/app:1: engines have a default registry of their own.
func (m *Mirror) ImageName(image PrefetchImage) (string, error) {
	_, name, err := m.request(image)
	return name, err
}

// prefetch brings one image: manifests, configs and layers. It is pinned when it is here,
// if pin is set; until then nothing of it goes for the rest.
func (m *Mirror) prefetch(ctx context.Context, image PrefetchImage, platforms platforms, pin bool, send func(PrefetchEvent)) (*imageTree, error) {
	req, name, err := m.request(image)
	if err != nil {
		return nil, err
	}
	desc, content, err := m.manifests.Get(ctx, req)
	if err != nil {
		return nil, err
	}
	if image.Digest != "" {
		m.cfg.Store.NameManifest(desc.Digest, name)
	}
	tree := &imageTree{mirror: m, req: req, platforms: platforms}
	if err := tree.walk(ctx, desc, content, 0); err != nil {
		return nil, err
	}
	if pin {
		defer m.cfg.Store.Hold(tree.digests())()
	}
	total := tree.bytes()
	send(PrefetchEvent{Event: "resolved", Image: image.Ref, Digest: desc.Digest, Blobs: len(tree.blobs), Bytes: total})

	progress, stop := context.WithCancel(ctx)
	var reporting sync.WaitGroup
	reporting.Go(func() { m.report(progress, image.Ref, tree, send) })
	err = m.prefetchBlobs(ctx, image.Ref, tree, send)
	stop()
	reporting.Wait()
	if err == nil {
		err = tree.here()
	}
	if err != nil {
		return nil, err
	}
	if pin {
		err := m.cfg.Store.PinImage(layers.Pin{Image: name, Digest: desc.Digest, Pinned: time.Now().UTC(), Blobs: tree.digests()})
		if err != nil {
			return nil, err
		}
	}
	send(PrefetchEvent{Event: "done", Image: image.Ref, Digest: desc.Digest, Bytes: total, Pinned: pin})
	return tree, nil
}

func (m *Mirror) parseImage(image PrefetchImage) (registry.Request, error) {
	ref, err := name.ParseReference(image.Ref, name.WithDefaultRegistry(m.cfg.DefaultRegistry))
	if err != nil {
		return registry.Request{}, fmt.Errorf("image %q: %w", image.Ref, err)
	}
	repo, err := registry.ParseRepository(ref.Context().RegistryStr(), ref.Context().RepositoryStr())
	if err != nil {
		return registry.Request{}, err
	}
	req := registry.Request{Kind: registry.Manifest, Repo: repo, Authorization: image.Authorization}
	if d, ok := ref.(name.Digest); ok {
		req.Digest, err = registry.ParseDigest(d.DigestStr())
		return req, err
	}
	req.Tag = ref.Identifier()
	return req, nil
}

func (m *Mirror) prefetchBlobs(ctx context.Context, image string, tree *imageTree, send func(PrefetchEvent)) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(prefetchBlobs)
	for _, blob := range tree.blobs {
		group.Go(func() error {
			from, err := m.prefetchBlob(ctx, tree.req, blob)
			if err != nil {
				return fmt.Errorf("blob %s: %w", blob.Digest, err)
			}
			send(PrefetchEvent{Event: "blob", Image: image, Digest: blob.Digest, Bytes: blob.Size, From: from})
			return nil
		})
	}
	return group.Wait()
}

// prefetchBlob asks for a blob as a pull does, and waits until it is whole.
func (m *Mirror) prefetchBlob(ctx context.Context, req registry.Request, desc ocispec.Descriptor) (from map[layers.Source]int64, err error) {
	req.Kind, req.Tag, req.Digest = registry.Blob, "", desc.Digest
	blob, d, err := m.acquire(ctx, req)
	if u, ok := errors.AsType[*registry.Uncached](err); ok {
		u.Stream.Close()
		return nil, u
	}
	if err != nil {
		return nil, err
	}
	if blob != nil {
		return map[layers.Source]int64{layers.FromCache: blob.Size()}, blob.Close()
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-d.partial.Done():
	}
	if err := d.partial.Err(); err != nil {
		return nil, err
	}
	d.count()
	for _, record := range m.ledger.Records(desc.Digest) {
		from = record.From
	}
	return from, nil
}

// report tells how far an image is until ctx ends.
func (m *Mirror) report(ctx context.Context, image string, tree *imageTree, send func(PrefetchEvent)) {
	tick := time.NewTicker(firstInterval)
	defer tick.Stop()
	var begun bool
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		done := tree.bytesDone()
		if !begun && done == 0 {
			continue
		}
		if !begun {
			begun = true
			tick.Reset(progressInterval)
		}
		send(PrefetchEvent{Event: "progress", Image: image, BytesDone: done, Bytes: tree.bytes()})
	}
}

// imageTree is what an image is made of, on the platforms asked for.
type imageTree struct {
	mirror    *Mirror
	req       registry.Request
	platforms platforms
	manifests []digest.Digest      // indexes too
	blobs     []ocispec.Descriptor // configs and layers, each once
}

// walk fetches the manifests below one, and collects their blobs.
func (t *imageTree) walk(ctx context.Context, desc ocispec.Descriptor, content []byte, depth int) error {
	manifest, err := parseManifest(desc.Digest, content)
	if err != nil {
		return err
	}
	t.manifests = append(t.manifests, desc.Digest)
	if manifest.Manifests == nil {
		return t.add(manifest.parts())
	}
	if depth == maxManifestsDepth {
		return fmt.Errorf("index %s: more than %d indexes deep", desc.Digest, depth)
	}
	children, err := t.platforms.choose(manifest.Manifests)
	if err != nil {
		return fmt.Errorf("index %s: %w", desc.Digest, err)
	}
	for _, child := range children {
		if len(t.manifests) > maxManifests {
			return fmt.Errorf("index %s: the image has more than %d manifests", desc.Digest, maxManifests)
		}
		req := t.req
		req.Tag, req.Digest = "", child.Digest
		desc, content, err := t.mirror.manifests.Get(ctx, req)
		if err == nil {
			err = t.walk(ctx, desc, content, depth+1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *imageTree) add(blobs []ocispec.Descriptor) error {
	for _, blob := range blobs {
		known := slices.ContainsFunc(t.blobs, func(b ocispec.Descriptor) bool { return b.Digest == blob.Digest })
		if len(t.blobs) == maxBlobs && !known {
			return fmt.Errorf("the image has more than %d blobs", maxBlobs)
		}
		if !known {
			t.blobs = append(t.blobs, blob)
		}
	}
	return nil
}

// digests are those of all that the image is made of, each once.
func (t *imageTree) digests() []digest.Digest {
	all := slices.Clone(t.manifests)
	for _, blob := range t.blobs {
		all = append(all, blob.Digest)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// here returns an error unless all blobs are: in a cache that is too small the first may go for the last.
func (t *imageTree) here() error {
	for _, blob := range t.blobs {
		if _, ok := t.mirror.cfg.Store.Stat(blob.Digest); !ok {
			return fmt.Errorf("blob %s is not in the cache any more, which is too small for all that was asked for, or whose disk fails", blob.Digest)
		}
	}
	return nil
}

func (t *imageTree) bytes() (n int64) {
	for _, blob := range t.blobs {
		n += blob.Size
	}
	return n
}

func (t *imageTree) bytesDone() (n int64) {
	for _, blob := range t.blobs {
		if size, ok := t.mirror.cfg.Store.Stat(blob.Digest); ok {
			n += size
		} else if d, ok := t.mirror.flights.Get(blob.Digest); ok {
			n += d.partial.Received()
		}
	}
	return n
}

// platforms are those wanted of an image; nil is all.
type platforms []v1.Platform

func parsePlatforms(texts []string) (platforms, error) {
	if len(texts) == 0 {
		return platforms{{OS: runtime.GOOS, Architecture: runtime.GOARCH}}, nil
	}
	if len(texts) > maxPlatforms {
		return nil, fmt.Errorf("%d platforms; more than %d in one request are too many", len(texts), maxPlatforms)
	}
	var wanted platforms
	for _, text := range texts {
		if text == "all" {
			return nil, nil
		}
		p, err := v1.ParsePlatform(text)
		if err != nil || p.OS == "" || p.Architecture == "" {
			return nil, fmt.Errorf("platform %q is not of the form os/arch[/variant]", text)
		}
		wanted = append(wanted, *p)
	}
	return wanted, nil
}

// choose returns the manifests of an index that are wanted. Each platform
// must be among them.
func (p platforms) choose(manifests []ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	if p == nil {
		return manifests, nil
	}
	var chosen []ocispec.Descriptor
	for _, want := range p {
		found := false
		for _, m := range manifests {
			if m.Platform == nil {
				continue
			}
			has := v1.Platform{OS: m.Platform.OS, Architecture: m.Platform.Architecture, Variant: m.Platform.Variant, OSVersion: m.Platform.OSVersion}
			if has.Satisfies(want) {
				found = true
				chosen = append(chosen, m)
			}
		}
		if !found {
			return nil, fmt.Errorf("has nothing for platform %s", want)
		}
	}
	return chosen, nil
}
