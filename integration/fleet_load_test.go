package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
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
	config, err := images.Big.Images["linux/amd64"].ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	var layers []string
	out, err := d.Run(t, "image", "inspect", "--format", "{{json .RootFS.Layers}}", ref)
	if err == nil {
		err = json.Unmarshal([]byte(out), &layers)
	}
	if err != nil || len(layers) != len(config.RootFS.DiffIDs) {
		t.Fatalf("docker has %s (%v), want %v", out, err, config.RootFS.DiffIDs)
	}
	for i, diff := range config.RootFS.DiffIDs { // Docker has hashed them itself
		if layers[i] != diff.String() {
			t.Errorf("layer %d is %s, want %s", i, layers[i], diff)
		}
	}
}

// TestFleetLoadsIntoContainerd: likewise, where the kubelet looks for images.
func TestFleetLoadsIntoContainerd(t *testing.T) {
	for name, programs := range map[string]func(testing.TB) containerdPrograms{"1.6": debianContainerd, "2": newContainerd} {
		t.Run(name, func(t *testing.T) {
			c := startContainerd(t, programs(t))
			path := filepath.Dir(c.ctr) + ":" + os.Getenv("PATH")
			ref, images := loadedBy(t, []string{"env", "PATH=" + path, "CONTAINERD_SNAPSHOTTER=" + c.snapshotter}, "containerd="+c.socket)
			config, err := images.Big.Images["linux/amd64"].ConfigName()
			if err != nil {
				t.Fatal(err)
			}
			status, err := c.images.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
			if err != nil || status.GetImage().GetId() != config.String() {
				t.Errorf("the kubelet is told %v (%v) of %s, want %s", status, err, ref, config)
			}
			if out, err := c.Ctr(t, "images", "check", "--snapshotter", c.snapshotter, "name=="+ref); err != nil || !strings.Contains(out, "complete") || !strings.Contains(out, "true") {
				t.Errorf("ctr images check: %s (%v), want it complete and unpacked", out, err)
			}
		})
	}
}

// TestFleetLoadsByCRI: the engine pulls on the mirror's word, a private image with the password of the order, and the registry sends nothing twice.
func TestFleetLoadsByCRI(t *testing.T) {
	for name, programs := range map[string]func(testing.TB) containerdPrograms{"1.6": debianContainerd, "2": newContainerd} {
		t.Run(name, func(t *testing.T) {
			c := startContainerd(t, programs(t))
			images := loadFixtures(t)
			f := &fleetOf{fleet: startFleet(t, fleetConfig{
				Registry: registryConfig{Storage: images.Storage, Users: map[string]string{"alice": "secret"}}, Certs: newCerts(t),
				Mirrors: 1, MirrorFlags: []string{"--load-into", "cri=unix://" + c.socket},
			})}
			c.Mirror(t, f.Registry.Addr, f.Mirrors[0].Addr)
			f.waitLinked(t, 1)
			ref := f.Registry.Addr + "/" + privateRepo + ":" + fixtureTag
			done := logTime(t, "murder prefetch --fleet --load")
			f.prefetch(t, dockerLogin(t, f.Registry.Addr, "alice:secret"), "--load", ref).must(t, "loaded", 0, 1)
			done()
			f.checkEachBlobOnce(t, allBlobs(t, images.Private)...)
			config, err := images.Private.ConfigName()
			if err != nil {
				t.Fatal(err)
			}
			status, err := c.images.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
			if err != nil || status.GetImage().GetId() != config.String() {
				t.Errorf("the kubelet is told %v (%v) of %s, want %s", status, err, ref, config)
			}
		})
	}
}

// TestFleetLoadsPublicByCRI: of a registry with a token server the engine has public images by a token of its own, as it cannot be given one.
func TestFleetLoadsPublicByCRI(t *testing.T) {
	c := startContainerd(t, newContainerd(t))
	images := loadFixtures(t)
	f := &fleetOf{fleet: startFleet(t, fleetConfig{
		Registry: registryConfig{Storage: images.Storage, Tokens: startTokenServer(t, nil, publicRepo)},
		Mirrors:  1, MirrorFlags: []string{"--load-into", "cri=" + c.socket},
	})}
	c.Mirror(t, f.Registry.Addr, f.Mirrors[0].Addr)
	f.waitLinked(t, 1)
	f.prefetch(t, nil, "--load", f.Registry.Addr+"/"+publicRepo+":"+fixtureTag).must(t, "loaded", 0, 1)
	f.checkEachBlobOnce(t, allBlobs(t, images.Public)...)
}
