package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	digest "github.com/opencontainers/go-digest"

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
	deaf     string       // URL of a seeder that never answers; "" without one
	bad      *process     // a peer that does harm; nil without one
	era      atomic.Int64 // of URLs and tokens: those of an earlier one are not good any more
}

// part is one of murder's daemons and what it takes to start it again.
type part struct {
	*daemon
	role string
	cfg  daemonConfig
}

// flockConfig says what is special about a flock.
type flockConfig struct {
	Hosts       int  // 8 when zero
	Cold        bool // the seeder has nothing of the image
	Small       int  // so many hosts are in one zone with the seeder, the rest in one with the registry
	Bucket      bool // there is object storage
	SmallDisks  int  // so many hosts have a disk of their own, with little more room than for the image
	Deaf        bool // before the seeder mirrors are told of another, which accepts and never answers
	SeederFlags []string
	MirrorFlags []string
}

// Links of a flock, in bits a second: slow enough for a fault to strike in the
// middle, fast enough for a case to end within seconds.
const (
	hostRate     = 50e6
	registryRate = 100e6
)

// smallDisk is what a host with a small disk has, as tmpfs's size=.
const smallDisk = "24m"

// flockRepo is where images are that flocks pull.
const flockRepo = "chaos/app"

// flockImage is an image that flocks pull.
type flockImage struct {
	Tag      string
	Manifest digest.Digest
	Blobs    []blobInfo // layers and config
}

func (i *flockImage) Size() int64 { return sizeOf(i.Blobs) }

// flockFolder is the folder of the registries of all flocks.
func flockFolder() string { return filepath.Join(fixturesRoot, "flock") }

// newFlockImage makes an image and puts it into the storage that the registries
// of all flocks share, by a registry of its own.
func newFlockImage(t testing.TB, tag string, sizes ...int64) *flockImage {
	t.Helper()
	dir, err := os.MkdirTemp(fixturesRoot, "image-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	image, err := makeImage(dir, tag, sizes...)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	r := startRegistry(t, registryConfig{Storage: flockFolder()})
	push(t, r.Addr, flockRepo+":"+tag, image, nil)
	r.process.Stop(t)
	return &flockImage{Tag: tag, Manifest: digest.Digest(manifest.String()), Blobs: allBlobs(t, image)}
}

// startFlock starts a flock that is to pull an image. Its cables are limited once all is up.
func startFlock(t testing.TB, image *flockImage, cfg flockConfig) *flock {
	t.Helper()
	if cfg.Hosts == 0 {
		cfg.Hosts = 8
	}
	f := &flock{image: image}
	machines := f.plugIn(t, cfg)
	f.startRegistries(t, cfg, machines)
	f.Seeder = f.startSeeder(t, cfg, machines.seeder)
	if cfg.Deaf {
		f.deaf = "http://" + openDeaf(t, f.Stranger, f.strangerAddr(t))
	}
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
	start := func(m *netlab.Machine) *testRegistry {
		cfg := registryConfig{Storage: flockFolder(), On: m}
		if m != nil {
			cfg.Addr = netip.AddrPortFrom(m.Addr, 5000).String()
		}
		return startRegistry(t, cfg)
	}
	f.Registry = start(m.registry)
	if cfg.Bucket {
		f.Bucket = start(m.bucket)
	}
}

// at gives a daemon the addresses of its machine; on loopback it takes free ones.
func at(cfg daemonConfig, m *netlab.Machine) daemonConfig {
	if cfg.On = m; m != nil {
		cfg.Listen, cfg.Peers = netip.AddrPortFrom(m.Addr, 7080).String(), netip.AddrPortFrom(m.Addr, 7081).String()
	}
	return cfg
}

func (f *flock) startSeeder(t testing.TB, cfg flockConfig, m *netlab.Machine) *part {
	t.Helper()
	return f.start(t, "seeder", at(daemonConfig{Flags: append(f.paced(), cfg.SeederFlags...)}, m))
}

func (f *flock) startHost(t testing.TB, cfg flockConfig, m flockMachines, i int) *part {
	t.Helper()
	d := daemonConfig{Seeders: []string{f.Seeder.URL()}, Flags: append(f.paced(), cfg.MirrorFlags...)}
	if cfg.Deaf {
		d.Seeders = []string{f.deaf, f.Seeder.URL()}
	}
	if i < cfg.SmallDisks {
		d.DiskSize = smallDisk
	}
	return f.start(t, "mirror", at(d, m.hosts[i]))
}

func (f *flock) start(t testing.TB, role string, cfg daemonConfig) *part {
	t.Helper()
	cfg.DataDir = filepath.Join(newRoot(t), role)
	cfg.Insecure = []string{f.Registry.Addr}
	if f.Bucket != nil {
		cfg.Insecure = append(cfg.Insecure, f.Bucket.Addr)
	}
	d := startDaemon(t, role, cfg)
	cfg.Listen, cfg.Peers = d.Addr, d.PeerAddr // for as long as the test runs
	return &part{daemon: d, role: role, cfg: cfg}
}

// Restart starts the daemon again, which has ended.
func (p *part) Restart(t testing.TB) {
	t.Helper()
	p.daemon = startDaemon(t, p.role, p.cfg)
}

// strangerAddr is an address of the machine where nothing of ours runs.
func (f *flock) strangerAddr(t testing.TB) string {
	t.Helper()
	if f.Stranger == nil {
		return freeAddr(t, "127.0.0.1")
	}
	return netip.AddrPortFrom(f.Stranger.Addr, 7081).String()
}

// metainfo asks the seeder for the torrent files of the image's larger blobs,
// and returns their paths.
func (f *flock) metainfo(t testing.TB) (files []string) {
	t.Helper()
	dir := newRoot(t)
	for _, b := range f.image.Blobs {
		resp, err := f.Seeder.http.Get(f.torrentURL(b))
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if resp.Header.Get("Content-Type") != "application/x-bittorrent" {
			continue
		}
		file := filepath.Join(dir, b.Digest.Encoded()+".torrent")
		writeFile(t, file, string(content))
		files = append(files, file)
	}
	if len(files) == 0 {
		t.Fatal("the seeder has no torrent of the image")
	}
	return files
}

func (f *flock) torrentURL(b blobInfo) string {
	return fmt.Sprintf("%s/v1/torrents/%s?ns=%s&repo=%s&wait=60s", f.Seeder.URL(), b.Digest, f.Registry.Addr, flockRepo)
}

// warm has the seeder fetch the image and make its metainfo.
func (f *flock) warm(t testing.TB) {
	t.Helper()
	for _, b := range f.image.Blobs {
		resp, err := f.Seeder.http.Get(f.torrentURL(b))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode >= 400 {
			t.Fatalf("GET %s = %s", f.torrentURL(b), resp.Status)
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

// files are those below a folder of the daemon's data.
func (p *part) files(t testing.TB, folder string) (files []string) {
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

// rot flips a bit in each 64 KiB of the larger files below a folder of the
// daemon's data, as a disk does that goes bad: their times stay as they were. It
// returns how many.
func (p *part) rot(t testing.TB, folder string) (flipped int) {
	t.Helper()
	for _, path := range p.files(t, folder) {
		info, err := os.Stat(path)
		if err != nil || info.Size() < onePiece {
			continue
		}
		flipped += flipBits(t, path, 0)
		if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
			t.Fatal(err)
		}
	}
	return flipped
}

// flipBits flips a bit in each 64 KiB of a file from an offset on, but where nothing has
// been written to it yet. It returns how many.
func flipBits(t testing.TB, path string, from int) (flipped int) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0 // it has got another name meanwhile
	}
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	content, err := io.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	const step = 64 << 10
	for ; from < len(content); from += step {
		if block := content[from:min(len(content), from+step)]; bytes.Count(block, []byte{0}) == len(block) {
			continue
		}
		at := min(from+4096, len(content)-1)
		if _, err := file.WriteAt([]byte{content[at] ^ 1}, int64(at)); err != nil {
			t.Fatal(err)
		}
		flipped++
	}
	return flipped
}

// ballast is the file by which fillDisk does it.
func (p *part) ballast() string { return filepath.Join(seenBy(p.process, p.DataDir), "ballast") }

// fillDisk takes all room that is left on the disk of the daemon's data.
func (p *part) fillDisk(t testing.TB) {
	t.Helper()
	file, err := os.Create(p.ballast())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	block := make([]byte, 64<<10)
	for err == nil {
		_, err = file.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
}

var badPeerBinary = sync.OnceValues(func() (string, error) {
	binary := filepath.Join(fixturesRoot, "badpeer")
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "github.com/murderp2p/murder/integration/badpeer").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build badpeer: %w\n%s", err, out)
	}
	return binary, nil
})

// startBadPeer starts a peer that offers the image and sends wrong bytes at full
// speed, or, when silent, none.
func (f *flock) startBadPeer(t testing.TB, silent bool) *process {
	t.Helper()
	binary, err := badPeerBinary()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{binary, "-listen", f.strangerAddr(t), "-tracker", f.Seeder.URL() + "/announce"}
	if silent {
		args = append(args, "-silent")
	}
	return startProcess(t, processConfig{Args: append(args, f.metainfo(t)...), On: f.Stranger})
}
