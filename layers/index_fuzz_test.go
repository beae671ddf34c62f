package layers

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Whatever a crash, or somebody else, has left in index.json: it opens, names no manifest
// that is not here, and becomes an index that can be read.
func FuzzIndex(f *testing.F) {
	b := []byte(`{"schemaVersion":2}`)
	d := sha256Of(b)
	entry := fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"annotations":{%q:"app:v1"}}`,
		ocispec.MediaTypeImageManifest, d, len(b), ocispec.AnnotationRefName)
	f.Add([]byte(nil))
	f.Add(make([]byte, 512))
	f.Add([]byte(`{"manifests":[` + entry + `]}`))
	f.Add([]byte(`{"manifests":[` + entry[:len(entry)/2]))
	f.Add([]byte(`{"manifests":[` + entry + `,` + entry + `,{"digest":"sha256:../../etc","size":-1}]}`))
	f.Add([]byte(`{"manifests":[{"mediaType":"x","digest":"` + d.String() + `","size":99}]}`))
	f.Add([]byte(`[]`))
	log := slog.New(slog.DiscardHandler)
	path := filepath.Join(f.TempDir(), ocispec.ImageIndexFile)
	f.Fuzz(func(t *testing.T, content []byte) {
		if len(content) == 0 {
			content = []byte(" ") // it is there
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		x, err := openIndex(path, filepath.Dir(path), log, func(of digest.Digest) bool { return of == d })
		if err != nil {
			t.Fatalf("index %q: %v", content, err)
		}
		index, _ := x.snapshot()
		left, err := json.Marshal(index)
		if err != nil {
			t.Fatal(err)
		}
		var again ocispec.Index
		if err := json.Unmarshal(left, &again); err != nil {
			t.Fatalf("index %q becomes %q, %v", content, left, err)
		}
		for _, desc := range again.Manifests {
			if desc.Digest != d {
				t.Errorf("index names %s, which is not here", desc.Digest)
			}
		}
	})
}

// A crash, or somebody else, has left an index that names a manifest wrongly: it is asked
// for again, and the blobs stay.
func TestForeignIndex(t *testing.T) {
	b := content(1, 100)
	s := openStore(t, StoreConfig{})
	d := put(t, s, b)
	s.Close()
	for _, index := range []string{"", "\x00\x00", `{"manifests":[{"digest":"` + d.String() + `","size":99}]}`} {
		if err := os.WriteFile(filepath.Join(s.dir, ocispec.ImageIndexFile), []byte(index), 0o644); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, StoreConfig{Dir: s.dir})
		if index == "" || index[0] == 0 {
			wantBlob(t, s, d, b)
		}
		if _, _, err := s.Manifest(d); !errors.Is(err, ErrNotFound) {
			t.Errorf("index %q: %v", index, err)
		}
		s.Close()
	}
}
