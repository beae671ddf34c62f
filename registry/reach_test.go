package registry

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

func TestForbiddenAddresses(t *testing.T) {
	for _, test := range []struct {
		ip        string
		far, near bool // forbidden
	}{
		{"10.0.0.1", false, false}, {"192.168.1.1", false, false}, {"8.8.8.8", false, false}, {"fd00::1", false, false}, {"2001:db8::1", false, false},
		{"64:ff9b::808:808", false, false},
		{"127.0.0.1", true, false}, {"127.9.9.9", true, false}, {"::1", true, false}, {"::ffff:127.0.0.1", true, false}, {"64:ff9b::7f00:1", true, false},
		{"0.0.0.0", true, true}, {"0.1.2.3", true, true}, {"::", true, true}, {"::ffff:0.0.0.0", true, true},
		{"169.254.169.254", true, true}, {"169.254.1.1", true, true}, {"::ffff:169.254.169.254", true, true}, {"64:ff9b::a9fe:a9fe", true, true},
		{"fe80::1", true, true}, {"fe80::1%lo", true, true}, {"fd00:ec2::254", true, true}, {"100.100.100.200", true, true}, {"168.63.129.16", true, true},
		{"64:ff9b:1::a9fe:a9fe", true, true}, {"64:ff9b:1::7f00:1", true, false}, {"2002:a9fe:a9fe::1", true, true}, {"2002:7f00:1::", true, false},
		{"::127.0.0.1", true, false}, {"::169.254.169.254", true, true}, {"2002:808:808::1", false, false},
		{"224.0.0.1", true, true}, {"ff02::1", true, true}, {"255.255.255.255", true, true},
	} {
		ip := netip.MustParseAddr(test.ip)
		if far, near := forbidden(ip, false), forbidden(ip, true); far != test.far || near != test.near {
			t.Errorf("forbidden(%s) = %v, and %v when near; want %v, %v", ip, far, near, test.far, test.near)
		}
	}
}

func TestPatterns(t *testing.T) {
	for _, test := range []struct {
		pattern, host string
		want          bool
	}{
		{"reg.example", "reg.example", true}, {"REG.example", "reg.example", true}, {"reg.example", "reg.example:5000", false},
		{"index.docker.io", "docker.io", true}, {"[::1]:5000", "[::1]:5000", true}, {"reg.example:5000", "reg.example:5000", true},
		{"*.corp.example", "a.corp.example", true}, {"*.corp.example", "a.b.corp.example", true}, {"*.corp.example", "corp.example", false},
		{"*.corp.example", "a.corp.example:5000", false}, {"*.corp.example:*", "a.corp.example:5000", false}, // a port is a number
		{"*.corp.example", "corp.example.evil.test", false}, {"*.corp.example", "xcorp.example", false},
		{"reg-*.corp.example", "reg-1.corp.example", true}, {"*", "any.example", true},
	} {
		pattern, err := ParsePattern(test.pattern)
		if got := err == nil && Matches([]string{"other.example", pattern}, test.host); got != test.want {
			t.Errorf("%s matches %s: %v, want %v (%v)", test.pattern, test.host, got, test.want, err)
		}
	}
	for _, bad := range []string{"", "http://x", "a/b", "*/b", "[*", "a b*", "*.corp.example:99999"} {
		if p, err := ParsePattern(bad); err == nil {
			t.Errorf("ParsePattern(%q) = %q", bad, p)
		}
	}
}

// Only the registries that are allowed are asked, directly or by a seeder.
func TestAllowedRegistries(t *testing.T) {
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(SeederHeader, "1")
		if strings.Contains(r.URL.RawQuery, "other") {
			t.Errorf("asked for %s", r.URL)
		}
	})
	for _, c := range []*Client{
		testClient(t, ClientConfig{Allow: []string{host, "*.corp.example"}, Insecure: []string{host, "other.example"}}),
		testClient(t, ClientConfig{Allow: []string{host, "*.corp.example"}, Via: parseURL(t, "http://"+host)}),
	} {
		if err := c.Ping(t.Context(), host, ""); err != nil {
			t.Errorf("Ping of an allowed registry = %v", err)
		}
		err := c.Ping(t.Context(), "other.example", "")
		if status(err) != 403 || !strings.Contains(err.Error(), "other.example") {
			t.Errorf("Ping of another = %v, want 403 that names it", err)
		}
	}
	c := testClient(t, ClientConfig{Allow: []string{"reg.example"}, Via: parseURL(t, "http://"+host)})
	if resp, err := c.Ask(t.Context(), "/v1/torrents/x", Repository{"other.example", "a"}, url.Values{}, ""); status(err) != 403 {
		t.Errorf("Ask = %v, %v", resp, err)
	}
}

// A registry on this machine is asked when the operator has named it, and not
// because a client has.
func TestRegistriesOnThisMachine(t *testing.T) {
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {})
	_, port, _ := net.SplitHostPort(host)
	byName := "localhost:" + port
	for _, stranger := range []string{host, byName, "[::1]:" + port, "0.0.0.0:" + port, "169.254.169.254"} {
		err := NewClient(ClientConfig{}).Ping(t.Context(), stranger, "")
		if status(err) != 403 || !strings.Contains(err.Error(), stranger) {
			t.Errorf("Ping of %s = %v, want 403 that names it", stranger, err)
		}
	}
	for _, cfg := range []ClientConfig{{Insecure: []string{byName}}, {Insecure: []string{byName}, Near: []string{"*"}}} {
		if err := NewClient(cfg).Ping(t.Context(), byName, ""); err != nil {
			t.Errorf("Ping with %+v = %v", cfg, err)
		}
	}
	// Near alone means TLS, which this one does not speak; but it is reached.
	if err := NewClient(ClientConfig{Near: []string{byName}}).Ping(t.Context(), byName, ""); status(err) != 502 {
		t.Errorf("Ping of one that is near = %v", err)
	}
	if err := NewClient(ClientConfig{Insecure: []string{"169.254.169.254"}}).Ping(t.Context(), "169.254.169.254", ""); status(err) != 403 {
		t.Errorf("Ping of a metadata service = %v", err)
	}
}

// farRegistry serves h as https://registry.test, which is reached through an
// HTTP proxy on this machine; all else is reached directly.
func farRegistry(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	proxy := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.Host != "registry.test:443" {
			t.Errorf("the proxy was asked for %s %s", r.Method, r.Host)
		}
		out, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		w.WriteHeader(http.StatusOK)
		in, read, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		// The server may have read the first bytes of what comes next.
		go func() { io.Copy(out, read); out.Close() }()
		io.Copy(in, out)
		in.Close()
	})
	far := &reach{proxyOf: func(r *http.Request) (*url.URL, error) {
		if r.URL.Host != "registry.test" {
			return nil, nil
		}
		return url.Parse("http://" + proxy)
	}}
	transport := patientTransport()
	transport.Proxy, transport.DialContext = far.proxy, far.dial
	transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	t.Cleanup(transport.CloseIdleConnections)
	return testClient(t, ClientConfig{Transport: transport})
}

// A registry far away cannot lead us to what is near, and a proxy, which can be
// anywhere, still takes us to it.
func TestRedirectsToThisMachine(t *testing.T) {
	near := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.Error("the redirect was followed") }))
	defer near.Close()
	repo := Repository{"registry.test", "a"}
	_, port, _ := net.SplitHostPort(near.Listener.Addr().String())
	for _, target := range []string{near.URL, "https://localhost:" + port, "https://169.254.169.254/latest", "https://[::ffff:127.0.0.1]:" + port} {
		c := farRegistry(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, target+"?Signature=secret", http.StatusTemporaryRedirect)
		})
		err := errOf2(c.GetBlob(t.Context(), repo, sha256Of, 0, ""))
		if status(err) != 403 || !strings.Contains(err.Error(), "registry.test") || strings.Contains(err.Error(), "secret") {
			t.Errorf("redirected to %s: %v, want 403 that names the registry", target, err)
		}
		c = farRegistry(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Www-Authenticate", `Bearer realm="`+target+`/token"`)
			w.WriteHeader(401)
		})
		if err := errOf(c.StatBlob(t.Context(), repo, sha256Of, "")); !Unauthorized(err) {
			t.Errorf("token server %s: %v, want the challenge", target, err)
		}
	}
	c := farRegistry(t, func(w http.ResponseWriter, r *http.Request) {})
	if err := c.Ping(t.Context(), "registry.test", ""); err != nil {
		t.Errorf("Ping through a proxy = %v", err)
	}
}

// What a proxy would connect to is looked at as far as it can be.
func TestForbiddenAddressesThroughAProxy(t *testing.T) {
	r := &reach{proxyOf: func(*http.Request) (*url.URL, error) { return url.Parse("http://127.0.0.1:3128") }}
	for target, want := range map[string]bool{
		"https://169.254.169.254/": false, "https://127.0.0.1/": false, "https://[::ffff:127.0.0.1]/": false, "https://[64:ff9b::7f00:1]:5000/": false,
		"https://2130706433/": false, "https://0x7f000001/": false, "https://0177.0.0.1/": false, "https://127.1:5000/": false, "https://127.0.0.0x1/": false,
		"https://127.0.0.1./": false, "https://reg.example/": true, "https://reg.example.:5000/": true, "https://8.8.8.8/": true, "https://reg1/": true,
	} {
		req := httptest.NewRequest("GET", target, nil)
		if u, err := r.proxy(req); (err == nil) != want {
			t.Errorf("proxy of %s = %v, %v", target, u, err)
		}
	}
}

// The operator's proxy, which may be on this machine, is no registry for all that.
func TestTheProxyIsNoRegistry(t *testing.T) {
	var bypass bool
	r := &reach{proxyOf: func(*http.Request) (*url.URL, error) {
		if bypass {
			return nil, nil
		}
		return url.Parse("http://127.0.0.1:3128")
	}}
	if u, err := r.proxy(httptest.NewRequest("GET", "https://reg.example/", nil)); u == nil || err != nil {
		t.Fatalf("proxy = %v, %v", u, err)
	}
	bypass = true // as net/http does for addresses of this machine
	if _, err := r.proxy(httptest.NewRequest("GET", "https://127.0.0.1:3128/v2/", nil)); err == nil {
		t.Error("a client may name the proxy as a registry")
	}
	if _, err := r.proxy(httptest.NewRequest("GET", "https://other.example/", nil)); err != nil {
		t.Errorf("another registry, reached directly: %v", err)
	}
}

func FuzzParseChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://auth.example/token",service="reg",scope="repository:a:pull"`)
	f.Add(`bearer realm="http://[::1]:1/?a=%zz", realm="x", error="insufficient_scope"`)
	f.Add(`Basic realm="x"`)
	f.Fuzz(func(t *testing.T, header string) {
		c, ok := ParseChallenge([]string{header})
		if ok != (c.Realm != "") {
			t.Errorf("ParseChallenge(%q) = %+v, %v", header, c, ok)
		}
		for _, insecure := range []bool{false, true} {
			u, err := c.realm(insecure)
			if err != nil {
				continue
			}
			if u.Host == "" || u.User != nil || u.Scheme != "https" && !(insecure && u.Scheme == "http") {
				t.Errorf("realm of %q = %v", header, u)
			}
			if c.Service != "" && u.Query().Get("service") == "" {
				t.Errorf("realm of %q = %v without its service", header, u)
			}
		}
	})
}

func FuzzParsePattern(f *testing.F) {
	f.Add("*.corp.example", "a.corp.example")
	f.Add("[::1]:5000", "[::1]:5000")
	f.Add("a[*", "a")
	f.Fuzz(func(t *testing.T, pattern, host string) {
		p, err := ParsePattern(pattern)
		if err != nil {
			return
		}
		h, err := ParseHost(host)
		if err != nil {
			return
		}
		if !strings.Contains(p, "*") && Matches([]string{p}, h) != (p == h) {
			t.Errorf("%q matches %q", p, h)
		}
	})
}
