package main

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/urfave/cli/v2"

	"github.com/murderp2p/murder/proxy"
	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/seeder"
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
	seeders, err := d.seederClients(upstreams.Allow)
	if err != nil {
		d.close()
		return err
	}
	mirror := proxy.Open(d.ctx, proxy.Config{
		Store: d.store, Swarm: d.swarm, Seeders: seeders,
		Registries:      registry.NewClient(upstreams),
		DefaultRegistry: c.String("default-registry"),
		AuthTTL:         c.Duration("auth-ttl"), AuthGrace: c.Duration("auth-grace"),
		Download: d.download,
		Metrics:  proxy.NewMetrics(d.metrics), Log: d.log,
	})
	member, err := d.member(mirror)
	if err != nil {
		d.close()
		return err
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

// seederClients ask the seeders of --seeder, about registries that are allowed.
func (d *daemon) seederClients(allow []string) ([]proxy.Seeder, error) {
	var clients []proxy.Seeder
	for _, text := range listFlag(d.cli, "seeder") {
		u, err := url.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("seeder %q: %w", text, err)
		}
		cfg := seeder.ClientConfig{URL: u, Allow: allow}
		if d.tls != nil {
			cfg.DialTLS = d.tls.DialHTTPS
		}
		clients = append(clients, seeder.NewClient(cfg))
	}
	return clients, nil
}
