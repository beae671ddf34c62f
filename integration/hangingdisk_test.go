package integration

import (
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
)

// hangsNoLonger is what a pull may take with a disk that hangs: its own time, that until the
// hang is noticed, once on the mirror and once on the seeder, and that of the ways it leaves.
const hangsNoLonger = 45 * time.Second

// daemon is cfg with the daemon's data on the disk.
func (d *faultyDisk) daemon(t *testing.T, cfg daemonConfig) daemonConfig {
	cfg.DataDir = filepath.Join(d.dir, "murder")
	cfg.Through = []string{program(t, "nsenter"), fmt.Sprint("--mount=/proc/", d.holder.PID(), "/ns/mnt")}
	return cfg
}

// hangingImages pushes images of a large layer and a few small ones each.
func hangingImages(t *testing.T, f *fleet, n int) (images []v1.Image) {
	t.Helper()
	for i := range n {
		image, err := makeImage(newRoot(t), fmt.Sprint("hanging", i), 6<<20, 100_000, 3000)
		if err != nil {
			t.Fatal(err)
		}
		push(t, f.Registry.Addr, fmt.Sprint(failRepo, ":v", i), image, nil)
		images = append(images, image)
	}
	return images
}

// pullsEnd pulls a tag from each of the daemons at once, and fails the test if that does not end well, and soon.
func (f *fleet) pullsEnd(t *testing.T, what string, tags ...string) {
	t.Helper()
	begun := time.Now()
	var pulls errgroup.Group
	for _, m := range f.Mirrors {
		for _, tag := range tags {
			pulls.Go(func() error {
				_, err := pullImage(t, m, f.Registry.Addr, failRepo, tag)
				return err
			})
		}
	}
	if err := pulls.Wait(); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	took := time.Since(begun).Round(time.Millisecond)
	t.Logf("%s took %v", what, took)
	if took > hangsNoLonger {
		t.Errorf("%s took %v", what, took)
	}
}

// TestSeedersDiskHangs freezes the seeder's disk while mirrors fetch a layer from it that it is fetching
// itself, and has them pull what it has and what it has not. All pulls end right; when the disk is
// thawed, the seeder fetches for all again.
func TestSeedersDiskHangs(t *testing.T) {
	needs(t, "docker-registry")
	disk := newFaultyDisk(t)
	f := startFleet(t, fleetConfig{})
	f.Seeder = startSeeder(t, disk.daemon(t, daemonConfig{Insecure: []string{f.name()}, Default: f.name()}))
	for range 3 {
		f.Mirrors = append(f.Mirrors, f.addMirror(t))
	}
	images := hangingImages(t, f, 5)
	if _, err := pullImage(t, f.Seeder, f.Registry.Addr, failRepo, "v0"); err != nil {
		t.Fatal(err)
	}
	large := slices.MaxFunc(layerBlobs(t, images[1]), func(a, b blobInfo) int { return int(a.Size - b.Size) })
	held := f.Registry.Hold(large.Digest, 2<<20)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.pullsEnd(t, "in whose middle the seeder's disk began to hang", "v1")
	}()
	held.wait(t)
	thaw := disk.freeze(t)
	held.Release()
	f.pullsEnd(t, "what the seeder has, and what it has not", "v0", "v2")
	<-done
	f.pullsEnd(t, "what comes later", "v3")
	for _, path := range []string{"/healthz", "/metrics"} {
		if a := get(t, f.Seeder.URL()+path); a.Status != http.StatusOK {
			t.Errorf("%s: %d %s", path, a.Status, a.Body)
		}
	}
	thaw()
	f.Seeder.waitUntil(t, "the seeder's disk is well", func() error {
		_, err := pullImage(t, f.Seeder, f.Registry.Addr, failRepo, "v4")
		if err == nil && f.Seeder.Metrics(t).Sum("murder_cache_bytes") < 6<<20*2 {
			err = errNotYet
		}
		return err
	})
	f.pullsEnd(t, "after the disk has answered", "v0", "v4")
}

// TestDiskHangsBetweenPulls freezes a mirror's disk when nothing is arriving. Of the images that are pulled at
// once by then some are cached and some are not.
func TestDiskHangsBetweenPulls(t *testing.T) {
	needs(t, "docker-registry")
	disk := newFaultyDisk(t)
	f := startFleet(t, fleetConfig{})
	m := startMirror(t, disk.daemon(t, daemonConfig{Seeders: []string{f.Seeder.URL()}, Insecure: []string{f.name()}, Default: f.name(),
		Flags: []string{"--cache-size", "15MiB"}}))
	f.Mirrors = append(f.Mirrors, m)
	images := hangingImages(t, f, 5)
	f.pullsEnd(t, "with a disk that is well", "v0", "v1")
	for _, b := range layerBlobs(t, images[1]) {
		f.waitCached(t, b)
	}
	thaw := disk.freeze(t)
	f.pullsEnd(t, "what is cached", "v1", "v0")
	f.pullsEnd(t, "what is cached and what is not", "v1", "v0", "v2")
	f.pullsEnd(t, "what comes later", "v1", "v3")
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/v1/status"} {
		if a := get(t, m.URL()+path); a.Status != http.StatusOK {
			t.Errorf("%s: %d %s", path, a.Status, a.Body)
		}
	}
	thaw()
	m.waitUntil(t, "the cache takes blobs again", func() error {
		if _, err := pullImage(t, m, f.Registry.Addr, failRepo, "v4"); err != nil {
			return permanentError{err}
		}
		for _, b := range layerBlobs(t, images[4]) {
			if a := get(t, m.URL()+"/v1/status?digest="+b.Digest.String()); !strings.Contains(string(a.Body), `"state": "whole"`) {
				return errNotYet
			}
		}
		return nil
	})
	m.waitUntil(t, "nothing is arriving", func() error {
		if a := get(t, m.URL()+"/v1/status"); strings.Contains(string(a.Body), `"state": "arriving"`) {
			return errNotYet
		}
		return nil
	})
}
