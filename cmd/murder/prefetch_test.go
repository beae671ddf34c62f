package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// events is one answer of a mirror: it writes lines, and each is sent at once.
type events func(req prefetchRequest, say func(format string, args ...any))

// serveEvents is a mirror that answers POST /v1/prefetch with answer.
func serveEvents(t *testing.T, answer events) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/v1/prefetch" {
			http.NotFound(w, r)
			return
		}
		var req prefetchRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			http.Error(w, `{"error":"bad request"}`, http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.WriteHeader(http.StatusOK)
		answer(req, func(format string, args ...any) {
			fmt.Fprintf(w, format+"\n", args...)
			http.NewResponseController(w).Flush()
		})
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

const testDigest = "sha256:9834876dcfb05cb167a5c24953eba58c4ac89b1adf57f28f2f9d09af107ee8f0"

// serveImage is an answer with which all goes well, for every image asked for.
func serveImage(req prefetchRequest, say func(string, ...any)) {
	for _, img := range req.Images {
		say(`{"event":"resolved","image":%q,"digest":%q,"blobs":2,"bytes":300}`, img.Ref, testDigest)
		say(`{"event":"blob","image":%q,"digest":"sha256:a","bytes":100,"from":{"cache":100}}`, img.Ref)
		say(`{"event":"progress","image":%q,"bytes_done":200,"bytes":300}`, img.Ref)
		say(`{"event":"news","image":%q}`, img.Ref)
		say(`{"event":"blob","image":%q,"digest":"sha256:b","bytes":200,"from":{"peer":150,"seeder":40,"upstream":10}}`, img.Ref)
		say(`{"event":"done","image":%q,"digest":%q,"bytes":300}`, img.Ref, testDigest)
	}
	say(`{"event":"end","ok":true}`)
}

// prefetchJSON runs `murder prefetch --output json`.
func prefetchJSON(t *testing.T, args ...string) (result prefetchResult, stderr string, err error) {
	t.Helper()
	stdout, stderr, err := runMurder(t, t.Context(), append([]string{"prefetch", "--output", "json"}, args...)...)
	if jsonErr := json.Unmarshal([]byte(stdout), &result); jsonErr != nil {
		t.Fatalf("stdout is no JSON document: %v\n%s\nerror: %v", jsonErr, stdout, err)
	}
	return result, stderr, err
}

func TestPrefetch(t *testing.T) {
	a, b := serveEvents(t, serveImage), serveEvents(t, serveImage)
	file := filepath.Join(t.TempDir(), "mirrors")
	if err := os.WriteFile(file, []byte("# the fleet\n\n"+strings.TrimPrefix(b, "http://")+" # b\n"+a+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	result, stderr, err := prefetchJSON(t, "app:1", "ghcr.io/org/tool@"+testDigest, "app:1", "--mirror", a, "--mirrors-file", file)
	if err != nil {
		t.Fatalf("prefetch: %v\n%s", err, stderr)
	}
	if !result.OK || len(result.Hosts) != 2 || result.Hosts[0].Mirror != a || result.Hosts[1].Mirror != b {
		t.Fatalf("result = %+v, want both mirrors, each once", result)
	}
	for _, h := range result.Hosts {
		want := imageResult{
			Image: "docker.io/library/app:1", OK: true, Digest: testDigest, Bytes: 300,
			From: sources{Cache: 100, Peer: 150, Seeder: 40, Upstream: 10},
		}
		if !h.OK || len(h.Images) != 2 || h.Images[0] != want {
			t.Errorf("%s: %+v, want %+v first", h.Mirror, h, want)
		}
		if name := h.Images[1].Image; name != "ghcr.io/org/tool@"+testDigest {
			t.Errorf("%s: second image is %s", h.Mirror, name)
		}
	}
	for _, line := range []string{
		"docker.io/library/app:1: is " + testDigest + ", 300 B in 2 blobs\n",
		"sha256:b here, 200 B: 150 B from peers, 40 B from the seeder, 10 B from the registry\n",
		"docker.io/library/app:1: ready\n",
		"has everything after ",
	} {
		if !strings.Contains(stderr, line) {
			t.Errorf("stderr lacks %q:\n%s", line, stderr)
		}
	}
	stdout, _, err := runMurder(t, t.Context(), "prefetch", "--mirror", a, "app:1")
	if err != nil || !strings.Contains(stdout, "docker.io/library/app:1  300 B  100 B   150 B  40 B    10 B      ready") {
		t.Errorf("table, error %v:\n%s", err, stdout)
	}
}

// Each host that has not everything is named with the reason, and the others are warmed nevertheless.
func TestPrefetchFailures(t *testing.T) {
	dead := httptest.NewServer(nil)
	dead.Close()
	stranger := httptest.NewServer(http.NotFoundHandler())
	defer stranger.Close()
	for _, test := range []struct {
		name, mirror, want string
	}{
		{"dead", dead.URL, "the mirror does not answer: dial tcp"},
		{"stranger", stranger.URL, "is no mirror of murder, or an older one: it answered 404"},
		{"cut", serveEvents(t, func(req prefetchRequest, say func(string, ...any)) {
			say(`{"event":"resolved","image":%q,"digest":%q,"blobs":2,"bytes":300}`, req.Images[0].Ref, testDigest)
		}), "the mirror's answer ended too early: unexpected EOF"},
		{"reset", serveEvents(t, func(req prefetchRequest, say func(string, ...any)) {
			say(`{"event":"done","image":%q,"digest":%q,"bytes":300}`, req.Images[0].Ref, testDigest)
			panic(http.ErrAbortHandler)
		}), "the mirror's answer ended too early: unexpected EOF"},
		{"not events", serveEvents(t, func(_ prefetchRequest, say func(string, ...any)) { say("<html>") }), "is not made of events"},
		{"long line", serveEvents(t, func(_ prefetchRequest, say func(string, ...any)) {
			say("%s", strings.Repeat(" ", maxEvent+1))
		}), "ended too early: bufio.Scanner: token too long"},
		{"silent about it", serveEvents(t, func(_ prefetchRequest, say func(string, ...any)) {
			say(`{"event":"end","ok":true}`)
		}), "docker.io/library/app:1: the mirror has said nothing about it"},
		{"not done", serveEvents(t, func(req prefetchRequest, say func(string, ...any)) {
			say(`{"event":"resolved","image":%q,"digest":%q,"blobs":2,"bytes":300}`, req.Images[0].Ref, testDigest)
			say(`{"event":"end","ok":false}`)
		}), "docker.io/library/app:1: not finished"},
		{"unknown image", serveEvents(t, func(req prefetchRequest, say func(string, ...any)) {
			say(`{"event":"error","image":%q,"error":"the registry has no such manifest","status":404}`, req.Images[0].Ref)
			say(`{"event":"end","ok":false}`)
		}), "docker.io/library/app:1: the registry has no such manifest"},
	} {
		t.Run(test.name, func(t *testing.T) {
			good := serveEvents(t, serveImage)
			result, stderr, err := prefetchJSON(t, "app:1", "--mirror", good, "--mirror", test.mirror)
			if exitCode(err) != exitFailure || err.Error() != "prefetch: 1 of 2 hosts have not everything" {
				t.Errorf("error = %v", err)
			}
			if result.OK || !result.Hosts[0].OK || result.Hosts[1].OK {
				t.Errorf("result = %+v, want that only the first host is ready", result)
			}
			if line := hostOf(test.mirror) + ": "; !strings.Contains(stderr, line) || !strings.Contains(stderr, test.want) {
				t.Errorf("stderr does not say %q of %s:\n%s", test.want, line, stderr)
			}
		})
	}
}

// A mirror that accepts the request and then says nothing is given up, with its name; so it is when the user's time is up.
func TestPrefetchSilentMirror(t *testing.T) {
	silent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // only then does the server notice that the client leaves
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	defer silent.Close()
	img, err := parseImage("app:1")
	if err != nil {
		t.Fatal(err)
	}
	p := &prefetch{
		mirrors: []string{silent.URL}, images: []image{img}, parallel: 1, idle: 50 * time.Millisecond,
		creds: newCredentials(nil), progress: newProgress(io.Discard, nil),
	}
	if r := p.run(t.Context()); r.OK || !strings.Contains(r.Hosts[0].Error, "says nothing any more: no event for 50ms") {
		t.Errorf("result = %+v, want that the mirror says nothing any more", r)
	}

	_, stderr, err := prefetchJSON(t, "app:1", "--mirror", silent.URL, "--timeout", "50ms")
	if exitCode(err) != exitFailure || !strings.Contains(stderr, "not done within --timeout 50ms") {
		t.Errorf("error = %v, want that the time is up:\n%s", err, stderr)
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("interrupt signal received"))
	_, stderr, err = runMurder(t, ctx, "prefetch", "app:1", "--mirror", silent.URL)
	if exitCode(err) != exitFailure || !strings.Contains(stderr, "interrupt signal received") {
		t.Errorf("error = %v, want that it was interrupted:\n%s", err, stderr)
	}
}

// login puts credentials where `docker login` does.
func login(t *testing.T, registry, user, password string) {
	t.Helper()
	dir := t.TempDir()
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, registry, auth), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
}

// tokenServer gives user jane with password secret the tokens t1, t2, ... and everyone else "anonymous".
func tokenServer(t *testing.T) (url string, asked *atomic.Int32) {
	t.Helper()
	asked = new(atomic.Int32)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := asked.Add(1)
		q := r.URL.Query()
		if q.Get("service") != "registry" || q.Get("scope") != "repository:team/app:pull" {
			http.Error(w, "bad query "+r.URL.RawQuery, http.StatusBadRequest)
			return
		}
		switch user, password, ok := r.BasicAuth(); {
		case !ok:
			fmt.Fprint(w, `{"token":"anonymous"}`)
		case user == "jane" && password == "secret":
			fmt.Fprintf(w, `{"token":"t%d"}`, n)
		default:
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}`, http.StatusUnauthorized)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL, asked
}

// deny tells that the registry has answered 401 with a Bearer challenge.
func deny(say func(string, ...any), ref, realm string) {
	challenge := fmt.Sprintf(`Bearer realm="%s/token",service="registry",scope="repository:team/app:pull"`, realm)
	say(`{"event":"error","image":%q,"error":"the registry wants authentication","status":401,"challenge":%q}`, ref, challenge)
	say(`{"event":"end","ok":false}`)
}

const privateImage = "127.0.0.1:5000/team/app:1"

// A private image: the first answer carries the registry's challenge, and one token does for all hosts.
func TestPrefetchPrivate(t *testing.T) {
	login(t, "127.0.0.1:5000", "jane", "secret")
	realm, asked := tokenServer(t)
	mirror := func(req prefetchRequest, say func(string, ...any)) {
		if req.Images[0].Authorization != "Bearer t1" {
			deny(say, req.Images[0].Ref, realm)
			return
		}
		serveImage(req, say)
	}
	args := []string{privateImage}
	for range 8 {
		args = append(args, "--mirror", serveEvents(t, mirror))
	}
	result, stderr, err := prefetchJSON(t, args...)
	if err != nil || !result.OK {
		t.Errorf("prefetch: %v\n%s", err, stderr)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the token server was asked %d times, want once", n)
	}
	if strings.Contains(stderr, "failed") || strings.Contains(stderr, "t1") {
		t.Errorf("stderr tells of a failure or of the token:\n%s", stderr)
	}
}

// Tokens expire in a long job: each 401 after progress is answered with a new token, and the bytes are counted once.
func TestPrefetchTokenExpires(t *testing.T) {
	login(t, "127.0.0.1:5000", "jane", "secret")
	realm, asked := tokenServer(t)
	mirror := serveEvents(t, func(req prefetchRequest, say func(string, ...any)) {
		img := req.Images[0]
		say(`{"event":"resolved","image":%q,"digest":%q,"blobs":2,"bytes":300}`, img.Ref, testDigest)
		var n int
		if _, err := fmt.Sscanf(img.Authorization, "Bearer t%d", &n); err != nil {
			deny(say, img.Ref, realm)
			return
		}
		for i := 1; i <= n; i++ {
			from := "cache"
			if i == n {
				from = "peer"
			}
			say(`{"event":"blob","image":%q,"digest":"sha256:%d","bytes":100,"from":{%q:100}}`, img.Ref, i, from)
			say(`{"event":"progress","image":%q,"bytes_done":%d,"bytes":300}`, img.Ref, i*100)
		}
		if n < 3 {
			deny(say, img.Ref, realm)
			return
		}
		say(`{"event":"done","image":%q,"digest":%q,"bytes":300}`, img.Ref, testDigest)
		say(`{"event":"end","ok":true}`)
	})
	result, stderr, err := prefetchJSON(t, privateImage, "--mirror", mirror)
	if err != nil || !result.OK {
		t.Fatalf("prefetch: %v\n%s", err, stderr)
	}
	if from := result.Hosts[0].Images[0].From; from != (sources{Peer: 300}) {
		t.Errorf("from = %+v, want 300 bytes of peers", from)
	}
	if n := asked.Load(); n != 3 {
		t.Errorf("the token server was asked %d times, want 3", n)
	}
}

// Who may not read it is told so, after as many questions as make sense.
func TestPrefetchDenied(t *testing.T) {
	realm, asked := tokenServer(t)
	denied := func(req prefetchRequest, say func(string, ...any)) { deny(say, req.Images[0].Ref, realm) }
	basic := func(req prefetchRequest, say func(string, ...any)) {
		say(`{"event":"error","image":%q,"error":"the registry wants authentication","status":401,"challenge":"Basic realm=\"x\""}`, req.Images[0].Ref)
		say(`{"event":"end","ok":false}`)
	}
	for _, test := range []struct {
		name, password string
		mirror         events
		questions      int32
		want           string
	}{
		{"right password, no rights", "secret", denied, 1, "does not let this user's credentials read it"},
		{"wrong password", "guess", denied, 1, "answered 401"},
		{"anonymous", "", denied, 1, "does not let this user's credentials read it"},
		{"basic", "secret", basic, 0, "does not let this user's credentials read it"},
		{"basic without login", "", basic, 0, "`docker login 127.0.0.1:5000` on this machine"},
		{"negotiate", "secret", func(req prefetchRequest, say func(string, ...any)) {
			say(`{"event":"error","image":%q,"error":"no","status":401,"challenge":"Negotiate"}`, req.Images[0].Ref)
			say(`{"event":"end","ok":false}`)
		}, 0, "neither Basic nor Bearer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("DOCKER_CONFIG", t.TempDir())
			if test.password != "" {
				login(t, "127.0.0.1:5000", "jane", test.password)
			}
			asked.Store(0)
			_, stderr, err := prefetchJSON(t, privateImage, "--mirror", serveEvents(t, test.mirror))
			if exitCode(err) != exitFailure || !strings.Contains(stderr, test.want) {
				t.Errorf("error = %v, want %q:\n%s", err, test.want, stderr)
			}
			if n := asked.Load(); n != test.questions {
				t.Errorf("the token server was asked %d times, want %d", n, test.questions)
			}
			if strings.Contains(stderr, test.password) && test.password != "" {
				t.Errorf("stderr tells the password:\n%s", stderr)
			}
		})
	}
}

// The challenge comes through the mirror, which could name any token server: a password does not go there in the clear.
func TestCredentialsStayPrivate(t *testing.T) {
	login(t, "registry.example", "jane", "secret")
	realm, asked := tokenServer(t)
	mirror := serveEvents(t, func(req prefetchRequest, say func(string, ...any)) { deny(say, req.Images[0].Ref, realm) })
	_, stderr, err := prefetchJSON(t, "registry.example/team/app:1", "--mirror", mirror)
	if exitCode(err) != exitFailure || !strings.Contains(stderr, "is no https URL") || asked.Load() != 0 {
		t.Errorf("error = %v after %d questions, want none to a server without TLS:\n%s", err, asked.Load(), stderr)
	}
	_, _, err = prefetchJSON(t, "registry.example/team/app:1", "--mirror", mirror, "--insecure-registry", "registry.example")
	if exitCode(err) != exitFailure || asked.Load() != 1 {
		t.Errorf("error = %v after %d questions, want one where the user says so", err, asked.Load())
	}
}

// Some registries have `docker login` keep a refresh token in place of a password.
func TestCredentialsIdentityToken(t *testing.T) {
	dir := t.TempDir()
	config := `{"auths":{"127.0.0.1:5000":{"auth":"MDAwOg==","identitytoken":"keep"}}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.FormValue("refresh_token") != "keep" || r.FormValue("scope") != "repository:team/app:pull" {
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		fmt.Fprint(w, `{"access_token":"fresh"}`)
	}))
	defer srv.Close()
	img, err := parseImage(privateImage)
	if err != nil {
		t.Fatal(err)
	}
	got, err := newCredentials(nil).authorization(t.Context(), img, fmt.Sprintf(`Bearer realm=%q`, srv.URL), "")
	if err != nil || got != "Bearer fresh" {
		t.Errorf("authorization() = %q, %v; want Bearer fresh", got, err)
	}
}

// Strangers tell a seeder of pushes to any number of repositories.
func TestAnswersAreBounded(t *testing.T) {
	k := newCredentials(nil)
	for i := range 2*maxAnswers + 1 {
		k.answer(fmt.Sprint(i))
	}
	if len(k.answers) > maxAnswers {
		t.Errorf("%d answers are remembered", len(k.answers))
	}
}

// An image that was done and has left the cache for another is not ready.
func TestPrefetchOfWhatIsGoneAgain(t *testing.T) {
	mirror := serveEvents(t, func(req prefetchRequest, say func(string, ...any)) {
		ref := req.Images[0].Ref
		say(`{"event":"resolved","image":%q,"digest":%q,"blobs":1,"bytes":300}`, ref, testDigest)
		say(`{"event":"done","image":%q,"digest":%q,"bytes":300}`, ref, testDigest)
		say(`{"event":"error","image":%q,"error":"is not in the cache any more"}`, ref)
		say(`{"event":"end","ok":false}`)
	})
	result, _, err := prefetchJSON(t, "--mirror", mirror, "app:1")
	if exitCode(err) != exitFailure || result.OK || result.Hosts[0].Images[0].OK || result.Hosts[0].Images[0].Error != "is not in the cache any more" {
		t.Errorf("prefetch = %v, %+v, want a failure", err, result)
	}
}
