package registry

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const testManifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`

// realRegistry is go-containerregistry's, with one blob and one manifest in
// repository a, tagged v1.
func realRegistry(t *testing.T, blob []byte) (host string) {
	t.Helper()
	host = serve(t, ggcr.New(ggcr.Logger(log.New(t.Output(), "", 0))).ServeHTTP)
	put := func(method, path, mediaType string, body []byte) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+host+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", mediaType)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusCreated {
			t.Fatalf("%s %s: %s", method, path, resp.Status)
		}
	}
	put("POST", "/v2/a/blobs/uploads/?digest="+digest.FromBytes(blob).String(), "application/octet-stream", blob)
	put("PUT", "/v2/a/manifests/v1", ocispec.MediaTypeImageManifest, []byte(testManifest))
	return host
}

func TestClientOfARealRegistry(t *testing.T) {
	checkGoroutines(t)
	blob, d := content(100_000)
	host := realRegistry(t, blob)
	c := newTestClient(t, host)
	repo := Repository{host, "a"}
	m := digest.FromString(testManifest)
	want := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: m, Size: int64(len(testManifest))}

	if err := c.Ping(t.Context(), host, ""); err != nil {
		t.Errorf("Ping = %v", err)
	}
	for _, ref := range []string{"v1", m.String()} {
		if desc, err := c.HeadManifest(t.Context(), repo, ref, ""); err != nil || desc.Digest != want.Digest || desc.Size != want.Size || desc.MediaType != want.MediaType {
			t.Errorf("HeadManifest(%s) = %v, %v, want %v", ref, desc, err, want)
		}
		desc, got, err := c.GetManifest(t.Context(), repo, ref, "")
		if err != nil || string(got) != testManifest || desc.Digest != want.Digest || desc.Size != want.Size || desc.MediaType != want.MediaType {
			t.Errorf("GetManifest(%s) = %v, %s, %v", ref, desc, got, err)
		}
	}
	if size, err := c.StatBlob(t.Context(), repo, d, ""); err != nil || size != int64(len(blob)) {
		t.Errorf("StatBlob = %d, %v", size, err)
	}
	// The registry knows no open ranges, and answers 416 to them.
	for _, off := range []int64{0, 1, 99_999} {
		checkBlob(t, c, repo, blob, off)
	}
	resp, err := c.Relay(t.Context(), repo, "tags/list", url.Values{"n": {"1"}}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(body), `"v1"`) {
		t.Errorf("Relay(tags/list) = %s, %v", body, err)
	}

	for name, err := range map[string]error{
		"GetManifest": errOf2(c.GetManifest(t.Context(), repo, "none", "")),
		"StatBlob":    errOf(c.StatBlob(t.Context(), repo, sha256Of, "")),
		"GetBlob":     errOf2(c.GetBlob(t.Context(), repo, sha256Of, 0, "")),
	} {
		if status(err) != 404 || !Refused(err) {
			t.Errorf("%s of nothing = %v, want a 404", name, err)
		}
	}
}

func errOf[T any](_ T, err error) error          { return err }
func errOf2[T, U any](_ T, _ U, err error) error { return err }

// checkBlob checks that blob can be had from off on.
func checkBlob(t *testing.T, c *Client, repo Repository, blob []byte, off int64) {
	t.Helper()
	body, size, err := c.GetBlob(t.Context(), repo, digest.FromBytes(blob), off, "")
	if err != nil {
		t.Errorf("GetBlob from %d: %v", off, err)
		return
	}
	defer body.Close()
	if size != -1 && size != int64(len(blob)) {
		t.Errorf("GetBlob from %d: size %d, want %d", off, size, len(blob))
	}
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, blob[off:]) {
		t.Errorf("GetBlob from %d = %d bytes, %v, want %d", off, len(got), err, len(blob)-int(off))
	}
}

func TestResume(t *testing.T) {
	blob, d := content(50_000)
	repo := func(host string) Repository { return Repository{host, "a"} }
	// Asked for a section, a registry answers with what is of no use; without, it is well.
	unlessRange := func(status int, contentRange string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				w.Write(blob)
				return
			}
			if contentRange != "" {
				w.Header().Set("Content-Range", contentRange)
			}
			w.WriteHeader(status)
			w.Write(blob[7:])
		}
	}
	for _, test := range []struct {
		name  string
		serve http.HandlerFunc
		fails bool
	}{
		{"ranges are a bad request", unlessRange(400, ""), false},
		{"ranges without Content-Range", unlessRange(206, ""), false},
		{"ranges of unknown size", unlessRange(206, "bytes 7-49999/*"), false},
		{"ranges", func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
		}, false},
		{"no ranges", func(w http.ResponseWriter, r *http.Request) { w.Write(blob) }, false},
		{"no ranges, no length", func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			w.Write(blob)
		}, false},
		{"other section", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-9/50000")
			w.WriteHeader(206)
			w.Write(blob[:10])
		}, true},
		{"section without Content-Range", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(206)
			w.Write(blob[7:])
		}, true},
		{"section of unknown size", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 7-49999/*")
			w.WriteHeader(206)
			w.Write(blob[7:])
		}, true},
		{"blob shorter than the offset", func(w http.ResponseWriter, r *http.Request) { w.Write(blob[:3]) }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			checkGoroutines(t)
			host := serve(t, test.serve)
			c := newTestClient(t, host)
			if !test.fails {
				checkBlob(t, c, repo(host), blob, 7)
				return
			}
			body, _, err := c.GetBlob(t.Context(), repo(host), d, 7, "")
			if err == nil {
				defer body.Close()
				_, err = io.ReadAll(body)
			}
			if err == nil || Refused(err) {
				t.Errorf("GetBlob and reading it = %v, want an Unavailable", err)
			}
		})
	}
}

func TestStatBlob(t *testing.T) {
	blob, d := content(1000)
	for _, test := range []struct {
		name string
		head func(w http.ResponseWriter)
		get  func(w http.ResponseWriter, r *http.Request)
		want int64
		err  int
	}{
		{"HEAD refused", func(w http.ResponseWriter) { w.WriteHeader(403) }, ranges(blob), 1000, 0},
		{"HEAD not allowed", func(w http.ResponseWriter) { w.WriteHeader(405) }, ranges(blob), 1000, 0},
		{"HEAD not implemented", func(w http.ResponseWriter) { w.WriteHeader(501) }, ranges(blob), 1000, 0},
		{"HEAD is a bad request", func(w http.ResponseWriter) { w.WriteHeader(400) }, ranges(blob), 1000, 0},
		{"HEAD is an error", func(w http.ResponseWriter) { w.WriteHeader(500) }, ranges(blob), 1000, 0},
		{"HEAD without length", func(w http.ResponseWriter) { w.(http.Flusher).Flush() }, ranges(blob), 1000, 0},
		{"no ranges", func(w http.ResponseWriter) { w.WriteHeader(405) }, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.Write(blob)
		}, 1000, 0},
		{"both refused", func(w http.ResponseWriter) { w.WriteHeader(403) }, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(403) }, 0, 403},
		{"not found", func(w http.ResponseWriter) { w.WriteHeader(404) }, ranges(blob), 0, 404},
		{"ill", func(w http.ResponseWriter) { w.WriteHeader(500) }, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }, 0, 502},
	} {
		t.Run(test.name, func(t *testing.T) {
			checkGoroutines(t)
			host := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodHead {
					test.head(w)
					return
				}
				test.get(w, r)
			})
			size, err := newTestClient(t, host).StatBlob(t.Context(), Repository{host, "a"}, d, "")
			if size != test.want || status(err) != test.err {
				t.Errorf("StatBlob = %d, %v, want %d, %d", size, err, test.want, test.err)
			}
		})
	}
}

func ranges(blob []byte) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	}
}

func TestGetManifestChecksTheDigest(t *testing.T) {
	for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		host := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Docker-Content-Digest", algorithm.FromString("another").String())
			io.WriteString(w, testManifest)
		})
		c, repo := newTestClient(t, host), Repository{host, "a"}
		right := algorithm.FromString(testManifest)
		if desc, _, err := c.GetManifest(t.Context(), repo, right.String(), ""); err != nil || desc.Digest != right || desc.MediaType == "" {
			t.Errorf("GetManifest(%s) = %v, %v", right, desc, err)
		}
		if _, _, err := c.GetManifest(t.Context(), repo, algorithm.FromString("another").String(), ""); err == nil || Refused(err) {
			t.Errorf("GetManifest of other bytes = %v, want an Unavailable", err)
		}
	}
}

// What a manifest is says its content: whoever runs a registry could call one of another
// registry, which we keep for that one's clients too, what no engine takes.
func TestGetManifestTakesTheTypeFromTheContent(t *testing.T) {
	var header []string
	var content string
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = header
		io.WriteString(w, content)
	})
	const image, index, foreign = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, "application/x-foreign"
	for _, test := range []struct{ header, content, want string }{
		{"", testManifest, image}, {foreign, testManifest, image},
		{foreign, `{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json"}`, "application/vnd.docker.distribution.manifest.v2+json"},
		{foreign, `{"schemaVersion":2,"manifests":[]}`, index}, {foreign, `{"schemaVersion":2,"config":{},"layers":[]}`, image},
		// It does not say.
		{foreign, `{"schemaVersion":2,"manifests":[],"layers":[]}`, foreign}, {foreign, `{"schemaVersion":1,"fsLayers":[]}`, foreign},
		{foreign, `{"schemaVersion":2,"mediaType":"a\r\nX: y"}`, foreign},
	} {
		header, content = []string{test.header}, test.content
		desc, _, err := newTestClient(t, host).GetManifest(t.Context(), Repository{host, "a"}, "v1", "")
		if err != nil || desc.MediaType != test.want {
			t.Errorf("type of %s, sent as %q = %q, %v, want %q", test.content, test.header, desc.MediaType, err, test.want)
		}
	}
}

func TestGetManifestIsBounded(t *testing.T) {
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"schemaVersion":2,"x":"%s"}`, strings.Repeat("x", MaxManifest))
	})
	if _, _, err := newTestClient(t, host).GetManifest(t.Context(), Repository{host, "a"}, "v1", ""); err == nil || Refused(err) {
		t.Errorf("GetManifest = %v, want an Unavailable", err)
	}
}

// A sign-on proxy answers 200 to everything. That is nobody's leave.
func TestLoginPages(t *testing.T) {
	checkGoroutines(t)
	for name, serve := range map[string]http.HandlerFunc{
		"html": func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html><body>Log in</body></html>") },
		"html that is declared": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "Text/HTML; charset=utf-8")
			io.WriteString(w, "Log in")
		},
		"html after a redirect": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/login" {
				http.Redirect(w, r, "/login", http.StatusFound)
				return
			}
			io.WriteString(w, "<html><body>Log in</body></html>")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(serve)
			defer s.Close()
			host := strings.TrimPrefix(s.URL, "http://")
			c, repo := newTestClient(t, host), Repository{host, "a"}
			for method, err := range map[string]error{
				"Ping":                  c.Ping(t.Context(), host, ""),
				"GetManifest of a tag":  errOf2(c.GetManifest(t.Context(), repo, "v1", "")),
				"GetManifest":           errOf2(c.GetManifest(t.Context(), repo, sha256Of, "")),
				"GetBlob":               errOf2(c.GetBlob(t.Context(), repo, sha256Of, 0, "")),
				"GetBlob in the middle": errOf2(c.GetBlob(t.Context(), repo, sha256Of, 3, "")),
				"Relay":                 errOf(c.Relay(t.Context(), repo, "tags/list", nil, "")),
			} {
				if err == nil || Refused(err) {
					t.Errorf("%s = %v, want an Unavailable", method, err)
				}
			}
			if desc, err := c.HeadManifest(t.Context(), repo, "v1", ""); err == nil && desc.Digest != "" {
				t.Errorf("HeadManifest = %v, %v", desc, err)
			}
		})
	}
}

func TestLoginInJSONIsNoManifest(t *testing.T) {
	for _, page := range []string{`{"error":"login required"}`, `"login"`, `[]`, `null`, `{}`, `{"schemaVersion":"x"}`} {
		host := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, page)
		})
		if _, _, err := newTestClient(t, host).GetManifest(t.Context(), Repository{host, "a"}, "v1", ""); err == nil || Refused(err) {
			t.Errorf("GetManifest of %s = %v, want an Unavailable", page, err)
		}
	}
}

// An HTML file in a registry is a blob as any other.
func TestHTMLBlob(t *testing.T) {
	blob := []byte("<html><body>documentation</body></html>")
	host := realRegistry(t, blob)
	checkBlob(t, newTestClient(t, host), Repository{host, "a"}, blob, 0)
}

func TestVerdicts(t *testing.T) {
	for _, test := range []struct {
		status  int
		refused bool
		code    string
	}{
		{400, true, CodeUnsupported},
		{401, true, CodeUnauthorized},
		{403, true, CodeDenied},
		{404, true, CodeManifestUnknown},
		{429, true, CodeTooManyRequests},
		{500, false, CodeUnavailable},
		{502, false, CodeUnavailable},
		{503, false, CodeUnavailable},
		{304, false, CodeUnavailable},
	} {
		host := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "7")
			w.Header().Set("Www-Authenticate", "Basic realm=x")
			w.Header().Set("Set-Cookie", "a=b")
			w.WriteHeader(test.status)
			if test.status != 304 {
				io.WriteString(w, "not JSON")
			}
		})
		err := errOf2(newTestClient(t, host).GetManifest(t.Context(), Repository{host, "a"}, "v1", "Basic abc"))
		e, ok := err.(*Error)
		if !ok || Refused(err) != test.refused || e.Code != test.code || e.Body != nil {
			t.Errorf("answer %d = %+v", test.status, err)
			continue
		}
		if test.refused && (e.Status != test.status || e.Header.Get("Retry-After") != "7" || e.Header.Get("Set-Cookie") != "" || e.Header.Get(UpstreamHeader) != host) {
			t.Errorf("answer %d = %d, %v", test.status, e.Status, e.Header)
		}
		if strings.Contains(err.Error(), "abc") {
			t.Errorf("credentials in %q", err)
		}
	}
}

// Clients look for referrers in another way when a registry does not know of them, but not
// when it does not know the repository.
func TestRegistryWithoutReferrers(t *testing.T) {
	_, d := content(10)
	for answer, want := range map[string]string{"404 page not found": CodeUnsupported, `{"errors":[{"code":"NAME_UNKNOWN"}]}`: CodeNameUnknown} {
		host := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if answer[0] == '{' {
				w.Header().Set("Content-Type", "application/json")
			}
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, answer)
		})
		_, err := newTestClient(t, host).Relay(t.Context(), Repository{host, "a"}, "referrers/"+d.String(), nil, "")
		w := httptest.NewRecorder()
		WriteError(w, httptest.NewRequest("GET", "/", nil), err)
		if w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), `"`+want+`"`) {
			t.Errorf("%s is relayed as %d %s", answer, w.Code, w.Body)
		}
	}
}

func TestChallengeComesWithItsBody(t *testing.T) {
	const body = `{"errors":[{"code":"UNAUTHORIZED","message":"theirs"}]}`
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Www-Authenticate", `Bearer realm="https://token.invalid/"`)
		w.Header().Add("Www-Authenticate", `Basic realm="x"`)
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.WriteHeader(401)
		io.WriteString(w, body)
	})
	c := newTestClient(t, host)
	for name, err := range map[string]error{
		"Ping":        c.Ping(t.Context(), host, ""),
		"GetManifest": errOf2(c.GetManifest(t.Context(), Repository{host, "a"}, "v1", "Basic x")),
	} {
		e, ok := err.(*Error)
		if !ok || !Unauthorized(err) || string(e.Body) != body || len(e.Header["Www-Authenticate"]) != 2 {
			t.Errorf("%s = %+v, want the challenge", name, err)
		}
	}
}

// tlsRegistry speaks HTTPS, and is trusted by the transport that it returns.
func tlsRegistry(t *testing.T, h http.HandlerFunc) (host string, transport *http.Transport) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(t.Output(), "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	transport = patientTransport()
	transport.TLSClientConfig = s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	transport.TLSClientConfig.NextProtos = nil
	t.Cleanup(transport.CloseIdleConnections)
	return strings.TrimPrefix(s.URL, "https://"), transport
}

// storage records the Authorization headers that come to it.
type storage struct {
	blob []byte
	mu   sync.Mutex // guards seen
	seen []string
}

func (s *storage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.seen = append(s.seen, r.Header.Get("Authorization"))
	s.mu.Unlock()
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.blob))
}

func (s *storage) check(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) == 0 {
		t.Error("nobody came to the storage")
	}
	for _, authorization := range s.seen {
		if authorization != "" {
			t.Errorf("the storage saw credentials %q", authorization)
		}
	}
}

func TestRedirectsLeaveCredentialsBehind(t *testing.T) {
	blob, d := content(1000)
	const secret = "Bearer secret"
	get := func(t *testing.T, c *Client, host string) {
		t.Helper()
		for _, off := range []int64{0, 10} {
			body, _, err := c.GetBlob(t.Context(), Repository{host, "a"}, d, off, secret)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, blob[off:]) {
				t.Errorf("GetBlob from %d = %d bytes, %v", off, len(got), err)
			}
			body.Close()
		}
		if size, err := c.StatBlob(t.Context(), Repository{host, "a"}, d, secret); err != nil || size != 1000 {
			t.Errorf("StatBlob = %d, %v", size, err)
		}
	}
	t.Run("another port", func(t *testing.T) {
		store := &storage{blob: blob}
		target := serve(t, store.ServeHTTP)
		host := serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+target+"/x", http.StatusTemporaryRedirect)
		})
		get(t, newTestClient(t, host), host)
		store.check(t)
	})
	t.Run("a subdomain", func(t *testing.T) {
		store := &storage{blob: blob}
		target := serve(t, store.ServeHTTP)
		host := serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://s3.registry.test/x", http.StatusTemporaryRedirect)
		})
		c := testClient(t, ClientConfig{Insecure: []string{"registry.test"}, Transport: names(t, map[string]string{"registry.test": host, "s3.registry.test": target})})
		get(t, c, "registry.test")
		store.check(t)
	})
	t.Run("HTTP to HTTPS of one host", func(t *testing.T) {
		store := &storage{blob: blob}
		target, transport := tlsRegistry(t, store.ServeHTTP)
		host := serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://registry.test/x", http.StatusTemporaryRedirect)
		})
		dialTo(transport, map[string]string{"registry.test:80": host, "registry.test:443": target})
		transport.TLSClientConfig.InsecureSkipVerify = true
		get(t, testClient(t, ClientConfig{Insecure: []string{"registry.test"}, Transport: transport}), "registry.test")
		store.check(t)
	})
	t.Run("there and back", func(t *testing.T) {
		store := &storage{blob: blob}
		var host string
		target := serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+host+"/back", http.StatusTemporaryRedirect)
		})
		host = serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/back" {
				store.ServeHTTP(w, r)
				return
			}
			http.Redirect(w, r, "http://"+target+"/x", http.StatusTemporaryRedirect)
		})
		get(t, newTestClient(t, host), host)
		store.check(t)
	})
	t.Run("within the registry", func(t *testing.T) {
		var seen atomic.Value
		host := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/x" {
				seen.Store(r.Header.Get("Authorization"))
				ranges(blob)(w, r)
				return
			}
			http.Redirect(w, r, "/x", http.StatusTemporaryRedirect)
		})
		get(t, newTestClient(t, host), host)
		if seen.Load() != secret {
			t.Errorf("the registry itself saw %v", seen.Load())
		}
	})
}

// names returns a transport that finds the servers of names.
func names(t *testing.T, servers map[string]string) *http.Transport {
	transport := Transport()
	t.Cleanup(transport.CloseIdleConnections)
	withPort := make(map[string]string)
	for name, server := range servers {
		withPort[name+":80"] = server
	}
	dialTo(transport, withPort)
	return transport
}

func dialTo(transport *http.Transport, servers map[string]string) {
	dial := transport.DialContext
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if server, ok := servers[addr]; ok {
			addr = server
		}
		return dial(ctx, network, addr)
	}
}

// A registry that a stranger names must not make us read what speaks HTTP
// near to us.
// A signed URL may have expired on the way to object storage. That is no verdict
// on the caller: who asks the registry again gets another.
func TestExpiredURLIsNoRefusal(t *testing.T) {
	_, d := content(10)
	for status, refused := range map[int]bool{403: false, 400: false, 404: true} {
		target := serve(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) })
		host := serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+target+"/bucket/x?Signature=old", http.StatusTemporaryRedirect)
		})
		_, _, err := newTestClient(t, host).GetBlob(t.Context(), Repository{host, "a"}, d, 0, "Bearer secret")
		if err == nil || Refused(err) != refused {
			t.Errorf("GetBlob, redirected to a %d = %v; refused %v, want %v", status, err, Refused(err), refused)
		}
	}
}

func TestNoRedirectFromTLSToHTTP(t *testing.T) {
	blob, d := content(1000)
	var reached atomic.Bool
	near := serve(t, func(w http.ResponseWriter, r *http.Request) {
		reached.Store(true)
		ranges(blob)(w, r)
	})
	host, transport := tlsRegistry(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+near+"/latest/meta-data?Signature=secret", http.StatusTemporaryRedirect)
	})
	repo := Repository{host, "a"}
	c := testClient(t, ClientConfig{Transport: transport})
	for name, err := range map[string]error{
		"GetBlob":     errOf2(c.GetBlob(t.Context(), repo, d, 0, "")),
		"StatBlob":    errOf(c.StatBlob(t.Context(), repo, d, "")),
		"GetManifest": errOf2(c.GetManifest(t.Context(), repo, "v1", "")),
		"Relay":       errOf(c.Relay(t.Context(), repo, "tags/list", nil, "")),
	} {
		if err == nil || Refused(err) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s = %v, want an Unavailable", name, err)
		}
	}
	if reached.Load() {
		t.Error("the redirect was followed")
	}
	c = testClient(t, ClientConfig{Transport: transport, Insecure: []string{near}})
	checkBlob(t, c, repo, blob, 0)
}

func TestRedirectsEnd(t *testing.T) {
	var n atomic.Int64
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, fmt.Sprintf("/%d", n.Add(1)), http.StatusTemporaryRedirect)
	})
	err := errOf2(newTestClient(t, host).GetBlob(t.Context(), Repository{host, "a"}, sha256Of, 0, ""))
	if err == nil || Refused(err) || n.Load() > 20 {
		t.Errorf("GetBlob = %v after %d redirects", err, n.Load())
	}
}

// Object storage is reached by URLs that are themselves credentials.
func TestErrorsNameNoURL(t *testing.T) {
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.1:1/x?Signature=secret", http.StatusTemporaryRedirect)
	})
	err := errOf2(newTestClient(t, host).GetBlob(t.Context(), Repository{host, "a"}, sha256Of, 0, "Bearer secret"))
	if !errors.Is(err, ErrUnreachable) || Refused(err) || strings.Contains(err.Error(), "secret") {
		t.Errorf("GetBlob = %v", err)
	}
}

// silent sends the header and some bytes, and then nothing more.
func silent(t *testing.T, status int, some string) string {
	end := make(chan struct{})
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000000")
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		io.WriteString(w, some)
		w.(http.Flusher).Flush()
		if r.Method != http.MethodHead {
			<-end
		}
	})
	t.Cleanup(func() { close(end) })
	return host
}

func TestSilentBodies(t *testing.T) {
	checkGoroutines(t)
	host := silent(t, 200, "some")
	c, repo := newTestClient(t, host), Repository{host, "a"}
	c.idle = 20 * time.Millisecond
	body, _, err := c.GetBlob(t.Context(), repo, sha256Of, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); string(got) != "some" || !errors.Is(err, errIdle) {
		t.Errorf("body of a blob = %q, %v, want %v", got, err, errIdle)
	}
	if _, _, err := c.GetManifest(t.Context(), repo, "v1", ""); !errors.Is(err, errIdle) || Refused(err) {
		t.Errorf("GetManifest = %v, want %v", err, errIdle)
	}
	tail, _, err := c.GetBlob(t.Context(), repo, sha256Of, 100, "")
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	if _, err := io.ReadAll(tail); !errors.Is(err, errIdle) {
		t.Errorf("body of a registry without ranges = %v, want %v", err, errIdle)
	}
	resp, err := c.Relay(t.Context(), repo, "tags/list", nil, "")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); !errors.Is(err, errIdle) {
		t.Errorf("body of tags = %v, want %v", err, errIdle)
	}
}

func TestSilentBodyOverHTTP2(t *testing.T) {
	checkGoroutines(t)
	end := make(chan struct{})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "some")
		w.(http.Flusher).Flush()
		<-end
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	defer close(end)
	transport := patientTransport()
	defer transport.CloseIdleConnections()
	transport.TLSClientConfig = s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	c := testClient(t, ClientConfig{Transport: transport})
	resp, err := c.Relay(t.Context(), Repository{strings.TrimPrefix(s.URL, "https://"), "a"}, "tags/list", nil, "")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 4)); err != nil || resp.ProtoMajor != 2 {
		t.Fatalf("the first bytes over %s: %v", resp.Proto, err)
	}
	resp.Body.(*idleBody).limit = 20 * time.Millisecond
	if got, err := io.ReadAll(resp.Body); len(got) > 0 || !errors.Is(err, errIdle) {
		t.Errorf("the rest = %q, %v, want %v", got, err, errIdle)
	}
}

// A connection that died without a word is not asked for ever.
func TestLostConnectionOverHTTP2(t *testing.T) {
	checkGoroutines(t)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("asked over %s", r.Proto)
		}
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	transport := patientTransport()
	defer transport.CloseIdleConnections()
	transport.TLSClientConfig = s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	transport.HTTP2.SendPingTimeout, transport.HTTP2.PingTimeout = 200*time.Millisecond, 200*time.Millisecond
	var lines []*lostLine
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		line := &lostLine{Conn: conn}
		lines = append(lines, line)
		return line, err
	}
	c, host := testClient(t, ClientConfig{Transport: transport}), strings.TrimPrefix(s.URL, "https://")
	if err := c.Ping(t.Context(), host, ""); err != nil {
		t.Fatal(err)
	}
	lines[0].lost.Store(true)
	for c.Ping(t.Context(), host, "") != nil { // or for ever
	}
	if len(lines) < 2 {
		t.Error("the lost connection answers")
	}
}

// lostLine is a connection of which the far end hears nothing any more, once it is lost.
type lostLine struct {
	net.Conn
	lost atomic.Bool
}

func (l *lostLine) Write(b []byte) (int, error) {
	if l.lost.Load() {
		return len(b), nil
	}
	return l.Conn.Write(b)
}

// A refusal counts though its words do not come.
func TestSilentRefusal(t *testing.T) {
	checkGoroutines(t)
	host := silent(t, 404, `{"errors"`)
	c := newTestClient(t, host)
	c.idle = 20 * time.Millisecond
	err := errOf(c.StatBlob(t.Context(), Repository{host, "a"}, sha256Of, ""))
	if status(err) != 404 {
		t.Errorf("StatBlob = %v, want a 404", err)
	}
	err = errOf2(c.GetBlob(t.Context(), Repository{host, "a"}, sha256Of, 0, ""))
	if e, ok := err.(*Error); !ok || e.Status != 404 || e.Body != nil {
		t.Errorf("GetBlob = %v, want a 404 without their words", err)
	}
}

// A refusal that drips would never be idle.
func TestDrippingRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var drip sync.WaitGroup
		defer drip.Wait()
		c := testClient(t, ClientConfig{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			body, w := io.Pipe()
			drip.Go(func() {
				for err := error(nil); err == nil; _, err = w.Write([]byte("x")) {
					time.Sleep(idleTimeout / 2)
				}
			})
			return &http.Response{StatusCode: 404, Body: body, Request: r}, nil
		})})
		begun := time.Now()
		err := errOf2(c.GetBlob(t.Context(), Repository{"drip.test", "a"}, sha256Of, 0, "Basic x"))
		if took := time.Since(begun); status(err) != 404 || took > idleTimeout {
			t.Errorf("GetBlob = %v after %v", err, took)
		}
	})
}

// A body that drips is not idle; its reader may leave it at any time.
func TestAbandonedBody(t *testing.T) {
	checkGoroutines(t)
	host := silent(t, 200, "some")
	c := newTestClient(t, host)
	ctx, cancel := context.WithCancel(t.Context())
	body, size, err := c.GetBlob(ctx, Repository{host, "a"}, sha256Of, 0, "")
	if err != nil || size != 1_000_000 {
		t.Fatalf("GetBlob = %d, %v", size, err)
	}
	io.ReadFull(body, make([]byte, 4))
	cancel()
	if _, err := body.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("Read = %v, want %v", err, context.Canceled)
	}
	body.Close()
}

// An upstream that is a murder is asked for all registries, by ns, and only
// what it marks as a registry's verdict is one.
func TestVia(t *testing.T) {
	var asked atomic.Pointer[http.Request]
	mark, code := true, 404
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r)
		w.Header().Set(SeederHeader, "1")
		if mark {
			w.Header().Set(UpstreamHeader, "ghcr.io")
		}
		w.WriteHeader(code)
	})
	c := testClient(t, ClientConfig{Via: parseURL(t, "http://user:password@"+host+"/prefix/")})
	repo := Repository{"ghcr.io", "org/app"}

	resp, err := c.Relay(t.Context(), repo, "tags/list", url.Values{"n": {"1"}}, "Bearer x")
	if !Refused(err) || resp != nil {
		t.Errorf("Relay = %v, want the 404", err)
	}
	r := asked.Load()
	if r.URL.Path != "/prefix/v2/org/app/tags/list" || r.URL.Query().Encode() != "n=1&ns=ghcr.io" || r.Header.Get("Authorization") != "Bearer x" {
		t.Errorf("asked for %s with %v", r.URL, r.Header)
	}
	if err := c.Ping(t.Context(), "ghcr.io", ""); !Refused(err) || asked.Load().URL.String() != "/prefix/v2/?ns=ghcr.io" {
		t.Errorf("Ping = %v, asked for %s", err, asked.Load().URL)
	}
	if resp, err := c.Ask(t.Context(), "/v1/torrents/x", repo, url.Values{"wait": {"1s"}}, ""); !Refused(err) {
		t.Errorf("Ask = %v, %v", resp, err)
	}
	if got := asked.Load().Header.Get("Authorization"); got != "" {
		t.Errorf("our own credentials would go to the registry: %q", got)
	}
	if got := asked.Load().URL; got.Path != "/prefix/v1/torrents/x" || got.RawQuery != "ns=ghcr.io&repo=org%2Fapp&wait=1s" {
		t.Errorf("asked for %s", got)
	}

	mark = false
	for _, code = range []int{400, 401, 403, 404, 429, 500, 502} {
		err := errOf(c.StatBlob(t.Context(), repo, sha256Of, "Bearer x"))
		if err == nil || Refused(err) || strings.Contains(err.Error(), "password") {
			t.Errorf("an unmarked %d = %v, want an Unavailable", code, err)
		}
	}
	if asked.Load().Header.Get("Authorization") != "Bearer x" {
		t.Error("the puller's header did not come through")
	}
}

// A seeder's own challenge is the registry's; no token is fetched on the way.
func TestViaFetchesNoToken(t *testing.T) {
	var n atomic.Int64
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		w.Header().Set(SeederHeader, "1")
		w.Header().Set(UpstreamHeader, "ghcr.io")
		w.Header().Set("Www-Authenticate", `Bearer realm="http://`+r.Host+`/token"`)
		w.WriteHeader(401)
	})
	c := testClient(t, ClientConfig{Via: parseURL(t, "http://"+host), Insecure: []string{"ghcr.io"}})
	if err := errOf(c.StatBlob(t.Context(), Repository{"ghcr.io", "a"}, sha256Of, "")); !Unauthorized(err) || n.Load() != 1 {
		t.Errorf("StatBlob = %v after %d requests", err, n.Load())
	}
}

func TestDockerHubLivesElsewhere(t *testing.T) {
	c := NewClient(ClientConfig{})
	if got := c.url(Repository{DockerHub, "library/alpine"}, "manifests/v1", nil); got != "https://registry-1.docker.io/v2/library/alpine/manifests/v1" {
		t.Errorf("url = %s", got)
	}
}

func TestUnreachableRegistry(t *testing.T) {
	s := httptest.NewServer(nil)
	host := strings.TrimPrefix(s.URL, "http://")
	s.Close()
	err := newTestClient(t, host).Ping(t.Context(), host, "Basic abc")
	if !errors.Is(err, ErrUnreachable) || Refused(err) || status(err) != 502 || strings.Contains(err.Error(), "abc") {
		t.Errorf("Ping = %v", err)
	}
}

func TestRegistryWithAWrongCertificate(t *testing.T) {
	host, _ := tlsRegistry(t, func(w http.ResponseWriter, r *http.Request) { t.Error("the registry was asked") })
	err := testClient(t, ClientConfig{}).Ping(t.Context(), host, "")
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); !ok || Refused(err) {
		t.Errorf("Ping = %v", err)
	}
}

func TestContentLengthIsKept(t *testing.T) {
	blob, _ := content(1 << 20)
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "identity" {
			t.Errorf("asked for encoding %q", r.Header.Get("Accept-Encoding"))
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(blob)))
		w.Write(blob)
	})
	checkBlob(t, newTestClient(t, host), Repository{host, "a"}, blob, 0)
}

// A proxy before the registry compresses what nobody asked it to.
func TestCompressedAnswers(t *testing.T) {
	blob, d := content(1 << 20)
	compressed := func(w http.ResponseWriter, coding string, content []byte) {
		w.Header().Set("Content-Encoding", coding)
		z := gzip.NewWriter(w)
		z.Write(content)
		z.Close()
	}
	for name, serveBlob := range map[string]http.HandlerFunc{
		"always":         func(w http.ResponseWriter, r *http.Request) { compressed(w, "gzip", blob) },
		"by an old name": func(w http.ResponseWriter, r *http.Request) { compressed(w, "X-Gzip", blob) },
		"but no sections": func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				ranges(blob)(w, r)
				return
			}
			compressed(w, "gzip", blob)
		},
	} {
		t.Run(name, func(t *testing.T) {
			checkGoroutines(t)
			host := serve(t, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case strings.Contains(r.URL.Path, "/manifests/"):
					compressed(w, "gzip", []byte(testManifest))
				case r.Method == http.MethodHead:
					w.WriteHeader(http.StatusMethodNotAllowed)
				default:
					serveBlob(w, r)
				}
			})
			c, repo := newTestClient(t, host), Repository{host, "a"}
			want := digest.FromString(testManifest)
			if desc, got, err := c.GetManifest(t.Context(), repo, want.String(), ""); err != nil || string(got) != testManifest || desc.Size != int64(len(got)) {
				t.Errorf("GetManifest = %v, %q, %v", desc, got, err)
			}
			for _, off := range []int64{0, 1000} {
				body, _, err := c.GetBlob(t.Context(), repo, d, off, "")
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, blob[off:]) {
					t.Errorf("the blob from %d = %d bytes, %v", off, len(got), err)
				}
				body.Close()
			}
		})
	}
}

func TestUnknownEncoding(t *testing.T) {
	checkGoroutines(t)
	blob, d := content(1000)
	for status, coding := range map[int]string{200: "br", 206: "gzip"} {
		host := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", coding)
			w.Header().Set("Content-Range", "bytes 0-999/1000")
			w.WriteHeader(status)
			w.Write(blob)
		})
		_, _, err := newTestClient(t, host).GetBlob(t.Context(), Repository{host, "a"}, d, 0, "")
		if err == nil || Refused(err) || !strings.Contains(err.Error(), coding) {
			t.Errorf("GetBlob encoded as %s = %v, want an Unavailable that says so", coding, err)
		}
	}
}

// A body that comes in chunks has no size; the registry tells it when it is asked.
func TestSizeIsAskedFor(t *testing.T) {
	blob, d := content(1000)
	for name, test := range map[string]struct {
		head func(http.ResponseWriter)
		want int64
	}{
		"HEAD tells it":     {func(w http.ResponseWriter) { w.Header().Set("Content-Length", "1000") }, 1000},
		"HEAD says 0":       {func(w http.ResponseWriter) { w.Header().Set("Content-Length", "0") }, 1000},
		"HEAD says nothing": {func(w http.ResponseWriter) { w.(http.Flusher).Flush() }, 1000},
		"nobody tells it":   {nil, -1},
	} {
		t.Run(name, func(t *testing.T) {
			checkGoroutines(t)
			host := serve(t, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.Method == http.MethodHead && test.head != nil:
					test.head(w)
				case r.Header.Get("Range") != "" && test.head != nil:
					ranges(blob)(w, r)
				default:
					w.(http.Flusher).Flush()
					w.Write(blob)
				}
			})
			body, size, err := newTestClient(t, host).GetBlob(t.Context(), Repository{host, "a"}, d, 0, "")
			if err != nil || size != test.want {
				t.Fatalf("GetBlob = %d bytes, %v, want %d", size, err, test.want)
			}
			defer body.Close()
			if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, blob) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

// A registry that --seeder names by mistake is not believed about the images of
// others.
func TestViaAPlainRegistry(t *testing.T) {
	blob := []byte("of another registry")
	host := realRegistry(t, blob)
	c := testClient(t, ClientConfig{Via: parseURL(t, "http://"+host)})
	d := digest.FromBytes(blob)
	if size, err := c.StatBlob(t.Context(), Repository{"ghcr.io", "a"}, d, ""); err == nil || Refused(err) {
		t.Errorf("StatBlob = %d, %v, want an error that is no verdict", size, err)
	}
}

// A registry that goes by many names does not have us keep a connection to each of them.
func TestIdleConnectionsAreBounded(t *testing.T) {
	var mu sync.Mutex // guards idle
	idle := make(map[net.Conn]bool)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Config.ConnState = func(c net.Conn, state http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		delete(idle, c)
		if state == http.StateIdle {
			idle[c] = true
		}
	}
	l, err := net.Listen("tcp", "0.0.0.0:0") // all of 127.0.0.0/8
	if err != nil {
		t.Fatal(err)
	}
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	var hosts []string
	for i := range maxIdle + 100 {
		hosts = append(hosts, fmt.Sprintf("127.1.%d.%d:%s", i/200, 1+i%200, port))
	}
	c := newTestClient(t, hosts...)
	for _, host := range hosts {
		if err := c.Ping(t.Context(), host, ""); err != nil {
			t.Fatal(err)
		}
	}
	for stop := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		mu.Lock()
		n := len(idle)
		mu.Unlock()
		if n <= maxIdle { // the server hears of the end of the others a little later
			break
		}
		if time.Now().After(stop) {
			t.Fatalf("%d idle connections are kept, want %d at most", n, maxIdle)
		}
	}
}

// A registry cannot make us take in a header without end.
func TestHugeHeaderOfRegistry(t *testing.T) {
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Www-Authenticate", `Bearer realm="https://x.example/",scope="`+strings.Repeat("a", 2*maxAnswerHeader)+`"`)
		w.WriteHeader(401)
	})
	err := newTestClient(t, host).Ping(t.Context(), host, "")
	if status(err) != 502 || !strings.Contains(err.Error(), host) {
		t.Errorf("Ping = %.200v, want 502 that names the registry", err)
	}
}
