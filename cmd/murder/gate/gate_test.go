package gate

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/murderp2p/murder/registry"
)

const secret = "0123456789abcdef-secret"

// newGate is a mirror's gate; what it lets in is answered 200.
func newGate(t *testing.T, withToken bool) *Gate {
	t.Helper()
	g := &Gate{
		Next:  http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}),
		Own:   func(path string) bool { return !registry.IsPull(path) },
		Log:   slog.New(slog.NewTextHandler(t.Output(), nil)),
		Names: []string{"node1.corp.example", "*.mirrors.example"},
	}
	if withToken {
		g.Token = &Token{writeToken(t, secret+"\n")}
	}
	return g
}

func writeToken(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// ask sends g a request with headers "Name: value"; Host and From, the remote
// address, are as well.
func ask(g http.Handler, method, target string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	r.Host, r.RemoteAddr = "127.0.0.1:7080", "127.0.0.1:4711"
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		switch name {
		case "Host":
			r.Host = value
		case "From":
			r.RemoteAddr = value
		default:
			r.Header.Set(name, value)
		}
	}
	w := httptest.NewRecorder()
	g.ServeHTTP(w, r)
	return w
}

const (
	afar   = "From: 10.0.0.9:4711"
	bearer = "Authorization: Bearer " + secret
)

// A seeder goes by any name, but a page that has led one of its own to it may not give it orders.
func TestNoOrdersByStrangeNames(t *testing.T) {
	for _, withToken := range []bool{false, true} {
		g := newGate(t, withToken)
		g.Names, g.Own = nil, func(path string) bool { return path == "/v1/limits" }
		for host, near := range map[string]int{
			"evil.example:7070": 403, "127.0.0.1:7070": 200, "localhost:7070": 200, "[::1]:7070": 200, "seeder": 200, "seeder.internal": 200,
		} {
			headers := []string{"Host: " + host}
			if withToken { // which no page has
				headers, near = append(headers, bearer), 200
			}
			if w := ask(g, "PATCH", "/v1/limits", headers...); w.Code != near {
				t.Errorf("PATCH by the name %s, with a token: %v = %d, want %d: %s", host, withToken, w.Code, near, w.Body)
			}
			if w := ask(g, "GET", "/v1/torrents/x", "Host: "+host); w.Code != 200 {
				t.Errorf("a mirror's question by the name %s = %d", host, w.Code)
			}
		}
	}
}

func TestWhoIsLetIn(t *testing.T) {
	for _, test := range []struct {
		path      string
		headers   []string
		bare, tok int // without and with a token
	}{
		{"/v2/", nil, 200, 200},
		{"/v2/", []string{afar}, 200, 200},
		{"/v2/a/blobs/x", []string{afar, "Authorization: Bearer the-registrys"}, 200, 200},
		{"/livez", []string{afar}, 200, 200}, {"/readyz", []string{afar}, 200, 200}, {"/healthz", []string{afar}, 200, 200},
		{"/metrics", []string{afar, "Host: evil.example"}, 200, 200},
		{"/v1/status", nil, 200, 401},
		{"/v1/status", []string{"From: [::1]:4711"}, 200, 401},
		{"/v1/status", []string{"From: [::ffff:127.0.0.1]:4711"}, 200, 401},
		{"/v1/status", []string{afar}, 403, 401},
		{"/v1/status", []string{"X-Forwarded-For: 10.0.0.9"}, 403, 401},
		{"/v1/status", []string{afar, bearer}, 403, 200},
		{"/v1/status", []string{bearer}, 200, 200},
		{"/v1/status", []string{afar, "Authorization: bearer " + secret}, 403, 200},
		{"/v1/status", []string{afar, bearer + "x"}, 403, 401},
		{"/v1/status", []string{afar, "Authorization: Basic " + secret}, 403, 401},
		{"/v1/status", []string{afar, "Authorization: Bearer "}, 403, 401},
		{"/v1/../v1/status", []string{afar}, 403, 401},
		{"//v1/status", []string{afar}, 403, 401},
		{"/livez/../v1/status", []string{afar}, 403, 401},
		{"/metrics/x", []string{afar}, 403, 401},
		{"/", []string{afar}, 403, 401},
		{"/debug/pprof/", []string{afar}, 403, 401},
	} {
		for i, want := range []int{test.bare, test.tok} {
			for _, method := range []string{"GET", "POST"} {
				w := ask(newGate(t, i == 1), method, test.path, test.headers...)
				if w.Code != want {
					t.Errorf("%s %s %v, token needed: %v = %d, want %d: %s", method, test.path, test.headers, i == 1, w.Code, want, w.Body)
				}
				if w.Code != 200 && !strings.Contains(w.Body.String(), "--api-token-file") {
					t.Errorf("%s %s: %q does not say what to do", method, test.path, w.Body)
				}
			}
		}
	}
}

// TestOperator is about the seeder's page, which answers all and tells some more.
func TestOperator(t *testing.T) {
	for _, test := range []struct {
		headers   []string
		bare, tok string // without and with a token
	}{
		{nil, "yes", "no"},
		{[]string{"Host: localhost:7070"}, "yes", "no"},
		{[]string{"Host: seeder"}, "yes", "no"},
		{[]string{"Host: evil.example"}, "no", "no"}, // may lead here
		{[]string{"Host: evil.example", "Authorization: Bearer x"}, "no", "refused"},
		{[]string{"Host: seeder.example", bearer}, "no", "yes"},
		{[]string{afar}, "no", "no"},
		{[]string{afar, bearer}, "refused", "yes"},
		{[]string{afar, bearer + "x"}, "refused", "refused"},
		{[]string{afar, "Authorization: Basic " + secret}, "refused", "refused"},
		{[]string{bearer}, "yes", "yes"},
		{[]string{"X-Forwarded-For: 10.0.0.9"}, "no", "no"},
		{[]string{"Forwarded: for=10.0.0.9"}, "no", "no"},
		{[]string{"Sec-Fetch-Site: cross-site"}, "no", "no"},
		{[]string{"Sec-Fetch-Site: cross-site", bearer}, "no", "no"},
		{[]string{"Sec-Fetch-Site: same-origin"}, "yes", "no"},
	} {
		for i, want := range []string{test.bare, test.tok} {
			g := newGate(t, i == 1)
			g.Names, g.Own = nil, func(string) bool { return false } // as a seeder's
			got := ""
			g.Next = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				switch yes, err := g.Operator(r); {
				case err != nil:
					got = "refused"
				case yes:
					got = "yes"
				default:
					got = "no"
				}
			})
			ask(g, "GET", "/page/events", test.headers...)
			if got != want {
				t.Errorf("%v, token needed: %v = %s, want %s", test.headers, i == 1, got, want)
			}
		}
	}
}

// A page whose name leads to this host is not let in, whatever it asks for.
func TestRebinding(t *testing.T) {
	for host, want := range map[string]int{
		"evil.example": 403, "evil.example:7080": 403, "127.0.0.1.evil.example:7080": 403, "node1.corp.example.evil.test": 403, "a.local": 403,
		"localhost.evil.example": 403, "mirrors.example": 403,
		"": 200, "127.0.0.1": 200, "127.0.0.1:7080": 200, "10.0.0.7:7080": 200, "[::1]:7080": 200, "[fd00::1]": 200,
		"localhost": 200, "LocalHost:7080": 200, "murder.localhost:7080": 200, "node1:7080": 200, "mirror.prod.internal": 200,
		"node1.corp.example:7080": 200, "Node1.corp.example.": 200, "x.mirrors.example:7080": 200,
	} {
		for _, path := range []string{"/v1/status", "/v2/", "/v2/a/manifests/v1", "/"} {
			if w := ask(newGate(t, false), "GET", path, "Host: "+host); w.Code != want {
				t.Errorf("GET %s of %q = %d, want %d: %s", path, host, w.Code, want, w.Body)
			}
		}
	}
	seeder := newGate(t, false)
	seeder.Names = nil
	if w := ask(seeder, "GET", "/v2/", "Host: any.example"); w.Code != 200 {
		t.Errorf("a seeder asked by any name = %d", w.Code)
	}
}

// Other sites' pages are not let in; engines, which are no browsers, send none
// of these headers.
func TestCrossSite(t *testing.T) {
	for _, test := range []struct {
		headers []string
		want    int
	}{
		{[]string{"Origin: https://evil.example"}, 403},
		{[]string{"Origin: null"}, 403},
		{[]string{"Origin: http://127.0.0.1:9999"}, 403},
		{[]string{"Sec-Fetch-Site: cross-site"}, 403},
		{[]string{"Sec-Fetch-Site: same-site"}, 403},
		{[]string{"Sec-Fetch-Site: cross-site", "Origin: http://127.0.0.1:7080"}, 403},
		{[]string{"Sec-Fetch-Site: none"}, 200}, // typed by the user
		{[]string{"Sec-Fetch-Site: same-origin", "Origin: http://127.0.0.1:7080"}, 200},
		{[]string{"Origin: http://127.0.0.1:7080"}, 200},
		{nil, 200},
	} {
		for _, path := range []string{"/v1/status", "/v2/a/blobs/x"} {
			for _, method := range []string{"GET", "HEAD", "POST", "OPTIONS"} {
				if w := ask(newGate(t, false), method, path, test.headers...); w.Code != test.want {
					t.Errorf("%s %s %v = %d, want %d", method, path, test.headers, w.Code, test.want)
				}
			}
		}
	}
}

// The token is read anew each time; a file that has gone lets nobody in.
func TestTokenIsReplaced(t *testing.T) {
	g := newGate(t, true)
	if err := os.WriteFile(g.Token.file, []byte("another token, no\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if w := ask(g, "GET", "/v1/status", bearer); w.Code != 500 || strings.Contains(w.Body.String(), "another") {
		t.Errorf("with a bad file = %d %s", w.Code, w.Body)
	}
	const next = "the-next-token-of-all"
	if err := os.WriteFile(g.Token.file, []byte(next), 0o600); err != nil {
		t.Fatal(err)
	}
	if w := ask(g, "GET", "/v1/status", bearer); w.Code != 401 {
		t.Errorf("with the old token = %d", w.Code)
	}
	if w := ask(g, "GET", "/v1/status", "Authorization: Bearer "+next); w.Code != 200 {
		t.Errorf("with the new token = %d", w.Code)
	}
	os.Remove(g.Token.file)
	if w := ask(g, "GET", "/v1/status", "Authorization: Bearer "+next); w.Code != 500 {
		t.Errorf("without a file = %d", w.Code)
	}
}

func TestTokensThatAreNone(t *testing.T) {
	for _, content := range []string{"", "\n", "short", "two words of some length", "two\nlines-of-some-length", strings.Repeat("x", 5000)} {
		_, err := OpenToken(writeToken(t, content))
		if err == nil || len(content) > 0 && strings.Contains(err.Error(), "two") {
			t.Errorf("OpenToken(%.20q) = %v", content, err)
		}
	}
	if _, err := OpenToken(filepath.Join(t.TempDir(), "none")); !os.IsNotExist(err) {
		t.Errorf("OpenToken of no file = %v", err)
	}
}

// start serves g as a daemon does.
func start(t *testing.T, h http.Handler, max int, stall time.Duration) (addr string) {
	t.Helper()
	addr, _ = startWatched(t, h, max, stall)
	return addr
}

// startWatched is start, and tells of each connection that has become idle: a client has its
// answer before that.
func startWatched(t *testing.T, h http.Handler, max int, stall time.Duration) (addr string, idle <-chan struct{}) {
	t.Helper()
	l, err := listen("127.0.0.1:0", stall)
	if err != nil {
		t.Fatal(err)
	}
	c := &Connections{Max: max, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	s := &http.Server{Handler: h}
	c.Bound(s)
	became := make(chan struct{}, 100)
	s.ConnState = func(conn net.Conn, state http.ConnState) {
		c.state(conn, state)
		if state == http.StateIdle {
			became <- struct{}{}
		}
	}
	done := make(chan struct{})
	go func() { s.Serve(l); close(done) }()
	t.Cleanup(func() { s.Close(); <-done })
	return l.Addr().String(), became
}

func dial(t *testing.T, addr, request string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	return c
}

// A GET has no body, and one that is announced and never comes ends nothing
// but its own connection.
func TestBodiesOfNoUse(t *testing.T) {
	addr := start(t, newGate(t, false), 10, time.Minute)
	for _, head := range []string{"Content-Length: 10", "Transfer-Encoding: chunked"} {
		c := dial(t, addr, "GET /v2/ HTTP/1.1\r\nHost: localhost\r\n"+head+"\r\n\r\n")
		answer := make([]byte, 12)
		if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "HTTP/1.1 400" {
			t.Errorf("GET with %s = %q, %v", head, answer, err)
		}
	}
}

// One connection too many is closed where all others are at work, and there is room again
// when another goes.
func TestTooManyConnections(t *testing.T) {
	const get = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
	atWork, end := make(chan struct{}), make(chan struct{})
	addr, idle := startWatched(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		atWork <- struct{}{}
		<-end
	}), 2, time.Minute)
	first, second := dial(t, addr, get), dial(t, addr, get)
	<-atWork
	<-atWork
	third, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Error("the third was not closed")
	}
	close(end)
	for _, c := range []net.Conn{first, second} {
		mustAnswer(t, c)
		<-idle
	}
	fourth := dial(t, addr, get)
	<-atWork
	mustAnswer(t, fourth)
}

func mustAnswer(t *testing.T, c net.Conn) {
	t.Helper()
	answer := make([]byte, 12)
	if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "HTTP/1.1 200" {
		t.Errorf("answer = %q, %v", answer, err)
	}
}

// Connections that say nothing, begin to say something or wait for their next request keep
// nobody out; those that are being answered stay.
func TestQuietConnectionsKeepNobodyOut(t *testing.T) {
	const get = "GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n"
	slow, end := make(chan struct{}), make(chan struct{})
	addr, becameIdle := startWatched(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(slow)
			<-end
		}
	}), 4, time.Minute)
	working := dial(t, addr, "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
	<-slow
	silent, begun, idle := dial(t, addr, ""), dial(t, addr, "GET /v2/ HT"), dial(t, addr, get)
	mustAnswer(t, idle)
	<-becameIdle
	for range 3 {
		mustAnswer(t, dial(t, addr, get))
		<-becameIdle
	}
	for _, c := range []net.Conn{silent, begun, idle} {
		c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a quiet connection has kept its place")
		}
	}
	close(end)
	mustAnswer(t, working)
}

// Where the fleet has certificates, who shows none gets health and metrics, and nothing
// else, token or not.
func TestWhoShowsNoCertificate(t *testing.T) {
	g := newGate(t, true)
	shown := false
	g.Identified = func(*http.Request) bool { return shown }
	for _, path := range []string{"/livez", "/readyz", "/healthz", "/metrics"} {
		if w := ask(g, http.MethodGet, path, afar); w.Code != 200 {
			t.Errorf("%s = %d", path, w.Code)
		}
	}
	inside := []string{"/", "/v2/", "/v2/a/blobs/x", "/announce", "/scrape", "/v1/status", "/v1/torrents/x", "/livez/../announce", "//announce"}
	for _, path := range inside {
		if w := ask(g, http.MethodGet, path, bearer); w.Code != 403 || !strings.Contains(w.Body.String(), "certificate") {
			t.Errorf("%s = %d %s, want 403 that says why", path, w.Code, w.Body)
		}
	}
	shown = true
	for _, path := range inside {
		if w := ask(g, http.MethodGet, path, bearer); w.Code != 200 {
			t.Errorf("%s with a certificate = %d %s", path, w.Code, w.Body)
		}
	}
}

// Who tells of pushes shows the token for that, if there is one, and needs nothing else;
// it opens nothing else either.
func TestEvents(t *testing.T) {
	g := newGate(t, false)
	g.Own = func(string) bool { return false } // a seeder's
	g.Names = nil
	post := func(headers ...string) int {
		return ask(g, http.MethodPost, EventsPath, append(headers, "From: 10.0.0.9:4711")...).Code
	}
	if got := post(); got != 200 {
		t.Errorf("without any token: %d", got)
	}
	if got := post("Origin: https://evil.example", "Sec-Fetch-Site: cross-site"); got != 403 {
		t.Errorf("a page of another site: %d, want 403", got)
	}
	g.Identified = func(*http.Request) bool { return false }
	if got := post(); got != 403 {
		t.Errorf("a fleet with certificates, none shown: %d, want 403", got)
	}
	g.Events = &Token{writeToken(t, secret)}
	for headers, want := range map[string]int{"": 401, "Authorization: Bearer no": 401, "Authorization: Bearer " + secret: 200} {
		if got := post(headers); got != want {
			t.Errorf("%q: %d, want %d", headers, got, want)
		}
	}
	if got := ask(g, http.MethodGet, "/announce", "Authorization: Bearer "+secret).Code; got != 403 {
		t.Errorf("another path with the token: %d, want 403", got)
	}
	g.Identified = func(*http.Request) bool { return true }
	if got := post(); got != 401 {
		t.Errorf("a certificate in the token's place: %d, want 401", got)
	}
}

// timed is an answer whose request may be read until some time.
type timed struct {
	*httptest.ResponseRecorder
	until time.Time // zero is for ever
}

func (w *timed) SetReadDeadline(until time.Time) error {
	w.until = until
	return nil
}

// A body that never comes holds nothing up for ever, whatever it is for; once it is here, the
// answer may take its time.
func TestBodiesHaveTheirTime(t *testing.T) {
	for _, path := range []string{"/v1/prefetch", "/v1/events", "/v2/"} {
		w := &timed{ResponseRecorder: httptest.NewRecorder()}
		g := newGate(t, false)
		g.Next = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if w.until.IsZero() {
				t.Errorf("the body of POST %s may come for ever", path)
			}
			if b, err := io.ReadAll(r.Body); err != nil || string(b) != "order" {
				t.Errorf("body = %q, %v", b, err)
			}
			if !w.until.IsZero() {
				t.Errorf("POST %s must be answered until %v", path, w.until)
			}
		})
		r := httptest.NewRequest(http.MethodPost, path, strings.NewReader("order"))
		r.Host, r.RemoteAddr = "127.0.0.1:7080", "127.0.0.1:4711"
		g.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			t.Errorf("POST %s = %d", path, w.Code)
		}
	}
}
