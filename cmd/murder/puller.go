package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/cmd/murder/mtls"
	"github.com/murderp2p/murder/registry"
)

// puller reads an artifact as an engine reads an image: through a mirror, or, where that cannot be had, from the registry
// itself. Blobs go on at the same byte when an answer breaks off, and on the next way when one leads no further.
type puller struct {
	img   image
	repo  registry.Repository
	creds *credentials
	warn  func(text string)

	mu   sync.Mutex // guards what follows
	ways []way      // the first is in use
	auth string     // the Authorization that was admitted last, "" for none
}

// way is one whom a puller may ask.
type way struct {
	name string // "the mirror HOST:PORT", "the registry"
	registry.Upstream
}

const (
	// mirrorIdle is how long a mirror may send nothing. It leaves ways that bring nothing earlier than that.
	mirrorIdle = 30 * time.Second
	// pullTries is how often in a row a way is asked for a blob without a byte of it, and pullWait for how long: one
	// that hangs need not do so twice.
	pullTries = 4
	pullWait  = mirrorIdle
)

// newPuller asks the mirror at that base URL first, as id if it is asked by https and id is not nil.
func newPuller(img image, mirror string, id *mtls.Identity, creds *credentials, insecure []string, warn func(string)) (*puller, error) {
	repo, err := registry.ParseRepository(img.registry(), img.repository())
	if err != nil {
		return nil, err
	}
	if img.ref.Context().Scheme() == "http" { // a registry on this host
		insecure = append(insecure, repo.Host)
	}
	base, err := url.Parse(mirror)
	if err != nil {
		return nil, err
	}
	through := registry.NewClient(registry.ClientConfig{Transport: newThroughMirror(base, id, repo.Host), Idle: mirrorIdle})
	direct := registry.NewClient(registry.ClientConfig{Insecure: insecure, Near: []string{repo.Host}})
	return &puller{img: img, repo: repo, creds: creds, warn: warn, ways: []way{{"the mirror " + base.Host, through}, {"the registry", direct}}}, nil
}

// through is the way in use, in a word.
func (p *puller) through() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ways) == 1 {
		return "registry"
	}
	return "mirror"
}

func (p *puller) now() (way, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ways[0], p.auth
}

// leave gives a way up for the next, and is false when there is none. Another may have done so already.
func (p *puller) leave(w way, why error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ways[0].name != w.name {
		return true
	}
	if len(p.ways) == 1 {
		return false
	}
	p.ways = p.ways[1:]
	if fault, ok := errors.AsType[*mirrorFault](why); ok { // it is spoken of as if it were the registry
		why = fault.err
	}
	p.warn(fmt.Sprintf("%s cannot be used: %v; asking %s itself", w.name, why, p.ways[0].name))
	return true
}

// manifest gets the manifest that the user has named.
func (p *puller) manifest(ctx context.Context) (d digest.Digest, content []byte, err error) {
	for {
		w, _ := p.now()
		err := p.authorized(ctx, w, func(auth string) error {
			desc, b, err := w.GetManifest(ctx, p.repo, p.img.ref.Identifier(), auth)
			d, content = desc.Digest, b
			return err
		})
		if err == nil || registry.Refused(err) || ctx.Err() != nil || !p.leave(w, err) {
			return d, content, err
		}
	}
}

// authorized does what may be refused without credentials, and with those of the user once more if it is.
func (p *puller) authorized(ctx context.Context, w way, do func(auth string) error) error {
	_, auth := p.now()
	err := do(auth)
	if !registry.Unauthorized(err) {
		return err
	}
	refusal, _ := errors.AsType[*registry.Error](err)
	challenge := refusal.Header.Get("WWW-Authenticate")
	if challenge == "" {
		return err
	}
	header, err := p.creds.authorization(ctx, p.img, challenge, auth)
	if err != nil {
		return &registry.Error{Status: http.StatusUnauthorized, Code: registry.CodeUnauthorized, Message: err.Error()}
	}
	p.mu.Lock()
	p.auth = header
	p.mu.Unlock()
	return do(header)
}

// blob is the content of a blob of size bytes; the caller verifies it.
func (p *puller) blob(ctx context.Context, d digest.Digest, size int64) io.ReadCloser {
	return &pulledBlob{ctx: ctx, puller: p, digest: d, size: size, last: time.Now()}
}

// pulledBlob is a blob that is asked for when it is read.
type pulledBlob struct {
	ctx    context.Context // of the request whose body this is
	puller *puller
	digest digest.Digest
	size   int64
	at     int64     // the next byte
	tries  int       // since a byte came
	last   time.Time // when one came, or the way was taken
	body   io.ReadCloser
}

// Read implements io.Reader.
func (b *pulledBlob) Read(buf []byte) (int, error) {
	for b.at < b.size {
		w, _ := b.puller.now()
		err := b.open(w)
		if err == nil {
			var n int
			if n, err = b.body.Read(buf); n > 0 {
				b.at += int64(n)
				b.tries, b.last = 0, time.Now()
				return n, nil // the error comes again
			}
			if err == nil {
				continue
			}
			b.Close()
		}
		if err := b.again(w, err); err != nil {
			return 0, err
		}
	}
	return 0, io.EOF
}

func (b *pulledBlob) open(w way) error {
	if b.body != nil {
		return nil
	}
	return b.puller.authorized(b.ctx, w, func(auth string) error {
		body, size, err := w.GetBlob(b.ctx, b.puller.repo, b.digest, b.at, auth)
		if err != nil {
			return err
		}
		if size >= 0 && size != b.size {
			body.Close()
			return fmt.Errorf("%s has %d bytes, and %d as the manifest says", b.digest, size, b.size)
		}
		b.body = body
		return nil
	})
}

// again waits a little after err, or gives up the way, or the blob, and then returns why.
func (b *pulledBlob) again(w way, err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	b.tries++
	switch {
	case b.ctx.Err() != nil:
		return context.Cause(b.ctx)
	case registry.Refused(err):
		return err
	case b.tries < pullTries && time.Since(b.last) < pullWait:
		select {
		case <-b.ctx.Done():
			return context.Cause(b.ctx)
		case <-time.After(time.Duration(b.tries*b.tries-1) * 200 * time.Millisecond):
			return nil
		}
	case b.puller.leave(w, err):
		b.tries, b.last = 0, time.Now()
		return nil
	default:
		return err
	}
}

// Close ends the answer that is being read.
func (b *pulledBlob) Close() error {
	if b.body == nil {
		return nil
	}
	err := b.body.Close()
	b.body = nil
	return err
}

// throughMirror takes what is asked of a registry to a mirror, as engines do by its ?ns=; token servers are asked
// themselves.
type throughMirror struct {
	mirror   *url.URL
	registry string
	at       http.RoundTripper // to the mirror
	past     http.RoundTripper // to elsewhere
}

func newThroughMirror(mirror *url.URL, id *mtls.Identity, host string) *throughMirror {
	at := registry.Transport()
	at.Proxy = nil // mirrors are at home
	at.ResponseHeaderTimeout = mirrorIdle
	if id != nil {
		at.DialTLSContext = id.DialHTTPS
	}
	return &throughMirror{mirror: mirror, registry: host, at: at, past: registry.Transport()}
}

// RoundTrip implements http.RoundTripper.
func (t *throughMirror) RoundTrip(req *http.Request) (*http.Response, error) {
	if !strings.HasPrefix(req.URL.Path, "/v2/") {
		return t.past.RoundTrip(req)
	}
	there := req.Clone(req.Context())
	there.URL.Scheme, there.URL.Host, there.Host = t.mirror.Scheme, t.mirror.Host, ""
	query := there.URL.Query()
	query.Set("ns", t.registry)
	there.URL.RawQuery = query.Encode()
	resp, err := t.at.RoundTrip(there)
	if err != nil {
		return nil, &mirrorFault{err}
	}
	if resp.Header.Get(registry.MirrorHeader) == "" {
		resp.Body.Close()
		return nil, &mirrorFault{errors.New("something else answers there")}
	}
	if resp.StatusCode/100 == 4 && resp.StatusCode != http.StatusUnauthorized && resp.Header.Get(registry.UpstreamHeader) == "" {
		resp.StatusCode = http.StatusBadGateway // its own word, and not the registry's
	}
	return resp, nil
}

// mirrorFault is that a mirror did not answer, or was none.
type mirrorFault struct{ err error }

func (e *mirrorFault) Error() string { return e.err.Error() }
func (e *mirrorFault) Unwrap() error { return e.err }
