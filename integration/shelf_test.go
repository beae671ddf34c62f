package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// What lies on a host once is not kept a second time: the seeder seeds from the registry's
// own folder, the mirror from containerd's content store.

// contentStore is where a containerd keeps blobs.
func (c *containerd) contentStore() string {
	return filepath.Join(c.root, "root", "io.containerd.content.v1.content")
}

// removeAll drops all images, and waits for the garbage collection: the CRI plugin keeps
// names of its own for what ctr has pulled.
func (c *containerd) removeAll(t testing.TB) {
	t.Helper()
	waitUntil(t, "containerd has no image", func() error {
		names, err := c.Ctr(t, "images", "ls", "-q")
		if err != nil || strings.TrimSpace(names) == "" {
			return err
		}
		_, err = c.Ctr(t, append([]string{"images", "rm", "--sync"}, strings.Fields(names)...)...)
		return errors.Join(fmt.Errorf("it had %q", names), err)
	})
}

// shelfBytes is how much a daemon shares from another program's folder.
func shelfBytes(t testing.TB, d *daemon) int64 {
	t.Helper()
	return int64(d.Metrics(t).Sum("murder_shelf_bytes"))
}

// waitShelf waits until a daemon shares so much from another program's folder.
func waitShelf(t testing.TB, d *daemon, want int64) {
	t.Helper()
	waitUntil(t, fmt.Sprintf("%d bytes are shared without a copy", want), func() error {
		if got := shelfBytes(t, d); got != want {
			return fmt.Errorf("%d are", got)
		}
		return nil
	})
}

// diskUsed is how many bytes the files below dir take on disk.
func diskUsed(t testing.TB, dir string) (used int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			used += fi.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return used
}

// checkNotSent fails the test if the registry has sent more of an image's blobs than it
// takes to see whether it has them.
func checkNotSent(t testing.TB, r *testRegistry, image v1.Image) {
	t.Helper()
	for _, b := range allBlobs(t, image) {
		for _, req := range r.Requests() {
			if req.Method == http.MethodGet && strings.HasSuffix(req.Path, "/blobs/"+b.Digest.String()) && (req.Range == "" || req.Bytes > 64<<10) {
				t.Errorf("the registry sent %d bytes of %s", req.Bytes, b.Digest)
			}
		}
	}
}

// TestSeedsFromRegistryStorage has a real registry's folder seeded to two mirrors. Nothing
// is fetched from the registry and nothing kept twice; garbage collection and a push
// afterwards are noticed.
func TestSeedsFromRegistryStorage(t *testing.T) {
	needs(t, "docker-registry")
	image, err := makeImage(newRoot(t), "shelf", 20<<20, 3<<20)
	if err != nil {
		t.Fatal(err)
	}
	storage := filepath.Join(newRoot(t), "storage")
	f := startFleet(t, fleetConfig{Registry: registryConfig{Storage: storage}, Mirrors: 2, SeederFlags: []string{"--registry-storage", storage}})
	push(t, f.Registry.Addr, "app:v1", image, nil)
	f.Registry.Forget()
	for _, m := range f.Mirrors {
		if _, err := pullImage(t, m, f.Registry.Addr, "app", "v1"); err != nil {
			t.Fatal(err)
		}
	}
	checkNotSent(t, f.Registry, image)
	waitShelf(t, f.Seeder, sizeOf(allBlobs(t, image)))
	if used := diskUsed(t, f.Seeder.DataDir); used > 1<<20 {
		t.Errorf("the seeder's own folder takes %d bytes", used)
	}

	d, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if a := ask(t, http.MethodDelete, "http://"+f.Registry.Addr+"/v2/app/manifests/"+d.String()); a.Status != http.StatusAccepted {
		t.Fatalf("DELETE = %d %s", a.Status, a.Body)
	}
	run(t, processConfig{Args: []string{program(t, "docker-registry"), "garbage-collect", f.Registry.config}})
	if used := diskUsed(t, filepath.Join(storage, "docker/registry/v2/blobs")); used > 1<<20 {
		t.Fatalf("the registry's folder still has %d bytes", used)
	}
	waitShelf(t, f.Seeder, 0)

	f.Registry.Crash() // it remembers what it had
	f.Registry.Restart(t)
	push(t, f.Registry.Addr, "app:v1", image, nil)
	if _, err := pullImage(t, f.addMirror(t), f.Registry.Addr, "app", "v1"); err != nil {
		t.Error(err)
	}
}

// TestEngineStoreIsShared has containerd pull through a mirror. When it has the layers, the
// mirror drops its copies and gives another host the layers where containerd has them;
// when containerd has dropped them too, a pull brings them again.
func TestEngineStoreIsShared(t *testing.T) {
	for name, programs := range map[string]func(testing.TB) containerdPrograms{"1.6": debianContainerd, "2": newContainerd} {
		t.Run(name, func(t *testing.T) {
			c := startContainerd(t, programs(t))
			image, err := makeImage(newRoot(t), "engine", 12<<20, 4<<20)
			if err != nil {
				t.Fatal(err)
			}
			f := startFleet(t, fleetConfig{
				Mirrors:     1,
				SeederFlags: []string{"--upload-limit", "4MiB"}, // so that others have some of it from the mirror
				MirrorFlags: []string{"--engine-store", c.contentStore()},
			})
			m := f.Mirrors[0]
			push(t, f.Registry.Addr, "app:v1", image, nil)
			c.Mirror(t, f.Registry.Addr, m.Addr)
			ref := f.Registry.Addr + "/app:v1"
			if err := c.Pull(t, ref, ""); err != nil {
				t.Fatal(err)
			}
			layers := sizeOf(layerBlobs(t, image))
			waitUntil(t, "the copies are dropped", func() error {
				if got := shelfBytes(t, m); got < layers {
					return fmt.Errorf("%d of %d bytes are shared without a copy", got, layers)
				}
				return nil
			})
			if used := diskUsed(t, m.DataDir); used > 1<<20 {
				t.Errorf("the mirror's folder takes %d bytes", used)
			}

			other := f.addMirror(t)
			if _, err := pullImage(t, other, f.Registry.Addr, "app", "v1"); err != nil {
				t.Error(err)
			}
			if other.Metrics(t).Sum("murder_received_bytes_total", `from="peer"`) == 0 {
				t.Error("another host has had nothing of what containerd has")
			}

			c.removeAll(t)
			waitShelf(t, m, 0)
			if err := c.Pull(t, ref, ""); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestEngineStoreIsClosed has the mirror run as nobody, who may not read containerd's
// folder: it pulls as without, and doctor says what to mend.
func TestEngineStoreIsClosed(t *testing.T) {
	needs(t, "setpriv", "docker-registry")
	needsRoot(t) // to give it up
	const nobody = 65534
	images := loadFixtures(t)
	f := startFleet(t, fleetConfig{Registry: registryConfig{Storage: images.Storage}})
	if err := os.Chmod(filepath.Dir(murderProgram(t)), 0o711); err != nil {
		t.Fatal(err)
	}
	closed := filepath.Join(newRoot(t), "closed")
	root := newRoot(t)
	if err := errors.Join(os.Mkdir(closed, 0o700), os.Chown(root, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	m := startDaemon(t, "mirror", daemonConfig{
		Seeders: []string{f.Seeder.URL()}, Insecure: []string{f.name()}, Default: f.name(), DataDir: filepath.Join(root, "data"),
		Through: []string{program(t, "setpriv"), fmt.Sprint("--reuid=", nobody), fmt.Sprint("--regid=", nobody), "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"},
		Flags:   []string{"--engine-store", closed},
	})
	if _, err := pullImage(t, m, f.Registry.Addr, publicRepo, fixtureTag); err != nil {
		t.Error(err)
	}
	out, _, _ := runMurder(t, nil, "doctor", "--mirror", m.URL(), "--root", root)
	if !strings.Contains(out, "FAIL  store") || !strings.Contains(out, closed) || !strings.Contains(out, "CAP_DAC_READ_SEARCH") {
		t.Errorf("doctor says\n%s", out)
	}
	out, _, _ = runMurder(t, nil, "status", "--mirror", m.URL())
	if !strings.Contains(out, "CANNOT USE "+closed) {
		t.Errorf("status says\n%s", out)
	}
}

// TestBenchDisk pulls a 256 MiB image with containerd and measures what murder and the
// engine's content store take on disk together, with --engine-store and without.
func TestBenchDisk(t *testing.T) {
	needsBench(t)
	needs(t, "docker-registry")
	image, err := makeImage(newRoot(t), "disk", 64<<20, 192<<20)
	if err != nil {
		t.Fatal(err)
	}
	size := sizeOf(allBlobs(t, image))
	measure := func(share bool) (mirror, engine int64) {
		c := startContainerd(t, debianContainerd(t))
		var flags []string
		if share {
			flags = []string{"--engine-store", c.contentStore()}
		}
		f := startFleet(t, fleetConfig{Mirrors: 1, MirrorFlags: flags})
		push(t, f.Registry.Addr, "bench/app:v1", image, nil)
		c.Mirror(t, f.Registry.Addr, f.Mirrors[0].Addr)
		if err := c.Pull(t, f.Registry.Addr+"/bench/app:v1", ""); err != nil {
			t.Fatal(err)
		}
		if share {
			waitShelf(t, f.Mirrors[0], size)
		}
		return diskUsed(t, f.Mirrors[0].DataDir), diskUsed(t, c.contentStore())
	}
	plain, engine := measure(false)
	shared, engineToo := measure(true)
	const mib = 1 << 20
	report(t, "an image of %.1f MiB in compressed layers takes %.1f MiB of a host's disk with --engine-store (mirror %.1f, containerd's content store %.1f) and %.1f without (%.1f, %.1f): %.2f of it",
		float64(size)/mib, float64(shared+engineToo)/mib, float64(shared)/mib, float64(engineToo)/mib,
		float64(plain+engine)/mib, float64(plain)/mib, float64(engine)/mib, float64(shared+engineToo)/float64(plain+engine))
}
