package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// testReport is what a mirror with a config and a layer says, and a layer that is arriving.
func testReport() statusReport {
	r := statusReport{
		Version: "1.0", Role: "mirror", Listen: "127.0.0.1:7080", PeerListen: "0.0.0.0:7081", DataDir: "/var/lib/murder/mirror", Zone: "a",
		DefaultRegistry: "docker.io", TorrentsActive: 2,
		Seeders: []seederStatus{{URL: "http://s1:7070", OK: true}, {URL: "http://s2:7070", Error: "connection refused"}},
		Pins:    []pinStatus{{Image: "docker.io/library/app:1", Digest: digestOf("app"), Blobs: 4, Bytes: 20 << 20, Missing: []string{digestOf("lost")}}},
		Cache:   cacheStatus{Bytes: 30 << 20, Pinned: 20 << 20, Limit: 1 << 30, Blobs: 2, Evictions: 1, Failures: 3},
	}
	r.Totals.Received = sources{Peer: 20 << 20, Seeder: 10 << 20}
	r.Totals.Sent.Peer = 5 << 20
	blob := blobStatus{Registry: "docker.io", Repository: "library/app", State: "whole", Way: "swarm", Started: time.Unix(0, 0)}
	config, layer, other := blob, blob, blob
	config.Digest, config.Size, config.Way, config.From, config.Why = digestOf("config"), 1000, "seeder", sources{Seeder: 1000}, "blob too small for a swarm"
	layer.Digest, layer.Size, layer.From, layer.TookMS, layer.Pinned = digestOf("layer"), 20<<20, sources{Peer: 20 << 20}, 1234, true
	other.Digest, other.Size, other.Received, other.State = digestOf("other"), 400, 100, "arriving"
	r.Blobs = []blobStatus{config, layer, other}
	return r
}

func digestOf(s string) string { return digest.FromString(s).String() }

// serveMirror is a mirror with the status of report that serves manifests of docker.io/library/app to whoever has a token.
func serveMirror(t *testing.T, report statusReport, realm string, manifests map[string]string) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		answer := report
		if asked := r.URL.Query()["digest"]; len(asked) > 0 {
			answer.Blobs = slices.DeleteFunc(slices.Clone(report.Blobs), func(b blobStatus) bool { return !slices.Contains(asked, b.Digest) })
		}
		json.NewEncoder(w).Encode(answer)
	})
	mux.HandleFunc("GET /v2/team/app/manifests/{reference}", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("ns") != "127.0.0.1:5000" || !slices.Contains(r.Header["Accept"], manifestTypes[0]) {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		if realm != "" && !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer t") {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="registry",scope="repository:team/app:pull"`, realm))
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
		content, ok := manifests[r.PathValue("reference")]
		if !ok {
			http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`, http.StatusNotFound)
			return
		}
		w.Header().Set("Docker-Content-Digest", digestOf(content))
		fmt.Fprint(w, content)
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestStatus(t *testing.T) {
	mirror := serveMirror(t, testReport(), "", nil)
	stdout, _, err := runMurder(t, t.Context(), "status", "--mirror", strings.TrimPrefix(mirror, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"mirror    1.0 at 127.0.0.1:7080, peers at 0.0.0.0:7081\n",
		"cache     30 MiB of 1.0 GiB in /var/lib/murder/mirror, 2 blobs, 1 evicted\n",
		"disk      FAILED 3 times, pulls went past the cache: see the log\n",
		"pinned    20 MiB in 1 images\n",
		"docker.io/library/app:1  " + shortDigest(digestOf("app")) + "  4      20 MiB  ",
		"1 blobs LOST",
		"seeder    http://s1:7070 answers\n",
		"seeder    http://s2:7070 DOES NOT ANSWER: connection refused\n",
		"received  20 MiB from peers, 10 MiB from the seeder\n",
		shortDigest(digestOf("layer")) + "  20 MiB  whole, pinned  20 MiB  0 B     0 B       1.23s  docker.io/library/app  -\n",
		shortDigest(digestOf("other")) + "  400 B   arriving, 25%  0 B ",
		"docker.io/library/app  blob too small for a swarm\n",
	} {
		if !strings.Contains(stdout, line) {
			t.Errorf("stdout lacks %q:\n%s", line, stdout)
		}
	}
	stdout, _, err = runMurder(t, t.Context(), "status", "--mirror", mirror, "--output", "json")
	var report statusReport
	if jsonErr := json.Unmarshal([]byte(stdout), &report); err != nil || jsonErr != nil || len(report.Blobs) != 3 {
		t.Errorf("--output json: %v, %v:\n%s", err, jsonErr, stdout)
	}
}

// The digests of one table are good for the next question, as they stand there.
func TestStatusOfAShortDigest(t *testing.T) {
	mirror := serveMirror(t, testReport(), "", nil)
	stdout, _, err := runMurder(t, t.Context(), "status", "--mirror", mirror, shortDigest(digestOf("layer")))
	if err != nil || !strings.Contains(stdout, "blob  "+shortDigest(digestOf("layer"))+"  20 MiB  whole") {
		t.Errorf("a blob that is here, %v:\n%s", err, stdout)
	}
	for arg, want := range map[string]string{
		"sha256:zz": "no blob at " + mirror + " has a digest that begins with sha256:zz",
		"sha256:":   "sha256: is the beginning of 3 digests",
	} {
		if _, _, err := runMurder(t, t.Context(), "status", "--mirror", mirror, arg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("status %s = %v, want %q", arg, err, want)
		}
	}
}

func TestStatusOfBlob(t *testing.T) {
	mirror := serveMirror(t, testReport(), "", nil)
	stdout, _, err := runMurder(t, t.Context(), "status", "--mirror", mirror, digestOf("layer"))
	if err != nil || !strings.Contains(stdout, "blob  "+shortDigest(digestOf("layer"))+"  20 MiB  whole") {
		t.Errorf("a blob that is here, %v:\n%s", err, stdout)
	}
	stdout, _, err = runMurder(t, t.Context(), "status", "--mirror", mirror, digestOf("nobody"))
	if err != nil || !strings.Contains(stdout, "not here") {
		t.Errorf("a blob that is not here, %v:\n%s", err, stdout)
	}
}

// For an image: the manifest of this platform out of an index, behind the registry's token server, and each part with its way.
func TestStatusOfImage(t *testing.T) {
	login(t, "127.0.0.1:5000", "jane", "secret")
	realm, _ := tokenServer(t)
	manifest := fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q,"size":1000},"layers":[{"digest":%q,"size":%d},{"digest":%q,"size":5000}]}`,
		digestOf("config"), digestOf("layer"), 20<<20, digestOf("far away"))
	index := fmt.Sprintf(`{"schemaVersion":2,"manifests":[
		{"digest":%q,"platform":{"os":"unknown","architecture":"unknown"}},
		{"digest":%q,"platform":{"os":"plan9","architecture":"mips"}},
		{"digest":%q,"platform":{"os":%q,"architecture":%q,"variant":"v1"}}]}`,
		digestOf("attestation"), digestOf("other"), digestOf(manifest), runtime.GOOS, runtime.GOARCH)
	mirror := serveMirror(t, testReport(), realm, map[string]string{"1": index, digestOf(manifest): manifest, "flat": manifest, "odd": "{}", "bad": "<html>"})

	stdout, stderr, err := runMurder(t, t.Context(), "status", privateImage, "--mirror", mirror)
	if err != nil {
		t.Fatalf("status: %v\n%s", err, stderr)
	}
	for _, line := range []string{
		privateImage + " for " + runtime.GOOS + "/" + runtime.GOARCH + " is " + digestOf(manifest) + "\n",
		"config  " + shortDigest(digestOf("config")) + "  1000 B   whole          0 B     1000 B  0 B       -      blob too small for a swarm\n",
		"layer   " + shortDigest(digestOf("layer")) + "  20 MiB   whole, pinned  20 MiB  0 B     0 B       1.23s  -\n",
		"layer   " + shortDigest(digestOf("far away")) + "  4.9 KiB  not here       -       -       -         -      -\n",
	} {
		if !strings.Contains(stdout, line) {
			t.Errorf("stdout lacks %q:\n%s", line, stdout)
		}
	}

	stdout, _, err = runMurder(t, t.Context(), "status", "127.0.0.1:5000/team/app:flat", "--mirror", mirror, "--output", "json")
	var status imageStatus
	if jsonErr := json.Unmarshal([]byte(stdout), &status); err != nil || jsonErr != nil {
		t.Fatalf("--output json: %v, %v:\n%s", err, jsonErr, stdout)
	}
	if len(status.Parts) != 3 || status.Parts[1].Blob == nil || status.Parts[1].Blob.From.Peer != 20<<20 || status.Parts[2].Blob != nil {
		t.Errorf("--output json = %+v", status)
	}

	for _, test := range []struct{ args, want string }{
		{privateImage + " --platform linux/s390x", "is not there for linux/s390x, but for plan9/mips, "},
		{"127.0.0.1:5000/team/app:none", "answered 404 Not Found: MANIFEST_UNKNOWN manifest unknown"},
		{"127.0.0.1:5000/team/app:odd", "names neither config nor layers"},
		{"127.0.0.1:5000/team/app:bad", "read the manifest"},
	} {
		_, _, err := runMurder(t, t.Context(), append([]string{"status", "--mirror", mirror}, strings.Fields(test.args)...)...)
		if exitCode(err) != exitFailure || !strings.Contains(err.Error(), test.want) {
			t.Errorf("status %s: error %v, want %q", test.args, err, test.want)
		}
	}
}

// Whatever answers on that port, the error says what is wrong with it.
func TestStatusOfStrangers(t *testing.T) {
	for _, test := range []struct {
		body, want string
		status     int
	}{
		{"<html>", "does not answer as a murder daemon does", 200},
		{"{}", "does not answer as a murder daemon does", 200},
		{"go away\n  now", "answered 403 Forbidden: go away now", 403},
		{strings.Repeat("x", 10_000), "...", 500},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(test.status)
			fmt.Fprint(w, test.body)
		}))
		_, _, err := runMurder(t, t.Context(), "status", "--mirror", srv.URL)
		if exitCode(err) != exitFailure || !strings.Contains(err.Error(), test.want) {
			t.Errorf("answer %.20q: error %v, want %q", test.body, err, test.want)
		}
		srv.Close()
	}
}
