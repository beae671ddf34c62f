package artifact

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// Type is the artifactType of what [Pack] makes.
	Type = "application/vnd.murder.files.v1"

	mediaTypeFile = "application/octet-stream"
	mediaTypeTar  = ocispec.MediaTypeImageLayerGzip

	// annotationUnpack is ORAS's for a layer that is a tar of a folder.
	annotationUnpack = "io.deis.oras.content.unpack"
	// annotationMode has the mode of a file that is a layer of its own, in octal as chmod takes it, where that is not
	// 0644. ORAS has none, and does not look at it.
	annotationMode = "io.github.murderp2p.file.mode"

	defaultFileMode fs.FileMode = 0o644
	defaultDirMode  fs.FileMode = 0o755

	maxManifest = 4 << 20 // bytes; what registries take at least, and most take no more
	maxSize     = 1 << 50 // bytes of a layer
	maxLayers   = 8192    // what a mirror prefetches of an image
)

// Layer is a file of an artifact, or a tar of many.
type Layer struct {
	Digest digest.Digest
	Size   int64 // in bytes, of the blob
	// Title is the path of the file in the folder, or of the folder that the tar is of; "." is the folder itself.
	Title string
	// Tar is set for the tar of a folder.
	Tar bool

	mode fs.FileMode // of a file; 0 = not said
}

// Artifact is what a manifest says.
type Artifact struct {
	Type   string // "" where the manifest does not say
	Layers []Layer
}

// Bytes is the size of all layers together, each once.
func (a *Artifact) Bytes() (n int64) {
	seen := make(map[digest.Digest]bool)
	for _, l := range a.Layers {
		if !seen[l.Digest] {
			n += l.Size
		}
		seen[l.Digest] = true
	}
	return n
}

// Parse reads a manifest. What it names is safe to give to a [Stage]; the error says what is wrong with the artifact, or
// that it is none of files.
func Parse(content []byte) (*Artifact, error) {
	var m struct {
		ocispec.Manifest
		Manifests []json.RawMessage `json:"manifests"`
	}
	if len(content) > maxManifest {
		return nil, fmt.Errorf("the manifest has more than %d bytes", maxManifest)
	}
	if err := json.Unmarshal(content, &m); err != nil {
		return nil, fmt.Errorf("read the manifest: %w", err)
	}
	switch {
	case len(m.Manifests) > 0:
		return nil, errors.New("it is an index of images, not an artifact of files")
	case len(m.Layers) > maxLayers:
		return nil, fmt.Errorf("it has %d layers, more than %d", len(m.Layers), maxLayers)
	}
	a := &Artifact{Type: m.ArtifactType}
	names := newNames()
	for _, desc := range m.Layers {
		l, named, err := parseLayer(desc)
		if err != nil {
			return nil, err
		}
		if !named { // ORAS leaves such layers aside as well
			continue
		}
		if l.Title != "." {
			if err := names.add(l.Title, l.Tar, func(string) error { return nil }); err != nil {
				return nil, err
			}
		}
		a.Layers = append(a.Layers, l)
	}
	if len(a.Layers) == 0 {
		return nil, fmt.Errorf("it is no artifact of files: none of its %d layers has a file's name (%s)", len(m.Layers), ocispec.AnnotationTitle)
	}
	return a, nil
}

// parseLayer reads a descriptor; one without a title is not named.
func parseLayer(desc ocispec.Descriptor) (l Layer, named bool, err error) {
	title := desc.Annotations[ocispec.AnnotationTitle]
	if title == "" {
		return l, false, nil
	}
	l = Layer{Digest: desc.Digest, Size: desc.Size, Title: title, Tar: desc.Annotations[annotationUnpack] == "true"}
	if l.Tar { // ORAS takes what people type, such as ./conf/
		l.Title = path.Clean(title)
	}
	l.Title = strings.TrimPrefix(l.Title, "./")
	if !(l.Tar && l.Title == ".") {
		if err := checkPath(l.Title); err != nil {
			return l, false, err
		}
	}
	if err := desc.Digest.Validate(); err != nil {
		return l, false, fmt.Errorf("%q has the digest %q: %w", title, desc.Digest, err)
	}
	if desc.Size < 0 || desc.Size > maxSize {
		return l, false, fmt.Errorf("%q has a size of %d bytes", title, desc.Size)
	}
	if text, ok := desc.Annotations[annotationMode]; ok && !l.Tar {
		bits, err := strconv.ParseUint(text, 8, 12)
		if err != nil {
			return l, false, fmt.Errorf("%q has the mode %q, which is not octal", title, text)
		}
		l.mode = modeOf(int64(bits)) | modeSaid
	}
	return l, true, nil
}

// modeSaid marks a file's mode that may be 0 but was said.
const modeSaid fs.FileMode = fs.ModeIrregular

// makeManifest is the manifest of layers.
func makeManifest(artifactType string, layers []ocispec.Descriptor) ([]byte, error) {
	content, err := json.Marshal(ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: artifactType,
		Config:       ocispec.DescriptorEmptyJSON,
		Layers:       layers,
	})
	if err == nil && len(content) > maxManifest {
		err = fmt.Errorf("the manifest of %d layers has %d bytes, and registries take %d", len(layers), len(content), maxManifest)
	}
	return content, err
}

// octal are the bits of a mode as chmod and tar have them.
func octal(m fs.FileMode) int64 {
	bits := int64(m.Perm())
	for bit, mode := range special {
		if m&mode != 0 {
			bits |= bit
		}
	}
	return bits
}

// modeOf is the mode that octal makes bits of.
func modeOf(bits int64) fs.FileMode {
	m := fs.FileMode(bits & 0o777)
	for bit, mode := range special {
		if bits&bit != 0 {
			m |= mode
		}
	}
	return m
}

var special = map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky}

// byTitle is the order of layers in a manifest: tars before files.
func byTitle(a, b *Source) int {
	if a.tar != b.tar {
		if a.tar {
			return -1
		}
		return 1
	}
	return strings.Compare(a.title, b.title)
}

func sortSources(sources []*Source) { slices.SortFunc(sources, byTitle) }
