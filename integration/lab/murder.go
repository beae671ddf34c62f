package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/murderp2p/murder/integration/netlab"
)

// fleet is one way to bring the bytes to a stage's hosts.
type fleet interface {
	// pull has host i get everything, from the start, and returns once the
	// digests of all of it have been found right.
	pull(ctx context.Context, i int) (pulled, error)
	// kill ends what runs on host i as a crash would.
	kill(i int)
	// payload counts the bytes of content moved so far.
	payload(ctx context.Context) (payload, error)
	close()
}

// payload is bytes of content, without any headers.
type payload struct {
	Registry int64   // sent by the registry, to seeder and hosts
	Seeder   int64   // sent by the seeder to hosts
	Received int64   // by all hosts together
	Sent     []int64 // by each host to others; -1 where it cannot be asked any more
}

func (p payload) minus(q payload) payload {
	d := payload{Registry: p.Registry - q.Registry, Seeder: p.Seeder - q.Seeder, Received: p.Received - q.Received}
	for i, sent := range p.Sent {
		if sent >= 0 && i < len(q.Sent) {
			sent -= q.Sent[i]
		}
		d.Sent = append(d.Sent, sent)
	}
	return d
}

// murderFleet is a seeder beside the registry and a mirror on each host, from
// which a client on that host pulls.
type murderFleet struct {
	*stage
	clients []*puller  // one for each host
	mirrors []*process // likewise
}

// openMurder starts murder on a stage and brings it to the plan's state. The
// stage's cables are unlimited until then.
func openMurder(ctx context.Context, s *stage) (*murderFleet, error) {
	f := &murderFleet{stage: s}
	for _, m := range s.seeders() {
		if err := f.startSeeder(ctx, m); err != nil {
			return f, err
		}
	}
	for i := range s.hosts {
		if err := f.startMirror(ctx, i); err != nil {
			return f, err
		}
	}
	if s.plan.Warm {
		return f, f.warmHosts(ctx)
	}
	return f, nil
}

// daemon starts one of murder's daemons. Logs are at Warn: what goes wrong.
func (f *murderFleet) daemon(ctx context.Context, m *netlab.Machine, role, name, command string, port, peerPort uint16, flags ...string) (*process, error) {
	args := append([]string{f.lab.murder, command,
		"--listen", fmt.Sprintf(":%d", port), "--peer-listen", fmt.Sprintf(":%d", peerPort),
		"--data-dir", filepath.Join(f.dir, name), "--cache-size", "0",
		"--insecure-registry", registryName(registryAddr), "--log-level", f.lab.logLevel}, slices.Concat(f.lab.certs.flags, flags)...)
	p, err := f.start(m, role, name, pipes{}, f.lab.profiled(name, args)...)
	if err != nil {
		return nil, err
	}
	return p, waitReady(ctx, m, p, port)
}

// startSeeder starts a seeder and, unless the plan is cold, has it fetch the
// image and make its metainfo.
func (f *murderFleet) startSeeder(ctx context.Context, m *netlab.Machine) error {
	name := "seeder"
	if m == f.twin {
		name = "twin"
	}
	_, err := f.daemon(ctx, m, roleSeeder, name, "seeder", seederPort, seederPeerPort, f.zoneFlag(0)...)
	if err != nil || f.plan.Cold {
		return err
	}
	p := f.lab.askSeeder(m)
	defer p.close()
	if _, err := p.pullImage(ctx, f.image); err != nil {
		return fmt.Errorf("warm the seeder: %w", err)
	}
	for _, b := range f.image.Layers {
		url := fmt.Sprintf("%s/v1/torrents/%s?ns=%s&repo=%s&wait=60s", p.base, b.Digest, registryName(registryAddr), repository)
		if _, err := p.body(ctx, url); err != nil {
			return fmt.Errorf("wait for metainfo: %w", err)
		}
	}
	return nil
}

// zoneFlag names a zone, where there are two.
func (f *murderFleet) zoneFlag(zone int) []string {
	if f.plan.Cable == 0 {
		return nil
	}
	return []string{"--zone", fmt.Sprintf("zone%d", zone)}
}

// mirrorName is what host i's mirror goes by.
func mirrorName(i int) string { return fmt.Sprintf("mirror%02d", i) }

func (f *murderFleet) startMirror(ctx context.Context, i int) error {
	m, name := f.hosts[i], mirrorName(i)
	flags := append(f.zoneFlag(f.plan.Hosts[i].Zone), "--host-name", name)
	for _, seeder := range f.seeders() {
		flags = append(flags, "--seeder", f.lab.seederURL(seeder))
	}
	p, err := f.daemon(ctx, m, roleHosts, name, "mirror", mirrorPort, mirrorPeerPort, flags...)
	if err != nil {
		return err
	}
	f.mirrors = append(f.mirrors, p)
	f.clients = append(f.clients, newPuller(m, fmt.Sprintf("http://%s:%d", m.Addr, mirrorPort), registryName(registryAddr)))
	return nil
}

// warmHosts fills the mirrors' caches, a few at a time.
func (f *murderFleet) warmHosts(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i := range f.hosts {
		group.Go(func() error {
			_, err := f.pull(ctx, i)
			return err
		})
	}
	return group.Wait()
}

func (f *murderFleet) pull(ctx context.Context, i int) (pulled, error) {
	if f.plan.Image {
		return f.clients[i].pullImage(ctx, f.image)
	}
	return f.clients[i].pull(ctx, f.image.Layers, 1)
}

func (f *murderFleet) kill(i int) { f.mirrors[i].kill() }

func (f *murderFleet) close() {
	for _, c := range f.clients {
		c.close()
	}
}

// payload asks the daemons' metrics.
func (f *murderFleet) payload(ctx context.Context) (payload, error) {
	var sum payload
	for _, machine := range f.seeders() {
		seeder := f.lab.askSeeder(machine)
		defer seeder.close()
		m, err := readMetrics(ctx, seeder)
		if err != nil {
			return sum, err
		}
		sum.Registry += m.sum("murder_received_bytes_total", `from="upstream"`)
		sum.Seeder += m.sum("murder_sent_bytes_total", "")
	}
	for i, c := range f.clients {
		m, err := readMetrics(ctx, c)
		if err != nil {
			if f.plan.Hosts[i].Kill > 0 {
				sum.Sent = append(sum.Sent, -1)
				continue
			}
			return sum, err
		}
		sum.Registry += m.sum("murder_received_bytes_total", `from="upstream"`)
		sum.Received += m.sum("murder_received_bytes_total", "")
		sum.Sent = append(sum.Sent, m.sum("murder_sent_bytes_total", `to="peer"`))
	}
	return sum, nil
}

// metrics are the lines of a daemon's /metrics.
type metrics []string

func readMetrics(ctx context.Context, p *puller) (metrics, error) {
	text, err := p.body(ctx, p.base+"/metrics")
	return strings.Split(text, "\n"), err
}

// sum adds up the series of a name whose labels hold label.
func (m metrics) sum(name, label string) int64 {
	sum := 0.0
	for _, line := range m {
		series, value, ok := strings.Cut(line, " ")
		own, labels, _ := strings.Cut(series, "{")
		if !ok || own != name || !strings.Contains(labels, label) {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err == nil {
			sum += v
		}
	}
	return int64(sum)
}

// warnings are what the daemons of a stage found worth a warning.
func (s *stage) warnings() (lines []string) {
	for role, processes := range s.running {
		if role == roleRegistry {
			continue
		}
		for _, p := range processes {
			lines = append(lines, grepWarnings(p)...)
		}
	}
	return lines
}

func grepWarnings(p *process) (lines []string) {
	file, err := os.Open(p.log)
	if err != nil {
		return []string{err.Error()}
	}
	defer file.Close()
	for in := bufio.NewScanner(file); in.Scan(); {
		if line := in.Text(); strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") || strings.Contains(line, "panic") {
			lines = append(lines, p.name+": "+line)
		}
	}
	return lines
}
