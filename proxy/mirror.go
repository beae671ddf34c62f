// Package proxy is the mirror on every host: a pull-only registry that
// containerd, Docker or podman pull through. It serves blobs from its cache,
// else it brings them from the swarm, from a seeder over HTTP, or from the
// registry itself, in that order, and lets its clients read them while they
// arrive. Manifests and all else it asks of the seeder or the registry.
//
// A [Mirror] is an http.Handler. The protocol is package registry's, bytes on
// disk and in the swarm are package layers'; what remains here is the choice
// of ways (ways.go), and when to leave one for the next (download.go).
package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/layers/tracing"
	"github.com/murderp2p/murder/registry"
)

// Seeder is what a mirror asks of an origin's daemon. The Upstream answers for
// all registries. Its errors are those of [registry.Upstream]; none takes
// more than a second to say that a seeder is down or hangs.
type Seeder interface {
	registry.Upstream
	// URL names the seeder.
	URL() string
	// Announce is the URL of its tracker.
	Announce() string
	// Alive returns nil when the seeder answers.
	Alive(ctx context.Context) error
	// Ask has the seeder fetch a blob, and returns how the mirror gets it. The
	// body of the answer ends with ctx.
	Ask(ctx context.Context, repo registry.Repository, d digest.Digest, authorization string) (layers.Answer, error)
	// Metainfo asks for what the swarm did not bring of an answer's torrent.
	Metainfo(ctx context.Context, repo registry.Repository, d digest.Digest, authorization string) (*layers.Metainfo, error)
}

// Config says what a [Mirror] works with.
type Config struct {
	Store *layers.Store
	Swarm layers.Swarm
	// Seeders are those there are at the start; there may be none. See SetSeeders.
	Seeders []Seeder
	// SeederIll, when set, is called when a seeder does not answer any more: it may have
	// moved. It must not wait.
	SeederIll func()
	// Registries are asked when no seeder can be.
	Registries registry.Upstream
	// DefaultRegistry is that of requests which name none.
	DefaultRegistry string
	// AuthTTL and AuthGrace are for how long a registry's leave holds, and
	// holds while the registry is away.
	AuthTTL, AuthGrace time.Duration
	// Download holds what comes in over HTTP to a rate; nil does not.
	Download *layers.Limiter
	Metrics  *Metrics
	Tracer   tracing.Tracer
	Log      *slog.Logger
}

// Mirror is the mirror's daemon.
type Mirror struct {
	cfg       Config
	ctx       context.Context // the daemon's: a download outlives whoever asked first
	running   sync.WaitGroup
	grants    *registry.Grants
	seeders   *seeders
	upstream  registry.Upstream // a seeder, else the registries
	manifests *registry.Manifests
	flights   layers.Flights[*download]
	shared    *layers.Shared
	suspects  shunned // what came out wrong
	uncached  shunned // what the disk did not take
	pings     pings
	ledger    *layers.Ledger
	fallbacks tally

	prefetches atomic.Int64 // requests under way

	stallAfter time.Duration // the constant, but in tests
	slowAfter  time.Duration // that of layers.Pace if 0, as it is but in tests

	pulls *registry.Handler
	mux   *http.ServeMux // of all else
}

// Open returns a Mirror that works until ctx ends.
func Open(ctx context.Context, cfg Config) *Mirror {
	m := &Mirror{
		cfg: cfg, ctx: ctx, grants: registry.NewGrants(cfg.AuthTTL, cfg.AuthGrace), ledger: layers.NewLedger(),
		suspects: shunned{long: suspectFor}, uncached: shunned{long: uncachedFor},
		stallAfter: stallAfter,
	}
	m.grants.OnAnswer = cfg.Metrics.authorized
	m.seeders = newSeeders(ctx, &m.running, cfg.Seeders, cfg.Log)
	m.seeders.onIll = cfg.SeederIll
	m.upstream = &failover{m.seeders, cfg.Registries, m.fellBack}
	m.manifests = &registry.Manifests{Upstream: m.upstream, Store: cfg.Store, Grants: m.grants, Log: cfg.Log}
	m.shared = layers.NewShared(cfg.Store, cfg.Swarm, m.seeders.trackers(), cfg.Log)
	m.pulls = &registry.Handler{Backend: m, DefaultHost: cfg.DefaultRegistry, Sent: m.ledger.Served, Log: cfg.Log}
	m.mux = http.NewServeMux()
	m.mux.HandleFunc("POST /v1/prefetch", m.servePrefetch)
	m.mux.HandleFunc("GET /v1/check", m.serveCheck)
	m.pinRoutes()
	return m
}

// ServeHTTP implements http.Handler.
func (m *Mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(registry.MirrorHeader, "1")
	r = m.cfg.Tracer.Asked(r)
	if registry.IsPull(r.URL.Path) {
		m.pulls.ServeHTTP(w, r)
		return
	}
	m.mux.ServeHTTP(w, r)
}

// Run shares what the cache holds already.
func (m *Mirror) Run(ctx context.Context) error { return m.shared.All(ctx) }

// Wait returns when all that the context of Open ended is at rest.
func (m *Mirror) Wait() { m.running.Wait() }

// Ledger tells where the latest blobs came from.
func (m *Mirror) Ledger() *layers.Ledger { return m.ledger }

// Fallbacks tells how often a better way was left for a worse one, by reason.
func (m *Mirror) Fallbacks() map[string]int64 { return m.fallbacks.all() }

// Seeders tells how the seeders are, as far as pulls have found.
func (m *Mirror) Seeders() []SeederHealth { return m.seeders.health(m.seeders.all()) }

// SetSeeders replaces the seeders while the mirror works. Blobs that are on their way
// from one that is gone go on, and all swarms are announced to those that are there now.
func (m *Mirror) SetSeeders(list []Seeder) {
	m.seeders.set(list)
	m.cfg.Swarm.Retrack(m.seeders.trackers())
}

// Evicted is to be told of what the store tells OnEvict.
func (m *Mirror) Evicted(d digest.Digest) { m.shared.Evicted(m.ctx, d) }

// HeadManifest implements [registry.Backend].
func (m *Mirror) HeadManifest(ctx context.Context, req registry.Request) (ocispec.Descriptor, error) {
	return m.manifests.Head(ctx, req)
}

// GetManifest implements [registry.Backend].
func (m *Mirror) GetManifest(ctx context.Context, req registry.Request) (ocispec.Descriptor, []byte, error) {
	return m.manifests.Get(ctx, req)
}

// Relay implements [registry.Backend].
func (m *Mirror) Relay(ctx context.Context, req registry.Request, end string, query url.Values) (*http.Response, error) {
	return m.upstream.Relay(ctx, req.Repo, end, query, req.Authorization)
}

// StatBlob implements [registry.Backend].
func (m *Mirror) StatBlob(ctx context.Context, req registry.Request) (int64, error) {
	size, ok := m.cfg.Store.Stat(req.Digest)
	if d, arriving := m.flights.Get(req.Digest); !ok && arriving {
		size, ok = d.partial.Size(), true
	}
	if ok {
		return m.grants.StatBlob(ctx, m.upstream, req, size)
	}
	return m.upstream.StatBlob(ctx, req.Repo, req.Digest, req.Authorization)
}

// OpenBlob implements [registry.Backend].
func (m *Mirror) OpenBlob(ctx context.Context, req registry.Request) (registry.OpenBlob, error) {
	begun := time.Now()
	blob, d, err := m.acquire(ctx, req)
	if u, ok := errors.AsType[*registry.Uncached](err); ok {
		m.fellBack(whyNoCache)
		return u.Stream, nil
	}
	if err != nil {
		m.cfg.Metrics.failed(err)
		return nil, err
	}
	if blob != nil {
		span := tracing.Of(m.cfg.Tracer.Begin(m.ctx, ctx, tracing.Pull, req.Digest, req.Repo.Host, req.Repo.Name))
		return &pulled{m.carried(req, blob.Content()), func(bool) {
			m.cfg.Metrics.pulled(req.Repo.Host, string(layers.FromCache), begun)
			span.Cached(blob.Size())
		}}, nil
	}
	return &pulled{m.carried(req, d.partial.Content()), func(carried bool) {
		if err := d.partial.Err(); err != nil && !carried {
			m.cfg.Metrics.failed(err)
			return
		}
		m.cfg.Metrics.pulled(req.Repo.Host, d.source(), begun)
	}}, nil
}

// carried serves content of the cache, and goes on past it where the disk fails.
func (m *Mirror) carried(req registry.Request, content *layers.Content) *registry.Carried {
	return &registry.Carried{
		Readable: content, Digest: req.Digest, Lost: layers.DiskFailed,
		From: func(ctx context.Context, off int64) (io.ReadCloser, int64, error) {
			return m.upstream.GetBlob(ctx, req.Repo, req.Digest, off, req.Authorization)
		},
		OnCarry: func(err error) {
			m.fellBack(whyNoCache)
			m.cfg.Log.Debug("blob goes on past the cache", "digest", req.Digest, "err", err) // the store says so once
		},
	}
}

// pulled is content that is counted when it has been served.
type pulled struct {
	*registry.Carried
	done func(carried bool)
}

func (p *pulled) Close() error {
	p.done(p.Over())
	return p.Carried.Close()
}

// acquire returns a blob for a caller whom the registry admits to it: whole,
// or arriving. The error may be a [*registry.Uncached].
func (m *Mirror) acquire(ctx context.Context, req registry.Request) (*layers.Blob, *download, error) {
	for try := 1; ; try++ {
		// The flight first: it ends only after what it brought is on record.
		d, flying := m.flights.Get(req.Digest)
		blob, err := m.cfg.Store.Open(req.Digest)
		if err == nil {
			err := m.admit(ctx, req, blob, d, flying)
			if err == nil {
				return blob, nil, nil
			}
			blob.Close()
			switch {
			case !layers.DiskFailed(err):
				return nil, nil, err
			case try == 1:
				continue // it has rotted, and is gone: it comes anew
			}
			return nil, nil, registry.PassThrough(m.ctx, m.upstream, req, err)
		}
		if !errors.Is(err, layers.ErrNotFound) {
			return nil, nil, registry.PassThrough(m.ctx, m.upstream, req, err)
		}
		d, joined, err := m.flights.Join(ctx, req.Digest, req.Repo.Host, req.Asker(), func() (*download, error) { return m.begin(ctx, req) })
		if errors.Is(err, layers.ErrWhole) {
			continue // it became whole while we looked
		}
		if errors.Is(err, layers.ErrElsewhere) {
			return nil, nil, registry.PassThrough(ctx, m.upstream, req, registry.ErrOtherRegistry)
		}
		if u, ok := errors.AsType[*registry.Uncached](err); ok && joined {
			return nil, nil, registry.PassThrough(ctx, m.upstream, req, u.Cause) // the stream is another's
		}
		if err == nil && joined && d.passedBy() {
			return nil, nil, registry.PassThrough(ctx, m.upstream, req, d.partial.Err())
		}
		if err == nil && joined && d.failed(ctx) {
			continue
		}
		if err == nil && joined {
			err = m.grants.AdmitArriving(ctx, m.upstream, req, d.partial.Size(), &d.rights)
		}
		return nil, d, err
	}
}

// admit asks for a whole blob, which may have come in just now.
func (m *Mirror) admit(ctx context.Context, req registry.Request, blob *layers.Blob, d *download, flying bool) error {
	if flying && d.rights.From(req.Repo.Host) {
		return m.grants.AdmitArriving(ctx, m.upstream, req, blob.Size(), &d.rights)
	}
	return m.grants.AdmitBlob(ctx, m.upstream, req, blob)
}

func (m *Mirror) fellBack(why string) {
	m.cfg.Metrics.fallbacks.WithLabelValues(why).Inc()
	m.fallbacks.add(why)
}
