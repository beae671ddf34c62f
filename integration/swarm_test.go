package integration

import (
	"testing"

	"golang.org/x/sync/errgroup"
)

// TestTenMirrorsAtOnce is the main promise: ten hosts want an image nobody has
// yet, the registry sends each blob once, and the hosts feed each other. The
// seeder's uplink is limited, as the origin's is in a fleet; on loopback it
// would be as fast as all peers together.
func TestTenMirrorsAtOnce(t *testing.T) {
	const hosts = 10
	needs(t, "docker-registry")
	image, err := makeImage(newRoot(t), "swarm", 24<<20, 6<<20, 100<<10)
	if err != nil {
		t.Fatal(err)
	}
	f := startFleet(t, fleetConfig{Mirrors: hosts, SeederFlags: []string{"--upload-limit", "16MiB"}})
	push(t, f.Registry.Addr, "fleet/app:v1", image, nil)
	f.Registry.Forget()

	done := logTime(t, "ten pulls")
	var pulls errgroup.Group
	for _, m := range f.Mirrors {
		pulls.Go(func() error {
			_, err := pullImage(t, m, f.Registry.Addr, "fleet/app", "v1")
			return err
		})
	}
	if err := pulls.Wait(); err != nil {
		t.Fatal(err)
	}
	done()

	f.checkEachBlobOnce(t, allBlobs(t, image)...)
	var peer, seeder, upstream float64
	for _, m := range f.Mirrors {
		got := m.Metrics(t)
		peer += got.Sum("murder_received_bytes_total", `from="peer"`)
		seeder += got.Sum("murder_received_bytes_total", `from="seeder"`)
		upstream += got.Sum("murder_received_bytes_total", `from="upstream"`)
	}
	t.Logf("the mirrors received %.0f bytes from peers, %.0f from the seeder, %.0f from the registry", peer, seeder, upstream)
	if upstream != 0 {
		t.Errorf("the mirrors got %.0f bytes from the registry, want none", upstream)
	}
	if peer <= seeder {
		t.Errorf("peers gave %.0f bytes and the seeder %.0f, want most from peers", peer, seeder)
	}
	manifests := f.Registry.Count(func(r request) bool { return r.Path == "/v2/fleet/app/manifests/v1" })
	if manifests > 3 {
		t.Errorf("ten hosts asked the registry %d times about the tag, want the seeder to share the answer", manifests)
	}
}

// TestAria2 has a BitTorrent client that is not ours download a layer with the
// seeder's metainfo and tracker, and serve it to a mirror.
func TestAria2(t *testing.T) {
	needs(t, "docker-registry", "aria2c")
	image, err := makeImage(newRoot(t), "aria2", 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	// The seeder is slow, so that what comes fast comes from aria2.
	f := startFleet(t, fleetConfig{Mirrors: 1, SeederFlags: []string{"--upload-limit", "4MiB"}})
	push(t, f.Registry.Addr, "fleet/app:v1", image, nil)
	blob := layerBlobs(t, image)[0]

	metainfo := get(t, f.Seeder.URL()+"/v1/torrents/"+blob.Digest.String()+"?ns="+f.Registry.Addr+"&repo=fleet/app&wait=30s")
	if metainfo.Status != 200 || metainfo.Header.Get("Content-Type") != "application/x-bittorrent" {
		t.Fatalf("GET /v1/torrents = %d %s: %.200s", metainfo.Status, metainfo.Header.Get("Content-Type"), metainfo.Body)
	}
	a := startAria2(t, aria2Config{Metainfo: metainfo.Body, Tracker: f.Seeder.URL() + "/announce"})
	a.waitDone(t, blob.Digest)

	if err := checkBlob(t, f.Mirrors[0].Blob(f.Registry.Addr, "fleet/app", blob.Digest), blob.Digest); err != nil {
		t.Fatal(err)
	}
	got := f.Mirrors[0].Metrics(t)
	t.Log(got.Series("murder_received_bytes_total"))
	if got.Sum("murder_received_bytes_total", `from="peer"`) == 0 {
		t.Error("the mirror got nothing from aria2")
	}
}
