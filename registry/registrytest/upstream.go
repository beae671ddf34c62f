// Package registrytest is a real registry for tests of what stands before one: it writes
// down what it is asked, keeps its repositories apart, asks for credentials, and fails
// on demand. Only tests import it.
package registrytest

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
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/murderp2p/murder/registry"
)

// Upstream is a real registry behind a handler that writes down each request,
// keeps its repositories apart, asks for credentials, and fails on demand.
type Upstream struct {
	Host   string // HOST:PORT, what images are named after
	Server *httptest.Server
	Blobs  http.Handler // go-containerregistry's registry

	mu       sync.Mutex // guards the rest
	sizes    map[string]int64
	private  map[string]bool // "repo@digest" is here; true when the repository is private
	admitted map[string]bool // Authorization headers that open private repositories
	bearer   bool            // challenge for a token of /token, not for Basic
	asked    []Asked
	faults   []*Fault
}

// Asked is one request that the upstream has seen.
type Asked struct {
	Method, Path, Ranges, Authorization string
}

// Fault is what befalls the answers to some requests.
type Fault struct {
	Method string // "" = GET
	Path   string // a part of the path; "" = /blobs/
	Left   int    // of how many requests; -1 = of all

	Drop    bool             // the connection, before an answer
	Answer  http.HandlerFunc // in the place of the registry
	NoSize  bool             // no Content-Length
	NoRange bool             // the whole blob whatever was asked for
	At      int64            // byte of the blob where the rest happens
	Cut     bool             // the connection
	Flip    bool             // a bit of the byte
	Hold    chan struct{}    // until closed, nothing more is sent
	Held    chan struct{}    // closed when hold is waited for, if not nil
	heldOne sync.Once
}

// New starts a registry that ends with the test.
func New(t testing.TB) *Upstream {
	t.Helper()
	u := &Upstream{
		Blobs: ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))),
		sizes: make(map[string]int64), private: make(map[string]bool), admitted: make(map[string]bool),
	}
	u.Server = httptest.NewUnstartedServer(u)
	u.Server.Config.ErrorLog = log.New(io.Discard, "", 0)
	u.Server.Start()
	u.Host = strings.TrimPrefix(u.Server.URL, "http://")
	t.Cleanup(func() {
		u.Mend()
		u.Server.CloseClientConnections()
		u.Server.Close()
	})
	return u
}

// Push puts a blob into a repository.
func (u *Upstream) Push(t testing.TB, repo string, private bool, b []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(b)
	u.send(t, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), "application/octet-stream", b)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.private[repo+"@"+d.String()], u.sizes[d.String()] = private, int64(len(b))
	return d
}

// PushManifest puts v into a public repository as JSON.
func (u *Upstream) PushManifest(t testing.TB, repo, tag, mediaType string, v any) (digest.Digest, []byte) {
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

func (u *Upstream) send(t testing.TB, method, target, contentType string, b []byte) {
	t.Helper()
	r := httptest.NewRequest(method, target, bytes.NewReader(b))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	u.Blobs.ServeHTTP(w, r)
	if w.Code/100 != 2 {
		t.Fatalf("%s %s = %d %s", method, target, w.Code, w.Body)
	}
}

// ServeHTTP implements http.Handler.
func (u *Upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := u.note(r)
	switch {
	case f.Drop:
		panic(http.ErrAbortHandler)
	case f.Answer != nil:
		f.Answer(w, r)
		return
	case r.URL.Path == "/token":
		u.serveToken(w, r)
		return
	case !u.admits(w, r):
		return
	}
	u.closeRange(r)
	if f.NoRange {
		r.Header.Del("Range")
	}
	fw := &faultyWriter{ResponseWriter: w, Fault: f, Request: r}
	fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &fw.Off)
	u.Blobs.ServeHTTP(fw, r)
}

// note writes the request down and finds out what befalls it.
func (u *Upstream) note(r *http.Request) *Fault {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.asked = append(u.asked, Asked{r.Method, r.URL.Path, r.Header.Get("Range"), r.Header.Get("Authorization")})
	for _, f := range u.faults {
		method, path := f.Method, f.Path
		if method == "" {
			method = "GET"
		}
		if path == "" {
			path = "/blobs/"
		}
		if f.Left != 0 && (method == "*" || r.Method == method) && strings.Contains(r.URL.Path, path) {
			f.Left--
			return f
		}
	}
	return new(Fault)
}

// admits answers those whom the registry does not let in.
func (u *Upstream) admits(w http.ResponseWriter, r *http.Request) bool {
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
		w.Header().Set("Www-Authenticate", u.Challenge(repo))
		Refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "the upstream's own words")
		return false
	case isBlob && !here:
		Refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "not in this repository")
		return false
	}
	return true
}

// Challenge is what callers of a private repository are answered.
func (u *Upstream) Challenge(repo string) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.bearer {
		return fmt.Sprintf(`Bearer realm="%s/token",service="upstream",scope="repository:%s:pull"`, u.Server.URL, repo)
	}
	return `Basic realm="upstream"`
}

// Refuse answers with an error in the protocol's form.
func Refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}

// serveToken gives the token "for-USER" to users who know their name.
func (u *Upstream) serveToken(w http.ResponseWriter, r *http.Request) {
	user, password, _ := r.BasicAuth()
	if user == "" || user != password {
		Refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "who are you?")
		return
	}
	u.Admit("Bearer for-" + user)
	fmt.Fprintf(w, `{"token":"for-%s"}`, user)
}

// closeRange writes an open range as go-containerregistry knows them.
func (u *Upstream) closeRange(r *http.Request) {
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
	Fault   *Fault
	Request *http.Request
	Off     int64 // in the blob
	Struck  bool
}

func (w *faultyWriter) WriteHeader(status int) {
	if w.Fault.NoSize {
		w.Header().Del("Content-Length")
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *faultyWriter) Write(b []byte) (int, error) {
	f, n := w.Fault, 0
	if !w.Struck && w.Off <= f.At && w.Off+int64(len(b)) > f.At {
		w.Struck = true
		var err error
		if n, err = w.Write(b[:f.At-w.Off]); err != nil {
			return n, err
		}
		b = w.strike(b[n:])
	}
	m, err := w.ResponseWriter.Write(b)
	w.Off += int64(m)
	return n + m, err
}

func (w *faultyWriter) strike(b []byte) []byte {
	f := w.Fault
	if f.Flip {
		b = bytes.Clone(b)
		b[0] ^= 1
	}
	if !f.Cut && f.Hold == nil {
		return b
	}
	http.NewResponseController(w.ResponseWriter).Flush()
	if f.Hold != nil {
		f.heldOne.Do(func() {
			if f.Held != nil {
				close(f.Held)
			}
		})
		select {
		case <-f.Hold:
		case <-w.Request.Context().Done():
		}
	}
	if f.Cut {
		panic(http.ErrAbortHandler)
	}
	return b
}

// Fail makes the faults befall the requests from now on; the first that fits
// does.
func (u *Upstream) Fail(faults ...*Fault) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.faults = faults
}

// Away makes all connections break, as those to a registry that is down.
func (u *Upstream) Away() { u.Fail(&Fault{Method: "*", Path: "/", Left: -1, Drop: true}) }

// Mend ends all faults.
func (u *Upstream) Mend() { u.Fail() }

// Admit lets an Authorization header into private repositories.
func (u *Upstream) Admit(authorization string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.admitted[authorization] = true
}

// Revoke takes that back.
func (u *Upstream) Revoke(authorization string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.admitted, authorization)
}

// Seen returns the requests for a path that ends so.
func (u *Upstream) Seen(method, suffix string) (list []Asked) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, a := range u.asked {
		if a.Method == method && strings.HasSuffix(a.Path, suffix) {
			list = append(list, a)
		}
	}
	return list
}

// Basic is the Authorization header of a user whose password is their name.
func Basic(user string) string {
	r := http.Request{Header: make(http.Header)}
	r.SetBasicAuth(user, user)
	return r.Header.Get("Authorization")
}

// ParseURL parses s, which is a URL.
func ParseURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// PushImage puts an image of a config and a layer into a public repository.
func (u *Upstream) PushImage(t testing.TB, repo, tag string, config, layer []byte) digest.Digest {
	t.Helper()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: u.Push(t, repo, false, config), Size: int64(len(config))}
	m.Layers = []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: u.Push(t, repo, false, layer), Size: int64(len(layer))}}
	d, _ := u.PushManifest(t, repo, tag, m.MediaType, m)
	return d
}

// ManifestSize is the length of a manifest that has been pushed.
func (u *Upstream) ManifestSize(t testing.TB, repo string, d digest.Digest) int64 {
	t.Helper()
	w := httptest.NewRecorder()
	u.Blobs.ServeHTTP(w, httptest.NewRequest("GET", "/v2/"+repo+"/manifests/"+d.String(), nil))
	if w.Code != http.StatusOK {
		t.Fatalf("manifest %s = %d", d, w.Code)
	}
	return int64(w.Body.Len())
}

// Client asks the registries at the hosts, over HTTP. It waits as long as a busy
// machine may take, so that only what a test makes fail does.
func Client(hosts ...string) *registry.Client {
	const patience = time.Minute
	transport := registry.Transport()
	transport.DialContext, transport.ResponseHeaderTimeout = nil, patience
	return registry.NewClient(registry.ClientConfig{Insecure: hosts, Transport: transport, Idle: patience})
}

// Drop takes a blob out of a repository.
func (u *Upstream) Drop(repo string, d digest.Digest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.private, repo+"@"+d.String())
}

// AskForTokens makes the challenge one for a Bearer token of /token.
func (u *Upstream) AskForTokens() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.bearer = true
}
