package proxy_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/murderp2p/murder/layers"
)

// mustChallenge fails the test unless the answer is a 401 with the registry's
// own challenge.
func (a answer) mustChallenge(t testing.TB, up *upstream) {
	t.Helper()
	a.mustRefuse(t, http.StatusUnauthorized, "UNAUTHORIZED")
	if got, want := a.header.Get("Www-Authenticate"), up.challenge("secret"); got != want {
		t.Errorf("challenge = %q, want the registry's %q", got, want)
	}
}

// Private blobs are for those whom the registry lets in, wherever the bytes
// are by then: nowhere yet, arriving, in the mirror's cache, in the seeder's.
func TestPrivateBlobs(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *upstream, m *testMirror) {
		b := random(big, 70)
		d := up.push(t, "secret", true, b)
		up.push(t, "public", false, random(10, 71))
		up.admit(basic("alice"))
		up.admit(basic("bob"))
		stranger := func() {
			t.Helper()
			m.request(t, "GET", blobPath("secret", d), "").mustChallenge(t, up)
			m.request(t, "GET", blobPath("secret", d), basic("mallory")).mustChallenge(t, up)
			m.request(t, "GET", blobPath("secret", d), "", "Range", "bytes=0-10").mustChallenge(t, up)
			if a := m.request(t, "HEAD", blobPath("secret", d), ""); a.status != http.StatusUnauthorized || a.header.Get("Www-Authenticate") == "" {
				t.Errorf("HEAD = %d %v", a.status, a.header)
			}
			// In a public repository it is not to be had either.
			for _, who := range []string{"", basic("mallory"), basic("alice")} {
				m.request(t, "GET", blobPath("public", d), who).mustRefuse(t, http.StatusNotFound, "BLOB_UNKNOWN")
				if a := m.request(t, "HEAD", blobPath("public", d), who); a.status != http.StatusNotFound {
					t.Errorf("HEAD in a public repository = %d", a.status)
				}
			}
		}
		stranger()
		held, hold := make(chan struct{}), make(chan struct{})
		up.fail(&fault{left: 1, path: d.String(), at: 2 << 20, held: held, hold: hold}, &fault{left: -1, at: big})
		alice := make(chan answer, 1)
		go func() { alice <- m.request(t, "GET", blobPath("secret", d), basic("alice")) }()
		wait(t, "blob arriving", held)
		eventually(t, "mirror brings it", func() bool { return len(m.Ledger().Records(d)) == 1 })
		stranger()
		bob := make(chan answer, 1)
		go func() { bob <- m.request(t, "GET", blobPath("secret", d), basic("bob")) }()
		close(hold)
		(<-alice).mustBe(t, b)
		(<-bob).mustBe(t, b)
		m.settled(t, d)
		stranger()
		m.request(t, "GET", blobPath("secret", d), basic("bob")).mustBe(t, b)
		up.revoke(basic("bob"))
		m.request(t, "GET", blobPath("secret", d), basic("alice")).mustBe(t, b)
	})
}

// A right that was taken back is noticed within the time that it holds for,
// and a stranger is not let in while the registry is away.
func TestRevoked(t *testing.T) {
	t.Parallel()
	up := newUpstream(t)
	b := random(1000, 72)
	d := up.push(t, "secret", true, b)
	up.admit(basic("alice"))
	m := newMirror(t, up, nil, authTTL(time.Nanosecond))
	m.request(t, "GET", blobPath("secret", d), basic("alice")).mustBe(t, b)
	m.settled(t, d)
	up.away()
	m.request(t, "GET", blobPath("secret", d), basic("alice")).mustBe(t, b)
	m.request(t, "GET", blobPath("secret", d), "").mustRefuse(t, http.StatusBadGateway, "UNAVAILABLE")
	m.request(t, "GET", blobPath("secret", d), basic("mallory")).mustRefuse(t, http.StatusBadGateway, "UNAVAILABLE")
	up.mend()
	up.revoke(basic("alice"))
	m.request(t, "GET", blobPath("secret", d), basic("alice")).mustChallenge(t, up)
	up.away()
	m.request(t, "GET", blobPath("secret", d), basic("alice")).mustRefuse(t, http.StatusBadGateway, "UNAVAILABLE")
}

// The challenge of a registry with tokens leads to its token server, and the
// token opens the image through mirror and seeder.
func TestTokens(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *upstream, m *testMirror) {
		b := random(1000, 73)
		d := up.push(t, "secret", true, b)
		up.mu.Lock()
		up.bearer = true
		up.mu.Unlock()
		m.request(t, "GET", blobPath("secret", d), "").mustChallenge(t, up)
		up.admit("Bearer for-alice")
		m.request(t, "GET", blobPath("secret", d), "Bearer for-alice").mustBe(t, b)
		m.request(t, "GET", blobPath("secret", d), "Bearer for-mallory").mustChallenge(t, up)
	})
}

// A token that ends in mid-blob does not end the download while another
// caller may have it.
func TestTokenEndsInMidBlob(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *upstream, m *testMirror) {
		b := random(big, 74)
		d := up.push(t, "secret", true, b)
		up.admit(basic("alice"))
		up.admit(basic("bob"))
		held, hold := make(chan struct{}), make(chan struct{})
		up.fail(&fault{left: 1, at: 2 << 20, held: held, hold: hold, cut: true})
		answers := make(chan answer, 2)
		go func() { answers <- m.request(t, "GET", blobPath("secret", d), basic("alice")) }()
		wait(t, "blob arriving", held)
		eventually(t, "mirror brings it", func() bool { return len(m.Ledger().Records(d)) == 1 })
		bob, err := m.open(t, "GET", blobPath("secret", d), basic("bob"))
		if err != nil {
			t.Fatal(err)
		}
		defer bob.Body.Close()
		// Strangers in any number do not push the rightful out of memory.
		for _, who := range strings.Split("abcdefghijkl", "") {
			m.request(t, "GET", blobPath("secret", d), basic(who)).mustChallenge(t, up)
		}
		up.revoke(basic("alice"))
		close(hold)
		body, err := io.ReadAll(bob.Body)
		answer{bob.StatusCode, bob.Header, body, err}.mustBe(t, b)
		(<-answers).mustBe(t, b)
	})
}

// A second registry that claims to hold the blob of another is not believed,
// neither while the blob arrives nor when it is here.
func TestForeignRegistry(t *testing.T) {
	t.Parallel()
	up := newUpstream(t)
	b := random(big, 75)
	d := up.push(t, "secret", true, b)
	up.admit(basic("alice"))
	evil := newUpstream(t)
	evil.fail(&fault{method: "*", left: -1, answer: func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(strings.Repeat("x", len(b))))
	}})
	m := newMirror(t, up, nil, insecure(up, evil))
	ask := func() {
		t.Helper()
		a := m.request(t, "GET", blobPath("x", d)+"?ns="+evil.host, "")
		if strings.Contains(string(a.body), string(b[:100])) || a.err == nil && a.status == http.StatusOK {
			t.Errorf("answer = %d, %d bytes (%v)", a.status, len(a.body), a.err)
		}
	}
	ask()
	held, hold := make(chan struct{}), make(chan struct{})
	up.fail(&fault{left: 1, at: 2 << 20, held: held, hold: hold})
	alice := make(chan answer, 1)
	m.settled(t, d)
	go func() { alice <- m.request(t, "GET", blobPath("secret", d), basic("alice")) }()
	wait(t, "blob arriving", held)
	ask()
	close(hold)
	(<-alice).mustBe(t, b)
	m.settled(t, d)
	ask()
	if r := m.record(t, d); r.From[layers.FromUpstream] != int64(len(b)) || r.Registry != up.host {
		t.Errorf("record = %+v", r)
	}
}

// Credentials go to the registry, word for word, and to no place where the
// registry sends us.
func TestCredentialsStay(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *upstream, m *testMirror) {
		storage := newUpstream(t)
		b := random(1000, 76)
		d := storage.push(t, "bucket", false, b)
		up.push(t, "secret", true, b)
		up.admit(basic("alice"))
		up.fail(&fault{left: -1, answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, storage.server.URL+blobPath("bucket", d), http.StatusTemporaryRedirect)
		}})
		m.request(t, "GET", blobPath("secret", d), basic("alice")).mustBe(t, b)
		for _, a := range storage.seen("GET", d.String()) {
			if a.authorization != "" {
				t.Errorf("object storage was given %q", a.authorization)
			}
		}
		for _, a := range up.seen("GET", d.String()) {
			if a.authorization != basic("alice") {
				t.Errorf("the registry was given %q", a.authorization)
			}
		}
	})
}
