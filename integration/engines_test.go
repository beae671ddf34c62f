package integration

import (
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Each engine pulls the big image through a mirror whose seeder is cold, and
// ends up with the source's files. The registry has then sent each blob of
// the engine's platform once, and none of another platform's.

// checkEnginePull is what is true after any engine's first pull. containerd 2's
// ctr reads the configs of all platforms, to choose by them.
func checkEnginePull(t *testing.T, f *fleet, images *fixtures) {
	t.Helper()
	blobs := allBlobs(t, images.Big.Images["linux/amd64"])
	size := sizeOf(blobs)
	others := allBlobs(t, images.Big.Images["linux/arm64"])
	if config := others[len(others)-1]; f.Registry.BlobGets()[config.Digest] > 0 {
		blobs = append(blobs, config)
	}
	f.checkEachBlobOnce(t, blobs...)
	checkBytesSent(t, f.Mirrors[0], size)
}

func TestContainerdPulls(t *testing.T) {
	for name, programs := range map[string]func(testing.TB) containerdPrograms{"1.6": debianContainerd, "2": newContainerd} {
		t.Run(name, func(t *testing.T) {
			images, c := loadFixtures(t), startContainerd(t, programs(t))
			f := startFleet(t, fleetConfig{Registry: registryConfig{Storage: images.Storage}, Mirrors: 1})
			c.Mirror(t, f.Registry.Addr, f.Mirrors[0].Addr)
			ref := f.Registry.Addr + "/" + bigRepo + ":" + fixtureTag
			done := logTime(t, "ctr images pull")
			if err := c.Pull(t, ref, ""); err != nil {
				t.Fatal(err)
			}
			done()
			checkEnginePull(t, f, images)
			sameTree(t, "ctr", c.Tree(t, ref), images.Big.Tree)
		})
	}
}

// TestContainerdPullsOverCRI is the kubelet's way, with credentials from an
// imagePullSecret, from a registry that lets nobody in without.
func TestContainerdPullsOverCRI(t *testing.T) {
	for name, programs := range map[string]func(testing.TB) containerdPrograms{"1.6": debianContainerd, "2": newContainerd} {
		t.Run(name, func(t *testing.T) {
			images, c := loadFixtures(t), startContainerd(t, programs(t))
			f := startFleet(t, fleetConfig{Registry: registryConfig{Storage: images.Storage, Users: map[string]string{"alice": "secret"}}, Mirrors: 1})
			c.Mirror(t, f.Registry.Addr, f.Mirrors[0].Addr)
			ref := f.Registry.Addr + "/" + bigRepo + ":" + fixtureTag

			if err := c.PullCRI(t, ref, nil); err == nil {
				t.Error("pulled without credentials")
			}
			if err := c.PullCRI(t, ref, &cri.AuthConfig{Username: "alice", Password: "wrong"}); err == nil {
				t.Error("pulled with a wrong password")
			}
			done := logTime(t, "CRI PullImage")
			if err := c.PullCRI(t, ref, &cri.AuthConfig{Username: "alice", Password: "secret"}); err != nil {
				t.Fatal(err)
			}
			done()
			checkEnginePull(t, f, images)
			sameTree(t, "CRI", c.Tree(t, ref), images.Big.Tree)
		})
	}
}

// TestDockerPullsHubImages has the mirror as Docker's registry-mirror, which
// serves Docker Hub's names; the registry here stands in for Docker Hub.
func TestDockerPullsHubImages(t *testing.T) {
	images := loadFixtures(t)
	f := startFleet(t, fleetConfig{Registry: registryConfig{Storage: images.Storage}, Mirrors: 1})
	d := startDocker(t, dockerConfig{Mirrors: []string{f.Mirrors[0].URL()}})
	done := logTime(t, "docker pull")
	if _, err := d.Run(t, "pull", "app:"+fixtureTag); err != nil {
		t.Fatal(err)
	}
	done()
	checkEnginePull(t, f, images)
	sameTree(t, "docker", d.Tree(t, "app:"+fixtureTag), images.Big.Tree)
}

// TestDockerPullsByHostInPath pulls localhost:PORT/HOST/REPOSITORY, the way to
// registries other than Docker Hub.
func TestDockerPullsByHostInPath(t *testing.T) {
	images := loadFixtures(t)
	f := startFleet(t, fleetConfig{Registry: registryConfig{Storage: images.Storage, Addr: hostAddr(t)}, Mirrors: 1})
	d := startDocker(t, dockerConfig{})
	_, port, _ := cutLast(f.Mirrors[0].Addr, ":")
	ref := "localhost:" + port + "/" + f.name() + "/" + publicRepo + ":" + fixtureTag
	if _, err := d.Run(t, "pull", ref); err != nil {
		t.Fatal(err)
	}
	blobs := allBlobs(t, images.Public)
	f.checkEachBlobOnce(t, blobs...)
	checkBytesSent(t, f.Mirrors[0], sizeOf(blobs))
}

func TestPodmanPulls(t *testing.T) {
	images, p := loadFixtures(t), newPodman(t)
	f := startFleet(t, fleetConfig{Registry: registryConfig{Storage: images.Storage, Addr: hostAddr(t)}, Mirrors: 1})
	p.Mirror(t, f.name(), f.Mirrors[0].Addr+"/"+f.name())
	ref := f.name() + "/" + bigRepo + ":" + fixtureTag
	done := logTime(t, "podman pull")
	if err := p.Pull(t, ref); err != nil {
		t.Fatal(err)
	}
	done()
	checkEnginePull(t, f, images)
	sameTree(t, "podman", p.Tree(t, ref), images.Big.Tree)
}

func TestSkopeoCopies(t *testing.T) {
	images, s := loadFixtures(t), newSkopeo(t)
	f := startFleet(t, fleetConfig{Registry: registryConfig{Storage: images.Storage}, Mirrors: 1})
	done := logTime(t, "skopeo copy")
	layout, err := s.Copy(t, f.Mirrors[0].Addr+"/"+bigRepo+":"+fixtureTag)
	if err != nil {
		t.Fatal(err)
	}
	done()
	checkEnginePull(t, f, images)
	sameTree(t, "skopeo", treeOfLayout(t, layout), images.Big.Tree)
}
