package integration

import (
	"io"
	"net/http"
	"testing"
)

// The tests of this file have no murder in them: they prove the harness.

// TestBigImageIsBig unpacks the big image's layers and finds the files they
// were made of.
func TestBigImageIsBig(t *testing.T) {
	f := loadFixtures(t)
	if got := f.Big.Tree.Size(); got < 200e6 {
		t.Errorf("the big image's tree has %d bytes, want 200 MB or more", got)
	}
	layers, err := f.Big.Images["linux/amd64"].Layers()
	if err != nil {
		t.Fatal(err)
	}
	fromTars := tree{}
	for _, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := fromTars.apply(r); err != nil {
			t.Fatal(err)
		}
	}
	sameTree(t, "layers", fromTars, f.Big.Tree)
}

// TestHarnessLeavesNoMounts runs an engine that mounts, and looks around when
// its test is over.
func TestHarnessLeavesNoMounts(t *testing.T) {
	var root string
	t.Run("engine", func(t *testing.T) {
		c := startContainerd(t, debianContainerd(t))
		root = c.root
	})
	if root == "" {
		t.SkipNow() // as the engine did, with its reason
	}
	mounts, err := mountsBelow(root)
	if err != nil || len(mounts) > 0 {
		t.Errorf("mounts left: %q, %v", mounts, err)
	}
}

// TestRegistriesRefuse proves that the registries with passwords and tokens
// let in who they should, and nobody else.
func TestRegistriesRefuse(t *testing.T) {
	f := loadFixtures(t)
	tokens := startTokenServer(t, map[string]user{
		"alice": {Password: "secret", Repositories: []string{privateRepo}},
		"bob":   {Password: "hunter2", Repositories: []string{otherRepo}},
	}, publicRepo)
	for name, reg := range map[string]*testRegistry{
		"htpasswd": startRegistry(t, registryConfig{Storage: f.Storage, Users: map[string]string{"alice": "secret"}}),
		"token":    startRegistry(t, registryConfig{Storage: f.Storage, Tokens: tokens}),
	} {
		s := newSkopeo(t)
		ref := reg.Addr + "/" + privateRepo + ":" + fixtureTag
		for creds, wantOK := range map[string]bool{"alice:secret": true, "alice:wrong": false, "bob:hunter2": false, "": false} {
			flags := []string{"--src-no-creds"}
			if creds != "" {
				flags = []string{"--src-creds", creds}
			}
			if _, err := s.Copy(t, ref, flags...); (err == nil) != wantOK {
				t.Errorf("%s: copy as %q = %v, want success %v", name, creds, err, wantOK)
			}
		}
		if _, err := s.Copy(t, reg.Addr+"/"+publicRepo+":"+fixtureTag, "--src-no-creds"); (err == nil) != (name == "token") {
			t.Errorf("%s: anonymous copy of a public image = %v", name, err)
		}
	}
}

// TestGateHolds proves the gate's tools: hold a blob, die, come back, hang.
func TestGateHolds(t *testing.T) {
	f := loadFixtures(t)
	reg := startRegistry(t, registryConfig{Storage: f.Storage})
	blob := layerBlobs(t, f.Public)[0]
	url := "http://" + reg.Addr + "/v2/" + publicRepo + "/blobs/" + blob.Digest.String()

	h := reg.Hold(blob.Digest, 1000)
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	h.wait(t)
	if got := reg.Requests(); len(got) != 1 || got[0].Bytes != 1000 {
		t.Errorf("requests = %+v, want one with 1000 bytes", got)
	}
	h.Release()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != blob.Size-1000 {
		t.Errorf("rest = %d, %v, want %d", n, err, blob.Size-1000)
	}
	reg.Die()
	if resp, err := http.Get(url); err == nil {
		resp.Body.Close()
		t.Error("a dead gate answered")
	}
	reg.Revive(t)
	if got := getBlob(t, url); int64(len(got)) != blob.Size {
		t.Errorf("revived gate sent %d bytes, want %d", len(got), blob.Size)
	}
	if got := reg.BlobGets()[blob.Digest]; got != 2 {
		t.Errorf("blob was got %d times, want 2", got)
	}
}
