package main

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/proxy"
	"github.com/murderp2p/murder/seeder/roster"
)

// share is which blobs of a push a seeder fetches where all seeders are told of it: those that hosts will ask it for first.
type share struct {
	port string // where this seeder listens
	log  *slog.Logger

	mu   sync.Mutex // guards the rest
	all  []string   // URLs by which hosts ask
	self string     // one of them; "" if none is known to be ours
}

// share follows who the seeders of --seeders are, and tells which blobs are for this one; nil = all.
func (d *daemon) share() (mine func(digest.Digest) bool, err error) {
	names := listFlag(d.cli, "seeders")
	if len(names) == 0 {
		return nil, nil
	}
	found, err := openRoster(d.cli.Context, names, d.log)
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(d.listener.Addr().String())
	if err != nil {
		return nil, err
	}
	s := &share{port: port, log: d.log}
	s.set(d.cli.Context, found.Seeders())
	d.beside = func(ctx context.Context) error {
		return found.Run(ctx, func(now []roster.Seeder) { s.set(ctx, now) })
	}
	return s.mine, nil
}

// mine tells whether to fetch a blob. Who does not know which of the seeders it is fetches all.
func (s *share) mine(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.self == "" || s.self == slices.MaxFunc(s.all, func(a, b string) int {
		return cmp.Compare(proxy.Weight(a, d.String()), proxy.Weight(b, d.String()))
	})
}

// set takes note of who the seeders are.
func (s *share) set(ctx context.Context, now []roster.Seeder) {
	var all, own []string
	for _, found := range now {
		all = append(all, found.URL)
		if u, err := url.Parse(found.URL); err == nil && s.isOwn(ctx, u) {
			own = append(own, found.URL)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all, s.self = all, ""
	if len(own) == 1 {
		s.self = own[0]
		return
	}
	if len(all) < 2 {
		return // all is ours; as long as it is not ready, a name service may not know a seeder
	}
	s.log.Warn("this seeder is not, or not clearly, one of --seeders: it fetches all that is pushed", "seeders", all, "own", own)
}

// isOwn tells whether a URL leads to this seeder: to its port, at an address of this machine.
func (s *share) isOwn(ctx context.Context, u *url.URL) bool {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	if port != s.port {
		return false
	}
	addrs, err := addressesOf(ctx, u.Hostname())
	return err == nil && slices.ContainsFunc(addrs, isLocal)
}

func addressesOf(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// isLocal tells whether an address is one of this machine's.
func isLocal(ip netip.Addr) bool {
	if ip = ip.Unmap(); ip.IsLoopback() {
		return true
	}
	addrs, _ := net.InterfaceAddrs()
	return slices.ContainsFunc(addrs, func(a net.Addr) bool {
		prefix, err := netip.ParsePrefix(a.String())
		return err == nil && prefix.Addr().Unmap() == ip
	})
}
