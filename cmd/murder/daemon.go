package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/murderp2p/murder/cmd/murder/gate"
	"github.com/murderp2p/murder/cmd/murder/mtls"
	"github.com/murderp2p/murder/cmd/murder/otlp"
	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/layers/swarm"
	"github.com/murderp2p/murder/registry"
)

const (
	// drainFor is how long answers that are under way at the end may take;
	// then they are cut, which a client can tell from the end of a blob.
	drainFor = 7 * time.Second
	// maxHeader bounds a request's header in bytes: tokens of large
	// organisations take some kilobytes.
	maxHeader = 64 << 10
)

// daemon is what `murder mirror` and `murder seeder` have in common: a store,
// a swarm, an HTTP API, and an orderly end.
type daemon struct {
	role     string
	listener net.Listener
	watch    net.Listener // of --metrics-listen; nil = none
	gate     *gate.Gate
	store    *layers.Store
	swarm    *swarm.Client
	metrics  *prometheus.Registry
	dataDir  string // absolute: who asks for the status may be in another folder
	shelfDir string // likewise; the registry's or the engine's folder of blobs, "" = none
	insecure []string
	tls      *mtls.Identity // nil = none
	limits   *limits
	hangups  chan os.Signal // SIGHUP
	profiles *profiles      // nil = none are asked for
	traces   *otlp.Exporter // nil = none are asked for
	cli      *cli.Context
	log      *slog.Logger

	seederTLS *seederTLS                      // how trackers, and a mirror's seeders, are connected to
	beside    func(ctx context.Context) error // what a daemon does beside its part, until ctx ends; nil = nothing

	part atomic.Pointer[part] // nil until it has been opened

	// ctx ends after the last answer has been sent or cut; what a daemon
	// does behind its answers hangs on it.
	ctx  context.Context
	stop context.CancelFunc
}

// part is a daemon's own part: [proxy.Mirror] or [seeder.Seeder].
type part interface {
	http.Handler
	Run(ctx context.Context) error
	Wait()
	Evicted(d digest.Digest)
	Ledger() *layers.Ledger
}

// openDaemon takes what a daemon needs of the host.
func openDaemon(c *cli.Context, role string) (_ *daemon, err error) {
	d := &daemon{role: role, cli: c, log: newLogger(c), metrics: prometheus.NewRegistry(), seederTLS: new(seederTLS), hangups: catchHangups()}
	d.limits = newLimits(c, d.log)
	d.ctx, d.stop = context.WithCancel(context.WithoutCancel(c.Context))
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.insecure, err = parseRegistries(listFlag(c, "insecure-registry")); err != nil {
		return nil, err
	}
	if err := d.openTLS(); err != nil {
		return nil, err
	}
	if err := d.openTraces(); err != nil {
		return nil, err
	}
	if d.gate, err = d.openGate(); err != nil {
		return nil, err
	}
	limit, err := cacheLimitFlag(c)
	if err != nil {
		return nil, fmt.Errorf("cache size: %w", err)
	}
	if d.dataDir, err = filepath.Abs(c.String("data-dir")); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	d.limits.dataDir = d.dataDir
	minFree, err := minFreeFlag(c)
	if err != nil {
		return nil, fmt.Errorf("free space: %w", err)
	}
	shelf, err := d.openShelf()
	if err != nil {
		return nil, err
	}
	d.store, err = layers.OpenStore(layers.StoreConfig{
		Dir: d.dataDir, Limit: limit, MinFree: minFree, TakeAll: role == "seeder",
		ScrubRate: rateFlag(c, "scrub-rate"), Log: d.log, OnEvict: d.evicted,
		Shelf: shelf, Busy: d.feeds,
	})
	if err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	d.limits.store = d.store
	if d.profiles, err = openProfiles(c.String("pprof"), d.log); err != nil {
		return nil, err
	}
	if d.swarm, err = d.openSwarm(); err != nil {
		return nil, err
	}
	d.listener, err = gate.Listen(c.String("listen"))
	if err != nil {
		return nil, fmt.Errorf("listen for HTTP: %w", err)
	}
	if err := d.openWatch(); err != nil {
		return nil, err
	}
	switch {
	case d.tls != nil && role == "seeder":
		d.listener = tls.NewListener(d.listener, d.tls.HTTPS())
	case d.tls != nil: // the engines on a mirror's host speak plain HTTP
		d.listener = d.tls.Either(d.listener)
	}
	return d, nil
}

// openShelf returns the folder in which another program on this host has blobs, or nil.
func (d *daemon) openShelf() (*layers.Shelf, error) {
	flag, open := "engine-store", layers.EngineShelf
	if d.role == "seeder" {
		flag, open = "registry-storage", layers.RegistryShelf
	}
	dir := d.cli.String(flag)
	if dir == "" {
		return nil, nil
	}
	var err error
	if d.shelfDir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	return open(d.shelfDir), nil
}

// feeds tells whether others are being sent a blob now. Before the daemon's part has been
// opened nobody knows yet.
func (d *daemon) feeds(blob digest.Digest) bool {
	return d.part.Load() == nil || slices.ContainsFunc(d.swarm.Peers(blob), func(p layers.Peer) bool { return !p.Complete })
}

// openSwarm listens for peers, and finds others.
func (d *daemon) openSwarm() (*swarm.Client, error) {
	peers, err := net.Listen("tcp", d.cli.String("peer-listen"))
	if err != nil {
		return nil, fmt.Errorf("listen for peers: %w", err)
	}
	if listen := parseAdvertise(peers.Addr().String()); unreachable(listen, parseAdvertise(d.cli.String("advertise")), ownAddr) {
		d.log.Warn("peers are told an address of this host on which nobody listens: --advertise and --peer-listen do not fit",
			"advertise", d.cli.String("advertise"), "peer_addr", listen.String())
	}
	_, guests := connectionsFor(openFiles(), 0)
	cfg := swarm.Config{
		Listener: peers, MaxGuests: guests, Advertise: parseAdvertise(d.cli.String("advertise")), Seeder: d.role == "seeder",
		Zone: d.cli.String("zone"), Version: buildVersion(), Log: d.log,
		Upload: d.limits.upload, Download: d.limits.download, DialTLS: d.seederTLS.dial,
	}
	if d.tls != nil {
		cfg.Listener, cfg.Dial = d.tls.PeerListener(peers), d.tls.DialPeer
		d.seederTLS.identity = d.tls
	}
	return swarm.Open(cfg)
}

// run serves until the command's context ends, and then ends in order: no new
// requests, those under way finished or cut, swarms left, the store closed.
func (d *daemon) run(p part, status http.HandlerFunc) error {
	defer d.close()
	d.part.Store(&p)
	server := &http.Server{
		Handler: d.routes(p, status), MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	d.limit(server)
	d.log.Info("listening", "role", d.role, "addr", d.listener.Addr().String(), "peer_addr", d.swarm.Addr().String(),
		"tls", d.tls != nil, "data_dir", d.dataDir, "version", buildVersion())
	group, ctx := errgroup.WithContext(d.cli.Context)
	group.Go(func() error { return p.Run(ctx) })
	if d.beside != nil {
		group.Go(func() error { return d.beside(ctx) })
	}
	group.Go(func() error { d.limits.reloadOnHangup(ctx, d.hangups, d.cli); return nil })
	if d.profiles != nil {
		group.Go(func() error { return d.profiles.run(ctx) })
	}
	group.Go(func() error { return d.serveWatch(ctx) })
	group.Go(func() error {
		if err := server.Serve(d.listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve HTTP: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		d.log.Info("stopping")
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainFor)
		defer cancel()
		if server.Shutdown(drain) != nil {
			d.log.Warn("answers under way were cut", "after", drainFor)
			server.Close()
		}
		return nil
	})
	err := group.Wait()
	d.stop()
	p.Wait()
	d.log.Info("stopped")
	return err
}

// evicted is told of a blob that has left the cache.
func (d *daemon) evicted(gone digest.Digest) {
	if p := d.part.Load(); p != nil {
		(*p).Evicted(gone)
	}
}

// close releases what openDaemon took; it may be called twice.
func (d *daemon) close() {
	d.stop()
	signal.Stop(d.hangups)
	d.traces.Close()
	if d.listener != nil {
		d.listener.Close()
	}
	if d.profiles != nil {
		d.profiles.listener.Close()
	}
	if d.watch != nil {
		d.watch.Close()
	}
	if d.swarm != nil {
		d.swarm.Close()
	}
	if d.store != nil {
		if err := d.store.Close(); err != nil {
			d.log.Error("cache not closed well", "err", err)
		}
	}
}

// routes adds what both daemons answer to a daemon's own.
func (d *daemon) routes(p part, status http.HandlerFunc) http.Handler {
	mux := http.NewServeMux()
	d.register(p)
	d.watched(mux)
	mux.HandleFunc("GET /v1/status", status)
	mux.HandleFunc("GET /v1/limits", d.limits.serve)
	mux.HandleFunc("PATCH /v1/limits", d.limits.serve)
	mux.Handle("/", p)
	d.gate.Next = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if registry.IsPull(r.URL.Path) {
			p.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
	return d.gate
}

// register offers the figures of store, swarm and ledger to Prometheus.
func (d *daemon) register(p part) {
	counter := func(name, help, label, value string, f func() int64) {
		opts := prometheus.CounterOpts{Name: name, Help: help}
		if label != "" {
			opts.ConstLabels = prometheus.Labels{label: value}
		}
		d.metrics.MustRegister(prometheus.NewCounterFunc(opts, func() float64 { return float64(f()) }))
	}
	gauge := func(name, help string, f func() int64) {
		d.metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(f()) }))
	}
	for _, from := range []layers.Source{layers.FromPeer, layers.FromSeeder, layers.FromUpstream} {
		counter("murder_received_bytes_total", "Bytes of blobs received, by source; a seeder's BitTorrent counts as seeder.", "from", string(from), func() int64 {
			received, _ := p.Ledger().Totals()
			return received[from]
		})
	}
	const sent = "Bytes of blobs sent."
	counter("murder_sent_bytes_total", sent, "to", "peer", func() int64 { return d.swarm.Stats().Sent })
	counter("murder_sent_bytes_total", sent, "to", "client", func() int64 { _, served := p.Ledger().Totals(); return served })
	counter("murder_cross_zone_bytes_total", "Bytes exchanged with peers of another zone.", "", "", func() int64 { return d.swarm.Stats().CrossZone })
	gauge("murder_torrents_active", "Swarms joined.", func() int64 { return int64(d.swarm.Stats().Active) })
	gauge("murder_cache_bytes", "Bytes of whole blobs in the cache.", func() int64 { return d.store.Usage().Bytes })
	if d.shelfDir != "" {
		gauge("murder_shelf_bytes", "Bytes of whole blobs that are shared from the registry's or the engine's own folder; the cache has no copy of them.", func() int64 { return d.store.Usage().Shelved })
		gauge("murder_shelf_usable", "1 if the registry's or the engine's folder of blobs can be used, else 0.", func() int64 {
			if d.store.Usage().ShelfFailure != nil {
				return 0
			}
			return 1
		})
	}
	gauge("murder_cache_pinned_bytes", "Bytes of whole blobs in the cache that pins keep.", func() int64 { return d.store.Usage().Pinned })
	gauge("murder_cache_limit_bytes", "Bytes that the cache may hold; 0 is no limit.", func() int64 { return d.store.Usage().Limit })
	counter("murder_cache_errors_total", "Failures of the disk below the cache; what it did not take or give went past it.", "", "", func() int64 { return d.store.Usage().Failures })
	counter("murder_cache_rotten_total", "Blobs that left the cache because their bytes were not right any more.", "", "", func() int64 { return d.store.Usage().Rotten })
	counter("murder_cache_evictions_total", "Blobs that left the cache to make room.", "", "", func() int64 { return d.store.Usage().Evictions })
	d.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}

// parseRegistries brings names of registries into the form in which they are
// compared.
func parseRegistries(names []string) ([]string, error) {
	hosts := make([]string, 0, len(names))
	for _, name := range names {
		host, err := registry.ParseHost(name)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, host)
	}
	return hosts, nil
}

// unreachable tells of an address given to peers that it is this host's own, but not the one that is listened on. Any other may lead here,
// by a port that is forwarded.
func unreachable(listen, advertise netip.AddrPort, own func(netip.Addr) bool) bool {
	ip := advertise.Addr()
	return ip.IsValid() && ip != listen.Addr() && !listen.Addr().IsUnspecified() &&
		(advertise.Port() == 0 || advertise.Port() == listen.Port()) && own(ip)
}

// ownAddr tells whether an address is this host's. All of 127.0.0.0/8 are.
func ownAddr(ip netip.Addr) bool {
	if ip.IsLoopback() {
		return true
	}
	addrs, _ := net.InterfaceAddrs()
	return slices.ContainsFunc(addrs, func(a net.Addr) bool {
		prefix, err := netip.ParsePrefix(a.String())
		return err == nil && prefix.Addr() == ip
	})
}

// parseAdvertise reads what checkAdvertise has let pass.
func parseAdvertise(s string) netip.AddrPort {
	if addr, err := netip.ParseAddrPort(s); err == nil {
		return addr
	}
	ip, _ := netip.ParseAddr(s)
	return netip.AddrPortFrom(ip, 0)
}
