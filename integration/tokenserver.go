package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// tokenServer hands out the signed tokens that docker distribution's token
// authentication asks for (its docs: spec/auth/token, spec/auth/jwt). It
// speaks both ways engines ask: GET with Basic, and the OAuth2 POST.
type tokenServer struct {
	Realm   string // the URL a challenge points at
	Service string
	Issuer  string

	key     *ecdsa.PrivateKey
	cert    []byte // DER, self-signed
	users   map[string]user
	public  []string // repositories anybody may pull
	expires time.Duration

	mu     sync.Mutex // guards what follows
	issued int
}

// user is one who may pull.
type user struct {
	Password     string
	Repositories []string // that the user may pull, besides the public ones
	Push         bool     // may push to them too
}

// startTokenServer starts a token server that knows users and lets everybody
// pull the public repositories.
func startTokenServer(t testing.TB, users map[string]user, public ...string) *tokenServer {
	t.Helper()
	s := &tokenServer{Service: "integration registry", Issuer: "integration", users: users, public: public, expires: 5 * time.Minute}
	s.key, s.cert = newSigner(t, s.Issuer)
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.Realm = server.URL + "/token"
	return s
}

// newSigner makes the key that signs tokens and the certificate by which the
// registry knows it.
func newSigner(t testing.TB, name string) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

// CertificatePEM is the certificate for the registry's rootcertbundle.
func (s *tokenServer) CertificatePEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert}))
}

// Issued counts the tokens handed out.
func (s *tokenServer) Issued() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.issued
}

// access is one right within a token.
type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// ServeHTTP implements http.Handler.
func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	name, password, _ := r.BasicAuth()
	if r.Method == http.MethodPost {
		name, password = r.PostForm.Get("username"), r.PostForm.Get("password")
	}
	who, known := s.users[name]
	if name != "" && (!known || who.Password != password) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"details":"incorrect username or password"}`))
		return
	}
	token, err := s.sign(name, s.grant(who, r.Form["scope"]))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.mu.Lock()
	s.issued++
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"token": token, "access_token": token, "expires_in": int(s.expires.Seconds()), "issued_at": time.Now().UTC().Format(time.RFC3339),
	})
}

// grant is what of the asked scopes the user has. A token without any right is
// still a token, as Docker Hub's are: it is the registry that refuses.
func (s *tokenServer) grant(who user, scopes []string) []access {
	granted := []access{}
	for scope := range strings.FieldsSeq(strings.Join(scopes, " ")) {
		// repository:NAME:ACTIONS; the name may hold a port's colon
		first, last := strings.Index(scope, ":"), strings.LastIndex(scope, ":")
		if first < 0 || first == last || scope[:first] != "repository" {
			continue
		}
		name := scope[first+1 : last]
		own := slices.Contains(who.Repositories, name)
		var actions []string
		for action := range strings.SplitSeq(scope[last+1:], ",") {
			pull := action == "pull" && (own || slices.Contains(s.public, name))
			push := action == "push" && own && who.Push
			if pull || push {
				actions = append(actions, action)
			}
		}
		if len(actions) > 0 {
			granted = append(granted, access{Type: "repository", Name: name, Actions: actions})
		}
	}
	return granted
}

// sign makes the token: a JWS with ES256 whose header carries the certificate.
func (s *tokenServer) sign(subject string, granted []access) (string, error) {
	now := time.Now()
	header, err := json.Marshal(map[string]any{
		"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(s.cert)},
	})
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(map[string]any{
		"iss": s.Issuer, "sub": subject, "aud": s.Service, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(s.expires).Unix(),
		"access": granted,
	})
	if err != nil {
		return "", err
	}
	signed := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(claims)
	sum := sha256.Sum256([]byte(signed))
	r, sv, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64) // r and s, 32 bytes each: RFC 7518, 3.4
	r.FillBytes(signature[:32])
	sv.FillBytes(signature[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}
