package integration

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/murderp2p/murder/cmd/murder/mtls"
)

// certs is a folder of certificates, as an operator has it.
type certs struct{ dir string }

// newCerts has `murder certs` make a CA and the certificate of a host.
func newCerts(t testing.TB) *certs {
	t.Helper()
	c := &certs{filepath.Join(t.TempDir(), "certs")}
	c.make(t)
	return c
}

// make makes the host's certificate, once more if need be.
func (c *certs) make(t testing.TB) {
	t.Helper()
	if _, errs, code := runMurder(t, nil, "certs", "--dir", c.dir, "--host", "host", "--overwrite"); code != 0 {
		t.Fatalf("murder certs: %s", errs)
	}
}

func (c *certs) path(name string) string { return filepath.Join(c.dir, name) }

// flags are those of both daemons and of `murder status`.
func (c *certs) flags() []string {
	return []string{"--tls-cert", c.path("host.crt"), "--tls-key", c.path("host.key"), "--tls-ca", c.path("ca.crt")}
}

// expire puts a certificate of the same CA in the host's place that has expired.
func (c *certs) expire(t testing.TB) {
	t.Helper()
	a, err := mtls.ParseAuthority(mtls.PEM{Cert: readFile(t, c.path("ca.crt")), Key: readFile(t, c.path("ca.key"))})
	if err != nil {
		t.Fatal(err)
	}
	late, err := a.Issue([]string{"127.0.0.1"}, -time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, c.path("host.crt"), string(late.Cert))
	writeFile(t, c.path("host.key"), string(late.Key))
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// config is TLS as one has it who does not care whom it talks to, with the
// certificate in the folder; nil has none.
func (c *certs) config(t testing.TB) *tls.Config {
	t.Helper()
	config := &tls.Config{InsecureSkipVerify: true}
	if c != nil {
		pair, err := tls.LoadX509KeyPair(c.path("host.crt"), c.path("host.key"))
		if err != nil {
			t.Fatal(err)
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return config
}
