package mtls

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// patience bounds every wait.
const patience = 30 * time.Second

func newAuthority(t testing.TB) (*Authority, PEM) {
	t.Helper()
	a, made, err := NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	return a, made
}

func issue(t testing.TB, a *Authority, life time.Duration, hosts ...string) PEM {
	t.Helper()
	p, err := a.Issue(hosts, life)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// put writes what an identity is read from; nil leaves a file as it is.
func (f Files) put(t testing.TB, host PEM, ca []byte) {
	t.Helper()
	for name, content := range map[string][]byte{f.Cert: host.Cert, f.Key: host.Key, f.CA: ca} {
		if content == nil {
			continue
		}
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func newFiles(t testing.TB) Files {
	dir := t.TempDir()
	return Files{Cert: filepath.Join(dir, "h.crt"), Key: filepath.Join(dir, "h.key"), CA: filepath.Join(dir, "ca.crt")}
}

func open(t testing.TB, host PEM, ca []byte) *Identity {
	t.Helper()
	f := newFiles(t)
	f.put(t, host, ca)
	id, err := Open(f, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// member is an identity of a's fleet by a name that nobody dials.
func member(t testing.TB, a *Authority, ca PEM) *Identity {
	t.Helper()
	return open(t, issue(t, a, time.Hour, "somebody.example"), ca.Cert)
}

// peers is a listener that sends back what it gets, and where it listens.
func peers(t testing.TB, id *Identity) netip.AddrPort {
	t.Helper()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := id.PeerListener(raw)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				_, _ = io.Copy(struct{ io.Writer }{c}, c)
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// echo sends content through a connection to addr and wants it back.
func echo(t testing.TB, id *Identity, addr netip.AddrPort, content []byte) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := id.DialPeer(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(content)
		wrote <- err
	}()
	got := make([]byte, len(content))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, content) {
		t.Errorf("%d bytes came back changed", len(content))
	}
	return <-wrote
}

// Bytes of all lengths around those of records come through as they are.
func TestPeersTalk(t *testing.T) {
	a, ca := newAuthority(t)
	addr := peers(t, member(t, a, ca))
	caller := member(t, a, ca)
	for _, size := range []int{1, 17, maxRecord - 1, maxRecord, maxRecord + 1, 64<<10 + 13, maxGathered, maxGathered + 1, 1 << 20} {
		content := bytes.Repeat([]byte{byte(size), 1, 2, 3, 5, 7, 11}, size/7+1)[:size]
		if err := echo(t, caller, addr, content); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// Each error says whose certificate is at fault.
func TestStrangersGetNothing(t *testing.T) {
	a, ca := newAuthority(t)
	b, cb := newAuthority(t)
	ours := member(t, a, ca)
	addr := peers(t, ours)
	stranger := member(t, b, cb)
	late := open(t, issue(t, a, -time.Minute, "late"), ca.Cert)
	trusting := open(t, issue(t, b, time.Hour, "x"), slices.Concat(ca.Cert, cb.Cert))
	for _, test := range []struct {
		what   string
		caller *Identity
		addr   netip.AddrPort
		want   []string
	}{
		{"of another CA, called", ours, peers(t, stranger), []string{"the certificate of 127.0.0.1:", "is refused", "unknown authority"}},
		{"of another CA, calls", stranger, addr, []string{"is refused", "unknown authority"}},
		{"expired, called", ours, peers(t, late), []string{"the certificate of 127.0.0.1:", "has expired"}},
		{"expired, calls", late, addr, []string{"refuses the certificate of this host, ", "h.crt", "expired"}},
		{"trusts ours, but shows another's", trusting, addr, []string{"refuses the certificate of this host, ", "unknown certificate authority"}},
	} {
		err := echo(t, test.caller, test.addr, []byte("hello"))
		if err == nil {
			t.Errorf("%s: it was served", test.what)
			continue
		}
		for _, part := range test.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q does not say %q", test.what, err, part)
			}
		}
	}
}

// One with no certificate, one of TLS 1.2 and one without TLS hear no byte of what is
// said inside.
func TestStrangersHearNothing(t *testing.T) {
	a, ca := newAuthority(t)
	addr := peers(t, member(t, a, ca)).String()
	host := issue(t, a, time.Hour, "h")
	pair, err := tls.X509KeyPair(host.Cert, host.Key)
	if err != nil {
		t.Fatal(err)
	}
	for what, config := range map[string]*tls.Config{
		"no certificate": {InsecureSkipVerify: true},
		"TLS 1.2":        {InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}},
		"no TLS":         nil,
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if config != nil {
			c = tls.Client(c, config)
		}
		_, _ = io.WriteString(c, "\x13BitTorrent protocol")
		got, err := io.ReadAll(c)
		if config != nil && len(got) > 0 || bytes.Contains(got, []byte("BitTorrent")) {
			t.Errorf("%s: heard %q", what, got)
		}
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			t.Errorf("%s: the connection stayed open", what)
		}
	}
}

// A seeder's name must be in its certificate; who shows no certificate is told apart.
func TestHTTPS(t *testing.T) {
	a, ca := newAuthority(t)
	server := open(t, issue(t, a, time.Hour, "seeder.example", "127.0.0.1"), ca.Cert)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !Identified(r) {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	s.Config.ErrorLog = slog.NewLogLogger(server.log.Handler(), slog.LevelInfo)
	s.Listener = tls.NewListener(s.Listener, server.HTTPS())
	s.Start()
	defer s.Close()
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())

	ask := func(transport *http.Transport, host string) (int, error) {
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport, Timeout: patience}).Get("https://" + net.JoinHostPort(host, port))
		if err != nil {
			return 0, err
		}
		return resp.StatusCode, resp.Body.Close()
	}
	with := func(id *Identity) *http.Transport { return &http.Transport{DialTLSContext: id.DialHTTPS} }
	if status, err := ask(with(member(t, a, ca)), "127.0.0.1"); status != 200 {
		t.Errorf("one of the fleet: %d, %v", status, err)
	}
	if _, err := ask(with(member(t, a, ca)), "localhost"); err == nil || !strings.Contains(err.Error(), "valid for seeder.example, not localhost") {
		t.Errorf("by a name it does not have: %v", err)
	}
	if status, err := ask(&http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, "127.0.0.1"); status != 403 {
		t.Errorf("no certificate: %d, %v; want 403", status, err)
	}
	b, cb := newAuthority(t)
	trusting := open(t, issue(t, b, time.Hour, "x"), slices.Concat(ca.Cert, cb.Cert))
	if _, err := ask(with(trusting), "127.0.0.1"); err == nil || !strings.Contains(err.Error(), "refuses the certificate of this host") {
		t.Errorf("a certificate of another CA: %v", err)
	}
}

// due has the next connection look at the files.
// A mirror is asked in plain and by TLS on one port; a client that says it speaks TLS must show a certificate.
func TestEither(t *testing.T) {
	a, ca := newAuthority(t)
	other, otherCA := newAuthority(t)
	id := open(t, issue(t, a, time.Hour, "127.0.0.1"), ca.Cert)
	trusting := open(t, issue(t, other, time.Hour, "x"), slices.Concat(ca.Cert, otherCA.Cert))
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("layer"), 1<<18)
	file := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			io.Copy(w, r.Body)
			return
		}
		http.ServeFile(w, r, file)
	})}
	go server.Serve(id.Either(plain))
	t.Cleanup(func() { server.Close() })

	for who, test := range map[string]struct {
		scheme string
		dial   func(ctx context.Context, network, addr string) (net.Conn, error)
		ok     bool
	}{
		"an engine":         {"http", nil, true},
		"one of the fleet":  {"https", id.DialHTTPS, true},
		"one of another CA": {"https", trusting.DialHTTPS, false},
		"one without a certificate": {"https", func(ctx context.Context, network, addr string) (net.Conn, error) {
			return (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext(ctx, network, addr)
		}, false},
	} {
		client := &http.Client{Transport: &http.Transport{DialTLSContext: test.dial}}
		for range 2 { // on one connection
			resp, err := client.Get(test.scheme + "://" + plain.Addr().String() + "/")
			if !test.ok {
				if err == nil {
					t.Errorf("%s was answered %s", who, resp.Status)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", who, err)
				continue
			}
			got, err := io.ReadAll(resp.Body)
			if resp.Body.Close(); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s got %d bytes of %d, %v", who, len(got), len(content), err)
			}
			resp, err = client.Post(test.scheme+"://"+plain.Addr().String()+"/", "text/plain", bytes.NewReader(content))
			if err != nil {
				t.Errorf("%s: %v", who, err)
				continue
			}
			got, err = io.ReadAll(resp.Body)
			if resp.Body.Close(); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s got %d bytes of %d back, %v", who, len(got), len(content), err)
			}
		}
		client.CloseIdleConnections()
	}
}

func (id *Identity) due() { id.checked.Store(0) }

// A whole fleet moves from one CA to another while it runs: what is open stays, what is
// new is by the new files; a file that is of no use changes nothing.
func TestFilesAreReadAgain(t *testing.T) {
	a, ca := newAuthority(t)
	b, cb := newAuthority(t)
	called, caller := member(t, a, ca), member(t, a, ca)
	addr := peers(t, called)
	before, err := caller.DialPeer(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()

	called.files.put(t, PEM{Cert: []byte("half a")}, nil)
	called.due()
	if err := echo(t, caller, addr, []byte("still")); err != nil {
		t.Errorf("with a file that is of no use: %v", err)
	}
	called.files.put(t, issue(t, b, time.Hour, "new"), cb.Cert)
	called.due()
	if err := echo(t, caller, addr, []byte("old")); err == nil {
		t.Error("who shows a certificate of the CA that was is served")
	}
	caller.files.put(t, issue(t, b, time.Hour, "new"), cb.Cert)
	caller.due()
	if err := echo(t, caller, addr, []byte("new")); err != nil {
		t.Errorf("both by the new files: %v", err)
	}
	_ = before.SetDeadline(time.Now().Add(patience))
	if _, err := before.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(before, make([]byte, 1)); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
}
