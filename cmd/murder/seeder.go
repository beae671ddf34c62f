package main

import (
	"net/http"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/urfave/cli/v2"

	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/seeder"
)

func seederCommand() *cli.Command {
	return &cli.Command{
		Name:   "seeder",
		Usage:  "the origin's daemon, beside the registry: fetches each layer once, seeds it, tracks the swarms",
		Flags:  seederFlags(),
		Action: runSeeder,
	}
}

func runSeeder(c *cli.Context) error {
	d, err := openDaemon(c, "seeder")
	if err != nil {
		return err
	}
	upstreams, err := d.upstreams()
	if err != nil {
		d.close()
		return err
	}
	watches, err := d.watches()
	if err != nil {
		d.close()
		return err
	}
	platforms, err := warmPlatforms(c)
	if err != nil {
		d.close()
		return err
	}
	mine, err := d.share()
	if err != nil {
		d.close()
		return err
	}
	origin := seeder.Open(d.ctx, seeder.Config{
		Store: d.store, Swarm: d.swarm,
		Upstream:        registry.NewClient(upstreams),
		DefaultRegistry: c.String("default-registry"),
		Advertise:       parseAdvertise(c.String("advertise")),
		TagTTL:          c.Duration("tag-ttl"), AuthTTL: c.Duration("auth-ttl"), AuthGrace: c.Duration("auth-grace"),
		Allow: upstreams.Allow, Self: selfFrom(newCredentials(d.insecure)),
		Mine: mine, WarmPlatforms: platforms, WarmFleet: listFlag(c, "warm-fleet"),
		Watch: watches, WatchEvery: flagValue[time.Duration](c, "watch-interval"),
		Upload: d.limits.upload, Download: d.limits.download,
		// Without certificates whoever reaches the port can say that it is a host.
		FleetFile: filepath.Join(d.dataDir, "fleet.json"), FleetCredentials: d.tls != nil,
		Version: buildVersion(), Operator: d.gate.Operator,
		Metrics: seeder.NewMetrics(d.metrics), Tracer: d.tracer(), Log: d.log,
	})
	registerTracker(d.metrics, origin)
	registerFleet(d.metrics, origin.Fleet())
	return d.run(origin, func(w http.ResponseWriter, r *http.Request) { d.report(w, r, origin.Ledger(), nil, nil) })
}

// registerTracker offers the tracker's figures to Prometheus.
func registerTracker(metrics *prometheus.Registry, origin *seeder.Seeder) {
	gauge := func(name, help string, f func() int) {
		metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(f()) }))
	}
	gauge("murder_tracker_swarms", "Swarms with at least one peer.", func() int { return origin.Tracker().Swarms })
	gauge("murder_tracker_peers", "Peers listed, counted once per swarm.", func() int { return origin.Tracker().Peers })
	metrics.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "murder_tracker_announces_total", Help: "Announces answered.",
	}, func() float64 { return float64(origin.Tracker().Announces) }))
}
