package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// memory is a Backend that holds blobs and manifests in memory. The refusal,
// when it is set, decides who gets anything at all.
type memory struct {
	blobs    map[digest.Digest][]byte
	manifest []byte
	refusal  func(Request) error
	relay    func(end string, query url.Values) *http.Response
	unsized  bool
	section  func(off, n int64) io.Reader // instead of what blobs holds

	opened, closed atomic.Int64

	mu   sync.Mutex // guards seen
	seen []Request
}

func (m *memory) enter(req Request) error {
	m.mu.Lock()
	m.seen = append(m.seen, req)
	m.mu.Unlock()
	if m.refusal != nil {
		return m.refusal(req)
	}
	return nil
}

func (m *memory) requests() []Request {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen
}

func (m *memory) Ping(_ context.Context, req Request) error { return m.enter(req) }

func (m *memory) HeadManifest(_ context.Context, req Request) (ocispec.Descriptor, error) {
	return m.descriptor(), m.enter(req)
}

func (m *memory) GetManifest(_ context.Context, req Request) (ocispec.Descriptor, []byte, error) {
	return m.descriptor(), m.manifest, m.enter(req)
}

func (m *memory) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(m.manifest), Size: int64(len(m.manifest))}
}

func (m *memory) StatBlob(_ context.Context, req Request) (int64, error) {
	if err := m.enter(req); err != nil {
		return 0, err
	}
	b, ok := m.blobs[req.Digest]
	if !ok {
		return 0, newError(http.StatusNotFound, CodeBlobUnknown, "no blob %s", req.Digest)
	}
	return int64(len(b)), nil
}

func (m *memory) OpenBlob(ctx context.Context, req Request) (OpenBlob, error) {
	if _, err := m.StatBlob(ctx, req); err != nil {
		return nil, err
	}
	m.opened.Add(1)
	return &memoryBlob{m, m.blobs[req.Digest]}, nil
}

func (m *memory) Relay(_ context.Context, req Request, end string, query url.Values) (*http.Response, error) {
	if err := m.enter(req); err != nil {
		return nil, err
	}
	return m.relay(end, query), nil
}

type memoryBlob struct {
	m *memory
	b []byte
}

func (b *memoryBlob) Size() int64 {
	if b.m.unsized {
		return -1
	}
	return int64(len(b.b))
}

func (b *memoryBlob) Section(_ context.Context, off, n int64) io.Reader {
	if b.m.section != nil {
		return b.m.section(off, n)
	}
	if n < 0 {
		return bytes.NewReader(b.b)
	}
	return bytes.NewReader(b.b[off : off+n])
}

func (b *memoryBlob) Close() error {
	b.m.closed.Add(1)
	return nil
}

// serveBackend returns the URL of a Handler. At the test's end every blob
// that was opened must have been closed.
func serveBackend(t *testing.T, m *memory) string {
	t.Helper()
	s := httptest.NewServer(&Handler{Backend: m, DefaultHost: "docker.io", Log: testLog(t)})
	t.Cleanup(func() {
		s.Close()
		if m.opened.Load() != m.closed.Load() {
			t.Errorf("%d blobs opened, %d closed", m.opened.Load(), m.closed.Load())
		}
	})
	return s.URL
}

// ask sends a request with the headers given as key, value, ...
func ask(t *testing.T, method, url string, headers ...string) (*http.Response, []byte, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

func mustAsk(t *testing.T, method, url string, headers ...string) (*http.Response, []byte) {
	t.Helper()
	resp, body, err := ask(t, method, url, headers...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return resp, body
}

func TestBlobRanges(t *testing.T) {
	blob, d := content(100)
	url := serveBackend(t, &memory{blobs: map[digest.Digest][]byte{d: blob}}) + "/v2/a/blobs/" + d.String()
	etag := `"` + d.String() + `"`
	for _, test := range []struct {
		name         string
		headers      []string
		status       int
		contentRange string
		want         []byte
	}{
		{"none", nil, 200, "", blob},
		{"one byte", []string{"Range", "bytes=0-0"}, 206, "bytes 0-0/100", blob[:1]},
		{"middle", []string{"Range", "bytes=10-19"}, 206, "bytes 10-19/100", blob[10:20]},
		{"all", []string{"Range", "bytes=0-99"}, 206, "bytes 0-99/100", blob},
		{"open", []string{"Range", "bytes=90-"}, 206, "bytes 90-99/100", blob[90:]},
		{"open from zero", []string{"Range", "bytes=0-"}, 206, "bytes 0-99/100", blob},
		{"suffix", []string{"Range", "bytes=-7"}, 206, "bytes 93-99/100", blob[93:]},
		{"long suffix", []string{"Range", "bytes=-700"}, 206, "bytes 0-99/100", blob},
		{"beyond the end", []string{"Range", "bytes=95-1000"}, 206, "bytes 95-99/100", blob[95:]},
		{"several", []string{"Range", "bytes=0-0,5-6"}, 200, "", blob},
		{"other unit", []string{"Range", "lines=0-1"}, 200, "", blob},
		{"If-Range holds", []string{"Range", "bytes=1-2", "If-Range", etag}, 206, "bytes 1-2/100", blob[1:3]},
		{"If-Range is of other content", []string{"Range", "bytes=1-2", "If-Range", `"x"`}, 200, "", blob},
		{"If-Range is a date", []string{"Range", "bytes=1-2", "If-Range", "Mon, 02 Jan 2006 15:04:05 GMT"}, 200, "", blob},
		{"If-Range is weak", []string{"Range", "bytes=1-2", "If-Range", "W/" + etag}, 200, "", blob},
		{"start at the end", []string{"Range", "bytes=100-"}, 416, "bytes */100", nil},
		{"malformed", []string{"Range", "bytes=x"}, 416, "bytes */100", nil},
		{"If-None-Match", []string{"If-None-Match", etag}, 304, "", []byte{}},
		{"If-None-Match in a list", []string{"If-None-Match", `"x", W/` + etag}, 304, "", []byte{}},
		{"If-None-Match of other content", []string{"If-None-Match", `"x"`}, 200, "", blob},
	} {
		t.Run(test.name, func(t *testing.T) {
			resp, body := mustAsk(t, "GET", url, test.headers...)
			if resp.StatusCode != test.status || resp.Header.Get("Content-Range") != test.contentRange {
				t.Errorf("answer = %d, Content-Range %q, want %d, %q", resp.StatusCode, resp.Header.Get("Content-Range"), test.status, test.contentRange)
			}
			if test.status == 416 {
				checkErrorBody(t, resp, body, CodeRangeInvalid)
				return
			}
			if !bytes.Equal(body, test.want) {
				t.Errorf("body of %d bytes is not the %d bytes asked for", len(body), len(test.want))
			}
			if resp.Header.Get("Etag") != etag || resp.Header.Get("Docker-Content-Digest") != d.String() {
				t.Errorf("header = %v", resp.Header)
			}
			if test.status != 304 && resp.ContentLength != int64(len(test.want)) {
				t.Errorf("Content-Length = %d, want %d", resp.ContentLength, len(test.want))
			}
		})
	}
}

func checkErrorBody(t *testing.T, resp *http.Response, body []byte, code string) {
	t.Helper()
	var answer struct {
		Errors []struct{ Code, Message string } `json:"errors"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || len(answer.Errors) != 1 || answer.Errors[0].Code != code || answer.Errors[0].Message == "" {
		t.Errorf("error body = %s, want code %s", body, code)
	}
	if got := resp.Header.Get("Content-Type"); got != "application/json; charset=utf-8" {
		t.Errorf("Content-Type of an error = %q", got)
	}
}

func TestEmptyBlob(t *testing.T) {
	d := digest.FromString("")
	url := serveBackend(t, &memory{blobs: map[digest.Digest][]byte{d: {}}}) + "/v2/a/blobs/" + d.String()
	if resp, body := mustAsk(t, "GET", url); resp.StatusCode != 200 || resp.ContentLength != 0 || len(body) != 0 {
		t.Errorf("GET = %d, %d bytes", resp.StatusCode, resp.ContentLength)
	}
	if resp, _ := mustAsk(t, "GET", url, "Range", "bytes=0-"); resp.StatusCode != 416 {
		t.Errorf("GET of a range = %d, want 416", resp.StatusCode)
	}
}

func TestHead(t *testing.T) {
	blob, d := content(100)
	m := &memory{blobs: map[digest.Digest][]byte{d: blob}, manifest: []byte(`{"schemaVersion":2}`)}
	base := serveBackend(t, m)

	resp, body := mustAsk(t, "HEAD", base+"/v2/a/blobs/"+d.String())
	if resp.StatusCode != 200 || resp.ContentLength != 100 || len(body) != 0 || resp.Header.Get("Docker-Content-Digest") != d.String() || resp.Header.Get("Accept-Ranges") != "bytes" {
		t.Errorf("HEAD of a blob = %d, %v", resp.StatusCode, resp.Header)
	}
	resp, body = mustAsk(t, "HEAD", base+"/v2/a/manifests/v1")
	if resp.StatusCode != 200 || resp.ContentLength != 19 || len(body) != 0 || resp.Header.Get("Docker-Content-Digest") != m.descriptor().Digest.String() || resp.Header.Get("Content-Type") != ocispec.MediaTypeImageManifest {
		t.Errorf("HEAD of a manifest = %d, %v", resp.StatusCode, resp.Header)
	}
	resp, body = mustAsk(t, "HEAD", base+"/v2/a/blobs/"+sha512Of)
	if resp.StatusCode != 404 || len(body) != 0 {
		t.Errorf("HEAD of no blob = %d with %d bytes", resp.StatusCode, len(body))
	}
	if m.opened.Load() != 0 {
		t.Error("HEAD opened a blob")
	}
}

func TestGetManifest(t *testing.T) {
	m := &memory{manifest: []byte(`{"schemaVersion":2}`)}
	url := serveBackend(t, m) + "/v2/a/manifests/v1"
	resp, body := mustAsk(t, "GET", url)
	if resp.StatusCode != 200 || !bytes.Equal(body, m.manifest) || resp.Header.Get("Content-Type") != ocispec.MediaTypeImageManifest {
		t.Errorf("GET = %d, %s", resp.StatusCode, body)
	}
	if resp, _ := mustAsk(t, "GET", url, "If-None-Match", resp.Header.Get("Etag")); resp.StatusCode != 304 {
		t.Errorf("GET of what the client has = %d, want 304", resp.StatusCode)
	}
}

func TestPing(t *testing.T) {
	m := new(memory)
	base := serveBackend(t, m)
	resp, body := mustAsk(t, "GET", base+"/v2/?ns=ghcr.io")
	if resp.StatusCode != 200 || string(body) != "{}" || resp.Header.Get("Docker-Distribution-Api-Version") != "registry/2.0" {
		t.Errorf("GET = %d %s", resp.StatusCode, body)
	}
	if got := m.requests()[0].Repo.Host; got != "ghcr.io" {
		t.Errorf("asked of %s", got)
	}
}

// The registry's refusal reaches the client word for word.
func TestChallengeIsRelayed(t *testing.T) {
	refusal := &Error{
		Status: 401, Code: CodeUnauthorized, Message: "m",
		Header: http.Header{"Www-Authenticate": {`Bearer realm="https://x/token"`, `Basic realm="y"`}},
		Body:   []byte(`{"errors":[{"code":"UNAUTHORIZED","message":"theirs"}]}`),
	}
	base := serveBackend(t, &memory{refusal: func(Request) error { return fmt.Errorf("asked: %w", refusal) }})
	for _, path := range []string{"/v2/", "/v2/a/manifests/v1", "/v2/a/blobs/" + sha256Of, "/v2/a/tags/list", "/v2/a/referrers/" + sha256Of} {
		resp, body := mustAsk(t, "GET", base+path)
		if resp.StatusCode != 401 || !bytes.Equal(body, refusal.Body) || len(resp.Header.Values("Www-Authenticate")) != 2 {
			t.Errorf("GET %s = %d, %v, %s", path, resp.StatusCode, resp.Header, body)
		}
	}
}

func TestFaultsOfOurOwnStayInside(t *testing.T) {
	base := serveBackend(t, &memory{refusal: func(Request) error { return errors.New("open /var/lib/secret: no space") }})
	resp, body := mustAsk(t, "GET", base+"/v2/a/manifests/v1")
	if resp.StatusCode != 500 || bytes.Contains(body, []byte("secret")) {
		t.Errorf("GET = %d %s", resp.StatusCode, body)
	}
	checkErrorBody(t, resp, body, "UNKNOWN")
}

func TestWritesAreRefused(t *testing.T) {
	m := new(memory)
	base := serveBackend(t, m)
	for _, method := range []string{"PUT", "POST", "PATCH", "DELETE"} {
		resp, body := mustAsk(t, method, base+"/v2/a/blobs/uploads/")
		if resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s = %d, Allow %q", method, resp.StatusCode, resp.Header.Get("Allow"))
		}
		checkErrorBody(t, resp, body, CodeUnsupported)
	}
	if n := len(m.requests()); n != 0 {
		t.Errorf("the backend saw %d requests", n)
	}
}

// A blob that ends early, or turns out wrong, never ends politely.
func TestBlobThatBreaksOff(t *testing.T) {
	blob, d := content(100_000)
	for name, section := range map[string]func(off, n int64) io.Reader{
		"short": func(off, n int64) io.Reader { return bytes.NewReader(blob[off : off+n-1]) },
		"empty": func(off, n int64) io.Reader { return strings.NewReader("") },
		"error": func(off, n int64) io.Reader {
			return io.MultiReader(bytes.NewReader(blob[:n/2]), iotest.ErrReader(errDigest))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := &memory{blobs: map[digest.Digest][]byte{d: blob}, section: section}
			url := serveBackend(t, m) + "/v2/a/blobs/" + d.String()
			for _, rng := range []string{"", "bytes=0-49999"} {
				if resp, body, err := ask(t, "GET", url, "Range", rng); err == nil {
					t.Errorf("GET of range %q ended politely: %d, %d bytes", rng, resp.StatusCode, len(body))
				}
			}
		})
	}
}

func TestUnsizedBlob(t *testing.T) {
	blob, d := content(100_000)
	m := &memory{blobs: map[digest.Digest][]byte{d: blob}, unsized: true}
	url := serveBackend(t, m) + "/v2/a/blobs/" + d.String()
	resp, body := mustAsk(t, "GET", url, "Range", "bytes=5-")
	if resp.StatusCode != 200 || resp.ContentLength != -1 || !bytes.Equal(body, blob) {
		t.Errorf("GET = %d, length %d, %d bytes", resp.StatusCode, resp.ContentLength, len(body))
	}
	m.section = func(off, n int64) io.Reader {
		return io.MultiReader(bytes.NewReader(blob), iotest.ErrReader(errDigest))
	}
	if _, _, err := ask(t, "GET", url); err == nil {
		t.Error("GET of a wrong blob of unknown size ended politely")
	}
}

// An answer that is abandoned because we end must not look like an empty one.
func TestEndedRequestIsCut(t *testing.T) {
	for _, path := range []string{"/v2/", "/v2/a/manifests/v1", "/v2/a/blobs/" + sha256Of} {
		ctx, cancel := context.WithCancel(t.Context())
		m := &memory{refusal: func(Request) error { cancel(); return ctx.Err() }}
		func() {
			defer func() {
				if got := recover(); got != http.ErrAbortHandler {
					t.Errorf("GET %s ended with %v, want the connection cut", path, got)
				}
			}()
			h := &Handler{Backend: m, DefaultHost: "docker.io", Log: testLog(t)}
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", path, nil))
		}()
	}
}

// An engine that pulls mirror/HOST/REPO answers the challenge of the default
// registry. HOST is not shown what is that one's, as long as it has for anyone what is
// asked for, nor is that lost by credentials which are not HOST's.
func TestHostInPathIsNotShownTheDefaultsCredentials(t *testing.T) {
	m := &memory{manifest: []byte("{}")}
	base := serveBackend(t, m)
	for path, want := range map[string]string{
		"/v2/ghcr.io/a/manifests/v1":     "",
		"/v2/docker.io/a/b/manifests/v1": "Bearer x",
		"/v2/a/b/manifests/v1":           "Bearer x",
		"/v2/a/manifests/v1?ns=ghcr.io":  "Bearer x",
	} {
		before := len(m.requests())
		if resp, _ := mustAsk(t, "GET", base+path, "Authorization", "Bearer x"); resp.StatusCode != 200 {
			t.Errorf("GET %s = %d", path, resp.StatusCode)
		}
		if asked := m.requests()[before:]; len(asked) != 1 || asked[0].Authorization != want {
			t.Errorf("GET %s was asked as %+v, want once with %q", path, asked, want)
		}
	}
	for _, refusal := range []int{401, 403, 404} {
		m.refusal = func(req Request) error {
			if req.Authorization == "" {
				return newError(refusal, CodeUnauthorized, "private")
			}
			return nil
		}
		if resp, _ := mustAsk(t, "GET", base+"/v2/ghcr.io/a/manifests/v1", "Authorization", "Bearer x"); resp.StatusCode != 200 {
			t.Errorf("GET of what is private to ghcr.io = %d after a %d, want 200", resp.StatusCode, refusal)
		}
	}
}

// The refusal that counts is that of the credentials.
func TestHostInPathIsRefusedByCredentials(t *testing.T) {
	m := &memory{refusal: func(req Request) error {
		return &Error{Status: 401, Code: CodeUnauthorized, Message: "with " + req.Authorization}
	}}
	resp, body := mustAsk(t, "GET", serveBackend(t, m)+"/v2/ghcr.io/a/manifests/v1", "Authorization", "x")
	if resp.StatusCode != 401 || !bytes.Contains(body, []byte("with x")) || len(m.requests()) != 2 {
		t.Errorf("GET = %d %s after %d questions", resp.StatusCode, body, len(m.requests()))
	}
}

func TestRelay(t *testing.T) {
	const list = `{"name":"a","tags":["v1"]}`
	for _, test := range []struct {
		url, link string // asked for, and the registry's
		want      string
	}{
		{"/v2/org/a/tags/list?n=1", "</v2/org/a/tags/list?last=v1&n=1>; rel=\"next\"", "</v2/org/a/tags/list?last=v1&n=1>; rel=\"next\""},
		{"/v2/a/tags/list?n=1", "</v2/library/a/tags/list?last=v1&n=1>; rel=\"next\"", "</v2/a/tags/list?last=v1&n=1>; rel=\"next\""},
		{"/v2/org/a/tags/list?n=1&ns=ghcr.io", "<https://ghcr.io/v2/org/a/tags/list?last=v1&n=1>; rel=\"next\"", "</v2/org/a/tags/list?last=v1&n=1&ns=ghcr.io>; rel=\"next\""},
		{"/v2/ghcr.io/org/a/tags/list?n=1", "</v2/org/a/tags/list?last=v1&n=1>; rel=\"next\"", "</v2/ghcr.io/org/a/tags/list?last=v1&n=1>; rel=\"next\""},
		// The registry is a seeder, which was asked with ns.
		{"/v2/ghcr.io/org/a/tags/list?n=1", "</v2/org/a/tags/list?last=v1&n=1&ns=ghcr.io>; rel=\"next\"", "</v2/ghcr.io/org/a/tags/list?last=v1&n=1>; rel=\"next\""},
		{"/v2/org/a/tags/list", "", ""},
		{"/v2/org/a/tags/list", "nonsense", ""},
		{"/v2/org/a/tags/list", "<%zz>; rel=\"next\"", ""},
	} {
		var asked url.Values
		body := &closable{Reader: strings.NewReader(list)}
		m := &memory{relay: func(end string, query url.Values) *http.Response {
			asked = query
			header := http.Header{"Content-Type": {"application/json"}, "Link": {test.link}, "Set-Cookie": {"x=y"}}
			return &http.Response{StatusCode: 200, Header: header, Body: body}
		}}
		resp, got := mustAsk(t, "GET", serveBackend(t, m)+test.url)
		if resp.StatusCode != 200 || string(got) != list || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("GET %s = %d %s", test.url, resp.StatusCode, got)
		}
		if got := resp.Header.Get("Link"); got != test.want {
			t.Errorf("GET %s: Link = %s, want %s", test.url, got, test.want)
		}
		if asked.Has("ns") || strings.Contains(test.url, "n=1") != (asked.Get("n") == "1") {
			t.Errorf("GET %s: the registry was asked with %v", test.url, asked)
		}
		if resp.Header.Get("Set-Cookie") != "" || !body.closed.Load() {
			t.Errorf("GET %s: cookie %q, body closed %v", test.url, resp.Header.Get("Set-Cookie"), body.closed.Load())
		}
	}
}

func TestRelayOfReferrers(t *testing.T) {
	m := &memory{relay: func(end string, query url.Values) *http.Response {
		header := http.Header{"Content-Type": {ocispec.MediaTypeImageIndex}, "Oci-Filters-Applied": {"artifactType"}}
		return &http.Response{StatusCode: 200, Header: header, Body: io.NopCloser(strings.NewReader(end + " " + query.Encode()))}
	}}
	base := serveBackend(t, m)
	resp, body := mustAsk(t, "GET", base+"/v2/a/referrers/"+sha256Of+"?artifactType=x")
	if string(body) != "referrers/"+sha256Of+" artifactType=x" || resp.Header.Get("Oci-Filters-Applied") != "artifactType" || resp.Header.Get("Content-Type") != ocispec.MediaTypeImageIndex {
		t.Errorf("GET = %s, %v", body, resp.Header)
	}
	if resp, body := mustAsk(t, "HEAD", base+"/v2/a/tags/list"); resp.StatusCode != 200 || len(body) != 0 {
		t.Errorf("HEAD = %d with %d bytes", resp.StatusCode, len(body))
	}
}

func TestRelayThatBreaksOff(t *testing.T) {
	m := &memory{relay: func(string, url.Values) *http.Response {
		body := io.MultiReader(strings.NewReader(strings.Repeat("x", 10_000)), iotest.ErrReader(errIdle))
		return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(body)}
	}}
	if _, _, err := ask(t, "GET", serveBackend(t, m)+"/v2/a/tags/list"); err == nil {
		t.Error("GET ended politely")
	}
}

func TestSentIsCounted(t *testing.T) {
	blob, d := content(1000)
	var sent atomic.Int64
	s := httptest.NewServer(&Handler{
		Backend: &memory{blobs: map[digest.Digest][]byte{d: blob}}, DefaultHost: "docker.io",
		Sent: func(n int64) { sent.Add(n) }, Log: testLog(t),
	})
	mustAsk(t, "GET", s.URL+"/v2/a/blobs/"+d.String())
	mustAsk(t, "GET", s.URL+"/v2/a/blobs/"+d.String(), "Range", "bytes=0-9")
	s.Close() // and so waits for the handlers
	if sent.Load() != 1010 {
		t.Errorf("Sent = %d, want 1010", sent.Load())
	}
}
