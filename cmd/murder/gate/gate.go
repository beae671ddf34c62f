// Package gate decides which requests come in to a daemon's HTTP API, before
// any of it looks at them. What a request for content may have, the registry
// says, and not the gate; it keeps out those that no engine and no operator
// sends:
//
//   - pages in somebody's browser, which reach every port of the host that the
//     browser runs on: by a request across sites, or by a name of their own that
//     leads here (DNS rebinding);
//   - from other hosts, questions and orders to the daemon itself, unless they
//     show the operator's token;
//   - where the fleet has certificates, whoever shows none;
//   - bodies where there is none to be sent.
//
// Beside it stand the bounds on connections (see [Connections] and [Listen]).
package gate

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"time"

	"github.com/murderp2p/murder/registry"
)

// Gate is an http.Handler in front of Next.
type Gate struct {
	Next http.Handler
	// Own tells of a path, in its shortest form, whether it is part of the
	// daemon's own API: not for everybody, like pulls, health and metrics.
	Own func(path string) bool
	// Names are the names by which the daemon may be asked, in the form of
	// [registry.Matches], besides those that no stranger can have; nil = any.
	Names []string
	// Token is what callers of the own API show; nil = none is needed, and
	// none helps, but they must be on this machine.
	Token *Token
	// Events is what registries show that tell of pushes, at [EventsPath]; then they
	// need no certificate. nil = nothing but what others need.
	Events *Token
	// Identified tells of a request whether it comes from one of the fleet, which
	// alone may ask for more than health and metrics; nil = all may.
	Identified func(*http.Request) bool
	Log        *slog.Logger
}

// bodyTime is how long a body may take, also one that is of no use here: Go's
// server reads on after the answer, to use the connection again.
const bodyTime = 30 * time.Second

// timely is the body of a request that may come in. Once it is here the answer may take as
// long as it takes.
type timely struct {
	io.ReadCloser
	conn *http.ResponseController
}

// Read implements io.Reader.
func (b *timely) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.conn.SetReadDeadline(time.Time{})
	}
	return n, err
}

// EventsPath is where a seeder is told of pushes.
const EventsPath = "/v1/events"

// open are for load balancers and Prometheus, which ask by names of all kinds.
func open(path string) bool {
	return path == "/livez" || path == "/readyz" || path == "/healthz" || path == "/metrics"
}

// ServeHTTP implements http.Handler.
func (g *Gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p := r.URL.Path
	if !registry.IsPull(p) {
		p = path.Clean("/" + p)
	}
	own := !open(p) && g.Own(p)
	err := g.judge(r, p, own)
	if r.ContentLength != 0 {
		conn := http.NewResponseController(w)
		conn.SetReadDeadline(time.Now().Add(bodyTime))
		r.Body = &timely{r.Body, conn}
	}
	if err != nil {
		w.Header().Set("Connection", "close")
		registry.WriteError(w, r, err)
		return
	}
	g.Next.ServeHTTP(w, r)
}

// judge returns nil for a request that may come in.
func (g *Gate) judge(r *http.Request, path string, own bool) error {
	switch {
	case r.ContentLength != 0 && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		return refusal(http.StatusBadRequest, registry.CodeUnsupported, "a %s has no body", r.Method)
	case open(path):
		return nil
	case g.Events != nil && path == EventsPath:
		return g.admit(r, g.Events, "--events-token-file")
	case g.Identified != nil && !g.Identified(r):
		return refusal(http.StatusForbidden, registry.CodeDenied, "only who shows a certificate of this fleet's CA is answered; murder's flags for it are --tls-cert, --tls-key and --tls-ca")
	case !g.known(r.Host):
		return refusal(http.StatusForbidden, registry.CodeDenied,
			"this mirror does not go by the name %.80q; if it should, start it with --allow-host, or ask it by its IP address", hostOf(r.Host))
	case (own || registry.IsPull(path) || path == EventsPath) && crossSite(r):
		return refusal(http.StatusForbidden, registry.CodeDenied, "this is not for pages of other sites")
	case own:
		return g.owner(r)
	default:
		return nil
	}
}

// owner judges a request to the own API.
func (g *Gate) owner(r *http.Request) error {
	if g.Token == nil {
		return g.near(r)
	}
	return g.admit(r, g.Token, "--api-token-file")
}

// near judges a request to the own API of a daemon without a token.
func (g *Gate) near(r *http.Request) error {
	switch {
	case !onThisMachine(r):
		return refusal(http.StatusForbidden, registry.CodeDenied,
			"%s is answered on this host itself only; for others start the daemon with --api-token-file, and name the same token to murder's commands", r.URL.Path)
	case g.Names == nil && !unownable(hostOf(r.Host)):
		return refusal(http.StatusForbidden, registry.CodeDenied,
			"%s is not answered by the name %.80q, as a page in a browser could have led it here; ask it as localhost", r.URL.Path, hostOf(r.Host))
	default:
		return nil
	}
}

// admit judges a request for which a token must be shown, that in the file of a flag.
func (g *Gate) admit(r *http.Request, token *Token, flag string) error {
	shown, err := token.shown(r)
	if err != nil {
		g.Log.Error("token of the API cannot be read", "flag", flag, "err", err)
		return refusal(http.StatusInternalServerError, registry.CodeUnavailable, "the daemon cannot read its %s; its log says why", flag)
	}
	if shown {
		return nil
	}
	e := refusal(http.StatusUnauthorized, registry.CodeUnauthorized, "%s needs the token of the daemon's %s, as in Authorization: Bearer TOKEN; murder's commands take it from a flag of that name", r.URL.Path, flag)
	e.Header = http.Header{"Www-Authenticate": {`Bearer realm="murder"`}}
	return e
}

// Operator tells whether who asks has the right to the own API, in order to be shown
// more than others are: with the token, or where there is none from this machine, by a
// name that no page of a stranger's can go by. The error is for who shows a token that
// is not right.
func (g *Gate) Operator(r *http.Request) (bool, error) {
	if crossSite(r) {
		return false, nil
	}
	if g.Token == nil && !unownable(hostOf(r.Host)) {
		return false, nil
	}
	err := g.owner(r)
	if r.Header.Get("Authorization") == "" {
		return err == nil, nil
	}
	return err == nil, err
}

func refusal(status int, code, format string, args ...any) *registry.Error {
	return &registry.Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

// onThisMachine tells whether a request comes from the daemon's host, and has
// not only been passed on there.
func onThisMachine(r *http.Request) bool {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	passedOn := r.Header.Get("Forwarded") != "" || r.Header.Get("X-Forwarded-For") != ""
	return err == nil && from.Addr().Unmap().IsLoopback() && !passedOn
}

// known tells whether the daemon goes by the name in a Host header.
func (g *Gate) known(hostport string) bool {
	host := hostOf(hostport)
	return g.Names == nil || unownable(host) || registry.Matches(g.Names, host)
}

// unownable tells whether no page can be rebound by the name of a host. It can only
// by one that a stranger can have in the public DNS: that has a dot, and does not
// end in what is reserved.
func unownable(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil || !strings.Contains(host, ".") || strings.HasSuffix(host, ".localhost") || strings.HasSuffix(host, ".internal")
}

// hostOf is the host of a Host header as it is compared.
func hostOf(hostport string) string {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

var sites http.CrossOriginProtection

// crossSite tells of a request that a browser sent for a page of another site.
// net/http has the rule, but leaves GET alone; here that begins downloads, and
// tells what is on the host.
func crossSite(r *http.Request) bool {
	if r.Header.Get("Sec-Fetch-Site") == "" && r.Header.Get("Origin") == "" {
		return false // no browser, or one of old
	}
	return sites.Check(&http.Request{Method: http.MethodPost, URL: r.URL, Host: r.Host, Header: r.Header}) != nil
}
