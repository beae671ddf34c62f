package integration

import (
	"compress/gzip"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
)

// Registries, and what stands before them, that answer otherwise than most. Engines
// pull from them, and so they do through murder, which asks for each blob once.

// oddly changes what the registry answers.
func oddly(g *gate, change func(w http.ResponseWriter, r *http.Request, answer *httptest.ResponseRecorder)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		g.Forward(answer, r)
		for name, values := range answer.Header() {
			w.Header()[name] = values
		}
		change(w, r, answer)
	}
}

// withoutHead answers all HEADs with a status.
func withoutHead(g *gate, status int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.WriteHeader(status)
			return
		}
		g.Forward(w, r)
	}
}

// oddRegistries are handlers in the place of a registry.
func oddRegistries(g *gate) map[string]http.HandlerFunc {
	var mu sync.Mutex
	asked := map[string]bool{}
	return map[string]http.HandlerFunc{
		"tells no length of a body": oddly(g, func(w http.ResponseWriter, r *http.Request, answer *httptest.ResponseRecorder) {
			if r.Method == http.MethodGet {
				w.Header().Del("Content-Length")
			}
			w.WriteHeader(answer.Code)
			http.NewResponseController(w).Flush()
			w.Write(answer.Body.Bytes())
		}),
		"compresses unasked": oddly(g, func(w http.ResponseWriter, r *http.Request, answer *httptest.ResponseRecorder) {
			if r.Method == http.MethodHead {
				w.WriteHeader(answer.Code)
				return
			}
			w.Header().Del("Content-Length")
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(answer.Code)
			z := gzip.NewWriter(w)
			z.Write(answer.Body.Bytes())
			z.Close()
		}),
		"names neither digest nor type": oddly(g, func(w http.ResponseWriter, r *http.Request, answer *httptest.ResponseRecorder) {
			w.Header().Del("Docker-Content-Digest")
			w.Header().Del("Etag")
			w.Header()["Content-Type"] = nil
			w.WriteHeader(answer.Code)
			w.Write(answer.Body.Bytes())
		}),
		"does not allow HEAD":      withoutHead(g, http.StatusMethodNotAllowed),
		"calls HEAD a bad request": withoutHead(g, http.StatusBadRequest),
		"fails over HEAD":          withoutHead(g, http.StatusInternalServerError),
		"is busy at first": func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			again := asked[r.URL.Path]
			asked[r.URL.Path] = true
			mu.Unlock()
			if !again {
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			g.Forward(w, r)
		},
		"redirects to itself": func(w http.ResponseWriter, r *http.Request) {
			if digestOf(r.URL.Path) != "" && r.URL.RawQuery == "" {
				http.Redirect(w, r, r.URL.Path+"?signature=abc", http.StatusFound)
				return
			}
			g.Forward(w, r)
		},
		"wants to know who asks": func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasPrefix(r.UserAgent(), "murder") {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			g.Forward(w, r)
		},
	}
}

func TestOddRegistries(t *testing.T) {
	needs(t, "docker-registry")
	f := startFleet(t, fleetConfig{Mirrors: 2})
	for name, handler := range oddRegistries(f.Registry.gate) {
		t.Run(name, func(t *testing.T) {
			repo := strings.ToLower(strings.ReplaceAll(name, " ", "-"))
			image, err := makeImage(newRoot(t), repo, 2<<20, 1000)
			if err != nil {
				t.Fatal(err)
			}
			push(t, f.Registry.Addr, repo+":"+fixtureTag, image, nil)
			f.Registry.Forget()
			f.Registry.Replace(handler)
			defer f.Registry.Replace(nil)
			var pulls errgroup.Group
			for _, m := range f.Mirrors {
				pulls.Go(func() error {
					_, err := pullImage(t, m, f.Registry.Addr, repo, fixtureTag)
					return err
				})
			}
			if err := pulls.Wait(); err != nil {
				t.Error(err)
			}
			f.checkEachBlobOnce(t, allBlobs(t, image)...)
		})
	}
}

// TestPrivateCA pulls from a registry whose certificate is of a CA that only the
// environment of seeder and mirror names.
func TestPrivateCA(t *testing.T) {
	needs(t, "docker-registry")
	image, err := makeImage(newRoot(t), "private-ca", 2<<20)
	if err != nil {
		t.Fatal(err)
	}
	r := startRegistry(t, registryConfig{})
	push(t, r.Addr, "app:"+fixtureTag, image, nil)
	server := httptest.NewTLSServer(r.gate)
	t.Cleanup(server.Close)
	r.Forget()
	host := strings.TrimPrefix(server.URL, "https://")
	cas := newRoot(t)
	writeFile(t, filepath.Join(cas, "ca.crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))

	trusting := daemonConfig{Env: []string{"SSL_CERT_DIR=" + cas}, Flags: []string{"--allow-registry", host}}
	seeder := startSeeder(t, trusting)
	trusting.Seeders = []string{seeder.URL()}
	if _, err := pullImage(t, startMirror(t, trusting), host, "app", fixtureTag); err != nil {
		t.Error(err)
	}
	stranger := startMirror(t, daemonConfig{Flags: trusting.Flags})
	if a := get(t, stranger.Manifest(host, "app", fixtureTag)); a.Status != http.StatusBadGateway || !strings.Contains(string(a.Body), "x509") {
		t.Errorf("without the CA = %d %s, want 502 that says why", a.Status, a.Body)
	}
}

// TestRegistryOverIPv6 pulls from a registry that has no other address.
func TestRegistryOverIPv6(t *testing.T) {
	needs(t, "docker-registry")
	ln, err := listenOn(nil, "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here: ", err)
	}
	ln.Close()
	image, err := makeImage(newRoot(t), "ipv6", 2<<20)
	if err != nil {
		t.Fatal(err)
	}
	f := startFleet(t, fleetConfig{Registry: registryConfig{Addr: "[::1]:0"}, Mirrors: 1})
	push(t, f.Registry.Addr, "app:"+fixtureTag, image, nil)
	f.Registry.Forget()
	if _, err := pullImage(t, f.Mirrors[0], f.Registry.Addr, "app", fixtureTag); err != nil {
		t.Error(err)
	}
	f.checkEachBlobOnce(t, allBlobs(t, image)...)
}
