package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// Anyone who can ask a daemon can name a registry, and any registry can name a
// host to go on to: by a redirect, or as its token server. So strangers choose
// whom a daemon connects to, from where it stands. What they must not reach by
// it is the daemon's own machine and what answers only to machines: it is
// looked at when a connection is made, by the address, since names can lead
// anywhere, and to another place the next time.

// ParsePattern checks what names registries: HOST or HOST:PORT, in which a *
// stands for any characters. It returns the form for [Matches].
func ParsePattern(s string) (string, error) {
	if !strings.Contains(s, "*") {
		return ParseHost(s)
	}
	pattern := strings.ToLower(s)
	// What is no host with a letter in the stars' place is none.
	if _, err := ParseHost(strings.ReplaceAll(pattern, "*", "x")); err != nil {
		return "", err
	}
	return pattern, nil
}

// Matches tells whether one of the patterns names host. A pattern without a
// port is for hosts without one.
func Matches(patterns []string, host string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		if pattern == host {
			return true
		}
		match, err := path.Match(pattern, host)
		return err == nil && match && strings.Contains(pattern, "*")
	})
}

// metadata are services of clouds that know a machine by its address and give
// it credentials. Most are at link-local addresses, these are not.
var metadata = []netip.Addr{
	netip.MustParseAddr("100.100.100.200"), // Alibaba
	netip.MustParseAddr("168.63.129.16"),   // Azure
	netip.MustParseAddr("192.0.0.192"),     // Oracle
	netip.MustParseAddr("fd00:ec2::254"),   // Amazon
	netip.MustParseAddr("fd20:ce::254"),    // Google
}

// embedding are the networks in whose addresses IPv4 ones are, from a byte on: gateways
// and tunnels take them there.
var embedding = map[netip.Prefix]int{
	netip.MustParsePrefix("64:ff9b::/96"):   12, // NAT64 (RFC 6052)
	netip.MustParsePrefix("64:ff9b:1::/48"): 12, // and where it is local (RFC 8215)
	netip.MustParsePrefix("2002::/16"):      2,  // 6to4 (RFC 3056)
	netip.MustParsePrefix("::/96"):          12, // "IPv4-compatible" (RFC 4291, 2.5.5.1)
}

// embedded is the IPv4 address in ip, or ip itself.
func embedded(ip netip.Addr) netip.Addr {
	if ip = ip.Unmap().WithZone(""); ip.IsLoopback() || ip.IsUnspecified() {
		return ip // ::1 and :: are what they are
	}
	for network, at := range embedding {
		if b := ip.As16(); ip.Is6() && network.Contains(ip) {
			return netip.AddrFrom4([4]byte(b[at : at+4]))
		}
	}
	return ip
}

// forbidden tells the addresses that no registry, storage or token server may
// have. Those of this machine are allowed to who is near.
func forbidden(ip netip.Addr, near bool) bool {
	if !ip.IsValid() {
		return true
	}
	ip = embedded(ip)
	switch {
	case ip.IsLoopback():
		return !near
	case ip.IsUnspecified(), ip.IsMulticast(), ip.IsLinkLocalUnicast():
		return true
	case ip.Is4() && (ip.As4()[0] == 0 || ip.As4()[0] == 255): // "this network" reaches this machine; broadcast
		return true
	default:
		return slices.Contains(metadata, ip)
	}
}

// forbiddenError says that a connection was not made since it would lead there.
type forbiddenError struct{ address string }

func (e *forbiddenError) Error() string {
	return fmt.Sprintf("leads to %s, where murder does not go for it", e.address)
}

// reach makes connections for one [Client], none to a forbidden address.
type reach struct {
	near    bool
	proxyOf func(*http.Request) (*url.URL, error)
	proxies sync.Map // HOST:PORT of the proxies in use
}

// bounded returns a transport that does not go to forbidden addresses. The
// proxies of the environment are the operator's own, and may be anywhere; where
// names lead that they look up is theirs to say.
func bounded(near bool) *http.Transport {
	r := &reach{near: near, proxyOf: http.ProxyFromEnvironment}
	t := Transport()
	t.Proxy, t.DialContext = r.proxy, r.dial
	return t
}

// proxy is called for each request, before a connection is made for it.
func (r *reach) proxy(req *http.Request) (*url.URL, error) {
	u, err := r.proxyOf(req)
	if err != nil {
		return nil, err
	}
	if u == nil { // a proxy may be anywhere, but is no registry
		if _, ok := r.proxies.Load(address(req.URL)); ok {
			return nil, &forbiddenError{req.URL.Host}
		}
		return nil, nil
	}
	if host := req.URL.Hostname(); r.forbids(host) {
		return nil, &forbiddenError{req.URL.Host}
	}
	r.proxies.Store(address(u), true)
	return u, nil
}

// forbids tells the hosts that need not be looked up to be forbidden to a proxy. Some
// systems take 2130706433, 0x7f.1 and 0177.0.0.1 for addresses; no name ends in a number.
func (r *reach) forbids(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return forbidden(ip, r.near)
	}
	last := host[strings.LastIndexByte(strings.TrimSuffix(host, "."), '.')+1:]
	last = strings.TrimSuffix(last, ".")
	return last != "" && (strings.HasPrefix(last, "0x") || strings.Trim(last, "0123456789") == "")
}

// address is where u is connected to: HOST:PORT.
func address(u *url.URL) string {
	port := map[string]string{"https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	return net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port, "80"))
}

func (r *reach) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: dialTimeout}
	if _, ok := r.proxies.Load(addr); !ok {
		dialer.Control = r.check
	}
	return dialer.DialContext(ctx, network, addr)
}

// check is given an address after the name has been looked up, so that no
// second look can find another.
func (r *reach) check(_, address string, _ syscall.RawConn) error {
	if ap, err := netip.ParseAddrPort(address); err != nil || forbidden(ap.Addr(), r.near) {
		return &forbiddenError{address}
	}
	return nil
}

// denied is the answer to who asks for a registry that may not be asked; nil
// when it may.
func (c *Client) denied(host string) error {
	if len(c.cfg.Allow) == 0 || Matches(c.cfg.Allow, host) {
		return nil
	}
	return newError(http.StatusForbidden, CodeDenied, "registry %s is not among those that murder may ask (--allow-registry)", host)
}

// unreached makes an error of why no answer came.
func (c *Client) unreached(host string, err error) error {
	if e, ok := errors.AsType[*forbiddenError](err); ok {
		return newError(http.StatusForbidden, CodeDenied, "registry %s %w; one on this machine is named by --allow-registry or --insecure-registry", host, e)
	}
	return Unavailable("%s is %w: %w", c.party(host), ErrUnreachable, stripURL(err))
}

// to is the HTTP client for a registry, and for where it leads.
func (c *Client) to(host string) *http.Client {
	if c.insecure(host) || Matches(c.cfg.Near, host) {
		return &c.near
	}
	return &c.http
}
