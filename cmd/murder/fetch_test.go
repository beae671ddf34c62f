package main

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/murderp2p/murder/artifact"
	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/registry/registrytest"
)

// serveMirrorOf is what a mirror is to a fetch: another address of the registry. Each answer goes past spoil first, if that
// is not nil.
func serveMirrorOf(t *testing.T, u *registrytest.Upstream, spoil func(w http.ResponseWriter, r *http.Request) (done bool)) string {
	t.Helper()
	target, err := url.Parse(u.Server.URL)
	if err != nil {
		t.Fatal(err)
	}
	through := httputil.NewSingleHostReverseProxy(target)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("ns") != u.Host {
			t.Errorf("the mirror was asked for %s, want ns=%s", r.URL, u.Host)
		}
		w.Header().Set(registry.MirrorHeader, "1")
		if spoil == nil || !spoil(w, r) {
			through.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// pushed is a folder in a registry: one file of 2 MiB.
func pushed(t *testing.T, u *registrytest.Upstream) (ref, content string) {
	t.Helper()
	b := make([]byte, 2<<20)
	rand.Read(b)
	d := u.Push(t, "models/llm", false, b)
	u.PushManifest(t, "models/llm", "v1", ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifact.Type,
		Config: ocispec.DescriptorEmptyJSON,
		Layers: []ocispec.Descriptor{{
			MediaType: "application/octet-stream", Digest: d, Size: int64(len(b)), Annotations: map[string]string{ocispec.AnnotationTitle: "weights"},
		}},
	})
	return u.Host + "/models/llm:v1", string(b)
}

// fetchInto runs `murder fetch` and returns what is in the file then.
func fetchInto(t *testing.T, ref, mirror string) (content string, result fetchResult, stderr string, err error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "out")
	stdout, stderr, err := runMurder(t, t.Context(), "fetch", ref, "-o", dir, "--mirror", mirror, "--output", "json")
	if err != nil {
		if _, there := os.Stat(dir); there == nil {
			t.Errorf("a fetch that failed has left %s", dir)
		}
		return "", result, stderr, err
	}
	if err := json.Unmarshal([]byte(stdout), &result); err != nil {
		t.Fatalf("stdout: %v\n%s", err, stdout)
	}
	b, readErr := os.ReadFile(filepath.Join(dir, "weights"))
	if readErr != nil {
		t.Fatal(readErr)
	}
	return string(b), result, stderr, nil
}

// A fetch that the registry could serve works, however ill the mirror is, and asks for no byte twice.
func TestFetchPastAnIllMirror(t *testing.T) {
	u := registrytest.New(t)
	ref, want := pushed(t, u)
	dead := httptest.NewServer(nil)
	dead.Close()
	blob := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }
	for name, test := range map[string]struct {
		mirror  string
		through string
		says    string
	}{
		"well":             {serveMirrorOf(t, u, nil), "mirror", ""},
		"dead":             {dead.URL, "registry", "connection refused; asking the registry itself"},
		"another registry": {u.Server.URL, "registry", "something else answers there; asking the registry itself"},
		"no such blob of its own": {serveMirrorOf(t, u, func(w http.ResponseWriter, r *http.Request) bool {
			if blob(r) {
				http.NotFound(w, r)
			}
			return blob(r)
		}), "registry", "asking the registry itself"},
		"breaks off": {serveMirrorOf(t, u, func(w http.ResponseWriter, r *http.Request) bool {
			if blob(r) && r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", "2097152")
				w.Write([]byte(want[:1<<20]))
				panic(http.ErrAbortHandler)
			}
			return false
		}), "mirror", ""},
		"breaks off for good": {serveMirrorOf(t, u, func(w http.ResponseWriter, r *http.Request) bool {
			if blob(r) && r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", "2097152")
				w.Write([]byte(want[:1<<20]))
			}
			if blob(r) {
				panic(http.ErrAbortHandler)
			}
			return false
		}), "registry", "asking the registry itself"},
	} {
		t.Run(name, func(t *testing.T) {
			content, result, stderr, err := fetchInto(t, ref, test.mirror)
			if err != nil {
				t.Fatalf("fetch: %v\n%s", err, stderr)
			}
			if content != want || result.Through != test.through || result.Files != 1 || !strings.Contains(stderr, test.says) {
				t.Errorf("fetch = %+v, want it through the %s, right, and %q on stderr:\n%s", result, test.through, test.says, stderr)
			}
			if strings.HasPrefix(name, "breaks off") {
				asked := u.Seen(http.MethodGet, "")
				if last := asked[len(asked)-1]; last.Ranges != "bytes=1048576-" {
					t.Errorf("the rest was asked for as %+v, want from the byte on where it broke off", last)
				}
			}
		})
	}
}

// What is wrong is refused, whoever sent it, and so is what the registry refuses.
func TestFetchRefuses(t *testing.T) {
	u := registrytest.New(t)
	ref, _ := pushed(t, u)
	wrong := serveMirrorOf(t, u, func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		w.Header().Set("Content-Length", "2097152")
		w.Write(make([]byte, 2<<20))
		return true
	})
	u.PushImage(t, "app", "v1", []byte(`{}`), []byte("a layer"))
	for _, test := range []struct{ ref, mirror, want string }{
		{ref, wrong, `"weights": the bytes that came are not those of sha256:`},
		{u.Host + "/models/llm:v2", serveMirrorOf(t, u, nil), "404"},
		{u.Host + "/app:v1", serveMirrorOf(t, u, nil), "it is no artifact of files"},
	} {
		if _, _, stderr, err := fetchInto(t, test.ref, test.mirror); exitCode(err) != exitFailure || !strings.Contains(err.Error(), test.want) {
			t.Errorf("fetch %s = %v, want %q\n%s", test.ref, err, test.want, stderr)
		}
	}
}

func TestFetchIntoWhatIsThere(t *testing.T) {
	u := registrytest.New(t)
	ref, want := pushed(t, u)
	dir, mirror := t.TempDir(), serveMirrorOf(t, u, nil)
	file := filepath.Join(dir, "weights")
	if err := os.WriteFile(file, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, _, err := runMurder(t, t.Context(), "fetch", ref, "-o", dir, "--mirror", mirror)
	if exitCode(err) != exitFailure || !strings.Contains(err.Error(), "is not empty") || !strings.Contains(err.Error(), "--overwrite") {
		t.Errorf("fetch into a folder that is not empty = %v, want that, and what to do", err)
	}
	if b, _ := os.ReadFile(file); string(b) != "old" {
		t.Error("the file that was there is not any more")
	}
	_, stderr, err := runMurder(t, t.Context(), "fetch", ref, "-o", dir, "--mirror", mirror, "--overwrite")
	if b, _ := os.ReadFile(file); err != nil || string(b) != want || !strings.Contains(stderr, `overwritten: "weights"`) {
		t.Errorf("fetch --overwrite = %v, want the new file, and its name on stderr:\n%s", err, stderr)
	}
}
