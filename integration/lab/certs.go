package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/murderp2p/murder/integration/netlab"
)

// certs are one certificate that serves for all machines of a lab.
type certs struct {
	flags  []string    // the daemons'
	client *tls.Config // for who asks a seeder
}

// makeCerts has murder make them.
func (l *lab) makeCerts(ctx context.Context) error {
	dir := filepath.Join(l.dir, "certs")
	out, err := exec.CommandContext(ctx, l.murder, "certs", "--dir", dir, "--host", "lab",
		"--host", seederAddr.String(), "--host", twinAddr.String(), "--host", "127.0.0.1").CombinedOutput()
	if err != nil {
		return fmt.Errorf("murder certs: %w: %s", err, out)
	}
	cert, key, ca := filepath.Join(dir, "lab.crt"), filepath.Join(dir, "lab.key"), filepath.Join(dir, "ca.crt")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return err
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	l.certs.flags = []string{"--tls-cert", cert, "--tls-key", key, "--tls-ca", ca}
	l.certs.client = &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool}
	return nil
}

// seederURL is how mirrors ask the seeder on m.
func (l *lab) seederURL(m *netlab.Machine) string {
	scheme := "http"
	if l.tls {
		scheme = "https"
	}
	return fmt.Sprintf("%s://%s:%d", scheme, m.Addr, seederPort)
}

// askSeeder is a client on a seeder's machine.
func (l *lab) askSeeder(m *netlab.Machine) *puller {
	p := newPuller(m, l.seederURL(m), registryName(registryAddr))
	p.http.Transport.(*http.Transport).TLSClientConfig = l.certs.client
	return p
}
