package main

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/murderp2p/murder/cmd/murder/mtls"
	"github.com/murderp2p/murder/seeder/roster"
)

// identityFor is that of a host of the names, of the CA a.
func identityFor(t *testing.T, a *mtls.Authority, ca mtls.PEM, names ...string) *mtls.Identity {
	t.Helper()
	issued, err := a.Issue(names, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := mtls.Files{Cert: filepath.Join(dir, "crt"), Key: filepath.Join(dir, "key"), CA: filepath.Join(dir, "ca")}
	for name, content := range map[string][]byte{files.Cert: issued.Cert, files.Key: issued.Key, files.CA: ca.Cert} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	id, err := mtls.Open(files, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Wherever DNS leads, a seeder has the name that the operator wrote, and another member
// of the fleet is none.
func TestSeederIsWhoTheOperatorNamed(t *testing.T) {
	a, ca, err := mtls.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	serve := func(names ...string) *url.URL {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }))
		s.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(t.Output(), nil), slog.LevelInfo)
		s.Listener = tls.NewListener(s.Listener, identityFor(t, a, ca, names...).HTTPS())
		s.Start()
		t.Cleanup(s.Close)
		return &url.URL{Scheme: "https", Host: s.Listener.Addr().String()}
	}
	list := &seeders{tls: &seederTLS{identity: identityFor(t, a, ca, "mirrors")}}
	for _, c := range []struct {
		at   *url.URL
		name string
		want string // in the error; "" is none
	}{
		{serve("seeder.test"), "seeder.test", ""},
		{serve("seeder.test"), "", "doesn't contain any IP SANs"},
		{serve("host7.test", "127.0.0.1"), "seeder.test", "not seeder.test"},
		{serve("127.0.0.1"), "", ""},
	} {
		clients, _, err := list.of([]roster.Seeder{{URL: c.at.String(), Name: c.name}})
		if err != nil {
			t.Fatal(err)
		}
		err = clients[0].Alive(t.Context())
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("seeder %s as %q: %v, want %q", c.at, c.name, err, c.want)
		}
		// Announces go the same way.
		conn, err := list.tls.dial(t.Context(), "tcp", c.at.Host)
		if (err == nil) != (c.want == "") {
			t.Errorf("tracker %s as %q: %v, want %q", c.at, c.name, err, c.want)
		}
		if err == nil {
			conn.Close()
		}
	}
}

// A seeder that stays keeps its client, with what that knows of it.
func TestSeedersThatStay(t *testing.T) {
	list := &seeders{tls: new(seederTLS)}
	one, two := roster.Seeder{URL: "http://10.0.0.1:7070"}, roster.Seeder{URL: "http://10.0.0.2:7070"}
	before, _, err := list.of([]roster.Seeder{one, two})
	if err != nil {
		t.Fatal(err)
	}
	after, _, err := list.of([]roster.Seeder{two})
	if err != nil || len(after) != 1 || after[0] != before[1] {
		t.Errorf("%v after %v, %v; want the same client", after, before, err)
	}
	if again, _, err := list.of([]roster.Seeder{one, two}); err != nil || again[0] == before[0] || again[1] != before[1] {
		t.Errorf("%v, %v; want another client for the one that was away", again, err)
	}
}
