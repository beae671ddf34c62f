package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// readyImage waits until the seeder says that it has a tag, and returns when it said so.
func readyImage(t testing.TB, seeder *daemon, tag string) time.Time {
	t.Helper()
	type logged struct {
		Time time.Time
		Msg  string
		Tag  string
	}
	var line logged
	seeder.waitLine(t, "image ready", func(text string) bool {
		line = logged{}
		return json.Unmarshal([]byte(text), &line) == nil && line.Msg == "pushed image is ready" && line.Tag == tag
	})
	return line.Time
}

// TestPushIsReady pushes a private image to a real registry that tells a seeder of it: the
// seeder, which has an account there, has all of it before anyone pulls, gives it to who
// may have it, and to nobody else.
func TestPushIsReady(t *testing.T) {
	needs(t, "docker-registry")
	image, err := makeImage(newRoot(t), "pushed", 3<<20, 100)
	if err != nil {
		t.Fatal(err)
	}
	const token = "a-token-that-only-the-registry-has"
	file := filepath.Join(newRoot(t), "token")
	writeFile(t, file, token+"\n")
	reg := startRegistry(t, registryConfig{Users: map[string]string{"alice": "secret", "murder": "robot"}})
	seeder := startSeeder(t, daemonConfig{
		Insecure: []string{reg.Addr}, Default: reg.Addr, Env: dockerLogin(t, reg.Addr, "murder:robot"),
		Flags: []string{"--events-token-file", file, "--allow-registry", reg.Addr},
	})
	mirror := startMirror(t, daemonConfig{Seeders: []string{seeder.URL()}, Insecure: []string{reg.Addr}, Default: reg.Addr})
	reg.Notify(t, seeder.URL()+"/v1/events", "Authorization: Bearer "+token)

	push(t, reg.Addr, "team/app:v1", image, &authn.Basic{Username: "alice", Password: "secret"})
	readyImage(t, seeder, "v1")
	f := &fleet{Registry: reg}
	f.checkEachBlobOnce(t, allBlobs(t, image)...)
	if _, err := pullImage(t, mirror, reg.Addr, "team/app", "v1", basic("alice:secret")); err != nil {
		t.Errorf("alice pulls: %v", err)
	}
	if _, err := pullImage(t, mirror, reg.Addr, "team/app", "v1", basic("alice:wrong")); err == nil {
		t.Error("a stranger pulls what the seeder fetched for itself")
	}
	for _, blob := range allBlobs(t, image) {
		if _, err := openBlob(t, seeder.Blob(reg.Addr, "team/app", blob.Digest)); err == nil {
			t.Errorf("nobody gets %s of the seeder", blob.Digest)
		}
	}
	if n := reg.WholeGets(); n != len(allBlobs(t, image)) {
		t.Errorf("the registry sent %d whole blobs, want each once", n)
	}
	if resp, err := http.Post(seeder.URL()+"/v1/events", "application/json", strings.NewReader(`{"events":[]}`)); err != nil || resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("an event without the token: %v, %v; want 401", resp, err)
	} else {
		resp.Body.Close()
	}
}

// WholeGets counts the blobs that were asked for as a whole; sections prove to murder that
// a repository holds a blob.
func (g *gate) WholeGets() (n int) {
	for _, r := range g.Requests() {
		if strings.Contains(r.Path, "/blobs/") && r.Method == http.MethodGet && r.Range == "" && r.Status == http.StatusOK {
			n++
		}
	}
	return n
}

// TestWatchedPushIsReady is the same with a registry that tells nobody.
func TestWatchedPushIsReady(t *testing.T) {
	needs(t, "docker-registry")
	images := make([]v1.Image, 2)
	for i := range images {
		var err error
		if images[i], err = makeImage(newRoot(t), fmt.Sprint("watched", i), 2<<20); err != nil {
			t.Fatal(err)
		}
	}
	reg := startRegistry(t, registryConfig{})
	push(t, reg.Addr, "team/app:v1", images[0], nil)
	seeder := startSeeder(t, daemonConfig{Insecure: []string{reg.Addr}, Flags: []string{"--watch", reg.Addr + "/team/app:v*", "--watch-interval", "5s"}})
	readyImage(t, seeder, "v1")
	push(t, reg.Addr, "team/app:v2", images[1], nil)
	push(t, reg.Addr, "team/app:other", images[1], nil)
	readyImage(t, seeder, "v2")
	f := &fleet{Registry: reg}
	f.checkEachBlobOnce(t, append(allBlobs(t, images[0]), allBlobs(t, images[1])...)...)
}

// TestBenchPush measures from the end of a push of 500 MB to a real registry until the
// seeder has all of it with its metainfo, five times.
func TestBenchPush(t *testing.T) {
	needsBench(t)
	needs(t, "docker-registry")
	const rounds, layers, size = 5, 5, 100e6
	reg := startRegistry(t, registryConfig{})
	seeder := startSeeder(t, daemonConfig{Insecure: []string{reg.Addr}})
	reg.Notify(t, seeder.URL()+"/v1/events", "")
	var after, pushing []float64
	for round := range rounds {
		sizes := make([]int64, layers)
		for i := range sizes {
			sizes[i] = size
		}
		image, err := makeImage(newRoot(t), fmt.Sprint("push", round), sizes...)
		if err != nil {
			t.Fatal(err)
		}
		tag := fmt.Sprint("v", round)
		begun := time.Now()
		push(t, reg.Addr, "bench/app:"+tag, image, nil)
		ended := time.Now()
		after = append(after, max(0, readyImage(t, seeder, tag).Sub(ended).Seconds()))
		pushing = append(pushing, ended.Sub(begun).Seconds())
		for _, blob := range allBlobs(t, image) {
			a := get(t, seeder.URL()+"/v1/torrents/"+blob.Digest.String()+"?repo=bench/app&ns="+reg.Addr)
			if a.Status != http.StatusOK {
				t.Fatal(errors.New("no metainfo of what is ready"), a.Status)
			}
		}
	}
	report(t, "500 MB in %d layers: the push takes %.1f s, all metainfo is ready %.2f s after its end (median of %d; max %.2f s)",
		layers, median(pushing), median(after), rounds, after[len(after)-1])
}
