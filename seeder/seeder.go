// Package seeder is the origin's daemon: it stands beside the registry,
// fetches each layer from it once however many hosts ask, makes the layer's
// metainfo while the bytes come in, hands it out, tracks the swarm and seeds.
//
// A [Seeder] answers the same pull API as a mirror (see package registry), so
// that a mirror can fetch from it over HTTP what is not worth a swarm, and
// beside it GET /v1/torrents/<digest> and the tracker. A [Client] is how a
// mirror asks. What the daemon keeps and how it is shared is package layers';
// who listens where is cmd/murder's.
package seeder

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/layers/tracing"
	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/seeder/fleet"
	"github.com/murderp2p/murder/seeder/page"
	"github.com/murderp2p/murder/seeder/pushes"
	"github.com/murderp2p/murder/seeder/tracker"
)

// Config says what a [Seeder] works with.
type Config struct {
	Store    *layers.Store
	Swarm    layers.Swarm
	Upstream registry.Upstream // the registries
	// DefaultRegistry is that of requests which name none.
	DefaultRegistry string
	// Advertise is the address given to peers; the zero value gives each the
	// address by which it reached the tracker.
	Advertise netip.AddrPort
	// TagTTL is for how long an answer about a tag is shared.
	TagTTL time.Duration
	// AuthTTL and AuthGrace are for how long a registry's leave holds, and
	// holds while the registry is away.
	AuthTTL, AuthGrace time.Duration
	// Allow lists the registries of which events are heeded, as registry.ParsePattern
	// returns them; none = any. Upstream has a list of its own.
	Allow []string
	// Self are the seeder's own credentials, with which it fetches what was pushed; nil =
	// what anybody may have.
	Self Self
	// Mine tells which blobs of what is pushed are for this seeder to fetch, where others
	// are told of it as well; nil = all.
	Mine func(digest.Digest) bool
	// WarmPlatforms are those of which pushed images are fetched; none = all.
	WarmPlatforms []v1.Platform
	// WarmFleet lists patterns, as path.Match has them, of the images HOST/REPOSITORY:TAG
	// that hosts are told to fetch, too, when they have been pushed.
	WarmFleet []string
	// Watch lists what registries are asked for each WatchEvery.
	Watch      []pushes.Pattern
	WatchEvery time.Duration
	// Upload and Download hold what goes out and comes in over HTTP to a
	// rate; nil does not.
	Upload, Download *layers.Limiter
	// FleetFile is where orders to the fleet outlive the process, and FleetCredentials
	// tells whether they may have credentials; see [fleet.Config].
	FleetFile        string
	FleetCredentials bool
	// Version is shown on the page, and Operator tells whether who asks for it may be
	// told names there; see [page.Config].
	Version  string
	Operator func(*http.Request) (bool, error)
	Metrics  *Metrics
	Tracer   tracing.Tracer
	Log      *slog.Logger
}

// Seeder is the origin's daemon. It is an http.Handler.
type Seeder struct {
	cfg     Config
	grants  *registry.Grants
	backend *backend
	origin  *origin
	shared  *layers.Shared
	tracker *tracker.Tracker
	fleet   *fleet.Fleet
	warmer  *warmer
	page    *page.Page
	pulls   *registry.Handler
	mux     *http.ServeMux // of all else
}

// Open returns a Seeder that works until ctx ends; Run runs what goes on
// behind its requests.
func Open(ctx context.Context, cfg Config) *Seeder {
	s := &Seeder{cfg: cfg, grants: registry.NewGrants(cfg.AuthTTL, cfg.AuthGrace)}
	s.grants.OnAnswer = cfg.Metrics.authorized
	s.shared = layers.NewShared(cfg.Store, cfg.Swarm, nil, cfg.Log) // announced to nobody: our tracker lists us itself
	s.origin = newOrigin(ctx, cfg, s.grants, s.shared)
	s.backend = &backend{
		store: cfg.Store, grants: s.grants, origin: s.origin, upstream: cfg.Upstream, upload: cfg.Upload,
		manifests: &registry.Manifests{Upstream: cfg.Upstream, Store: cfg.Store, Grants: s.grants, TagTTL: cfg.TagTTL, Log: cfg.Log},
	}
	s.warmer = newWarmer(s)
	s.tracker = tracker.New(tracker.Config{Has: func(ih [20]byte) bool { return s.shared.Has(ih) }, Self: s.self, Log: cfg.Log})
	s.fleet = fleet.New(fleet.Config{Resolve: s.resolve, Credentials: cfg.FleetCredentials, File: cfg.FleetFile, Log: cfg.Log})
	s.pulls = &registry.Handler{Backend: s.backend, DefaultHost: cfg.DefaultRegistry, Sent: s.origin.ledger.Served, Log: cfg.Log}
	s.page = page.New(page.Config{Source: &viewer{seeder: s}, Operator: cfg.Operator})
	s.routes()
	return s
}

func (s *Seeder) routes() {
	s.mux = http.NewServeMux()
	s.mux.HandleFunc("GET /v1/torrents/{digest}", s.serveTorrent)
	s.mux.HandleFunc("POST /v1/events", s.serveEvents)
	s.mux.HandleFunc("GET /announce", s.tracker.ServeAnnounce)
	s.mux.HandleFunc("GET /scrape", s.tracker.ServeScrape)
	s.fleet.Routes(s.mux)
	s.mux.Handle("GET /{$}", s.page)
	s.mux.Handle("GET /page/", s.page)
}

// ServeHTTP implements http.Handler.
func (s *Seeder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get(beatHeader) != "" {
		b := newBeating(w)
		defer b.stop()
		w = b
	}
	w.Header().Set(registry.SeederHeader, "1")
	r = s.cfg.Tracer.Asked(r)
	if registry.IsPull(r.URL.Path) {
		s.pulls.ServeHTTP(w, r)
		return
	}
	s.mux.ServeHTTP(w, r)
}

// Run seeds what the store holds already, fetches what is pushed and keeps tracker and
// fleet, until ctx ends. Who looks at the page is sent away then.
func (s *Seeder) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.tracker.Run(ctx) })
	group.Go(func() error { return s.shared.All(ctx) })
	group.Go(func() error { return s.fleet.Run(ctx) })
	group.Go(func() error { return s.warmer.run(ctx) })
	for _, pattern := range s.cfg.Watch {
		watch := &pushes.Watch{Pattern: pattern, Registry: s.warmer, Every: s.cfg.WatchEvery, Found: s.warmer.add, Log: s.cfg.Log}
		group.Go(func() error { return watch.Run(ctx) })
	}
	group.Go(func() error { return s.page.Run(ctx) })
	return group.Wait()
}

// Wait returns when the fetches that the context of Open ended are at rest.
func (s *Seeder) Wait() { s.origin.running.Wait() }

// Ledger tells where the latest blobs came from.
func (s *Seeder) Ledger() *layers.Ledger { return s.origin.ledger }

// Tracker returns what the tracker holds now.
func (s *Seeder) Tracker() tracker.Stats { return s.tracker.Stats() }

// Fleet is the hosts that hold a link, and what they were ordered to do.
func (s *Seeder) Fleet() *fleet.Fleet { return s.fleet }

// Evicted is to be told of what the store tells OnEvict.
func (s *Seeder) Evicted(d digest.Digest) { s.shared.Evicted(s.origin.ctx, d) }

// self is where an asker who reached us on local reaches our swarm.
func (s *Seeder) self(local net.Addr) (netip.AddrPort, bool) {
	if s.cfg.Advertise.IsValid() {
		return s.cfg.Advertise, true
	}
	listening, err := netip.ParseAddrPort(s.cfg.Swarm.Addr().String())
	if err != nil || local == nil {
		return netip.AddrPort{}, false
	}
	reached, err := netip.ParseAddrPort(local.String())
	return netip.AddrPortFrom(reached.Addr().Unmap(), listening.Port()), err == nil
}
