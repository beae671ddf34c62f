package main

import (
	"context"
	"net/http"

	"github.com/urfave/cli/v2"

	"github.com/murderp2p/murder/proxy"
	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/seeder/roster"
)

func mirrorCommand() *cli.Command {
	return &cli.Command{
		Name:   "mirror",
		Usage:  "the daemon on every host: a pull-only registry, a cache and a BitTorrent peer",
		Flags:  mirrorFlags(),
		Action: runMirror,
	}
}

func runMirror(c *cli.Context) error {
	d, err := openDaemon(c, "mirror")
	if err != nil {
		return err
	}
	upstreams, err := d.upstreams()
	if err != nil {
		d.close()
		return err
	}
	found, err := openRoster(c.Context, listFlag(c, "seeder"), d.log)
	if err != nil {
		d.close()
		return err
	}
	seeders := &seeders{allow: upstreams.Allow, tls: d.seederTLS}
	clients, links, err := seeders.of(found.Seeders())
	if err != nil {
		d.close()
		return err
	}
	mirror := proxy.Open(d.ctx, proxy.Config{
		Store: d.store, Swarm: d.swarm, Seeders: clients, SeederIll: found.Look,
		Registries:      registry.NewClient(upstreams),
		DefaultRegistry: c.String("default-registry"),
		AuthTTL:         c.Duration("auth-ttl"), AuthGrace: c.Duration("auth-grace"),
		Download: d.limits.download,
		Metrics:  proxy.NewMetrics(d.metrics), Tracer: d.tracer(), Log: d.log,
	})
	member, err := d.member(mirror)
	if err != nil {
		d.close()
		return err
	}
	member.follow(links)
	d.beside = func(ctx context.Context) error {
		return found.Run(ctx, func(now []roster.Seeder) {
			clients, links, err := seeders.of(now)
			if err != nil {
				d.log.Error("seeders not changed", "err", err)
				return
			}
			mirror.SetSeeders(clients)
			member.follow(links)
		})
	}
	return d.run(member, func(w http.ResponseWriter, r *http.Request) {
		health := []seederStatus{}
		for _, s := range mirror.Seeders() {
			health = append(health, seederStatus(s))
		}
		d.report(w, r, mirror.Ledger(), health, pinsOf(mirror))
	})
}

// pinsOf are the pinned images as `murder status` shows them.
func pinsOf(mirror *proxy.Mirror) []pinStatus {
	pins := []pinStatus{}
	for _, p := range mirror.Pins() {
		pin := pinStatus{Image: p.Image, Digest: p.Digest.String(), Pinned: p.Pinned, Blobs: p.Blobs, Bytes: p.Bytes}
		for _, d := range p.Missing {
			pin.Missing = append(pin.Missing, d.String())
		}
		pins = append(pins, pin)
	}
	return pins
}
