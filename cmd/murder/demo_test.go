package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
)

// The made image is one that others accept, and its bytes are the same each time.
func TestMadeImage(t *testing.T) {
	const size = 3<<20 + 17
	img, err := makeImage(t.Context(), size)
	if err != nil {
		t.Fatal(err)
	}
	if over := img.size() - size; over < 0 || over > 32<<10 {
		t.Errorf("size() = %d, want %d and a little", img.size(), size)
	}
	again, err := makeImage(t.Context(), size)
	if err != nil || !bytes.Equal(img.manifest, again.manifest) {
		t.Errorf("a second image differs from the first, %v", err)
	}
	r, err := newDemoRegistry(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	if err := r.push(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(r.addr + "/" + demoRepository + ":" + demoTag)
	if err != nil {
		t.Fatal(err)
	}
	pulled, err := remote.Image(ref, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(pulled, validate.Fast); err != nil { // not fast it takes all layers for compressed ones
		t.Errorf("the image is not valid: %v", err)
	}
	for _, layer := range img.blobs[1:] {
		checkBlob(t, "made", layer)
		r, err := layer.open()
		if err != nil {
			t.Fatal(err)
		}
		entries := tar.NewReader(r)
		h, err := entries.Next()
		if err != nil || h.Size < size/100 {
			t.Errorf("layer %s begins with %+v, %v; want a file", layer.digest, h, err)
		}
		if _, err := entries.Next(); err != io.EOF {
			t.Errorf("layer %s does not end after its file: %v", layer.digest, err)
		}
	}
}

// What the registry sends is counted, by blob, in whichever way it is read.
func TestDemoRegistryCounts(t *testing.T) {
	r, err := newDemoRegistry(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	img, err := makeImage(t.Context(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.push(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	r.reset()
	layer := img.blobs[1]
	get := func(what, bytesRange string) (status int, body []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.addr+"/v2/"+demoRepository+"/"+what, nil)
		if err != nil {
			t.Fatal(err)
		}
		if bytesRange != "" {
			req.Header.Set("Range", bytesRange)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err = io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, body
	}
	if _, body := get("blobs/"+layer.digest.String(), ""); digest.FromBytes(body) != layer.digest {
		t.Errorf("the layer's bytes are wrong")
	}
	if status, body := get("blobs/"+layer.digest.String(), "bytes=-100"); status != http.StatusPartialContent || len(body) != 100 {
		t.Errorf("the last 100 bytes: status %d, %d bytes", status, len(body))
	}
	get("manifests/"+demoTag, "")
	if status, _ := get("blobs/sha256:"+fmt.Sprintf("%064d", 0), ""); status != http.StatusNotFound {
		t.Errorf("an unknown blob: status %d, want 404", status)
	}
	sent := r.counted()
	if got, want := sent.Blobs[layer.digest.String()], (asked{2, layer.size + 100}); got != want {
		t.Errorf("counted %+v for the layer, want %+v", got, want)
	}
	if got, want := sent.Manifests[demoTag], (asked{1, int64(len(img.manifest))}); got != want {
		t.Errorf("counted %+v for the manifest, want %+v", got, want)
	}
	if sent.Requests != 4 {
		t.Errorf("counted %d requests, want 4", sent.Requests)
	}
}

// The forms in which a user may have an image.
func TestTakenImage(t *testing.T) {
	want, err := random.Image(10_000, 3)
	if err != nil {
		t.Fatal(err)
	}
	other, err := random.Image(10, 1)
	if err != nil {
		t.Fatal(err)
	}
	// Another platform's image stands first, and both below an index of their own, as `docker buildx` has it.
	platform := &v1.Platform{OS: "linux", Architecture: testArch(t)}
	below := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "windows", Architecture: "arm"}}},
		mutate.IndexAddendum{Add: want, Descriptor: v1.Descriptor{Platform: platform}})
	dir := t.TempDir()
	for path, index := range map[string]v1.ImageIndex{
		"layout":       mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: want}),
		"multi-layout": mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: below}),
	} {
		if _, err := layout.Write(filepath.Join(dir, path), index); err != nil {
			t.Fatal(err)
		}
	}
	tarOf(t, filepath.Join(dir, "multi-layout"), filepath.Join(dir, "oci.tar"))
	tag, err := name.NewTag("example.test/a:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(filepath.Join(dir, "docker.tar"), tag, want); err != nil {
		t.Fatal(err)
	}
	layers, err := want.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"layout", "multi-layout", "oci.tar", "docker.tar"} {
		d := &demo{source: filepath.Join(dir, path), dir: t.TempDir(), hosts: 1}
		img, err := d.image(t.Context())
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if len(img.blobs) != len(layers)+1 {
			t.Errorf("%s: has %d blobs, want %d", path, len(img.blobs), len(layers)+1)
			continue
		}
		for i, l := range layers {
			hash, err := l.Digest()
			if err != nil {
				t.Fatal(err)
			}
			if got := img.blobs[i+1]; got.digest.String() != hash.String() {
				t.Errorf("%s: layer %d is %s, want %s", path, i, got.digest, hash)
			}
		}
		for _, b := range img.blobs {
			checkBlob(t, path, b)
		}
	}
}

func checkBlob(t *testing.T, path string, b demoBlob) {
	t.Helper()
	r, err := b.open()
	if err != nil {
		t.Errorf("%s: open %s: %v", path, b.digest, err)
		return
	}
	defer r.Close()
	content, err := io.ReadAll(r)
	if err != nil || int64(len(content)) != b.size || digest.FromBytes(content) != b.digest {
		t.Errorf("%s: %s reads as %d bytes of %s, %v; want %d", path, b.digest, len(content), digest.FromBytes(content), err, b.size)
	}
}

// testArch is the architecture that demos take of a multi-platform image.
func testArch(t *testing.T) string {
	t.Helper()
	_, arch, _ := bytes.Cut([]byte(thisBuild().Platform), []byte("/"))
	return string(arch)
}

// tarOf packs a folder.
func tarOf(t *testing.T, dir, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// A tarball cannot write outside of its folder.
func TestUntarStaysInside(t *testing.T) {
	dir := t.TempDir()
	evil := filepath.Join(dir, "evil.tar")
	f, err := os.Create(evil)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	if err := w.WriteHeader(&tar.Header{Name: "../escaped", Mode: 0o600, Size: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := untar(evil, filepath.Join(dir, "in")); err == nil {
		t.Error("untar() = nil, want an error")
	}
	if _, err := os.Stat(filepath.Join(dir, "escaped")); err == nil {
		t.Error("a file was written outside of the folder")
	}
}
