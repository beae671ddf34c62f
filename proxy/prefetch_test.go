package proxy_test

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/proxy"

	"github.com/murderp2p/murder/registry/registrytest"
)

// prefetch posts a request and returns the events.
func (m *testMirror) prefetch(t testing.TB, req proxy.PrefetchRequest) []proxy.PrefetchEvent {
	t.Helper()
	body, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := m.server.Client().Post(m.server.URL+"/v1/prefetch", "application/json", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("POST /v1/prefetch = %d %v", resp.StatusCode, resp.Header)
	}
	var events []proxy.PrefetchEvent
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		var event proxy.PrefetchEvent
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			t.Fatalf("event %q: %v", lines.Text(), err)
		}
		events = append(events, event)
	}
	return events
}

func of(events []proxy.PrefetchEvent, kind string) []proxy.PrefetchEvent {
	return slices.DeleteFunc(slices.Clone(events), func(e proxy.PrefetchEvent) bool { return e.Event != kind })
}

// mustEnd fails the test unless the last event is the end, with that result.
func mustEnd(t testing.TB, events []proxy.PrefetchEvent, ok bool) {
	t.Helper()
	last := events[len(events)-1]
	if last.Event != "end" || last.OK == nil || *last.OK != ok || len(of(events, "end")) != 1 {
		t.Errorf("events = %+v, want one end, ok %v", events, ok)
	}
}

// pushIndex puts an image for each of the platforms into a repository, of one
// config and one layer each, under one tag.
func pushIndex(t testing.TB, u *registrytest.Upstream, repo, tag string, platforms ...string) digest.Digest {
	t.Helper()
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for i, platform := range platforms {
		os, arch, _ := strings.Cut(platform, "/")
		layer := big / 6
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Platform: &ocispec.Platform{OS: os, Architecture: arch}}
		desc.Digest = u.PushImage(t, repo, "", random(500, uint64(100+i)), random(layer, uint64(200+i)))
		desc.Size = u.ManifestSize(t, repo, desc.Digest)
		index.Manifests = append(index.Manifests, desc)
	}
	d, _ := u.PushManifest(t, repo, tag, index.MediaType, index)
	return d
}

// Prefetch brings what this host would pull, and tells where it came from.
func TestPrefetch(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *registrytest.Upstream, m *testMirror) {
		index := pushIndex(t, up, "app", "v1", "linux/riscv64", runtime.GOOS+"/"+runtime.GOARCH)
		ref := up.Host + "/app:v1"
		events := m.prefetch(t, proxy.PrefetchRequest{Images: []proxy.PrefetchImage{{Ref: ref}}})
		mustEnd(t, events, true)
		resolved, done, blobs := of(events, "resolved"), of(events, "done"), of(events, "blob")
		if len(resolved) != 1 || resolved[0].Digest != index || resolved[0].Blobs != 2 || resolved[0].Bytes != 500+big/6 || resolved[0].Image != ref {
			t.Errorf("resolved = %+v", resolved)
		}
		if len(done) != 1 || done[0].Bytes != 500+big/6 || len(blobs) != 2 {
			t.Errorf("done = %+v, blobs = %+v", done, blobs)
		}
		for _, blob := range blobs {
			var n int64
			for from, bytes := range blob.From {
				if n += bytes; from == layers.FromCache {
					t.Errorf("blob = %+v, from the cache at once", blob)
				}
			}
			if n < blob.Bytes {
				t.Errorf("blob = %+v: only %d bytes accounted for", blob, n)
			}
		}
		for _, e := range of(events, "error") {
			t.Errorf("error event %+v", e)
		}
		up.Away()
		m.mustPull(t, "app", random(big/6, 201))
		again := m.prefetch(t, proxy.PrefetchRequest{Images: []proxy.PrefetchImage{{Ref: ref}}})
		mustEnd(t, again, true)
		for _, blob := range of(again, "blob") {
			if blob.From[layers.FromCache] != blob.Bytes {
				t.Errorf("blob = %+v, want all from the cache", blob)
			}
		}
	})
}

func TestPrefetchPlatforms(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	index := pushIndex(t, up, "app", "v1", "linux/amd64", "linux/arm64", "windows/amd64")
	ref := up.Host + "/app@" + index.String()
	for _, test := range []struct {
		platforms []string
		blobs     int
		problem   string
	}{
		{[]string{"linux/arm64"}, 2, ""},
		{[]string{"linux/arm64", "linux/amd64"}, 4, ""},
		{[]string{"all"}, 6, ""},
		{[]string{"linux/s390x"}, 0, "nothing for platform linux/s390x"},
		{[]string{"linux/amd64", "linux/s390x"}, 0, "nothing for platform linux/s390x"},
	} {
		t.Run(strings.Join(test.platforms, ","), func(t *testing.T) {
			m := newMirror(t, up, nil)
			events := m.prefetch(t, proxy.PrefetchRequest{Images: []proxy.PrefetchImage{{Ref: ref}}, Platforms: test.platforms})
			mustEnd(t, events, test.problem == "")
			if n := len(of(events, "blob")); n != test.blobs {
				t.Errorf("%d blobs, want %d", n, test.blobs)
			}
			if errs := of(events, "error"); test.problem != "" && (len(errs) != 1 || !strings.Contains(errs[0].Error, test.problem)) {
				t.Errorf("errors = %+v, want one with %q", errs, test.problem)
			}
		})
	}
}

// What cannot be brought is said with the image's name, and does not keep the
// other images from coming.
func TestPrefetchErrors(t *testing.T) {
	withAndWithoutSeeder(t, func(t *testing.T, up *registrytest.Upstream, m *testMirror) {
		up.PushImage(t, "app", "v1", random(500, 80), random(5000, 81))
		up.Push(t, "secret", true, random(500, 82))
		broken := up.PushImage(t, "broken", "v1", random(500, 83), random(5000, 84))
		up.Drop("broken", digest.FromBytes(random(5000, 84)))
		list := []proxy.PrefetchImage{
			{Ref: up.Host + "/app:v1"}, {Ref: up.Host + "/app:v2"}, {Ref: up.Host + "/secret:v1"}, {Ref: "not a ref"},
			{Ref: up.Host + "/broken:v1"},
		}
		events := m.prefetch(t, proxy.PrefetchRequest{Images: list, Platforms: []string{"all"}})
		mustEnd(t, events, false)
		if done := of(events, "done"); len(done) != 1 || done[0].Image != list[0].Ref {
			t.Errorf("done = %+v, want %s alone", done, list[0].Ref)
		}
		byImage := make(map[string]proxy.PrefetchEvent)
		for _, e := range of(events, "error") {
			byImage[e.Image] = e
		}
		if e := byImage[list[1].Ref]; e.Status != http.StatusNotFound {
			t.Errorf("unknown tag: %+v", e)
		}
		if e := byImage[list[2].Ref]; e.Status != http.StatusUnauthorized || e.Challenge != up.Challenge("secret") {
			t.Errorf("private: %+v", e)
		}
		if e := byImage[list[3].Ref]; e.Error == "" {
			t.Errorf("bad name: %+v", e)
		}
		if e := byImage[list[4].Ref]; e.Status != http.StatusNotFound || !strings.Contains(e.Error, digest.FromBytes(random(5000, 84)).String()) {
			t.Errorf("%s without its layer: %+v", broken, e)
		}
	})
}

// A page in a browser cannot post JSON to us unasked; and what is not
// understood is refused.
func TestPrefetchRequests(t *testing.T) {
	t.Parallel()
	m := newMirror(t, registrytest.New(t), nil)
	for _, test := range []struct {
		contentType, body string
		want              int
	}{
		{"", `{"images":[]}`, http.StatusUnsupportedMediaType},
		{"text/plain", `{"images":[]}`, http.StatusUnsupportedMediaType},
		{"application/x-www-form-urlencoded", `{"images":[]}`, http.StatusUnsupportedMediaType},
		{"application/json", `{"images":[]}`, http.StatusOK},
		{"application/json; charset=utf-8", `{"images":[]}`, http.StatusOK},
		{"application/json", `{"image":[]}`, http.StatusBadRequest},
		{"application/json", `[]`, http.StatusBadRequest},
		{"application/json", ``, http.StatusBadRequest},
		{"application/json", `{"platforms":["linux"]}`, http.StatusBadRequest},
		{"application/json", `{"platforms":["linux/a"` + strings.Repeat(`,"linux/a"`, 64) + `]}`, http.StatusBadRequest},
		{"application/json", `{"images":[{"ref":"` + strings.Repeat("x", 2<<20) + `"}]}`, http.StatusBadRequest},
	} {
		resp, err := m.server.Client().Post(m.server.URL+"/v1/prefetch", test.contentType, strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != test.want {
			t.Errorf("POST %s %.40s = %d, want %d", test.contentType, test.body, resp.StatusCode, test.want)
		}
	}
	if a := m.request(t, "GET", "/v1/prefetch", ""); a.status != http.StatusMethodNotAllowed {
		t.Errorf("GET /v1/prefetch = %d", a.status)
	}
}

// No more than so many requests are worked on at a time; one that ends makes room.
func TestPrefetchesAreBounded(t *testing.T) {
	t.Parallel()
	m := newMirror(t, registrytest.New(t), nil)
	post := func(body io.Reader) int {
		resp, err := m.server.Client().Post(m.server.URL+"/v1/prefetch", "application/json", body)
		if err != nil {
			t.Error(err)
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	var held sync.WaitGroup
	var release []func()
	for range 32 {
		r, w := io.Pipe()
		release = append(release, func() { io.WriteString(w, `{"images":[]}`); w.Close() })
		held.Go(func() {
			if status := post(r); status != http.StatusOK {
				t.Errorf("one of those that there is room for = %d", status)
			}
		})
	}
	eventually(t, "all are in", func() bool {
		return m.requests.Load() >= 32 && post(strings.NewReader(`{"images":[]}`)) == http.StatusTooManyRequests
	})
	for _, f := range release {
		f()
	}
	held.Wait()
	if status := post(strings.NewReader(`{"images":[]}`)); status != http.StatusOK {
		t.Errorf("after the others = %d", status)
	}
}

// An index cannot make one prefetch ask for manifests without end.
func TestPrefetchOfEndlessIndex(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	child := up.PushImage(t, "app", "child", random(1000, 210), random(1000, 211))
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: child, Size: up.ManifestSize(t, "app", child), Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: slices.Repeat([]ocispec.Descriptor{desc}, 5000)}
	up.PushManifest(t, "app", "endless", index.MediaType, index)
	m := newMirror(t, up, nil)
	events := m.prefetch(t, proxy.PrefetchRequest{Images: []proxy.PrefetchImage{{Ref: up.Host + "/app:endless"}}, Platforms: []string{"all"}})
	mustEnd(t, events, false)
	if errs := of(events, "error"); len(errs) != 1 || !strings.Contains(errs[0].Error, "more than 1024 manifests") {
		t.Errorf("errors = %+v", errs)
	}
}

// What has left the cache again, for the rest of what was asked for, is not called ready.
func TestPrefetchOfMoreThanTheCacheHolds(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	up.PushImage(t, "app", "a", random(1000, 301), random(big, 302))
	up.PushImage(t, "app", "b", random(1000, 303), random(big, 304))
	m := newMirrorOver(t, layers.StoreConfig{Dir: t.TempDir(), Limit: big + big/2}, up, nil)
	a, b := proxy.PrefetchImage{Ref: up.Host + "/app:a"}, proxy.PrefetchImage{Ref: up.Host + "/app:b"}
	for _, image := range []proxy.PrefetchImage{b, a} {
		mustEnd(t, m.prefetch(t, proxy.PrefetchRequest{Images: []proxy.PrefetchImage{image}}), true)
	}
	events := m.prefetch(t, proxy.PrefetchRequest{Images: []proxy.PrefetchImage{a, b}})
	mustEnd(t, events, false)
	if errs := of(events, "error"); len(errs) == 0 || !strings.Contains(errs[0].Error, "cache") {
		t.Errorf("error events = %+v, want one that names the cache", errs)
	}
}
