package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/murderp2p/murder/integration/netlab"
)

// Ports are fixed, as each program has a network of its own.
const (
	registryPort   = 5000
	seederPort     = 7070
	seederPeerPort = 7071
	mirrorPort     = 7080
	mirrorPeerPort = 7081
)

// Addresses need not be free on this machine: no card of the lab's networks
// leads out of them.
var (
	registryAddr = netip.AddrFrom4([4]byte{10, 77, 0, 1})
	seederAddr   = netip.AddrFrom4([4]byte{10, 77, 0, 2})
	twinAddr     = netip.AddrFrom4([4]byte{10, 77, 0, 3})
)

func hostAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 1, byte(i + 1)}) }

// stage is the machines of one run and what runs on them.
type stage struct {
	lab  *lab
	plan plan
	dir  string // for the run's files
	logs string

	network  *netlab.Network
	registry *netlab.Machine
	seeder   *netlab.Machine
	twin     *netlab.Machine // a second seeder's, or nil
	hosts    []*netlab.Machine
	image    image

	running map[string][]*process // by role
}

// The roles of programs in a run.
const (
	roleRegistry = "registry"
	roleSeeder   = "seeder"
	roleHosts    = "hosts"
	roleClients  = "clients" // the lab itself, which pulls and checks
)

// openStage builds the network, unlimited as yet, and starts the registry
// with the plan's image. The caller closes the stage, also after an error.
func openStage(ctx context.Context, l *lab, p plan) (*stage, error) {
	s := &stage{lab: l, plan: p, running: map[string][]*process{}}
	var err error
	if s.dir, err = os.MkdirTemp(l.dir, "run-"); err != nil {
		return s, err
	}
	s.logs = filepath.Join(s.dir, "logs")
	if err := os.Mkdir(s.logs, 0o700); err != nil {
		return s, err
	}
	if err := s.plugIn(); err != nil {
		return s, err
	}
	if err := s.startRegistry(ctx); err != nil {
		return s, err
	}
	s.image, err = l.image(ctx, s.registry, p.Sizes)
	return s, err
}

// plugIn builds the network.
func (s *stage) plugIn() (err error) {
	zones := 1
	if s.plan.Cable > 0 {
		zones = 2
	}
	if s.network, err = netlab.NewNetwork(zones); err != nil {
		return err
	}
	if s.registry, err = s.network.Plug(registryAddr, 0); err != nil {
		return err
	}
	if s.seeder, err = s.network.Plug(seederAddr, 0); err != nil {
		return err
	}
	if s.plan.Twins {
		if s.twin, err = s.network.Plug(twinAddr, 0); err != nil {
			return err
		}
	}
	for i, h := range s.plan.Hosts {
		m, err := s.network.Plug(hostAddr(i), h.Zone)
		if err != nil {
			return err
		}
		s.hosts = append(s.hosts, m)
	}
	return s.separate()
}

// separate lets each host reach only as many others as the plan says, in a
// random regular graph that is the same at each run.
func (s *stage) separate() error {
	if s.plan.Chain {
		return blockPeers(s.seeder, s.hosts[1])
	}
	if s.plan.Neighbours == 0 {
		return nil
	}
	joined := regularGraph(len(s.hosts), s.plan.Neighbours, rand.New(rand.NewPCG(1, 0)))
	for i, a := range s.hosts {
		for j, b := range s.hosts[:i] {
			if joined[i][j] {
				continue
			}
			if err := block(a, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// seeders are the machines with a seeder.
func (s *stage) seeders() []*netlab.Machine {
	if s.twin == nil {
		return []*netlab.Machine{s.seeder}
	}
	return []*netlab.Machine{s.seeder, s.twin}
}

// shape limits all cables as the plan says.
func (s *stage) shape() error {
	if err := s.registry.Shape(s.plan.Registry); err != nil {
		return err
	}
	for _, m := range s.seeders() {
		if err := m.Shape(s.plan.Seeder); err != nil {
			return err
		}
	}
	for i, m := range s.hosts {
		if err := m.Shape(s.plan.Hosts[i].Link); err != nil {
			return err
		}
	}
	if s.plan.Cable > 0 {
		return s.network.ShapeCable(s.plan.Cable)
	}
	return nil
}

// start starts a program of some role on m.
func (s *stage) start(m *netlab.Machine, role, name string, io pipes, args ...string) (*process, error) {
	p, err := startProcess(m, s.logs, name, io, args...)
	if err == nil {
		s.running[role] = append(s.running[role], p)
	}
	return p, err
}

// startRegistry starts docker-registry over the lab's images.
func (s *stage) startRegistry(ctx context.Context) error {
	config := filepath.Join(s.dir, "registry.yml")
	yaml := fmt.Sprintf(`version: 0.1
log: {level: error, formatter: text, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %q, maxthreads: 100}
http: {addr: %q, secret: lab}
`, s.lab.storage, registryName(registryAddr))
	if err := os.WriteFile(config, []byte(yaml), 0o600); err != nil {
		return err
	}
	p, err := s.start(s.registry, roleRegistry, "registry", pipes{}, "docker-registry", "serve", config)
	if err != nil {
		return err
	}
	return waitReady(ctx, s.registry, p, registryPort)
}

// close ends all programs, takes the network down and removes the files.
func (s *stage) close() error {
	for _, processes := range s.running {
		for _, p := range processes {
			p.kill()
		}
	}
	if s.network != nil {
		s.network.Close()
	}
	if s.lab.keep || s.dir == "" {
		return nil
	}
	return os.RemoveAll(s.dir)
}

// regularGraph is a random graph in which each of n has degree neighbours:
// one of the circulant kind, mixed by exchanging the ends of pairs of edges.
func regularGraph(n, degree int, r *rand.Rand) [][]bool {
	joined := make([][]bool, n)
	for i := range joined {
		joined[i] = make([]bool, n)
	}
	var edges [][2]int
	join := func(a, b int, yes bool) { joined[a][b], joined[b][a] = yes, yes }
	for i := range n {
		for k := 1; k <= degree/2 && k < n; k++ {
			if j := (i + k) % n; !joined[i][j] {
				join(i, j, true)
				edges = append(edges, [2]int{i, j})
			}
		}
	}
	for range 20 * len(edges) {
		x, y := &edges[r.IntN(len(edges))], &edges[r.IntN(len(edges))]
		a, b, c, d := x[0], x[1], y[0], y[1]
		if a == c || a == d || b == c || b == d || joined[a][d] || joined[c][b] {
			continue
		}
		join(a, b, false)
		join(c, d, false)
		join(a, d, true)
		join(c, b, true)
		x[1], y[1] = d, b
	}
	return joined
}
