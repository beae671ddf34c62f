package registry

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"
)

// testLog sends what is logged to the test's own output.
func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// content returns n bytes that differ from byte to byte, and their digest.
func content(n int) ([]byte, digest.Digest) {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b, digest.FromBytes(b)
}

// oneByte hands out b in the smallest reads that there are.
func oneByte(b []byte) *closable {
	return &closable{Reader: iotest.OneByteReader(bytes.NewReader(b))}
}

// serve returns the HOST:PORT of a server that ends with the test.
func serve(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// newTestClient returns a Client that speaks HTTP to the hosts, and leaves no
// connection behind.
func newTestClient(t testing.TB, hosts ...string) *Client {
	t.Helper()
	return testClient(t, ClientConfig{Insecure: hosts})
}

func testClient(t testing.TB, cfg ClientConfig) *Client {
	t.Helper()
	if cfg.Transport == nil {
		transport := patientTransport()
		t.Cleanup(transport.CloseIdleConnections)
		cfg.Transport = transport
	}
	return NewClient(cfg)
}

// patientTransport waits as long as a busy machine may take.
func patientTransport() *http.Transport {
	t := Transport()
	t.DialContext = new(net.Dialer).DialContext
	t.TLSHandshakeTimeout, t.ResponseHeaderTimeout = time.Minute, time.Minute
	return t
}

func parseURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// basic is an Authorization header of a user whose name is their password.
func basic(user string) string {
	r := httptest.NewRequest("GET", "/", nil)
	r.SetBasicAuth(user, user)
	return r.Header.Get("Authorization")
}

// checkGoroutines fails the test when more goroutines of this package run at
// its end than at its beginning. They get time to end, also on a busy machine.
func checkGoroutines(t testing.TB) {
	t.Helper()
	before := ours()
	t.Cleanup(func() {
		for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() {
			after := ours()
			if strings.Count(after, "goroutine ") <= strings.Count(before, "goroutine ") {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("goroutines outlive the test:\n%s", after)
				return
			}
		}
	})
}

// ours returns the stacks of goroutines that this package began or that read
// an answer of a server on our behalf.
func ours() string {
	buf := make([]byte, 4<<20)
	var b strings.Builder
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "testing.") || !strings.Contains(stack, "murder/registry.") && !strings.Contains(stack, "persistConn") {
			continue
		}
		fmt.Fprintln(&b, stack)
	}
	return b.String()
}

// status returns err's HTTP status, 0 when it is not an *Error.
func status(err error) int {
	e, _ := err.(*Error)
	if e == nil {
		return 0
	}
	return e.Status
}

// closable is a body that knows whether it was closed.
type closable struct {
	io.Reader
	closed atomic.Bool
}

func (c *closable) Close() error {
	c.closed.Store(true)
	return nil
}
