package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// loadedBy has a mirror with an engine carry out an order with --load, and takes seeder, registry and mirror away.
func loadedBy(t *testing.T, through []string, into string) (ref string, images *fixtures) {
	t.Helper()
	images = loadFixtures(t)
	f := &fleetOf{fleet: startFleet(t, fleetConfig{Registry: registryConfig{Storage: images.Storage}})}
	mirror := startMirror(t, daemonConfig{Seeders: []string{f.Seeder.URL()}, Insecure: []string{f.name()}, Default: f.name(), Through: through,
		Flags: []string{"--load-into", into}})
	f.waitLinked(t, 1)
	ref = f.Registry.Addr + "/" + bigRepo + ":" + fixtureTag
	done := logTime(t, "murder prefetch --fleet --load")
	f.prefetch(t, nil, "--load", ref).must(t, "loaded", 0, 1)
	done()
	f.checkEachBlobOnce(t, allBlobs(t, images.Big.Images["linux/amd64"])...)
	mirror.Kill()
	f.Seeder.Kill()
	f.Registry.Die()
	return ref, images
}

// TestFleetLoadsIntoDocker: after the order Docker has the image without having asked anybody.
func TestFleetLoadsIntoDocker(t *testing.T) {
	d := startDocker(t, dockerConfig{})
	ref, images := loadedBy(t, nil, "docker="+strings.TrimPrefix(d.host, "unix://"))
	sameTree(t, "docker", d.Tree(t, ref), images.Big.Tree)
}

// TestFleetLoadsIntoContainerd: likewise, where the kubelet looks for images.
func TestFleetLoadsIntoContainerd(t *testing.T) {
	for name, programs := range map[string]func(testing.TB) containerdPrograms{"1.6": debianContainerd, "2": newContainerd} {
		t.Run(name, func(t *testing.T) {
			c := startContainerd(t, programs(t))
			path := filepath.Dir(c.ctr) + ":" + os.Getenv("PATH")
			ref, images := loadedBy(t, []string{"env", "PATH=" + path, "CONTAINERD_SNAPSHOTTER=" + c.snapshotter}, "containerd="+c.socket)
			sameTree(t, "containerd", c.Tree(t, ref), images.Big.Tree)
		})
	}
}
