package seeder_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// upstream is a real registry behind a handler that writes down each request,
// keeps its repositories apart, asks for credentials, and fails on demand.
type upstream struct {
	host   string // HOST:PORT, what images are named after
	server *httptest.Server
	blobs  http.Handler // go-containerregistry's registry

	mu       sync.Mutex // guards the rest
	sizes    map[string]int64
	private  map[string]bool // "repo@digest" is here; true when the repository is private
	admitted map[string]bool // Authorization headers that open private repositories
	bearer   bool            // challenge for a token of /token, not for Basic
	asked    []asked
	faults   []*fault
}

// asked is one request that the upstream has seen.
type asked struct {
	method, path, ranges, authorization string
}

// fault is what befalls the answers to some requests.
type fault struct {
	method string // "" = GET
	path   string // a part of the path; "" = /blobs/
	left   int    // of how many requests; -1 = of all

	drop    bool             // the connection, before an answer
	answer  http.HandlerFunc // in the place of the registry
	noSize  bool             // no Content-Length
	noRange bool             // the whole blob whatever was asked for
	at      int64            // byte of the blob where the rest happens
	cut     bool             // the connection
	flip    bool             // a bit of the byte
	hold    chan struct{}    // until closed, nothing more is sent
	held    chan struct{}    // closed when hold is waited for, if not nil
	heldOne sync.Once
}

func newUpstream(t testing.TB) *upstream {
	t.Helper()
	u := &upstream{
		blobs: ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))),
		sizes: make(map[string]int64), private: make(map[string]bool), admitted: make(map[string]bool),
	}
	u.server = httptest.NewUnstartedServer(u)
	u.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	u.server.Start()
	u.host = strings.TrimPrefix(u.server.URL, "http://")
	t.Cleanup(func() {
		u.mend()
		u.server.CloseClientConnections()
		u.server.Close()
	})
	return u
}

// push puts a blob into a repository.
func (u *upstream) push(t testing.TB, repo string, private bool, b []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(b)
	u.send(t, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), "application/octet-stream", b)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.private[repo+"@"+d.String()], u.sizes[d.String()] = private, int64(len(b))
	return d
}

// pushManifest puts v into a public repository as JSON.
func (u *upstream) pushManifest(t testing.TB, repo, tag, mediaType string, v any) (digest.Digest, []byte) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{tag, digest.FromBytes(b).String()} {
		if ref != "" {
			u.send(t, "PUT", "/v2/"+repo+"/manifests/"+ref, mediaType, b)
		}
	}
	return digest.FromBytes(b), b
}

func (u *upstream) send(t testing.TB, method, target, contentType string, b []byte) {
	t.Helper()
	r := httptest.NewRequest(method, target, bytes.NewReader(b))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	u.blobs.ServeHTTP(w, r)
	if w.Code/100 != 2 {
		t.Fatalf("%s %s = %d %s", method, target, w.Code, w.Body)
	}
}

// ServeHTTP implements http.Handler.
func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := u.note(r)
	switch {
	case f.drop:
		panic(http.ErrAbortHandler)
	case f.answer != nil:
		f.answer(w, r)
		return
	case r.URL.Path == "/token":
		u.serveToken(w, r)
		return
	case !u.admits(w, r):
		return
	}
	u.closeRange(r)
	if f.noRange {
		r.Header.Del("Range")
	}
	fw := &faultyWriter{ResponseWriter: w, fault: f, request: r}
	fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &fw.off)
	u.blobs.ServeHTTP(fw, r)
}

// note writes the request down and finds out what befalls it.
func (u *upstream) note(r *http.Request) *fault {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.asked = append(u.asked, asked{r.Method, r.URL.Path, r.Header.Get("Range"), r.Header.Get("Authorization")})
	for _, f := range u.faults {
		method, path := f.method, f.path
		if method == "" {
			method = "GET"
		}
		if path == "" {
			path = "/blobs/"
		}
		if f.left != 0 && (method == "*" || r.Method == method) && strings.Contains(r.URL.Path, path) {
			f.left--
			return f
		}
	}
	return new(fault)
}

// admits answers those whom the registry does not let in.
func (u *upstream) admits(w http.ResponseWriter, r *http.Request) bool {
	repo, d, isBlob := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/")
	repo, _, _ = strings.Cut(repo, "/manifests/")
	u.mu.Lock()
	private, here := u.private[repo+"@"+d]
	admitted := u.admitted[r.Header.Get("Authorization")]
	for key, p := range u.private {
		private = private || p && strings.HasPrefix(key, repo+"@")
	}
	u.mu.Unlock()
	switch {
	case private && !admitted:
		w.Header().Set("Www-Authenticate", u.challenge(repo))
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "the upstream's own words")
		return false
	case isBlob && !here:
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "not in this repository")
		return false
	}
	return true
}

// challenge is what callers of a private repository are answered.
func (u *upstream) challenge(repo string) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.bearer {
		return fmt.Sprintf(`Bearer realm="%s/token",service="upstream",scope="repository:%s:pull"`, u.server.URL, repo)
	}
	return `Basic realm="upstream"`
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}

// serveToken gives the token "for-USER" to users who know their name.
func (u *upstream) serveToken(w http.ResponseWriter, r *http.Request) {
	user, password, _ := r.BasicAuth()
	if user == "" || user != password {
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "who are you?")
		return
	}
	u.admit("Bearer for-" + user)
	fmt.Fprintf(w, `{"token":"for-%s"}`, user)
}

// closeRange writes an open range as go-containerregistry knows them.
func (u *upstream) closeRange(r *http.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if ranges := r.Header.Get("Range"); strings.HasSuffix(ranges, "-") {
		_, d, _ := strings.Cut(r.URL.Path, "/blobs/")
		r.Header.Set("Range", fmt.Sprint(ranges, u.sizes[d]-1))
	}
}

// faultyWriter does to a body what the fault says.
type faultyWriter struct {
	http.ResponseWriter
	fault   *fault
	request *http.Request
	off     int64 // in the blob
	struck  bool
}

func (w *faultyWriter) WriteHeader(status int) {
	if w.fault.noSize {
		w.Header().Del("Content-Length")
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *faultyWriter) Write(b []byte) (int, error) {
	f, n := w.fault, 0
	if !w.struck && w.off <= f.at && w.off+int64(len(b)) > f.at {
		w.struck = true
		var err error
		if n, err = w.Write(b[:f.at-w.off]); err != nil {
			return n, err
		}
		b = w.strike(b[n:])
	}
	m, err := w.ResponseWriter.Write(b)
	w.off += int64(m)
	return n + m, err
}

func (w *faultyWriter) strike(b []byte) []byte {
	f := w.fault
	if f.flip {
		b = bytes.Clone(b)
		b[0] ^= 1
	}
	if !f.cut && f.hold == nil {
		return b
	}
	http.NewResponseController(w.ResponseWriter).Flush()
	if f.hold != nil {
		f.heldOne.Do(func() {
			if f.held != nil {
				close(f.held)
			}
		})
		select {
		case <-f.hold:
		case <-w.request.Context().Done():
		}
	}
	if f.cut {
		panic(http.ErrAbortHandler)
	}
	return b
}

// fail makes the faults befall the requests from now on; the first that fits
// does.
func (u *upstream) fail(faults ...*fault) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.faults = faults
}

// away makes all connections break, as those to a registry that is down.
func (u *upstream) away() { u.fail(&fault{method: "*", path: "/", left: -1, drop: true}) }

// mend ends all faults.
func (u *upstream) mend() { u.fail() }

func (u *upstream) admit(authorization string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.admitted[authorization] = true
}

func (u *upstream) revoke(authorization string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.admitted, authorization)
}

// seen returns the requests for a path that ends so.
func (u *upstream) seen(method, suffix string) (list []asked) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, a := range u.asked {
		if a.method == method && strings.HasSuffix(a.path, suffix) {
			list = append(list, a)
		}
	}
	return list
}

// basic is the Authorization header of a user whose password is their name.
func basic(user string) string {
	r := http.Request{Header: make(http.Header)}
	r.SetBasicAuth(user, user)
	return r.Header.Get("Authorization")
}

func parseURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// pushImage puts an image of a config and a layer into a public repository.
func (u *upstream) pushImage(t testing.TB, repo, tag string, config, layer []byte) digest.Digest {
	t.Helper()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: u.push(t, repo, false, config), Size: int64(len(config))}
	m.Layers = []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: u.push(t, repo, false, layer), Size: int64(len(layer))}}
	d, _ := u.pushManifest(t, repo, tag, m.MediaType, m)
	return d
}
