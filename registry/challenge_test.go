package registry

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestParseChallenge(t *testing.T) {
	for _, test := range []struct {
		values []string
		want   Challenge
		ok     bool
	}{
		{nil, Challenge{}, false},
		{[]string{`Basic realm="x"`}, Challenge{}, false},
		{[]string{`Bearer`}, Challenge{}, false},
		{[]string{`Bearer service="x"`}, Challenge{Service: "x"}, false},
		{[]string{`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull"`},
			Challenge{"https://auth.docker.io/token", "registry.docker.io", "repository:library/alpine:pull"}, true},
		{[]string{`bearer Realm="r", SCOPE="a b"`}, Challenge{"r", "", "a b"}, true},
		{[]string{`Basic realm="x"`, `Bearer realm="r"`}, Challenge{Realm: "r"}, true},
		{[]string{`Bearer realm="r",scope="repository:a:pull,push",error="invalid_token"`}, Challenge{"r", "", "repository:a:pull,push"}, true},
		{[]string{`Bearer realm="r", Basic realm="another"`}, Challenge{Realm: "r"}, true},
		{[]string{`Bearer realm="r",service=reg.example,scope=repository:a:pull`}, Challenge{"r", "reg.example", "repository:a:pull"}, true},
		{[]string{`Bearer realm = "r" , service = "x"`}, Challenge{"r", "x", ""}, true},
	} {
		if got, ok := ParseChallenge(test.values); got != test.want || ok != test.ok {
			t.Errorf("ParseChallenge(%q) = %+v, %v, want %+v, %v", test.values, got, ok, test.want, test.ok)
		}
	}
}

func TestRealm(t *testing.T) {
	for _, test := range []struct {
		realm    string
		insecure bool
		ok       bool
	}{
		{"https://auth.docker.io/token", false, true},
		{"https://10.0.0.1/token", false, true},
		{"http://auth.example.com/token", false, false},
		{"http://auth.example.com/token", true, true},
		{"http://127.0.0.1:5000/token", true, true},
		{"https://127.0.0.1/token", false, false},
		{"https://[::1]/token", false, false},
		{"https://169.254.169.254/latest", false, false},
		{"http://169.254.169.254/latest", true, false},
		{"https://[fe80::1]/", false, false},
		{"https://user:password@auth.example.com/", false, false},
		{"file:///etc/passwd", true, false},
		{"ftp://auth.example.com/", true, false},
		{"/token", true, false},
		{"https://", false, false},
		{"%zz", false, false},
		{"", false, false},
	} {
		if _, err := (Challenge{Realm: test.realm}).realm(test.insecure); (err == nil) != test.ok {
			t.Errorf("realm(%q, %v) = %v", test.realm, test.insecure, err)
		}
	}
	u, err := Challenge{"https://x/token?a=b", "s", "repository:a:pull repository:b:pull"}.realm(false)
	if err != nil || u.RawQuery != "a=b&scope=repository%3Aa%3Apull&scope=repository%3Ab%3Apull&service=s" {
		t.Errorf("query = %v, %v", u, err)
	}
}

func TestExchange(t *testing.T) {
	for _, test := range []struct {
		name, answer string
		status       int
		want         string
		ttl          time.Duration
	}{
		{"token", `{"token":"t","expires_in":300}`, 200, "Bearer t", 300 * time.Second},
		{"access_token", `{"access_token":"t"}`, 200, "Bearer t", time.Minute},
		{"short-lived", `{"token":"t","expires_in":1}`, 200, "Bearer t", time.Minute},
		{"none", `{}`, 200, "", 0},
		{"no JSON", `<html>`, 200, "", 0},
		{"huge", `{"token":"` + strings.Repeat("t", maxToken+1) + `"}`, 200, "", 0},
		{"endless", `{"token":"` + strings.Repeat("t", 1<<20), 200, "", 0},
		{"refused", `{"token":"t"}`, 403, "", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			host := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != basic("ann") {
					t.Errorf("Authorization = %q", r.Header.Get("Authorization"))
				}
				w.WriteHeader(test.status)
				io.WriteString(w, test.answer)
			})
			got, ttl, err := Challenge{Realm: "http://" + host + "/token"}.Exchange(t.Context(), http.DefaultClient, basic("ann"), true)
			if got != test.want || ttl != test.ttl || (err == nil) != (test.want != "") {
				t.Errorf("Exchange = %.20q, %v, %v, want %q, %v", got, ttl, err, test.want, test.ttl)
			}
			if err != nil && len(err.Error()) > 300 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
		})
	}
}

// A token server that does not answer, or not to the end, is given up.
func TestExchangeIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			body, w := io.Pipe()
			go func() {
				<-r.Context().Done()
				w.CloseWithError(r.Context().Err())
			}()
			return &http.Response{StatusCode: 200, Body: body, Request: r}, nil
		})}
		begun := time.Now()
		_, _, err := Challenge{Realm: "https://auth.test/"}.Exchange(t.Context(), client, "", false)
		if err == nil || time.Since(begun) > answerTimeout {
			t.Errorf("Exchange = %v after %v", err, time.Since(begun))
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// tokenRegistry is a registry behind a token server, which gives a token for
// public repositories to anyone. Anybody else's token is good for nothing.
type tokenRegistry struct {
	host string

	mu        sync.Mutex // guards all below
	exchanges int
	questions int
	valid     string
	private   int // status with which a private repository refuses anonymous tokens
	broken    bool
	expires   int // seconds
}

func newTokenRegistry(t *testing.T) *tokenRegistry {
	r := &tokenRegistry{private: 401, expires: 300}
	r.host = serve(t, r.ServeHTTP)
	return r
}

func (r *tokenRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if req.URL.Path == "/token" {
		r.serveToken(w, req)
		return
	}
	r.questions++
	name := strings.Split(req.URL.Path, "/")[2]
	token, isToken := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	switch {
	case !isToken || token != r.valid:
		w.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="s",scope="repository:%s:pull"`, r.host, name))
		w.Header().Set("X-First", "yes")
		w.WriteHeader(401)
		io.WriteString(w, "first")
	case name == "private":
		w.Header().Set("Www-Authenticate", `Bearer realm="https://second.test/"`)
		w.WriteHeader(r.private)
	default:
		io.WriteString(w, testManifest)
	}
}

func (r *tokenRegistry) serveToken(w http.ResponseWriter, req *http.Request) {
	r.exchanges++
	if r.broken || req.Header.Get("Authorization") != "" || req.URL.Query().Get("service") != "s" {
		w.WriteHeader(500)
		return
	}
	r.valid = fmt.Sprintf("token-%d", r.exchanges)
	fmt.Fprintf(w, `{"token":%q,"expires_in":%d}`, r.valid, r.expires)
}

func (r *tokenRegistry) counts() (exchanges, questions int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.exchanges, r.questions
}

func (r *tokenRegistry) expect(t *testing.T, c *Client, name string, want, exchanges, questions int) {
	t.Helper()
	_, _, err := c.GetManifest(t.Context(), Repository{r.host, name}, "v1", "")
	if status(err) != want {
		t.Errorf("GetManifest of %s = %v, want %d", name, err, want)
	}
	if e, q := r.counts(); e != exchanges || q != questions {
		t.Errorf("%d tokens and %d questions after %s, want %d, %d", e, q, name, exchanges, questions)
	}
}

func TestAnonymousTokens(t *testing.T) {
	checkGoroutines(t)
	r := newTokenRegistry(t)
	c := newTestClient(t, r.host)
	r.expect(t, c, "public", 0, 1, 2)
	r.expect(t, c, "public", 0, 1, 3) // the token is kept

	r.mu.Lock()
	r.valid = "" // and forgotten by the registry before its time
	r.mu.Unlock()
	r.expect(t, c, "public", 0, 2, 5)

	if c.tokens.get(Repository{r.host, "public2"}) != "" {
		t.Error("a token serves for another repository")
	}
}

// Some registries leave it to the client to know for what it needs a token.
func TestChallengeWithoutScope(t *testing.T) {
	checkGoroutines(t)
	var host string
	host = serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			fmt.Fprintf(w, `{"access_token":%q}`, r.URL.Query().Get("service")+" "+r.URL.Query().Get("scope"))
		case r.Header.Get("Authorization") != "Bearer reg repository:team/app:pull":
			w.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service=reg`, host))
			w.WriteHeader(http.StatusUnauthorized)
		default:
			io.WriteString(w, testManifest)
		}
	})
	if _, _, err := newTestClient(t, host).GetManifest(t.Context(), Repository{host, "team/app"}, "v1", ""); err != nil {
		t.Error(err)
	}
}

func TestAnonymousTokensExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tokens := newAnonymousTokens(nil)
		repo := Repository{"h", "a"}
		tokens.put(repo, "Bearer x", 100*time.Second)
		time.Sleep(89 * time.Second)
		if tokens.get(repo) != "Bearer x" {
			t.Error("the token ended before its time")
		}
		time.Sleep(2 * time.Second)
		if tokens.get(repo) != "" {
			t.Error("the token is used to its very end")
		}
	})
}

func TestAnonymousTokensAreBounded(t *testing.T) {
	tokens := newAnonymousTokens(nil)
	for i := range 3 * maxTokens {
		tokens.put(Repository{"h", fmt.Sprint(i)}, "Bearer x", time.Minute)
	}
	if len(tokens.tokens) > maxTokens {
		t.Errorf("%d tokens are kept", len(tokens.tokens))
	}
}

// For what is private the puller gets the challenge which is theirs to answer.
func TestPrivateRepositoriesGetTheFirstChallenge(t *testing.T) {
	for _, refusal := range []int{401, 403, 404} {
		r := newTokenRegistry(t)
		r.private = refusal
		c := newTestClient(t, r.host)
		_, _, err := c.GetManifest(t.Context(), Repository{r.host, "private"}, "v1", "")
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Status != 401 || !strings.Contains(e.Header.Get("Www-Authenticate"), r.host) {
			t.Errorf("GetManifest = %v, want the first challenge", err)
		}
		if len(c.tokens.tokens) != 0 {
			t.Error("a token is kept that is good for nothing")
		}
	}
}

func TestTokenServerIsAway(t *testing.T) {
	r := newTokenRegistry(t)
	r.broken = true
	r.expect(t, newTestClient(t, r.host), "public", 401, 1, 1)
}

// Whoever sends credentials gets no anonymous token, and where none are asked
// for none are fetched.
func TestTokensAreForNobodyOnly(t *testing.T) {
	r := newTokenRegistry(t)
	c := newTestClient(t, r.host)
	if _, _, err := c.GetManifest(t.Context(), Repository{r.host, "public"}, "v1", "Bearer mine"); !Unauthorized(err) {
		t.Errorf("GetManifest with a bad token = %v, want the 401", err)
	}
	if err := c.Ping(t.Context(), r.host, ""); !Unauthorized(err) {
		t.Errorf("Ping = %v, want the challenge", err)
	}
	if exchanges, _ := r.counts(); exchanges != 0 {
		t.Errorf("%d tokens were fetched", exchanges)
	}
}

// A token server may not send us where its own address must not be.
func TestTokenServerRedirects(t *testing.T) {
	near := serve(t, func(w http.ResponseWriter, r *http.Request) {
		t.Error("the redirect was followed")
	})
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+near, http.StatusFound)
	}))
	defer s.Close()
	transport := s.Client().Transport.(*http.Transport)
	dialTo(transport, map[string]string{"auth.test:443": strings.TrimPrefix(s.URL, "https://")})
	transport.TLSClientConfig.InsecureSkipVerify = true
	c := testClient(t, ClientConfig{Transport: transport})
	if _, _, err := (Challenge{Realm: "https://auth.test/"}).Exchange(t.Context(), &c.http, "", false); err == nil {
		t.Error("Exchange = nil")
	}
}
