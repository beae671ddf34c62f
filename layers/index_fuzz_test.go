package layers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Whatever a crash, or somebody else, has left in index.json: the store opens, keeps its
// blobs, names no manifest that is not one of them, and leaves an index that can be read.
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
	f.Fuzz(func(t *testing.T, content []byte) {
		cfg := StoreConfig{Dir: t.TempDir(), Log: log}
		s, err := OpenStore(cfg)
		if err != nil {
			t.Fatal(err)
		}
		put(t, s, b)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(cfg.Dir, ocispec.ImageIndexFile)
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second finds what the first has made of it
			if s, err = OpenStore(cfg); err != nil {
				t.Fatalf("index %q: %v", content, err)
			}
			if desc, got, err := s.Manifest(d); err == nil && (!bytes.Equal(got, b) || desc.Digest != d || desc.Size != int64(len(b))) {
				t.Errorf("manifest %+v, %q", desc, got)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			var index ocispec.Index
			if left, err := os.ReadFile(path); err != nil || json.Unmarshal(left, &index) != nil {
				t.Fatalf("index %q became %q, %v", content, left, err)
			}
			for _, desc := range index.Manifests {
				if desc.Digest != d {
					t.Errorf("index names %s, which is not here", desc.Digest)
				}
			}
		}
	})
}
