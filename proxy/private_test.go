package proxy_test

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/murderp2p/murder/layers"

	"github.com/murderp2p/murder/registry/registrytest"
)

// mustChallenge fails the test unless the answer is a 401 with the registry's
// own challenge.
func (a answer) mustChallenge(t testing.TB, up *registrytest.Upstream) {
	t.Helper()
	a.mustRefuse(t, http.StatusUnauthorized, "UNAUTHORIZED")
	if got, want := a.header.Get("Www-Authenticate"), up.Challenge("secret"); got != want {
		t.Errorf("challenge = %q, want the registry's %q", got, want)
	}
}

// Private blobs are for those whom the registry lets in, wherever the bytes
// are by then: nowhere yet, arriving, in the mirror's cache, in the seeder's.
func TestPrivateBlobs(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *registrytest.Upstream, m *testMirror) {
		b := random(big, 70)
		d := up.Push(t, "secret", true, b)
		up.Push(t, "public", false, random(10, 71))
		up.Admit(registrytest.Basic("alice"))
		up.Admit(registrytest.Basic("bob"))
		stranger := func() {
			t.Helper()
			m.request(t, "GET", blobPath("secret", d), "").mustChallenge(t, up)
			m.request(t, "GET", blobPath("secret", d), registrytest.Basic("mallory")).mustChallenge(t, up)
			m.request(t, "GET", blobPath("secret", d), "", "Range", "bytes=0-10").mustChallenge(t, up)
			if a := m.request(t, "HEAD", blobPath("secret", d), ""); a.status != http.StatusUnauthorized || a.header.Get("Www-Authenticate") == "" {
				t.Errorf("HEAD = %d %v", a.status, a.header)
			}
			// In a public repository it is not to be had either.
			for _, who := range []string{"", registrytest.Basic("mallory"), registrytest.Basic("alice")} {
				m.request(t, "GET", blobPath("public", d), who).mustRefuse(t, http.StatusNotFound, "BLOB_UNKNOWN")
				if a := m.request(t, "HEAD", blobPath("public", d), who); a.status != http.StatusNotFound {
					t.Errorf("HEAD in a public repository = %d", a.status)
				}
			}
		}
		stranger()
		held, hold := make(chan struct{}), make(chan struct{})
		up.Fail(&registrytest.Fault{Left: 1, Path: d.String(), At: 2 << 20, Held: held, Hold: hold}, &registrytest.Fault{Left: -1, At: big})
		alice := make(chan answer, 1)
		go func() { alice <- m.request(t, "GET", blobPath("secret", d), registrytest.Basic("alice")) }()
		wait(t, "blob arriving", held)
		eventually(t, "mirror brings it", func() bool { return len(m.Ledger().Records(d)) == 1 })
		stranger()
		bob := make(chan answer, 1)
		go func() { bob <- m.request(t, "GET", blobPath("secret", d), registrytest.Basic("bob")) }()
		close(hold)
		(<-alice).mustBe(t, b)
		(<-bob).mustBe(t, b)
		m.settled(t, d)
		stranger()
		m.request(t, "GET", blobPath("secret", d), registrytest.Basic("bob")).mustBe(t, b)
		up.Revoke(registrytest.Basic("bob"))
		m.request(t, "GET", blobPath("secret", d), registrytest.Basic("alice")).mustBe(t, b)
	})
}

// A right that was taken back is noticed within the time that it holds for,
// and a stranger is not let in while the registry is away.
func TestRevoked(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(1000, 72)
	d := up.Push(t, "secret", true, b)
	up.Admit(registrytest.Basic("alice"))
	m := newMirror(t, up, nil, authTTL(time.Nanosecond))
	m.request(t, "GET", blobPath("secret", d), registrytest.Basic("alice")).mustBe(t, b)
	m.settled(t, d)
	up.Away()
	m.request(t, "GET", blobPath("secret", d), registrytest.Basic("alice")).mustBe(t, b)
	m.request(t, "GET", blobPath("secret", d), "").mustRefuse(t, http.StatusBadGateway, "UNAVAILABLE")
	m.request(t, "GET", blobPath("secret", d), registrytest.Basic("mallory")).mustRefuse(t, http.StatusBadGateway, "UNAVAILABLE")
	up.Mend()
	up.Revoke(registrytest.Basic("alice"))
	m.request(t, "GET", blobPath("secret", d), registrytest.Basic("alice")).mustChallenge(t, up)
	up.Away()
	m.request(t, "GET", blobPath("secret", d), registrytest.Basic("alice")).mustRefuse(t, http.StatusBadGateway, "UNAVAILABLE")
}

// The challenge of a registry with tokens leads to its token server, and the
// token opens the image through mirror and seeder.
func TestTokens(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *registrytest.Upstream, m *testMirror) {
		b := random(1000, 73)
		d := up.Push(t, "secret", true, b)
		up.AskForTokens()
		m.request(t, "GET", blobPath("secret", d), "").mustChallenge(t, up)
		up.Admit("Bearer for-alice")
		m.request(t, "GET", blobPath("secret", d), "Bearer for-alice").mustBe(t, b)
		m.request(t, "GET", blobPath("secret", d), "Bearer for-mallory").mustChallenge(t, up)
	})
}

// A token that ends in mid-blob does not end the download while another
// caller may have it.
func TestTokenEndsInMidBlob(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *registrytest.Upstream, m *testMirror) {
		b := random(big, 74)
		d := up.Push(t, "secret", true, b)
		up.Admit(registrytest.Basic("alice"))
		up.Admit(registrytest.Basic("bob"))
		held, hold := make(chan struct{}), make(chan struct{})
		up.Fail(&registrytest.Fault{Left: 1, At: 2 << 20, Held: held, Hold: hold, Cut: true})
		answers := make(chan answer, 2)
		go func() { answers <- m.request(t, "GET", blobPath("secret", d), registrytest.Basic("alice")) }()
		wait(t, "blob arriving", held)
		eventually(t, "mirror brings it", func() bool { return len(m.Ledger().Records(d)) == 1 })
		bob, err := m.open(t, "GET", blobPath("secret", d), registrytest.Basic("bob"))
		if err != nil {
			t.Fatal(err)
		}
		defer bob.Body.Close()
		// Strangers in any number do not push the rightful out of memory.
		for _, who := range strings.Split("abcdefghijkl", "") {
			m.request(t, "GET", blobPath("secret", d), registrytest.Basic(who)).mustChallenge(t, up)
		}
		up.Revoke(registrytest.Basic("alice"))
		close(hold)
		body, err := io.ReadAll(bob.Body)
		answer{bob.StatusCode, bob.Header, body, err}.mustBe(t, b)
		(<-answers).mustBe(t, b)
	})
}

// When all tokens have ended the registry is not asked again and again: only a client can
// bring another, and its pull goes on where the last one broke off.
func TestAllTokensEndInMidBlob(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *registrytest.Upstream, m *testMirror) {
		b := random(big, 75)
		d := up.Push(t, "secret", true, b)
		up.Admit("Bearer old")
		held, hold := make(chan struct{}), make(chan struct{})
		up.Fail(&registrytest.Fault{Left: 1, At: 2 << 20, Held: held, Hold: hold, Cut: true})
		begun, err := m.open(t, "GET", blobPath("secret", d), "Bearer old")
		if err != nil {
			t.Fatal(err)
		}
		defer begun.Body.Close()
		wait(t, "blob arriving", held)
		up.Revoke("Bearer old")
		close(hold)
		if got, err := io.ReadAll(begun.Body); err == nil {
			t.Fatalf("%d bytes of %d ended politely", len(got), len(b))
		}
		m.settled(t, d)
		// The seeder goes on once itself, and asks again for the swarm's way and for its own; the mirror asks last.
		if n := len(up.Seen("GET", d.String())) - 1; n > 4 {
			t.Errorf("the registry was asked %d times in the name of a token that it had refused", n)
		}
		up.Admit("Bearer new")
		m.request(t, "GET", blobPath("secret", d), "Bearer new").mustBe(t, b)
	})
}

// A second registry that claims to hold the blob of another is not believed,
// neither while the blob arrives nor when it is here.
func TestForeignRegistry(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 75)
	d := up.Push(t, "secret", true, b)
	up.Admit(registrytest.Basic("alice"))
	evil := registrytest.New(t)
	evil.Fail(&registrytest.Fault{Method: "*", Left: -1, Answer: func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(strings.Repeat("x", len(b))))
	}})
	m := newMirror(t, up, nil, insecure(up, evil))
	ask := func() {
		t.Helper()
		a := m.request(t, "GET", blobPath("x", d)+"?ns="+evil.Host, "")
		if strings.Contains(string(a.body), string(b[:100])) || a.err == nil && a.status == http.StatusOK {
			t.Errorf("answer = %d, %d bytes (%v)", a.status, len(a.body), a.err)
		}
	}
	ask()
	held, hold := make(chan struct{}), make(chan struct{})
	up.Fail(&registrytest.Fault{Left: 1, At: 2 << 20, Held: held, Hold: hold})
	alice := make(chan answer, 1)
	m.settled(t, d)
	go func() { alice <- m.request(t, "GET", blobPath("secret", d), registrytest.Basic("alice")) }()
	wait(t, "blob arriving", held)
	ask()
	close(hold)
	(<-alice).mustBe(t, b)
	m.settled(t, d)
	ask()
	if r := m.record(t, d); r.From[layers.FromUpstream] != int64(len(b)) || r.Registry != up.Host {
		t.Errorf("record = %+v", r)
	}
}

// Credentials go to the registry, word for word, and to no place where the
// registry sends us.
func TestCredentialsStay(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *registrytest.Upstream, m *testMirror) {
		storage := registrytest.New(t)
		b := random(1000, 76)
		d := storage.Push(t, "bucket", false, b)
		up.Push(t, "secret", true, b)
		up.Admit(registrytest.Basic("alice"))
		up.Fail(&registrytest.Fault{Left: -1, Answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, storage.Server.URL+blobPath("bucket", d), http.StatusTemporaryRedirect)
		}})
		m.request(t, "GET", blobPath("secret", d), registrytest.Basic("alice")).mustBe(t, b)
		for _, a := range storage.Seen("GET", d.String()) {
			if a.Authorization != "" {
				t.Errorf("object storage was given %q", a.Authorization)
			}
		}
		for _, a := range up.Seen("GET", d.String()) {
			if a.Authorization != registrytest.Basic("alice") {
				t.Errorf("the registry was given %q", a.Authorization)
			}
		}
	})
}

// Whoever runs a registry that fails for the digest of another's blob does not keep that
// from coming by the swarm.
func TestForeignRegistryMakesNoSuspects(t *testing.T) {
	t.Parallel()
	up, evil := registrytest.New(t), registrytest.New(t)
	b := random(big, 77)
	d := up.Push(t, "app", false, b)
	evil.Fail(&registrytest.Fault{Left: -1, Path: d.String(), Answer: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(big))
		w.Write(random(big, 78))
	}})
	m := newMirror(t, up, []string{newSeeder(t, up).server.URL}, insecure(up, evil))
	m.request(t, "GET", blobPath("app", d)+"?ns="+evil.Host, "").mustBeCut(t)
	m.settled(t, d)
	m.mustPull(t, "app", b)
	if r := m.settled(t, d); r.Way != "swarm" || r.Why != "" {
		t.Errorf("record = %+v, want all from the swarm", r)
	}
}
