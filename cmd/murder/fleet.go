package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/proxy"
	"github.com/murderp2p/murder/seeder/fleet"
)

func checkHostName(s string) error {
	if s == "" {
		return nil
	}
	return fleet.CheckName(s)
}

func checkLabel(s string) error {
	_, _, err := fleet.ParseLabel(s)
	return err
}

// labelsOf reads what checkLabel has let pass. A host has one value of a label, so two are a mistake, on either side.
func labelsOf(c *cli.Context) (map[string]string, error) {
	labels := make(map[string]string)
	for _, item := range listFlag(c, "label") {
		key, value, _ := fleet.ParseLabel(item)
		if other, twice := labels[key]; twice && other != value {
			return nil, usagef(c, "--label: a host has one %s, which cannot be both %q and %q", key, other, value)
		}
		labels[key] = value
	}
	return labels, nil
}

// member is a mirror and its place in the fleet.
type member struct {
	*proxy.Mirror
	agent *fleet.Agent // nil = none
}

// Run shares what the cache holds already, and carries out what the seeders order.
func (m *member) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return m.Mirror.Run(ctx) })
	if m.agent != nil {
		group.Go(func() error { return m.agent.Run(ctx) })
	}
	return group.Wait()
}

// follow has m hold links to those seeders.
func (m *member) follow(list []fleet.Seeder) {
	if m.agent != nil {
		m.agent.SetSeeders(list)
	}
}

// member makes the mirror a host of its seeders' fleet. A host without a name of use is
// none, but pulls go on.
func (d *daemon) member(mirror *proxy.Mirror) (*member, error) {
	m := &member{Mirror: mirror}
	labels, err := labelsOf(d.cli)
	if err != nil {
		return nil, err
	}
	who := fleet.Member{Name: d.cli.String("host-name"), Zone: d.cli.String("zone"), Labels: labels, Version: buildVersion()}
	if who.Name == "" {
		who.Name, _ = os.Hostname()
		if err := fleet.CheckName(who.Name); err != nil {
			d.log.Warn("this host is not in the fleet: give it a --host-name", "err", err)
			return m, nil
		}
	}
	if err := who.Check(); err != nil {
		return nil, usagef(d.cli, "%v", err)
	}
	a := &fleet.Agent{
		Member: who, Carry: carrier{mirror, flagValue[loader](d.cli, "load-into")}.carry,
		Account: func() fleet.Account { return d.account(mirror) }, Log: d.log,
	}
	d.registerAgent(a)
	m.agent = a
	return m, nil
}

// account is what the host's seeders are told of it, for their page.
func (d *daemon) account(mirror *proxy.Mirror) fleet.Account {
	received, _ := mirror.Ledger().Totals()
	a := fleet.Account{
		Blobs: d.store.Usage().Blobs, Fell: mirror.Fallbacks(),
		Received: fleet.Received{Peer: received[layers.FromPeer], Seeder: received[layers.FromSeeder], Upstream: received[layers.FromUpstream]},
	}
	listening, _ := netip.ParseAddrPort(d.swarm.Addr().String())
	switch advertise := parseAdvertise(d.cli.String("advertise")); {
	case advertise.Port() != 0:
		a.Peer = advertise.String()
	case advertise.Addr().IsValid():
		a.Peer = netip.AddrPortFrom(advertise.Addr(), listening.Port()).String()
	default: // by the address that the link comes from
		a.Peer = fmt.Sprintf(":%d", listening.Port())
	}
	for _, r := range mirror.Ledger().Arriving(fleet.MaxArriving) {
		a.Arriving = append(a.Arriving, fleet.Arriving{Digest: r.Digest.String(), Size: r.Size, Have: r.Received})
	}
	return a
}

func (d *daemon) registerAgent(a *fleet.Agent) {
	d.metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "murder_fleet_links", Help: "Seeders that the host holds a link to.",
	}, func() float64 { return float64(a.Links()) }))
	for _, result := range []fleet.State{fleet.Ready, fleet.Failed} {
		d.metrics.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "murder_fleet_orders_total", Help: "Orders to the fleet that this host is done with, by result.",
			ConstLabels: prometheus.Labels{"result": string(result)},
		}, func() float64 { return float64(a.Results(result)) }))
	}
}

// registerFleet offers a seeder's figures of its fleet to Prometheus.
func registerFleet(metrics *prometheus.Registry, f *fleet.Fleet) {
	gauge := func(name, help string, labels prometheus.Labels, value func(fleet.Counts) int) {
		metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels},
			func() float64 { return float64(value(f.Counts())) }))
	}
	const hosts = "Hosts of the fleet; those that are away are forgotten after ten minutes."
	gauge("murder_fleet_hosts", hosts, prometheus.Labels{"state": fleet.Connected}, func(c fleet.Counts) int { return c.Connected })
	gauge("murder_fleet_hosts", hosts, prometheus.Labels{"state": fleet.Away}, func(c fleet.Counts) int { return c.Away })
	gauge("murder_fleet_orders", "Orders to the fleet that not all hosts are done with.", nil, func(c fleet.Counts) int { return c.Running })
}

// carrier carries out orders to the fleet as `murder prefetch` on the host would.
type carrier struct {
	mirror *proxy.Mirror
	loader loader
}

func (c carrier) carry(ctx context.Context, order fleet.Order, say func(fleet.Progress)) error {
	if order.Load && c.loader.engine == "" {
		return fmt.Errorf("%w: this host's mirror is not told which engine to load images into; its flag is --load-into", fleet.ErrHopeless)
	}
	req := proxy.PrefetchRequest{Platforms: order.Platforms, Pin: order.Pin}
	for _, image := range order.Images {
		req.Images = append(req.Images, proxy.PrefetchImage{Ref: image.Ref, Digest: image.Digest, Authorization: image.Authorization})
	}
	tally := tally{images: make(map[string]imageProgress)}
	ok, err := c.mirror.Prefetch(ctx, req, func(e proxy.PrefetchEvent) {
		tally.take(e)
		say(tally.progress())
	})
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", fleet.ErrHopeless, err)
	case tally.err != nil:
		return tally.err
	case !ok:
		return errors.New("not all images are here")
	case order.Load:
		p := tally.progress()
		p.State = fleet.Loading
		say(p)
		return c.loader.loadAll(ctx, c.mirror, req.Images)
	default:
		return nil
	}
}

// tally adds up the events of a prefetch.
type tally struct {
	images map[string]imageProgress
	from   fleet.Sources
	err    error // of the first image that failed
}

func (t *tally) take(e proxy.PrefetchEvent) {
	image := t.images[e.Image]
	switch e.Event {
	case "resolved":
		image.bytes = e.Bytes
	case "progress":
		image.done = e.BytesDone
	case "done":
		image.done = e.Bytes
	case "blob":
		t.from = t.from.Plus(fleet.Sources{Cache: e.From["cache"], Peer: e.From["peer"], Seeder: e.From["seeder"], Upstream: e.From["upstream"]})
	case "error":
		if t.err == nil {
			t.err = orderError(e)
		}
	}
	t.images[e.Image] = image
}

// orderError says of a failed image whether another attempt is of use.
func orderError(e proxy.PrefetchEvent) error {
	err := fmt.Errorf("%s: %s", e.Image, e.Error)
	switch {
	case e.Status == http.StatusUnauthorized && e.Challenge != "":
		return &fleet.NeedCredentials{Image: e.Image, Challenge: e.Challenge, Err: err}
	case e.Status == http.StatusNotFound:
		return fmt.Errorf("%w: %w", err, fleet.ErrHopeless)
	default:
		return err
	}
}

func (t *tally) progress() fleet.Progress {
	p := fleet.Progress{State: fleet.Fetching, From: t.from}
	for _, image := range t.images {
		p.Bytes += image.bytes
		p.BytesDone += image.done
	}
	return p
}
