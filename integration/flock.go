package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/murderp2p/murder/integration/netlab"
)

// flock is a fleet to be broken: each part can be killed and started again over
// what it had on its disk, at the same address. Where the test may make network
// namespaces, each part has a machine of its own, behind a cable of limited
// rate; else all are on loopback, and murder's own limits stand in for cables.
type flock struct {
	network  *netlab.Network // nil on loopback
	Registry *testRegistry
	Bucket   *testRegistry // object storage, another way to the registry's blobs; nil without one
	Seeder   *part
	Hosts    []*part
	Stranger *netlab.Machine // where nothing of ours runs; nil on loopback
	image    *flockImage
}

// part is one of murder's daemons and what it takes to start it again.
type part struct {
	*daemon
	role string
	cfg  daemonConfig
}

// flockConfig says what is special about a flock.
type flockConfig struct {
	Hosts       int            // 8 when zero
	Cold        bool           // the seeder has nothing of the image
	Small       int            // so many hosts are in one zone with the seeder, the rest in one with the registry
	Bucket      bool           // there is object storage
	SmallDisks  int            // so many hosts have a disk that is smaller than the image
	Registry    registryConfig // but for its storage
	Seeders     []string       // URLs that mirrors are given before the seeder's
	SeederFlags []string
	MirrorFlags []string
}

// Links of a flock, in bits a second: slow enough for a fault to strike in the
// middle, fast enough for a case to end within seconds.
const (
	hostRate     = 50e6
	registryRate = 100e6
)

// smallDisk is what a host with a small disk has, as tmpfs's size=. It holds
// less than the image's largest layer.
const smallDisk = "6m"

// flockRepo is where images are that flocks pull.
const flockRepo = "chaos/app"

// flockImage is an image that flocks pull.
type flockImage struct {
	Tag   string
	Image v1.Image
	Blobs []blobInfo // layers and config
}

func (i *flockImage) Size() int64 { return sizeOf(i.Blobs) }

// flockStorage is a registry's folder with the image of the chaos cases.
var flockStorage = sync.OnceValues(func() (*flockImage, error) {
	image, err := makeImage(fixturesRoot, "chaos", 8<<20, 5<<20, 3<<20, 200<<10)
	return &flockImage{Tag: "v1", Image: image}, err
})

// storage is the folder of the registries of all flocks.
func flockFolder() string { return filepath.Join(fixturesRoot, "flock") }

// pushFlockImage puts an image into the storage that all flocks' registries
// share, by a registry of its own.
func pushFlockImage(t testing.TB, image *flockImage) {
	t.Helper()
	image.Blobs = allBlobs(t, image.Image)
	r := startRegistry(t, registryConfig{Storage: flockFolder()})
	push(t, r.Addr, flockRepo+":"+image.Tag, image.Image, nil)
	r.process.Stop(t)
}

var pushFlockOnce sync.Once

// loadFlockImage returns the image of the chaos cases, which is in the flocks'
// storage.
func loadFlockImage(t testing.TB) *flockImage {
	t.Helper()
	needs(t, "docker-registry")
	image, err := flockStorage()
	if err != nil {
		t.Fatal(err)
	}
	pushFlockOnce.Do(func() { pushFlockImage(t, image) })
	return image
}

// startFlock starts a flock. Its cables are limited once all is up.
func startFlock(t testing.TB, cfg flockConfig) *flock {
	t.Helper()
	if cfg.Hosts == 0 {
		cfg.Hosts = 8
	}
	f := &flock{image: loadFlockImage(t)}
	machines := f.plugIn(t, cfg)
	f.startRegistries(t, cfg, machines)
	f.Seeder = f.startSeeder(t, cfg, machines.seeder)
	for i := range cfg.Hosts {
		f.Hosts = append(f.Hosts, f.startHost(t, cfg, machines, i))
	}
	t.Cleanup(func() { f.checkNoPanic(t) })
	if !cfg.Cold {
		f.warm(t)
	}
	f.shape(t, machines)
	f.Registry.Forget()
	return f
}

// flockMachines are nil where all is on loopback.
type flockMachines struct {
	registry, bucket, seeder, stranger *netlab.Machine
	hosts                              []*netlab.Machine
}

// plugIn builds the network, if the test may.
func (f *flock) plugIn(t testing.TB, cfg flockConfig) (m flockMachines) {
	t.Helper()
	m.hosts = make([]*netlab.Machine, cfg.Hosts)
	if shapingWorks() != nil {
		return m
	}
	zones, small := 1, 0
	if cfg.Small > 0 {
		zones, small = 2, 1
	}
	var err error
	if f.network, err = netlab.NewNetwork(zones); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.network.Close)
	plug := func(x, y byte, zone int) *netlab.Machine {
		m, err := f.network.Plug(netip.AddrFrom4([4]byte{10, 77, x, y}), zone)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	m.registry, m.bucket, m.seeder, m.stranger = plug(0, 1, 0), plug(0, 3, 0), plug(0, 2, small), plug(2, 1, 0)
	f.Stranger = m.stranger
	for i := range m.hosts {
		zone := 0
		if i < cfg.Small {
			zone = small
		}
		m.hosts[i] = plug(1, byte(i+1), zone)
	}
	return m
}

func (f *flock) shape(t testing.TB, m flockMachines) {
	t.Helper()
	if f.network == nil {
		return
	}
	both := func(rate int64) netlab.Link { return netlab.Link{Up: rate, Down: rate} }
	errs := []error{m.registry.Shape(both(registryRate)), m.bucket.Shape(both(registryRate)), m.seeder.Shape(both(hostRate))}
	for _, h := range m.hosts {
		errs = append(errs, h.Shape(both(hostRate)))
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// paced are the flags that stand in for cables on loopback.
func (f *flock) paced() []string {
	if f.network != nil {
		return nil
	}
	return []string{"--upload-limit", "50Mbit", "--download-limit", "50Mbit"}
}

// startRegistries starts the registry, and the bucket over the same folder.
func (f *flock) startRegistries(t testing.TB, cfg flockConfig, m flockMachines) {
	t.Helper()
	start := func(cfg registryConfig, m *netlab.Machine) *testRegistry {
		cfg.Storage, cfg.On = flockFolder(), m
		if m != nil {
			cfg.Addr = netip.AddrPortFrom(m.Addr, 5000).String()
		}
		return startRegistry(t, cfg)
	}
	f.Registry = start(cfg.Registry, m.registry)
	if cfg.Bucket {
		f.Bucket = start(registryConfig{}, m.bucket)
	}
}

// at gives a daemon its addresses, which it keeps over restarts.
func at(t testing.TB, cfg daemonConfig, m *netlab.Machine) daemonConfig {
	t.Helper()
	cfg.On = m
	if m == nil {
		cfg.Listen, cfg.Peers = freeAddr(t, "127.0.0.1"), freeAddr(t, "127.0.0.1")
		return cfg
	}
	cfg.Listen, cfg.Peers = netip.AddrPortFrom(m.Addr, 7080).String(), netip.AddrPortFrom(m.Addr, 7081).String()
	return cfg
}

func (f *flock) startSeeder(t testing.TB, cfg flockConfig, m *netlab.Machine) *part {
	t.Helper()
	return f.start(t, "seeder", at(t, daemonConfig{Flags: append(f.paced(), cfg.SeederFlags...)}, m))
}

func (f *flock) startHost(t testing.TB, cfg flockConfig, m flockMachines, i int) *part {
	t.Helper()
	d := daemonConfig{Seeders: append(cfg.Seeders[:len(cfg.Seeders):len(cfg.Seeders)], f.Seeder.URL()), Flags: append(f.paced(), cfg.MirrorFlags...)}
	if i < cfg.SmallDisks {
		d.DiskSize = smallDisk
	}
	return f.start(t, "mirror", at(t, d, m.hosts[i]))
}

func (f *flock) start(t testing.TB, role string, cfg daemonConfig) *part {
	t.Helper()
	cfg.DataDir = filepath.Join(newRoot(t), role)
	cfg.Insecure = []string{f.Registry.Addr}
	if f.Bucket != nil {
		cfg.Insecure = append(cfg.Insecure, f.Bucket.Addr)
	}
	return &part{daemon: startDaemon(t, role, cfg), role: role, cfg: cfg}
}

// Restart starts the daemon again, which has ended.
func (p *part) Restart(t testing.TB) {
	t.Helper()
	p.daemon = startDaemon(t, p.role, p.cfg)
}

// warm has the seeder fetch the image and make its metainfo.
func (f *flock) warm(t testing.TB) {
	t.Helper()
	for _, b := range f.image.Blobs {
		url := fmt.Sprintf("%s/v1/torrents/%s?ns=%s&repo=%s&wait=60s", f.Seeder.URL(), b.Digest, f.Registry.Addr, flockRepo)
		resp, err := f.Seeder.http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode >= 400 {
			t.Fatalf("GET %s = %s", url, resp.Status)
		}
	}
}

// checkNoPanic fails the test if a handler of a daemon panicked, which
// net/http hides from all but the log.
func (f *flock) checkNoPanic(t testing.TB) {
	for _, p := range append([]*part{f.Seeder}, f.Hosts...) {
		if p != nil && strings.Contains(p.output.String(), "panic serving") {
			t.Errorf("%s panicked", p.name)
		}
	}
}

// inCache are the files that hold blobs of the image on p's disk, whole or not.
func (p *part) inCache(t testing.TB, folder string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(p.DataDir, folder), func(file string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, file)
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return files
}
