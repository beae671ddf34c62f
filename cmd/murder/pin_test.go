package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// Pin and unpin tell the mirror full names, say which image went wrong and how to mend it, and do the others.
func TestPin(t *testing.T) {
	var unpinned []string
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/pins", func(w http.ResponseWriter, r *http.Request) {
		var req struct {
			Image     string
			Platforms []string
		}
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil || r.Header.Get("Content-Type") != "application/json" {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		if req.Image != "docker.io/library/app:1" || !slices.Equal(req.Platforms, []string{"linux/arm64"}) {
			http.Error(w, "not in the cache: sha256:abc", http.StatusNotFound)
			return
		}
		json.NewEncoder(w).Encode(pinStatus{Image: req.Image, Digest: digestOf("app"), Blobs: 3, Bytes: 1 << 20})
	})
	mux.HandleFunc("DELETE /v1/pins", func(w http.ResponseWriter, r *http.Request) {
		if image := r.URL.Query().Get("image"); image != "docker.io/library/never:1" {
			unpinned = append(unpinned, image)
			w.WriteHeader(http.StatusNoContent)
			return
		}
		http.Error(w, "docker.io/library/never:1 is not pinned", http.StatusNotFound)
	})
	srv := httptest.NewServer(mux)
	defer srv.Close()

	stdout, stderr, err := runMurder(t, t.Context(), "pin", "--mirror", srv.URL, "--platform", "linux/arm64", "other:1", "app:1")
	if exitCode(err) != 1 || !strings.Contains(err.Error(), "1 of 2 images could not be pinned") {
		t.Errorf("pin of two, one of them not here: %v", err)
	}
	if !strings.Contains(stdout, "docker.io/library/app:1  "+shortDigest(digestOf("app"))+"  3      1.0 MiB") {
		t.Errorf("stdout lacks the image that was pinned:\n%s", stdout)
	}
	want := "docker.io/library/other:1: not in the cache: sha256:abc; `murder prefetch --pin docker.io/library/other:1` fetches and pins it\n"
	if stderr != want {
		t.Errorf("stderr = %q, want %q", stderr, want)
	}
	stdout, _, err = runMurder(t, t.Context(), "pin", "--mirror", srv.URL, "--platform", "linux/arm64", "--output", "json", "app:1")
	var doc struct{ Pins []pinStatus }
	if jsonErr := json.Unmarshal([]byte(stdout), &doc); err != nil || jsonErr != nil || len(doc.Pins) != 1 || doc.Pins[0].Blobs != 3 {
		t.Errorf("--output json: %v, %v:\n%s", err, jsonErr, stdout)
	}

	_, stderr, err = runMurder(t, t.Context(), "unpin", "--mirror", srv.URL, "never:1", "app:1")
	if exitCode(err) != 1 || stderr != "docker.io/library/never:1: is not pinned\n" || !slices.Equal(unpinned, []string{"docker.io/library/app:1"}) {
		t.Errorf("unpin: %v, stderr %q, unpinned %q", err, stderr, unpinned)
	}
}

// A mirror that does not know of pins yet is not taken for one that lacks the image.
func TestPinOnOldMirror(t *testing.T) {
	srv := httptest.NewServer(http.NewServeMux())
	defer srv.Close()
	for _, verb := range []string{"pin", "unpin"} {
		_, stderr, err := runMurder(t, t.Context(), verb, "--mirror", srv.URL, "app:1")
		if err == nil || !strings.Contains(stderr, "is no mirror of murder, or an older one") {
			t.Errorf("%s: %v, stderr %q", verb, err, stderr)
		}
	}
}
