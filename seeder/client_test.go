package seeder_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/registry/registrytest"
)

func repository(t testing.TB, host, name string) registry.Repository {
	t.Helper()
	repo, err := registry.ParseRepository(host, name)
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// The client asks for metainfo in a caller's name, and gets the registry's
// verdict on them.
func TestClient(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 70)
	d := up.Push(t, "secret", true, b)
	up.Admit(registrytest.Basic("alice"))
	s := newSeeder(t, up)
	repo := repository(t, up.Host, "secret")
	if _, _, err := s.client.Torrent(t.Context(), repo, d, "", 0); !registry.Unauthorized(err) {
		t.Errorf("Torrent without credentials = %v, want the registry's 401", err)
	}
	held, hold := make(chan struct{}), make(chan struct{})
	up.Fail(&registrytest.Fault{Left: 1, At: 1 << 20, Held: held, Hold: hold})
	m, arrival, err := s.client.Torrent(t.Context(), repo, d, registrytest.Basic("alice"), 0)
	if err != nil || m != nil || arrival.Size != big || !arrival.Stream {
		t.Errorf("Torrent = %v, %+v, %v; want an arrival", m, arrival, err)
	}
	wait(t, "fetch under way", held)
	close(hold)
	if m, _, err = s.client.Torrent(t.Context(), repo, d, registrytest.Basic("alice"), patience); err != nil || m.Digest() != d {
		t.Errorf("Torrent = %v, %v; want metainfo", m, err)
	}
	body, size, err := s.client.GetBlob(t.Context(), repo, d, 1_000_000, registrytest.Basic("alice"))
	if err != nil || size != big {
		t.Fatalf("GetBlob = %d, %v", size, err)
	}
	defer body.Close()
	rest, err := io.ReadAll(body)
	answer{http.StatusOK, nil, rest, err}.mustBe(t, b[1_000_000:])
	if err := s.client.Alive(t.Context()); err != nil {
		t.Errorf("Alive = %v", err)
	}
	if s.client.URL() != s.server.URL || s.client.Announce() != s.server.URL+"/announce" {
		t.Errorf("URL, Announce = %s, %s", s.client.URL(), s.client.Announce())
	}
}

// Whatever else a server answers is no verdict, so that the mirror goes on.
func TestClientOfAnotherServer(t *testing.T) {
	t.Parallel()
	d := digest.FromString("asked for")
	for name, h := range map[string]http.HandlerFunc{
		"404":     http.NotFound,
		"401":     func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusUnauthorized) },
		"500":     func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) },
		"page":    func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
		"empty":   func(http.ResponseWriter, *http.Request) {},
		"garbage": func(w http.ResponseWriter, _ *http.Request) { w.Write(random(1000, 71)) },
		"202 of another": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(202)
			fmt.Fprint(w, `{"digest":"sha256:`+strings.Repeat("a", 64)+`","size":5}`)
		},
		"negative size": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(202)
			fmt.Fprintf(w, `{"digest":%q,"size":-5}`, d)
		},
		"202 garbage": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(202); fmt.Fprint(w, `{`) },
		"redirects":   func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.String(), http.StatusFound) },
		"cut": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			w.Write([]byte("d4:info"))
			panic(http.ErrAbortHandler)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(h)
			defer server.Close()
			m, _, err := newClient(t, server.URL, patience).Torrent(t.Context(), repository(t, "reg.example", "app"), d, "", 0)
			if err == nil || registry.Refused(err) {
				t.Errorf("Torrent = %v, %v; want an error that is no verdict", m, err)
			}
		})
	}
}

// A seeder that hangs is given up, before the first byte of an answer and in the
// middle of one; one that is slow for good reasons is not. For how long it may
// hang is TestSilence's.
func TestPatience(t *testing.T) {
	t.Parallel()
	repo, d := repository(t, "reg.example", "app"), digest.FromString("asked for")
	t.Run("mute", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, nobody answers
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		client := newClient(t, "http://"+l.Addr().String(), 0)
		if _, _, err = client.Torrent(bounded(t), repo, d, "", 0); !errors.Is(err, registry.ErrUnreachable) {
			t.Errorf("Torrent = %v, want ErrUnreachable", err)
		}
		if err := client.Alive(bounded(t)); !errors.Is(err, registry.ErrUnreachable) {
			t.Errorf("Alive = %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		client = newClient(t, client.URL(), patience)
		if _, _, err = client.Torrent(ctx, repo, d, "", 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Torrent for a caller who leaves = %v", err)
		}
	})
	t.Run("only livez", func(t *testing.T) {
		t.Parallel()
		hung := make(chan struct{})
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/livez" {
				<-hung
			}
		}))
		defer server.Close()
		defer close(hung)
		if _, err := newClient(t, server.URL, 0).HeadManifest(bounded(t), repo, "v1", ""); !errors.Is(err, registry.ErrUnreachable) {
			t.Errorf("HeadManifest = %v, want ErrUnreachable", err)
		}
	})
	t.Run("hangs in mid-body", func(t *testing.T) {
		t.Parallel()
		hung := make(chan struct{})
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/v2/") {
				w.Header().Set(registry.SeederHeader, "1")
				w.Header().Set("Content-Length", "1000")
				w.Write(make([]byte, 10))
				http.NewResponseController(w).Flush()
			}
			<-hung
		}))
		defer server.Close()
		defer close(hung)
		body, _, err := newClient(t, server.URL, 0).GetBlob(bounded(t), repo, d, 0, "")
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		n, err := io.Copy(io.Discard, body)
		if n != 10 || !errors.Is(err, registry.ErrUnreachable) {
			t.Errorf("read %d bytes, %v; want 10 and ErrUnreachable", n, err)
		}
	})
	t.Run("pauses in mid-body", func(t *testing.T) {
		t.Parallel()
		more := make(chan struct{})
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(registry.SeederHeader, "1")
			if strings.HasPrefix(r.URL.Path, "/v2/") {
				w.Header().Set("Content-Length", "1000")
				w.Write(make([]byte, 10))
				http.NewResponseController(w).Flush()
				<-more
				w.Write(make([]byte, 990))
			}
		}))
		defer server.Close()
		const patience = 2 * time.Second
		body, _, err := newClient(t, server.URL, patience).GetBlob(bounded(t), repo, d, 0, "")
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		timer := time.AfterFunc(2*patience, func() { close(more) })
		defer timer.Stop()
		if n, err := io.Copy(io.Discard, body); n != 1000 || err != nil {
			t.Errorf("read %d bytes, %v; want all", n, err)
		}
	})
	t.Run("thinks", func(t *testing.T) {
		t.Parallel()
		up := registrytest.New(t)
		b := random(1000, 72)
		d := up.Push(t, "app", false, b)
		hold := make(chan struct{})
		up.Fail(&registrytest.Fault{Left: 1, Answer: func(w http.ResponseWriter, r *http.Request) {
			<-hold
			up.ServeHTTP(w, r)
		}})
		// Beats come several times a second: one in so long a time gets through.
		const patience = 3 * time.Second
		client := newClient(t, newSeeder(t, up).server.URL, patience)
		timer := time.AfterFunc(patience+time.Second, func() { close(hold) })
		defer timer.Stop()
		m, _, err := client.Torrent(bounded(t), repository(t, up.Host, "app"), d, "", time.Minute)
		if err != nil || m.Digest() != d {
			t.Errorf("Torrent of a registry that takes its time = %v, %v", m, err)
		}
	})
}

// bounded is the context of what must end by itself, if late on a busy machine.
func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}
