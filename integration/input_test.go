package integration

import (
	"net/http"
	"strings"
	"testing"
)

// TestBadInput sends mirror and seeder what no client should, and wants the
// spec's answers: a status that says whose fault it is and a JSON error.
func TestBadInput(t *testing.T) {
	images := loadFixtures(t)
	f := startFleet(t, fleetConfig{Registry: registryConfig{Storage: images.Storage}, Mirrors: 1})
	blob := layerBlobs(t, images.Public)[0]
	good := "/v2/" + publicRepo + "/blobs/" + blob.Digest.String()
	ns := "ns=" + f.Registry.Addr
	hex := strings.Repeat("a", 64)

	tests := []struct {
		what, method, path string
		headers            []string
		status             int
		code               string
	}{
		{"unknown blob", "GET", "/v2/" + publicRepo + "/blobs/" + missingDigest.String() + "?" + ns, nil, 404, "BLOB_UNKNOWN"},
		{"unknown tag", "GET", "/v2/" + publicRepo + "/manifests/nope?" + ns, nil, 404, "MANIFEST_UNKNOWN"},
		{"unknown repository", "GET", "/v2/no/such/manifests/v1?" + ns, nil, 404, ""},
		{"unknown manifest", "GET", "/v2/" + publicRepo + "/manifests/" + missingDigest.String() + "?" + ns, nil, 404, "MANIFEST_UNKNOWN"},
		{"capitals in the name", "GET", "/v2/Public/Hello/manifests/v1?" + ns, nil, 400, "NAME_INVALID"},
		{"dots in the name", "GET", "/v2/public/../../etc/passwd/manifests/v1?" + ns, nil, 400, ""},
		{"escaped dots", "GET", "/v2/public/%2e%2e/%2e%2e/blobs/sha256:" + hex + "?" + ns, nil, 400, ""},
		{"a name of 300 bytes", "GET", "/v2/" + strings.Repeat("a", 300) + "/manifests/v1?" + ns, nil, 400, "NAME_INVALID"},
		{"a NUL in the name", "GET", "/v2/public%00/hello/manifests/v1?" + ns, nil, 400, "NAME_INVALID"},
		{"no name", "GET", "/v2/manifests/v1?" + ns, nil, 404, ""},
		{"short digest", "GET", "/v2/" + publicRepo + "/blobs/sha256:abc?" + ns, nil, 400, "DIGEST_INVALID"},
		{"capitals in the digest", "GET", "/v2/" + publicRepo + "/blobs/sha256:" + strings.ToUpper(hex) + "?" + ns, nil, 400, "DIGEST_INVALID"},
		{"unknown algorithm", "GET", "/v2/" + publicRepo + "/blobs/md5:" + hex[:32] + "?" + ns, nil, 400, "DIGEST_INVALID"},
		{"a path as digest", "GET", "/v2/" + publicRepo + "/blobs/..%2f..%2fetc%2fpasswd?" + ns, nil, 404, ""},
		{"tag of 200 bytes", "GET", "/v2/" + publicRepo + "/manifests/" + strings.Repeat("t", 200) + "?" + ns, nil, 400, ""},
		{"ns with a path", "GET", good + "?ns=host/../../etc", nil, 400, ""},
		{"ns with a user", "GET", good + "?ns=user:pass@host", nil, 400, ""},
		{"ns with a URL", "GET", good + "?ns=http://host", nil, 400, ""},
		{"ns with a bad port", "GET", good + "?ns=host:99999", nil, 400, ""},
		{"ns with CRLF", "GET", good + "?ns=host%0d%0aX:1", nil, 400, ""},
		{"ns twice", "GET", good + "?" + ns + "&ns=other.example", nil, 400, ""},
		{"bad query", "GET", good + "?" + ns + "&%zz", nil, 400, ""},
		{"PUT of a manifest", "PUT", "/v2/" + publicRepo + "/manifests/v1?" + ns, nil, 405, "UNSUPPORTED"},
		{"POST of an upload", "POST", "/v2/" + publicRepo + "/blobs/uploads/?" + ns, nil, 405, "UNSUPPORTED"},
		{"PATCH of an upload", "PATCH", "/v2/" + publicRepo + "/blobs/uploads/1?" + ns, nil, 405, "UNSUPPORTED"},
		{"DELETE of a blob", "DELETE", good + "?" + ns, nil, 405, "UNSUPPORTED"},
		{"DELETE of a manifest", "DELETE", "/v2/" + publicRepo + "/manifests/v1?" + ns, nil, 405, "UNSUPPORTED"},
		{"no such path", "GET", "/v2/" + publicRepo + "/nothing/here?" + ns, nil, 404, ""},
	}
	for role, d := range map[string]*daemon{"mirror": f.Mirrors[0], "seeder": f.Seeder} {
		for _, test := range tests {
			a := ask(t, test.method, d.URL()+test.path, test.headers...)
			if a.Status != test.status {
				t.Errorf("%s: %s: %s %.120s = %d, want %d: %.200q", role, test.what, test.method, test.path, a.Status, test.status, a.Body)
				continue
			}
			checkErrorBody(t, role+": "+test.what, a, test.code)
		}
		a := get(t, d.URL()+good+"?"+ns, "X-Long: "+strings.Repeat("x", 2<<20))
		if a.Status != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%s: headers of 2 MiB = %d, want 431", role, a.Status)
		}
		if a := get(t, d.URL()+"/v2/"); a.Status != http.StatusOK {
			t.Errorf("%s: GET /v2/ after all that = %d, want 200", role, a.Status)
		}
	}
}

// TestBadTorrentRequests is the same for what only the seeder serves.
func TestBadTorrentRequests(t *testing.T) {
	images := loadFixtures(t)
	f := startFleet(t, fleetConfig{Registry: registryConfig{Storage: images.Storage}})
	blob := layerBlobs(t, images.Public)[0].Digest.String()
	where := "ns=" + f.Registry.Addr + "&repo=" + publicRepo
	for path, want := range map[string]int{
		"/v1/torrents/nonsense?" + where:                                    400,
		"/v1/torrents/" + missingDigest.String() + "?" + where + "&wait=5s": 404,
		"/v1/torrents/" + blob + "?ns=" + f.Registry.Addr:                   400,
		"/v1/torrents/" + blob + "?ns=http://x&repo=" + publicRepo:          400,
		"/v1/torrents/" + blob + "?" + where + "&wait=forever":              400,
		"/v1/torrents/" + blob + "?" + where + "&wait=-1s":                  400,
	} {
		if a := get(t, f.Seeder.URL()+path); a.Status != want {
			t.Errorf("GET %s = %d, want %d: %.200s", path, a.Status, want, a.Body)
		}
	}
	for _, query := range []string{"", "info_hash=short", "info_hash=" + strings.Repeat("a", 20) + "&peer_id=x&port=1", "port=99999"} {
		a := get(t, f.Seeder.URL()+"/announce?"+query)
		if a.Status != http.StatusOK || !strings.Contains(string(a.Body), "failure reason") {
			t.Errorf("announce?%s = %d %.100q, want 200 with a failure reason (BEP 3)", query, a.Status, a.Body)
		}
	}
}

// TestBadCommandLines: exit 2 and one line that names what is wrong.
func TestBadCommandLines(t *testing.T) {
	config := newRoot(t) + "/murder.yaml"
	writeFile(t, config, "listen: 127.0.0.1:0\nno-such-key: 1\n")
	for _, test := range []struct {
		names string
		args  []string
	}{
		{"no-such-flag", []string{"mirror", "--no-such-flag"}},
		{"no-such-command", []string{"no-such-command"}},
		{"cache-size", []string{"mirror", "--cache-size", "lots"}},
		{"upload-limit", []string{"seeder", "--upload-limit", "-5MiB"}},
		{"no-such-key", []string{"mirror", "--config", config}},
		{"listen", []string{"mirror", "--listen", "nonsense"}},
		{"seeder", []string{"mirror", "--seeder", "ftp://host"}},
		{"auth-ttl", []string{"mirror", "--auth-ttl", "soon"}},
	} {
		_, stderr, code := runMurder(t, nil, test.args...)
		if code != 2 {
			t.Errorf("murder %q exits %d, want 2", test.args, code)
		}
		if lines := strings.Count(strings.TrimSpace(stderr), "\n") + 1; lines != 1 || !strings.Contains(stderr, test.names) {
			t.Errorf("murder %q says %q, want one line that names %s", test.args, stderr, test.names)
		}
	}
}
