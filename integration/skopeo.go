package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// skopeo copies images without an engine. It needs no root.
type skopeo struct{ containersConfig }

func newSkopeo(t testing.TB) *skopeo {
	t.Helper()
	needs(t, "skopeo")
	return &skopeo{newContainersConfig(t)}
}

// Copy copies ref into a new OCI image layout and returns its folder.
func (s *skopeo) Copy(t testing.TB, ref string, flags ...string) (layout string, err error) {
	t.Helper()
	layout = filepath.Join(newRoot(t), "layout")
	args := append([]string{program(t, "skopeo"), "--policy", filepath.Join(s.dir, "policy.json"), "copy", "--quiet", "--src-tls-verify=false"}, flags...)
	_, err = tryRun(t, processConfig{Args: append(args, "docker://"+ref, "oci:"+layout+":latest"), Env: s.env()})
	return layout, err
}

// treeOfLayout unpacks the one image of an OCI image layout, in memory.
func treeOfLayout(t testing.TB, layout string) tree {
	t.Helper()
	var index ocispec.Index
	readJSON(t, filepath.Join(layout, "index.json"), &index)
	if len(index.Manifests) != 1 {
		t.Fatalf("%s has %d manifests, want 1", layout, len(index.Manifests))
	}
	blob := func(d ocispec.Descriptor) string {
		return filepath.Join(layout, "blobs", d.Digest.Algorithm().String(), d.Digest.Encoded())
	}
	var manifest ocispec.Manifest
	readJSON(t, blob(index.Manifests[0]), &manifest)
	tr := tree{}
	for _, l := range manifest.Layers {
		r, err := openLayer(blob(l))
		if err != nil {
			t.Fatal(err)
		}
		if err := tr.apply(r); err != nil {
			t.Fatalf("unpack %s: %v", l.Digest, err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

func readJSON(t testing.TB, file string, into any) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(content, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}
