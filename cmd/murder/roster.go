package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/murderp2p/murder/cmd/murder/mtls"
	"github.com/murderp2p/murder/proxy"
	"github.com/murderp2p/murder/seeder"
	"github.com/murderp2p/murder/seeder/fleet"
	"github.com/murderp2p/murder/seeder/roster"
)

// checkSeeder wants what --seeder takes.
func checkSeeder(s string) error {
	_, err := roster.Parse(s)
	return err
}

// seeders makes clients of the seeders behind --seeder, one of each as long as it is
// there.
type seeders struct {
	allow []string // the registries that they may be asked about
	tls   *seederTLS

	mu      sync.Mutex // guards clients
	clients map[roster.Seeder]proxy.Seeder
}

// openRoster looks up who the seeders of the names are.
func openRoster(ctx context.Context, texts []string, log *slog.Logger) (*roster.Roster, error) {
	var names []roster.Name
	for _, text := range texts {
		name, err := roster.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("seeder %q: %w", text, err)
		}
		names = append(names, name)
	}
	return roster.Open(ctx, roster.Config{Names: names, Log: log}), nil
}

// seederClients are for commands that ask seeders, of which there is at least one.
func seederClients(ctx context.Context, texts []string, token string, id *mtls.Identity) (clients []*client, err error) {
	found, err := openRoster(ctx, texts, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	tls := &seederTLS{identity: id}
	for _, s := range found.Seeders() {
		u, err := url.Parse(s.URL)
		if err != nil {
			return nil, fmt.Errorf("seeder %q: %w", s.URL, err)
		}
		c := newClient(strings.TrimRight(s.URL, "/"), token)
		c.http.Transport.(*http.Transport).DialTLSContext = tls.dialer(u, s.Name)
		clients = append(clients, c)
	}
	if len(clients) == 0 {
		return nil, fmt.Errorf("DNS names no seeder for %s", strings.Join(texts, ", "))
	}
	return clients, nil
}

// of returns the clients of those who are there now, and forgets the others; and where
// this host's links to the fleet go.
func (s *seeders) of(list []roster.Seeder) (clients []proxy.Seeder, links []fleet.Seeder, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := make(map[roster.Seeder]proxy.Seeder)
	for _, found := range list {
		u, err := url.Parse(found.URL)
		if err != nil {
			return nil, nil, fmt.Errorf("seeder %q: %w", found.URL, err)
		}
		links = append(links, fleet.Seeder{URL: u, DialTLS: s.tls.dialer(u, found.Name)})
		client := s.clients[found]
		if client == nil {
			client = seeder.NewClient(seeder.ClientConfig{URL: u, Allow: s.allow, DialTLS: s.tls.dialer(u, found.Name)})
		}
		now[found] = client
		clients = append(clients, client)
	}
	s.clients = now
	return clients, links, nil
}

// seederTLS connects to seeders and their trackers by HTTPS. Which name a seeder's
// certificate must have is known by its address, if it is another than that.
type seederTLS struct {
	identity *mtls.Identity // nil = as the system's CAs have it
	names    sync.Map       // of those at HOST:PORT
}

// dialer is how the client of a seeder connects; nil = as net/http does.
func (t *seederTLS) dialer(u *url.URL, name string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	port := u.Port()
	if port == "" {
		port = "443"
	}
	if u.Scheme == "https" && name != "" {
		t.names.Store(net.JoinHostPort(u.Hostname(), port), name)
	}
	if t.identity == nil && name == "" {
		return nil
	}
	return t.dial
}

// dial connects to who must have a certificate for the name that the operator gave.
func (t *seederTLS) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	name, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if known, ok := t.names.Load(addr); ok {
		name = known.(string)
	}
	if t.identity != nil {
		return t.identity.DialHTTPSAs(ctx, network, addr, name)
	}
	return (&tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, ServerName: name}}).DialContext(ctx, network, addr)
}
