package registry

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
)

const (
	sha256Of = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	sha512Of = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e"
)

func TestParse(t *testing.T) {
	for _, test := range []struct {
		url  string
		want Request
	}{
		{"/v2/", Request{Kind: Ping, Repo: Repository{"docker.io", ""}}},
		{"/v2", Request{Kind: Ping, Repo: Repository{"docker.io", ""}}},
		{"/v2/?ns=ghcr.io", Request{Kind: Ping, Repo: Repository{"ghcr.io", ""}}},
		{"/v2/alpine/manifests/3.20", Request{Kind: Manifest, Repo: Repository{"docker.io", "library/alpine"}, Tag: "3.20"}},
		{"/v2/library/alpine/manifests/latest", Request{Kind: Manifest, Repo: Repository{"docker.io", "library/alpine"}, Tag: "latest"}},
		{"/v2/org/app/manifests/v1", Request{Kind: Manifest, Repo: Repository{"docker.io", "org/app"}, Tag: "v1"}},
		{"/v2/org/app/manifests/" + sha256Of, Request{Kind: Manifest, Repo: Repository{"docker.io", "org/app"}, Digest: sha256Of}},
		{"/v2/org/app/manifests/" + sha512Of, Request{Kind: Manifest, Repo: Repository{"docker.io", "org/app"}, Digest: sha512Of}},
		{"/v2/org/app/blobs/" + sha256Of, Request{Kind: Blob, Repo: Repository{"docker.io", "org/app"}, Digest: sha256Of}},
		{"/v2/org/app/blobs/sha256%3A" + sha256Of[7:], Request{Kind: Blob, Repo: Repository{"docker.io", "org/app"}, Digest: sha256Of}},
		{"/v2/org/app/referrers/" + sha256Of, Request{Kind: Referrers, Repo: Repository{"docker.io", "org/app"}, Digest: sha256Of}},
		{"/v2/org/app/tags/list?n=5&last=a", Request{Kind: Tags, Repo: Repository{"docker.io", "org/app"}}},

		// The registry, by ns.
		{"/v2/org/app/manifests/v1?ns=ghcr.io", Request{Kind: Manifest, Repo: Repository{"ghcr.io", "org/app"}, Tag: "v1"}},
		{"/v2/alpine/manifests/v1?ns=ghcr.io", Request{Kind: Manifest, Repo: Repository{"ghcr.io", "alpine"}, Tag: "v1"}},
		{"/v2/alpine/manifests/v1?ns=docker.io", Request{Kind: Manifest, Repo: Repository{"docker.io", "library/alpine"}, Tag: "v1"}},
		{"/v2/alpine/manifests/v1?ns=registry-1.docker.io", Request{Kind: Manifest, Repo: Repository{"docker.io", "library/alpine"}, Tag: "v1"}},
		{"/v2/alpine/manifests/v1?ns=Index.Docker.IO", Request{Kind: Manifest, Repo: Repository{"docker.io", "library/alpine"}, Tag: "v1"}},
		{"/v2/app/manifests/v1?ns=LOCALHOST:5000", Request{Kind: Manifest, Repo: Repository{"localhost:5000", "app"}, Tag: "v1"}},
		{"/v2/app/manifests/v1?ns=[::1]:5000", Request{Kind: Manifest, Repo: Repository{"[::1]:5000", "app"}, Tag: "v1"}},
		{"/v2/app/manifests/v1?ns=[::1]", Request{Kind: Manifest, Repo: Repository{"[::1]", "app"}, Tag: "v1"}},
		// With ns a dot in the name is no host.
		{"/v2/my.org/app/manifests/v1?ns=ghcr.io", Request{Kind: Manifest, Repo: Repository{"ghcr.io", "my.org/app"}, Tag: "v1"}},

		// The registry, in the path.
		{"/v2/ghcr.io/org/app/manifests/v1", Request{Kind: Manifest, Repo: Repository{"ghcr.io", "org/app"}, Tag: "v1", HostInPath: true}},
		{"/v2/GHCR.io/org/app/manifests/v1", Request{Kind: Manifest, Repo: Repository{"ghcr.io", "org/app"}, Tag: "v1", HostInPath: true}},
		{"/v2/localhost/app/manifests/v1", Request{Kind: Manifest, Repo: Repository{"localhost", "app"}, Tag: "v1", HostInPath: true}},
		{"/v2/registry:5000/app/manifests/v1", Request{Kind: Manifest, Repo: Repository{"registry:5000", "app"}, Tag: "v1", HostInPath: true}},
		{"/v2/docker.io/alpine/manifests/v1", Request{Kind: Manifest, Repo: Repository{"docker.io", "library/alpine"}, Tag: "v1", HostInPath: true}},
		{"/v2/ghcr.io/org/app/tags/list", Request{Kind: Tags, Repo: Repository{"ghcr.io", "org/app"}, HostInPath: true}},
		// A lone component is a name, whatever it looks like.
		{"/v2/my.app/manifests/v1", Request{Kind: Manifest, Repo: Repository{"docker.io", "library/my.app"}, Tag: "v1"}},

		// The API's own words are components of names too.
		{"/v2/blobs/manifests/manifests/tags", Request{Kind: Manifest, Repo: Repository{"docker.io", "blobs/manifests"}, Tag: "tags"}},
		{"/v2/a/tags/list/tags/list", Request{Kind: Tags, Repo: Repository{"docker.io", "a/tags/list"}}},
		{"/v2/a/manifests/tags/list", Request{Kind: Tags, Repo: Repository{"docker.io", "a/manifests"}}},
		{"/v2/manifests/blobs/blobs/" + sha256Of, Request{Kind: Blob, Repo: Repository{"docker.io", "manifests/blobs"}, Digest: sha256Of}},
		{"/v2/a/blobs/x/manifests/list", Request{Kind: Manifest, Repo: Repository{"docker.io", "a/blobs/x"}, Tag: "list"}},

		{"/v2/a__b/c--d/e.f/manifests/_x.Y-z", Request{Kind: Manifest, Repo: Repository{"docker.io", "a__b/c--d/e.f"}, Tag: "_x.Y-z"}},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			got, err := Parse(method, parseURL(t, test.url), "docker.io")
			if err != nil || got != test.want {
				t.Errorf("Parse(%s %s) = %+v, %v, want %+v", method, test.url, got, err, test.want)
			}
		}
	}
}

func TestParseRefuses(t *testing.T) {
	long := strings.Repeat("a", 256)
	for _, test := range []struct {
		url    string
		status int
		code   string
	}{
		{"/v1/", 404, CodeUnsupported},
		{"/v2x/", 404, CodeUnsupported},
		{"/v2/_catalog", 404, CodeUnsupported},
		{"/v2/tags/list", 404, CodeUnsupported},
		{"/v2/a/tags/list/", 404, CodeUnsupported},
		{"/v2/a/tags", 404, CodeUnsupported},
		{"/v2/manifests/v1", 404, CodeUnsupported},
		{"/v2/blobs/" + sha256Of, 404, CodeUnsupported},
		{"/v2/a/blobs/uploads/", 404, CodeUnsupported},
		{"/v2/a/blobs/uploads/1", 404, CodeUnsupported},

		{"/v2/A/manifests/v1", 400, CodeNameInvalid},
		{"/v2//manifests/v1", 400, CodeNameInvalid},
		{"/v2/a//b/manifests/v1", 400, CodeNameInvalid},
		{"/v2/a/../b/manifests/v1", 400, CodeNameInvalid},
		{"/v2/a/%2e%2e/b/manifests/v1", 400, CodeNameInvalid},
		{"/v2/a%00b/manifests/v1", 400, CodeNameInvalid},
		{"/v2/a%0ab/manifests/v1", 400, CodeNameInvalid},
		{"/v2/-a/manifests/v1", 400, CodeNameInvalid},
		{"/v2/a_/manifests/v1", 400, CodeNameInvalid},
		{"/v2/a___b/manifests/v1", 400, CodeNameInvalid},
		{"/v2/a/b%20c/manifests/v1", 400, CodeNameInvalid},
		{"/v2/" + long + "/manifests/v1", 400, CodeNameInvalid},

		{"/v2/a/manifests/", 400, CodeNameInvalid},
		{"/v2/a/manifests/.v1", 400, CodeNameInvalid},
		{"/v2/a/manifests/v%0a", 400, CodeNameInvalid},
		{"/v2/a/manifests/" + long[:129], 400, CodeNameInvalid},

		{"/v2/a/blobs/latest", 400, CodeDigestInvalid},
		{"/v2/a/blobs/", 400, CodeDigestInvalid},
		{"/v2/a/blobs/sha256:abc", 400, CodeDigestInvalid},
		{"/v2/a/blobs/sha256:" + strings.ToUpper(sha256Of[7:]), 400, CodeDigestInvalid},
		{"/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", 400, CodeDigestInvalid},
		{"/v2/a/blobs/sha384:" + strings.Repeat("a", 96), 400, CodeDigestInvalid},
		{"/v2/a/blobs/sha512:" + sha256Of[7:], 400, CodeDigestInvalid},
		{"/v2/a/manifests/sha256:..", 400, CodeDigestInvalid},
		{"/v2/a/referrers/latest", 400, CodeDigestInvalid},

		{"/v2/?ns=a%20b", 400, CodeNameInvalid},
		{"/v2/a/manifests/v1?ns=", 400, CodeNameInvalid},
		{"/v2/a/manifests/v1?ns=http://ghcr.io", 400, CodeNameInvalid},
		{"/v2/a/manifests/v1?ns=user@ghcr.io", 400, CodeNameInvalid},
		{"/v2/a/manifests/v1?ns=ghcr.io/x", 400, CodeNameInvalid},
		{"/v2/a/manifests/v1?ns=ghcr.io:0", 400, CodeNameInvalid},
		{"/v2/a/manifests/v1?ns=ghcr.io:65536", 400, CodeNameInvalid},
		{"/v2/a/manifests/v1?ns=ghcr.io:x", 400, CodeNameInvalid},
		{"/v2/a/manifests/v1?ns=ghcr.io:", 400, CodeNameInvalid},
		{"/v2/a/manifests/v1?ns=-ghcr.io", 400, CodeNameInvalid},
		{"/v2/a/manifests/v1?ns=ghcr..io", 400, CodeNameInvalid},
		{"/v2/a/manifests/v1?ns=::1", 400, CodeNameInvalid},
		{"/v2/a/manifests/v1?ns=" + long, 400, CodeNameInvalid},
		{"/v2/ghcr.io:99999/a/manifests/v1", 400, CodeNameInvalid},
		{"/v2/a/manifests/v1?ns=ghcr.io&ns=docker.io", 400, CodeNameInvalid},
		{"/v2/?ns=ghcr.io&ns=ghcr.io", 400, CodeNameInvalid},
		{"/v2/a/manifests/v1?ns=%zz", 400, CodeNameInvalid},
		{"/v2/a/manifests/v1?a;b", 400, CodeNameInvalid},
	} {
		_, err := Parse("GET", parseURL(t, test.url), "docker.io")
		e, ok := err.(*Error)
		if !ok || e.Status != test.status || e.Code != test.code {
			t.Errorf("Parse(%s) = %+v, want %d %s", test.url, err, test.status, test.code)
		}
	}
}

func TestParseRefusesToWrite(t *testing.T) {
	for _, method := range []string{"PUT", "POST", "PATCH", "DELETE", "OPTIONS", "CONNECT", ""} {
		_, err := Parse(method, parseURL(t, "/v2/a/blobs/uploads/"), "docker.io")
		e, ok := err.(*Error)
		if !ok || e.Status != http.StatusMethodNotAllowed || e.Code != CodeUnsupported || e.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("Parse(%s) = %+v, want 405", method, err)
		}
	}
}

// A stranger's words come back in an error, but not all of them.
func TestParseErrorsAreShort(t *testing.T) {
	long := strings.Repeat("x.", 10_000)
	for _, path := range []string{"/" + long, "/v2/" + long, "/v2/a/manifests/" + long, "/v2/a/blobs/" + long, "/v2/" + long + "/manifests/v1", "/v2/a/tags/list?ns=" + long, "/v2/a/tags/list?%zz" + long} {
		u := &url.URL{Path: path}
		if before, query, ok := strings.Cut(path, "?"); ok {
			u.Path, u.RawQuery = before, query
		}
		if _, err := Parse("GET", u, "docker.io"); err == nil || len(err.Error()) > 500 {
			t.Errorf("Parse(%.30s...): error of %d bytes", path, len(err.Error()))
		}
	}
	if _, err := Parse(long, parseURL(t, "/v2/"), "docker.io"); len(err.Error()) > 500 {
		t.Errorf("error of a long method has %d bytes", len(err.Error()))
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"/v2/", "/v2", "/v2/alpine/manifests/latest", "/v2/ghcr.io/a/b/blobs/" + sha256Of, "/v2/a/referrers/" + sha512Of,
		"/v2/a/tags/list?n=1&ns=localhost:5000", "/v2/a/../b/manifests/x", "/v2/a/manifests/sha256:", "/v2/\x00/manifests/a",
		"/v2/[::1]:5000/a/manifests/b", "/v2/a/manifests/b?ns=%2e%2e", "/v2/docker.io/a/tags/list", "/v2/a/blobs/sha256:../../etc/passwd",
	} {
		path, query, _ := strings.Cut(seed, "?")
		f.Add("GET", path, query)
	}
	f.Add("POST", "/v2/a/blobs/uploads/", "")
	f.Fuzz(func(t *testing.T, method, path, query string) {
		req, err := Parse(method, &url.URL{Path: path, RawQuery: query}, "docker.io")
		if err != nil {
			checkParseError(t, err)
			return
		}
		checkParsed(t, req)
		again := askedAgain(req)
		if got, err := Parse("GET", again, "example.com"); err != nil || got != withoutHostInPath(req) {
			t.Errorf("Parse(%s) = %+v, %v, want %+v", again, got, err, req)
		}
	})
}

func checkParseError(t *testing.T, err error) {
	e, ok := err.(*Error)
	if !ok || e.Status < 400 || e.Status > 499 || e.Code == "" {
		t.Errorf("error %#v is not one that can be sent", err)
	}
	if len(e.Message) > 500 {
		t.Errorf("message of %d bytes", len(e.Message))
	}
}

// checkParsed checks what the rest of the program relies on.
func checkParsed(t *testing.T, req Request) {
	if host, err := ParseHost(req.Repo.Host); err != nil || host != req.Repo.Host {
		t.Errorf("host %q is not in the form for comparing: %v", req.Repo.Host, err)
	}
	if strings.ContainsAny(req.Repo.Host, "/@?#% \r\n") {
		t.Errorf("host %q leads elsewhere", req.Repo.Host)
	}
	if req.Kind == Ping {
		if req.Repo.Name != "" || req.Tag != "" || req.Digest != "" {
			t.Errorf("ping of %+v", req)
		}
		return
	}
	if repo, err := ParseRepository(req.Repo.Host, req.Repo.Name); err != nil || repo != req.Repo {
		t.Errorf("repository %q: %v", req.Repo, err)
	}
	if strings.Contains(req.Repo.Name, "..") || !utf8.ValidString(req.Repo.Name) {
		t.Errorf("name %q", req.Repo.Name)
	}
	byTag, byDigest := req.Tag != "", req.Digest != ""
	if byDigest && req.Digest.Validate() != nil {
		t.Errorf("digest %q", req.Digest)
	}
	switch req.Kind {
	case Manifest:
		if byTag == byDigest {
			t.Errorf("manifest by tag %q and digest %q", req.Tag, req.Digest)
		}
	case Blob, Referrers:
		if byTag || !byDigest {
			t.Errorf("%v by tag %q and digest %q", req.Kind, req.Tag, req.Digest)
		}
	case Tags:
		if byTag || byDigest {
			t.Errorf("tags of tag %q and digest %q", req.Tag, req.Digest)
		}
	}
}

// askedAgain is the request in its plainest form.
func askedAgain(req Request) *url.URL {
	u := &url.URL{Path: "/v2/", RawQuery: url.Values{"ns": {req.Repo.Host}}.Encode()}
	switch req.Kind {
	case Manifest:
		u.Path += req.Repo.Name + "/manifests/" + req.Tag + string(req.Digest)
	case Blob:
		u.Path += req.Repo.Name + "/blobs/" + string(req.Digest)
	case Referrers:
		u.Path += req.Repo.Name + "/referrers/" + string(req.Digest)
	case Tags:
		u.Path += req.Repo.Name + "/tags/list"
	}
	return u
}

func withoutHostInPath(req Request) Request {
	req.HostInPath = false
	return req
}

func TestIsPull(t *testing.T) {
	for path, want := range map[string]bool{"/v2": true, "/v2/": true, "/v2/a/../b": true, "/v2//": true, "/v2x": false, "/v1/v2/": false, "/": false, "": false} {
		if got := IsPull(path); got != want {
			t.Errorf("IsPull(%q) = %v", path, got)
		}
	}
}

func TestParseDigest(t *testing.T) {
	for _, good := range []string{sha256Of, sha512Of} {
		if d, err := ParseDigest(good); err != nil || d != digest.Digest(good) {
			t.Errorf("ParseDigest(%s) = %s, %v", good, d, err)
		}
	}
}
