package mtls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// authorityLife is for how long an [Authority] is good.
const authorityLife = 10 * 365 * 24 * time.Hour

// early is by how much a clock may be behind that of the machine on which certificates
// are made.
const early = time.Hour

// Authority is a CA for a fleet.
type Authority struct {
	cert *x509.Certificate
	key  any
}

// PEM is a certificate and its private key as they are in files.
type PEM struct{ Cert, Key []byte }

// NewAuthority makes a CA and returns what has to be kept of it.
func NewAuthority() (*Authority, PEM, error) {
	now := time.Now()
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "murder CA " + now.UTC().Format(time.DateOnly)},
		NotBefore: now.Add(-early), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	made, err := sign(template, nil)
	if err != nil {
		return nil, PEM{}, err
	}
	a, err := ParseAuthority(made)
	return a, made, err
}

// ParseAuthority returns the CA whose certificate and key are given.
func ParseAuthority(kept PEM) (*Authority, error) {
	pair, err := tls.X509KeyPair(kept.Cert, kept.Key)
	switch {
	case err != nil:
		return nil, err
	case !pair.Leaf.IsCA:
		return nil, errors.New("the certificate is not that of a CA")
	}
	return &Authority{pair.Leaf, pair.PrivateKey}, nil
}

// Issue makes a certificate by which a host of the given names and IP addresses can
// be asked, and can ask others, from now on for so long, or until the CA's own time is over.
func (a *Authority) Issue(hosts []string, life time.Duration) (PEM, error) {
	if len(hosts) == 0 {
		return PEM{}, errors.New("a certificate needs a name")
	}
	now := time.Now()
	until := now.Add(life)
	if until.After(a.cert.NotAfter) {
		until = a.cert.NotAfter
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: hosts[0]},
		NotBefore: now.Add(min(0, life) - early), NotAfter: until,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	return sign(template, a)
}

// sign makes a key and a certificate for it, signed by a, or by itself.
func sign(template *x509.Certificate, a *Authority) (made PEM, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return made, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return made, err
	}
	if a == nil {
		a = &Authority{template, key}
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return made, fmt.Errorf("sign a certificate: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return made, err
	}
	made.Cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	made.Key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	return made, nil
}
