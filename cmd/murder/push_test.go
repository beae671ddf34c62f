package main

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
)

// pushTo pushes a folder with one file to a registry that speaks plain HTTP.
func pushTo(t *testing.T, host string) (stdout string, err error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, _, err = runMurder(t, t.Context(), "push", "--insecure-registry", host, dir, host+"/files:v1")
	return stdout, err
}

// A login page between here and the registry says yes to all, and nothing is pushed by that.
func TestPushToALoginPage(t *testing.T) {
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<html>who are you?</html>")
	}))
	t.Cleanup(page.Close)
	stdout, err := pushTo(t, strings.TrimPrefix(page.URL, "http://"))
	if exitCode(err) != exitFailure || stdout != "" || !strings.Contains(err.Error(), "does not have it") {
		t.Errorf("push = %v, %q, want a failure", err, stdout)
	}
}

// Who may push and not pull is believed.
func TestPushWithoutTheRightToPull(t *testing.T) {
	up := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		up.ServeHTTP(w, r)
	}))
	t.Cleanup(proxy.Close)
	if stdout, err := pushTo(t, strings.TrimPrefix(proxy.URL, "http://")); err != nil || !strings.Contains(stdout, "1 files in 1 layers") {
		t.Errorf("push = %v, %q", err, stdout)
	}
}
