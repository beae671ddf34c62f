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

	"github.com/murderp2p/murder/layers"
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

// The client asks for a blob in a caller's name, and gets the registry's verdict on
// them, or what there is of the blob.
func TestClient(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 70)
	d := up.Push(t, "secret", true, b)
	up.Admit(registrytest.Basic("alice"))
	s := newSeeder(t, up)
	repo := repository(t, up.Host, "secret")
	if _, err := s.client.Ask(t.Context(), repo, d, ""); !registry.Unauthorized(err) {
		t.Errorf("Ask without credentials = %v, want the registry's 401", err)
	}
	held, hold := make(chan struct{}), make(chan struct{})
	up.Fail(&registrytest.Fault{Left: 1, At: 1 << 20, Held: held, Hold: hold})
	arriving := mustAsk(t, s, repo, d)
	wait(t, "fetch under way", held)
	if arriving.Size != big || arriving.Body == nil || arriving.Torrent.Metainfo() != nil {
		t.Errorf("answer = %+v, want a torrent that grows", arriving)
	}
	read := make(chan error, 1)
	go func() { read <- layers.ReadTorrent(arriving.Torrent, arriving.Body) }()
	known := int(1 << 20 / arriving.Torrent.PieceLength())
	eventually(t, "what has come is known", func() bool { return arriving.Torrent.Known() == known })
	close(hold)
	if err := <-read; err != nil {
		t.Errorf("ReadTorrent = %v", err)
	}
	var whole layers.Answer
	eventually(t, "blob whole", func() bool { whole = mustAsk(t, s, repo, d); return whole.Body == nil })
	var m *layers.Metainfo
	eventually(t, "blob has its name, and metainfo", func() bool {
		var err error
		m, err = s.client.Metainfo(t.Context(), repo, d, registrytest.Basic("alice"))
		return err == nil
	})
	if got := arriving.Torrent.Metainfo(); got == nil || got.InfoHash() != m.InfoHash() {
		t.Errorf("metainfo = %v while it arrived, then %v", got, m)
	}
	if err := whole.Torrent.SetInfo(m.InfoBytes()); err != nil || whole.Torrent.Metainfo() == nil {
		t.Errorf("the name of the whole blob's swarm does not fit its metainfo: %v", err)
	}
	if _, err := s.client.Metainfo(t.Context(), repo, d, ""); !registry.Unauthorized(err) {
		t.Errorf("Metainfo without credentials = %v, want the registry's 401", err)
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

// mustAsk asks as alice.
func mustAsk(t testing.TB, s *testSeeder, repo registry.Repository, d digest.Digest) layers.Answer {
	t.Helper()
	a, err := s.client.Ask(t.Context(), repo, d, registrytest.Basic("alice"))
	if err != nil {
		t.Fatalf("Ask = %v", err)
	}
	if a.Body != nil {
		t.Cleanup(func() { a.Body.Close() })
	}
	return a
}

// Small blobs come at once, whether or not the seeder has them.
func TestClientOfSmallBlobs(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	s := newSeeder(t, up)
	for _, size := range []int{0, 1, 1000, layers.SmallBlob - 1} {
		b := random(size, 73)
		d := up.Push(t, "app", false, b)
		for range 2 {
			a := mustAsk(t, s, repository(t, up.Host, "app"), d)
			if a.Torrent != nil || a.Size != int64(size) {
				t.Fatalf("answer about %d bytes = %+v", size, a)
			}
			got, err := io.ReadAll(a.Body)
			answer{http.StatusOK, nil, got, err}.mustBe(t, b)
		}
		if n := len(up.Seen("GET", d.String())); n != 1 {
			t.Errorf("%d bytes: the registry saw %d requests, want 1", size, n)
		}
	}
	b := random(1000, 74)
	d := up.Push(t, "app", false, b)
	up.Fail(&registrytest.Fault{Left: -1, At: 999, Flip: true})
	a := mustAsk(t, s, repository(t, up.Host, "app"), d)
	if got, err := io.ReadAll(a.Body); err == nil {
		t.Errorf("%d wrong bytes ended politely", len(got))
	}
}

// Whatever else a server answers is no verdict, so that the mirror goes on.
func TestClientOfAnotherServer(t *testing.T) {
	t.Parallel()
	d, name := digest.FromString("asked for"), strings.Repeat("ab", 20)
	for what, h := range map[string]http.HandlerFunc{
		"404":           http.NotFound,
		"401":           func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusUnauthorized) },
		"500":           func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) },
		"page":          func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
		"empty":         func(http.ResponseWriter, *http.Request) {},
		"noise":         func(w http.ResponseWriter, _ *http.Request) { w.Write(random(1000, 71)) },
		"202":           seeming("application/json", "", "", 202),
		"another type":  seeming("text/plain", name, "5", 200),
		"garbage":       seeming("application/x-bittorrent", "", "", 200),
		"short name":    seeming("application/x-bittorrent", name[2:], "5", 200),
		"long name":     seeming("application/x-bittorrent", name+"00", "5", 200),
		"no name":       seeming("application/x-bittorrent", "?", "5", 200),
		"no size":       seeming("application/x-bittorrent", name, "", 200),
		"negative size": seeming("application/x-bittorrent", name, "-5", 200),
		"huge size":     seeming("application/x-bittorrent", name, "9223372036854775807", 200),
		"redirects":     func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.String(), http.StatusFound) },
		"cut": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			w.Write([]byte("d4:info"))
			panic(http.ErrAbortHandler)
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(h)
			defer server.Close()
			a, err := newClient(t, server.URL, patience).Ask(t.Context(), repository(t, "reg.example", "app"), d, "")
			if err == nil || registry.Refused(err) {
				t.Errorf("Ask = %+v, %v; want an error that is no verdict", a, err)
			}
		})
	}
}

// seeming answers as a seeder that is not quite one.
func seeming(contentType, name, size string, status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(registry.SeederHeader, "1")
		w.Header().Set("Content-Type", contentType)
		if name != "" {
			w.Header().Set("Murder-Swarm", name)
		}
		if size != "" {
			w.Header().Set("Murder-Size", size)
		}
		w.WriteHeader(status)
		fmt.Fprint(w, "d4:info")
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
		if _, err = client.Ask(bounded(t), repo, d, ""); !errors.Is(err, registry.ErrUnreachable) {
			t.Errorf("Ask = %v, want ErrUnreachable", err)
		}
		if err := client.Alive(bounded(t)); !errors.Is(err, registry.ErrUnreachable) {
			t.Errorf("Alive = %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		client = newClient(t, client.URL(), patience)
		if _, err = client.Ask(ctx, repo, d, ""); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Ask for a caller who leaves = %v", err)
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
		// Mostly ErrUnreachable; on a busy machine the body may count as idle first.
		if n, err := io.Copy(io.Discard, body); n != 10 || err == nil {
			t.Errorf("read %d bytes, %v; want 10 and an error", n, err)
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
	t.Run("thinks for ever", func(t *testing.T) {
		t.Parallel()
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for r.URL.Path != "/livez" && r.Context().Err() == nil {
				w.WriteHeader(http.StatusProcessing)
				time.Sleep(time.Millisecond)
			}
		}))
		defer server.Close()
		if _, err := newClient(t, server.URL, 40*time.Millisecond).Ask(bounded(t), repo, d, ""); !errors.Is(err, registry.ErrUnreachable) {
			t.Errorf("Ask = %v, want ErrUnreachable", err)
		}
	})
	t.Run("metainfo trickles", func(t *testing.T) {
		t.Parallel()
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(registry.SeederHeader, "1")
			w.Header().Set("Content-Type", "application/x-bittorrent")
			for r.Context().Err() == nil && r.URL.Path != "/livez" {
				w.Write([]byte("d"))
				http.NewResponseController(w).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		}))
		defer server.Close()
		if _, err := newClient(t, server.URL, 100*time.Millisecond).Ask(bounded(t), repo, d, ""); err == nil {
			t.Error("Ask was answered")
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
		a, err := client.Ask(bounded(t), repository(t, up.Host, "app"), d, "")
		if err != nil || a.Size != 1000 {
			t.Fatalf("Ask of a registry that takes its time = %+v, %v", a, err)
		}
		a.Body.Close()
	})
}

// bounded is the context of what must end by itself, if late on a busy machine.
func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}
