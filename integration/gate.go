package integration

import (
	"bufio"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/integration/netlab"
)

// gate stands in front of a registry (or any HTTP server) under an address of
// its own. It writes down each request, and a test can make it die, hang, or
// hold a blob back in the middle. Safe for concurrent use.
type gate struct {
	Addr string // host:port, what images are named after; the same for life

	proxy *httputil.ReverseProxy
	on    *netlab.Machine // where it listens, and connects to the target from; nil is the test's own network

	mu       sync.Mutex // guards the rest
	target   string     // host:port of the server behind
	server   *http.Server
	requests []*request
	holds    map[string]*hold
	hung     chan struct{} // closed at recover; nil while the gate answers
	replace  http.HandlerFunc
}

// request is one request the gate has seen.
type request struct {
	Method    string
	Path      string
	Query     string
	Range     string
	UserAgent string
	Authed    bool  // had an Authorization header
	Status    int   // 0 while unanswered
	Bytes     int64 // of body sent
}

// openGate starts a gate within the network of m, on addr, that forwards to
// target (both host:port).
func openGate(t testing.TB, m *netlab.Machine, addr, target string) *gate {
	t.Helper()
	g := &gate{on: m, target: target, holds: map[string]*hold{}}
	g.proxy = &httputil.ReverseProxy{
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0), // cut connections are what tests make
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: g.behind()})
			r.Out.Host = r.In.Host // the registry builds URLs from it
		},
	}
	if m != nil {
		g.proxy.Transport = transportOn(m)
	}
	ln, err := listenOn(m, addr)
	if err != nil {
		t.Fatal(err)
	}
	g.Addr = ln.Addr().String()
	g.serve(ln)
	t.Cleanup(func() {
		g.Recover()
		g.ReleaseAll()
		g.Die()
	})
	return g
}

func (g *gate) serve(ln net.Listener) {
	server := &http.Server{Handler: g, ErrorLog: log.New(io.Discard, "", 0)}
	g.mu.Lock()
	g.server = server
	g.mu.Unlock()
	go server.Serve(ln) // ends at Die, which Cleanup calls
}

// Turn forwards to another server from now on.
func (g *gate) Turn(target string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.target = target
}

func (g *gate) behind() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.target
}

// Die closes the listener and every connection, as a crash of the machine
// behind the gate would.
func (g *gate) Die() {
	g.mu.Lock()
	server := g.server
	g.mu.Unlock()
	server.Close()
}

// Revive listens again, at the same address, after Die.
func (g *gate) Revive(t testing.TB) {
	t.Helper()
	waitUntil(t, "listen again at "+g.Addr, func() error {
		ln, err := listenOn(g.on, g.Addr)
		if err == nil {
			g.serve(ln)
		}
		return err
	})
}

// Hang makes the gate accept requests and never answer them, until Recover.
func (g *gate) Hang() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.hung == nil {
		g.hung = make(chan struct{})
	}
}

// Recover ends Hang.
func (g *gate) Recover() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.hung != nil {
		close(g.hung)
		g.hung = nil
	}
}

// Replace answers requests with h instead of the server behind the gate; nil
// ends it. A handler that wants the real answer calls Forward.
func (g *gate) Replace(h http.HandlerFunc) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.replace = h
}

// Forward passes a request on to the server behind the gate.
func (g *gate) Forward(w http.ResponseWriter, r *http.Request) { g.proxy.ServeHTTP(w, r) }

// hold stops the body of the first response for a blob after some bytes.
type hold struct {
	after   int64
	reached chan struct{} // closed once that many bytes have gone out
	release chan struct{} // closed to let the rest go
	once    sync.Once
}

// Hold lets only the first after bytes of d through on the next GET for it,
// until Release. GETs after that one are not held.
func (g *gate) Hold(d digest.Digest, after int64) *hold {
	g.mu.Lock()
	defer g.mu.Unlock()
	h := &hold{after: after, reached: make(chan struct{}), release: make(chan struct{})}
	g.holds[d.String()] = h
	return h
}

// Release lets the rest of the blob go.
func (h *hold) Release() { h.once.Do(func() { close(h.release) }) }

// wait returns when the bytes before the hold have been sent.
func (h *hold) wait(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyWithin)
	defer cancel()
	select {
	case <-h.reached:
	case <-ctx.Done():
		t.Fatalf("the held blob was not asked for, or not up to byte %d: %v", h.after, ctx.Err())
	}
}

// ReleaseAll releases each hold there is.
func (g *gate) ReleaseAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for key, h := range g.holds {
		h.Release()
		delete(g.holds, key)
	}
}

// takeHold returns the hold a request is subject to, if any.
func (g *gate) takeHold(r *http.Request) *hold {
	_, ref, ok := strings.Cut(r.URL.Path, "/blobs/")
	if !ok || r.Method != http.MethodGet {
		return nil
	}
	return g.holds[ref]
}

// ServeHTTP implements http.Handler.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	seen := &request{
		Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Range: r.Header.Get("Range"),
		UserAgent: r.UserAgent(), Authed: r.Header.Get("Authorization") != "",
	}
	g.mu.Lock()
	g.requests = append(g.requests, seen)
	hung, handler, held := g.hung, g.replace, g.takeHold(r)
	g.mu.Unlock()

	if hung != nil {
		select {
		case <-hung:
		case <-r.Context().Done():
			return
		}
	}
	if handler == nil {
		handler = g.Forward
	}
	handler(&tap{ResponseWriter: w, gate: g, seen: seen, hold: held, ctx: r.Context()}, r)
}

// tap counts what goes out and minds the hold.
type tap struct {
	http.ResponseWriter
	gate *gate
	seen *request
	hold *hold
	ctx  context.Context // of the request: who hangs up leaves the hold
}

// Unwrap gives http.ResponseController its way to Flush.
func (w *tap) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader notes the status. Only an answer that has the blob is held: the
// hold stays for the GET after a 401.
func (w *tap) WriteHeader(status int) {
	w.gate.mu.Lock()
	w.seen.Status = status
	if status == http.StatusOK || status == http.StatusPartialContent {
		for key, h := range w.gate.holds {
			if h == w.hold {
				delete(w.gate.holds, key)
			}
		}
	} else {
		w.hold = nil
	}
	w.gate.mu.Unlock()
	w.ResponseWriter.WriteHeader(status)
}

func (w *tap) Write(b []byte) (int, error) {
	if w.hold == nil {
		return w.send(b)
	}
	free := min(int64(len(b)), w.hold.after-w.sent())
	n, err := w.send(b[:free])
	if err != nil || w.sent() < w.hold.after {
		return n, err
	}
	if err := http.NewResponseController(w.ResponseWriter).Flush(); err != nil {
		return n, err
	}
	close(w.hold.reached)
	select {
	case <-w.hold.release:
	case <-w.ctx.Done():
		return n, w.ctx.Err()
	}
	w.hold = nil
	rest, err := w.send(b[free:])
	return n + rest, err
}

func (w *tap) send(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.gate.mu.Lock()
	w.seen.Bytes += int64(n)
	w.gate.mu.Unlock()
	return n, err
}

func (w *tap) sent() int64 {
	w.gate.mu.Lock()
	defer w.gate.mu.Unlock()
	return w.seen.Bytes
}

// Requests returns a copy of what the gate has seen, oldest first.
func (g *gate) Requests() []request {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]request, len(g.requests))
	for i, r := range g.requests {
		all[i] = *r
	}
	return all
}

// Forget drops what has been seen so far.
func (g *gate) Forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.requests = nil
}

// BlobGets counts, for each blob, the GETs that were answered with its bytes.
func (g *gate) BlobGets() map[digest.Digest]int {
	gets := map[digest.Digest]int{}
	for _, r := range g.Requests() {
		_, ref, ok := strings.Cut(r.Path, "/blobs/")
		if ok && r.Method == http.MethodGet && (r.Status == http.StatusOK || r.Status == http.StatusPartialContent) {
			gets[digest.Digest(ref)]++
		}
	}
	return gets
}

// BlobBytes is the sum of blob bytes sent.
func (g *gate) BlobBytes() int64 {
	var sum int64
	for _, r := range g.Requests() {
		if strings.Contains(r.Path, "/blobs/") && r.Status < 300 {
			sum += r.Bytes
		}
	}
	return sum
}

// Count counts the requests that match accepts.
func (g *gate) Count(match func(request) bool) int {
	n := 0
	for _, r := range g.Requests() {
		if match(r) {
			n++
		}
	}
	return n
}

// openDeaf listens within the network of m, accepts and reads, and never
// answers: a program that hangs.
func openDeaf(t testing.TB, m *netlab.Machine, at string) (addr string) {
	t.Helper()
	ln, err := listenOn(m, at)
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	conns.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				defer stop()
				_, _ = io.Copy(io.Discard, bufio.NewReader(conn))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		cancel()
		conns.Wait()
	})
	return ln.Addr().String()
}
