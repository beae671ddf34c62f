package layers

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// index is index.json of the layout: which blobs are manifests, and their refs.
//
// It is written whole each time, so changes gather while it is written and for a
// while after: storing n manifests costs far fewer than n writes of up to n entries.
// A crash in between loses entries, not blobs; their owner fetches them again.
type index struct {
	path    string
	tempDir string
	log     *slog.Logger
	failed  func(error)   // is told when the file could not be written
	changed chan struct{} // holds one token while there is something to write

	writing sync.Mutex // held for a whole write, so that no older state is renamed over a newer one

	mu        sync.Mutex // guards all below
	manifests map[digest.Digest]ocispec.Descriptor
	refs      map[string]digest.Digest
	version   int // of the two maps
	written   int // the version on disk
}

// openIndex reads index.json, or begins one. Entries whose blob is not there, which
// exists tells, are left out.
func openIndex(path, tempDir string, log *slog.Logger, exists func(digest.Digest) bool) (*index, error) {
	x := &index{
		path:      path,
		tempDir:   tempDir,
		log:       log,
		changed:   make(chan struct{}, 1),
		manifests: make(map[digest.Digest]ocispec.Descriptor),
		refs:      make(map[string]digest.Digest),
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		x.touch()
		if err := x.write(); err != nil && !takesNothing(err) && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return x, nil // run goes on trying
	}
	if err != nil {
		return nil, err
	}
	var file ocispec.Index
	if err = json.Unmarshal(b, &file); err != nil {
		// The blobs are worth keeping; what they were called is asked again.
		log.Warn("index is malformed, beginning a new one", "path", path, "err", err)
	}
	same := err == nil
	for _, desc := range file.Manifests {
		if exists(desc.Digest) {
			x.put(desc, desc.Annotations[ocispec.AnnotationRefName])
		} else {
			same = false
		}
	}
	if same {
		x.written = x.version
	} else {
		x.touch()
	}
	return x, nil
}

// get returns the descriptor of a manifest.
func (x *index) get(d digest.Digest) (ocispec.Descriptor, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	desc, ok := x.manifests[d]
	return desc, ok
}

// maxRefs bounds the names of manifests: who answers for tags may make up any number of
// them, all for one manifest. Of more those are remembered that were there before.
const maxRefs = 20_000

// name moves ref to a manifest, if that is there and names are not too many.
func (x *index) name(d digest.Digest, ref string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.manifests[d]; !ok || x.refs[ref] == d {
		return
	}
	if x.mayName(ref) {
		x.refs[ref] = d
		x.touch()
	}
}

// mayName tells whether ref is a name, and names are not too many. x.mu is held.
func (x *index) mayName(ref string) bool {
	_, known := x.refs[ref]
	return ref != "" && (known || len(x.refs) < maxRefs)
}

// named returns the manifest that has ref.
func (x *index) named(ref string) (digest.Digest, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	d, ok := x.refs[ref]
	return d, ok
}

// put names a manifest, and moves ref to it unless it is empty.
func (x *index) put(desc ocispec.Descriptor, ref string) {
	desc.Annotations = maps.Clone(desc.Annotations)
	delete(desc.Annotations, ocispec.AnnotationRefName)
	x.mu.Lock()
	defer x.mu.Unlock()
	old, ok := x.manifests[desc.Digest]
	names := x.mayName(ref)
	if ok && old.MediaType == desc.MediaType && (!names || x.refs[ref] == desc.Digest) {
		return
	}
	x.manifests[desc.Digest] = desc
	if names {
		x.refs[ref] = desc.Digest
	}
	x.touch()
}

// remove forgets a manifest and its refs, if it is one.
func (x *index) remove(d digest.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.manifests[d]; !ok {
		return
	}
	delete(x.manifests, d)
	maps.DeleteFunc(x.refs, func(_ string, to digest.Digest) bool { return to == d })
	x.touch()
}

// touch notes a change. x.mu is held.
func (x *index) touch() {
	x.version++
	select {
	case x.changed <- struct{}{}:
	default:
	}
}

// run writes the index as it changes, until stop is closed.
func (x *index) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-x.changed:
		}
		start := time.Now()
		if err := x.write(); err != nil {
			x.failed(err)
			time.AfterFunc(watchEvery, x.again) // the disk may be well then
		}
		// At most a twentieth of the time goes into writing.
		select {
		case <-stop:
			return
		case <-time.After(max(100*time.Millisecond, 20*time.Since(start))):
		}
	}
}

// again has the index written although it has not changed.
func (x *index) again() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.touch()
}

// write writes index.json if it is not on disk as it is.
func (x *index) write() error {
	x.writing.Lock()
	defer x.writing.Unlock()
	file, version := x.snapshot()
	if version == x.written {
		return nil
	}
	b, err := json.Marshal(file)
	if err != nil {
		return err
	}
	if err := writeFile(x.tempDir, x.path, b); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	x.mu.Lock()
	x.written = version
	x.mu.Unlock()
	return nil
}

// snapshot returns the file's content: a manifest stands there once for each ref, as
// the image layout has it, or once without.
func (x *index) snapshot() (ocispec.Index, int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	named := make(map[digest.Digest]bool, len(x.refs))
	list := make([]ocispec.Descriptor, 0, len(x.manifests)+len(x.refs))
	for ref, d := range x.refs {
		named[d] = true
		desc := x.manifests[d]
		desc.Annotations = maps.Clone(desc.Annotations)
		if desc.Annotations == nil {
			desc.Annotations = make(map[string]string)
		}
		desc.Annotations[ocispec.AnnotationRefName] = ref
		list = append(list, desc)
	}
	for d, desc := range x.manifests {
		if !named[d] {
			list = append(list, desc)
		}
	}
	slices.SortFunc(list, func(a, b ocispec.Descriptor) int {
		return cmp.Or(
			cmp.Compare(a.Annotations[ocispec.AnnotationRefName], b.Annotations[ocispec.AnnotationRefName]),
			cmp.Compare(a.Digest, b.Digest))
	})
	return ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: list,
	}, x.version
}
