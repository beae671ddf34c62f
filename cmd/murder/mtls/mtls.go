// Package mtls is the TLS between murders: who has a certificate of the
// operator's CA is one of the fleet, and nobody else is.
//
// An [Identity] is what a host shows and what it asks for: a certificate, its key
// and the CA, in three files. They are read again when they change, for the
// connections that begin from then on; those that are open stay. It makes
//
//   - the seeder's HTTPS ([Identity.HTTPS]), which also lets in who shows no
//     certificate, since probes have none: [Identified] tells them apart;
//   - the connections to it ([Identity.DialHTTPS]), on which the name or address by
//     which the operator knows it must be in its certificate;
//   - the BitTorrent wire ([Identity.PeerListener], [Identity.DialPeer]), where no
//     name is looked at, as peers know each other by address only, and a host's
//     may change.
//
// An [Authority] is the CA of those who have none.
package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

// Files are what an [Identity] is read from, all in PEM.
type Files struct {
	Cert string // the host's certificate, and any between it and the CA
	Key  string // its private key
	CA   string // the certificates of the CA, of which there may be several while one replaces another
}

// Identity is safe for concurrent use.
type Identity struct {
	files    Files
	log      *slog.Logger
	material atomic.Pointer[material] // as last read
	checked  atomic.Int64             // when the files were last looked at, in Unix nanoseconds
	looking  atomic.Bool              // one looks at a time
	seen     [3]stamp                 // the files when they were last read; belongs to who is looking
}

// lookEvery is how often connections make us look whether the files have changed.
const lookEvery = time.Second

// Open reads the files. It returns an error that names the file which cannot be
// used. A certificate that has expired is used: others refuse it, and say so,
// but pulls from the registry go on.
func Open(files Files, log *slog.Logger) (*Identity, error) {
	id := &Identity{files: files, log: log}
	id.seen = files.stamps()
	m, err := files.read()
	if err != nil {
		return nil, err
	}
	if _, err := m.leaf.Verify(x509.VerifyOptions{Roots: m.pool}); expired(err) {
		log.Error("this host's certificate is refused by others", "file", files.Cert, "err", err)
	}
	id.material.Store(m)
	id.checked.Store(time.Now().UnixNano())
	return id, nil
}

// CertFile is the file of the host's certificate.
func (id *Identity) CertFile() string { return id.files.Cert }

// Expires is when the host's certificate does.
func (id *Identity) Expires() time.Time { return id.now().leaf.NotAfter }

// HTTPS is for a server. It asks for a certificate and refuses one that is not of
// the CA, but not a client that shows none.
func (id *Identity) HTTPS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return id.now().https, nil
	}}
}

// Identified tells whether a request that came in by [Identity.HTTPS] is from one of
// the fleet.
func Identified(r *http.Request) bool { return r.TLS != nil && len(r.TLS.VerifiedChains) > 0 }

// now is what the files hold. A change is found by whoever comes first after
// lookEvery; meanwhile the others go on with what there is.
func (id *Identity) now() *material {
	due := id.checked.Load()+int64(lookEvery) <= time.Now().UnixNano()
	if due && id.looking.CompareAndSwap(false, true) {
		id.look()
		id.checked.Store(time.Now().UnixNano())
		id.looking.Store(false)
	}
	return id.material.Load()
}

// look reads the files if they have changed. What cannot be used is told of once, and
// is not used.
func (id *Identity) look() {
	stamps := id.files.stamps()
	if stamps == id.seen {
		return
	}
	id.seen = stamps
	m, err := id.files.read()
	if err != nil {
		id.log.Error("certificates have changed and cannot be used; those from before stay in use", "err", err)
		return
	}
	id.material.Store(m)
	id.log.Info("certificates read again", "file", id.files.Cert, "expires", m.leaf.NotAfter)
}

// stamp tells whether a file is another one, or has other content; the zero stamp is
// a file that cannot be looked at.
type stamp struct {
	changed time.Time
	size    int64
}

func (f Files) stamps() (all [3]stamp) {
	for i, name := range []string{f.Cert, f.Key, f.CA} {
		if info, err := os.Stat(name); err == nil {
			all[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return all
}

// material is what the files hold, ready for use.
type material struct {
	leaf   *x509.Certificate
	pool   *x509.CertPool
	https  *tls.Config // of the seeder
	orders *tls.Config // of a mirror
	asks   *tls.Config // of who asks a seeder; lacks its name
	takes  *tls.Config // of who is called by a peer
	calls  *tls.Config // of who calls one
}

// read returns what is in the files if others would accept it, today or ever.
func (f Files) read() (*material, error) {
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("read the CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read the CA: %s holds no certificate in PEM", f.CA)
	}
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("read certificate %s and key %s: %w", f.Cert, f.Key, err)
	}
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		err := verify(chain(cert), pool, use)
		switch _, usage := errors.AsType[x509.CertificateInvalidError](err); {
		case err == nil, expired(err):
		case usage:
			return nil, fmt.Errorf("certificate %s must be for servers and for clients: %w", f.Cert, err)
		default:
			return nil, fmt.Errorf("certificate %s is not of the CA in %s: %w", f.Cert, f.CA, err)
		}
	}
	return newMaterial(cert, pool), nil
}

func newMaterial(cert tls.Certificate, pool *x509.CertPool) *material {
	base := &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{cert},
		// Else one who is refused for want of the right CA would show nothing, and
		// be told that it has nothing.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
		RootCAs:              pool, ClientCAs: pool,
		// A certificate counts at every connection. There are few.
		SessionTicketsDisabled: true,
		// They are long, and what they carry is too.
		DynamicRecordSizingDisabled: true,
	}
	m := &material{leaf: cert.Leaf, pool: pool, https: base.Clone(), orders: base.Clone(), asks: base.Clone(), takes: base.Clone(), calls: base.Clone()}
	m.https.ClientAuth = tls.VerifyClientCertIfGiven
	m.https.NextProtos = []string{"http/1.1"} // blobs and waits want connections of their own
	m.orders.ClientAuth, m.orders.NextProtos = tls.RequireAndVerifyClientCert, m.https.NextProtos
	m.takes.ClientAuth = tls.RequireAndVerifyClientCert
	m.calls.InsecureSkipVerify = true // of the name, which a peer has none of; the rest is verified here:
	m.calls.VerifyConnection = func(s tls.ConnectionState) error {
		if err := verify(s.PeerCertificates, pool, x509.ExtKeyUsageServerAuth); err != nil {
			return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
		}
		return nil
	}
	return m
}

// chain parses the certificates that LoadX509KeyPair has taken.
func chain(cert tls.Certificate) []*x509.Certificate {
	certs := []*x509.Certificate{cert.Leaf}
	for _, der := range cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			certs = append(certs, c)
		}
	}
	return certs
}

// verify returns nil for a chain that leads to the pool and is good for a use.
func verify(chain []*x509.Certificate, pool *x509.CertPool, use x509.ExtKeyUsage) error {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{use}})
	return err
}

// expired tells whether err is about a certificate whose time is over, or has not come.
func expired(err error) bool {
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	return ok && invalid.Reason == x509.Expired
}
