package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
)

// demoName is the repository and tag of the demo's image.
const (
	demoRepository = "demo/image"
	demoTag        = "latest"
)

// demoRegistry is go-containerregistry's registry with its blobs on disk, which counts what it sends. Blobs are read past it, from its own
// files: it would hash each anew before it sends it, and does not know all forms of Range.
type demoRegistry struct {
	addr   string
	dir    string // of the blobs
	inner  http.Handler
	server *http.Server
	ended  chan struct{} // closed when server has ended

	mu   sync.Mutex // guards sent
	sent demoUpstream
}

// asked is how often a blob or manifest was read, and the bytes sent for it.
type asked struct {
	Requests int   `json:"requests"`
	Bytes    int64 `json:"bytes"`
}

func newDemoRegistry(dir string) (*demoRegistry, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &demoRegistry{
		addr:  l.Addr().String(),
		dir:   dir,
		inner: registry.New(registry.WithBlobHandler(registry.NewDiskBlobHandler(dir)), registry.Logger(log.New(io.Discard, "", 0))),
		ended: make(chan struct{}),
	}
	r.reset()
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(r.ended)
		r.server.Serve(l) // ends with close
	}()
	return r, nil
}

func (r *demoRegistry) close() {
	r.server.Close()
	<-r.ended
}

func (r *demoRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	i := strings.LastIndexByte(req.URL.Path, '/')
	dir, name := req.URL.Path[:i], req.URL.Path[i+1:]
	if req.Method != http.MethodGet || !strings.HasSuffix(dir, "/blobs") && !strings.HasSuffix(dir, "/manifests") {
		r.inner.ServeHTTP(w, req)
		return
	}
	isBlob := strings.HasSuffix(dir, "/blobs")
	cw := &countingWriter{ResponseWriter: w}
	if !isBlob || !r.serveBlob(cw, req, name) {
		r.inner.ServeHTTP(cw, req)
	}
	r.count(isBlob, name, cw.n)
}

// serveBlob sends a blob if it is here.
func (r *demoRegistry) serveBlob(w http.ResponseWriter, req *http.Request, name string) bool {
	d, err := digest.Parse(name)
	if err != nil {
		return false
	}
	f, err := os.Open(filepath.Join(r.dir, string(d.Algorithm()), d.Encoded()))
	if err != nil {
		return false
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", name)
	http.ServeContent(w, req, "", time.Time{}, f)
	return true
}

func (r *demoRegistry) count(isBlob bool, name string, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	parts := r.sent.Manifests
	if isBlob {
		parts = r.sent.Blobs
	}
	parts[name] = parts[name].plus(n)
	r.sent.asked = r.sent.plus(n)
}

// plus is one request more, and n bytes.
func (a asked) plus(n int64) asked { return asked{a.Requests + 1, a.Bytes + n} }

// reset forgets what was counted.
func (r *demoRegistry) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = demoUpstream{Blobs: make(map[string]asked), Manifests: make(map[string]asked)}
}

// counted returns what was asked for; nobody asks any more.
func (r *demoRegistry) counted() demoUpstream {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent
}

// countingWriter counts a response's body, whichever way the bytes go.
type countingWriter struct {
	http.ResponseWriter
	n int64
}

func (w *countingWriter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.n += int64(n)
	return n, err
}

// ReadFrom keeps sendfile possible.
func (w *countingWriter) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(w.ResponseWriter, r)
	w.n += n
	return n, err
}

// push uploads the image. Each blob goes in one POST, since the registry would hold it in memory otherwise; it checks the digests.
func (r *demoRegistry) push(ctx context.Context, img *demoImage) error {
	c := newClient("http://"+r.addr, "")
	defer c.close()
	for _, b := range img.blobs {
		if err := r.pushBlob(ctx, c, b); err != nil {
			return fmt.Errorf("push %s: %w", b.digest, err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, c.base+"/v2/"+demoRepository+"/manifests/"+demoTag, strings.NewReader(string(img.manifest)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", img.mediaType)
	if err := send(c, req); err != nil {
		return fmt.Errorf("push the manifest: %w", err)
	}
	return nil
}

func (r *demoRegistry) pushBlob(ctx context.Context, c *client, b demoBlob) (err error) {
	content, err := b.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, content.Close()) }()
	url := c.base + "/v2/" + demoRepository + "/blobs/uploads/?digest=" + b.digest.String()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, content)
	if err != nil {
		return err
	}
	req.ContentLength = b.size
	return send(c, req)
}

func send(c *client, req *http.Request) error {
	resp, err := c.http.Do(req)
	if err != nil {
		return withoutURL(req.Context(), err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return answerErrorOf(resp)
	}
	return nil
}
