package proxy_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/proxy"
	"github.com/murderp2p/murder/registry/registrytest"
)

var hostPlatform = runtime.GOOS + "/" + runtime.GOARCH

// pin posts a request to pin an image, and returns the status and what was answered.
func (m *testMirror) pin(t testing.TB, image string, platforms ...string) (status int, a proxy.PinAnswer, text string) {
	t.Helper()
	body, err := json.Marshal(proxy.PinRequest{Image: image, Platforms: platforms})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := m.server.Client().Post(m.server.URL+"/v1/pins", "application/json", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode == http.StatusOK {
		if err := json.Unmarshal(b, &a); err != nil {
			t.Fatal(err)
		}
	}
	return resp.StatusCode, a, string(b)
}

func (m *testMirror) unpin(t testing.TB, image string) (status int) {
	t.Helper()
	return m.request(t, "DELETE", "/v1/pins?image="+url.QueryEscape(image), "").status
}

// pullImageAs pulls one image as engines do: the tag's digest first, by HEAD, the manifest by digest, then the blobs.
func (m *testMirror) pullImageAs(t testing.TB, repo, tag string, blobs ...[]byte) digest.Digest {
	t.Helper()
	accept := []string{"Accept", "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"}
	head := m.request(t, "HEAD", "/v2/"+repo+"/manifests/"+tag, "", accept...)
	d := digest.Digest(head.header.Get("Docker-Content-Digest"))
	if a := m.request(t, "GET", "/v2/"+repo+"/manifests/"+d.String(), "", accept...); a.status != http.StatusOK {
		t.Fatalf("manifest: %d %s", a.status, a.body)
	}
	for _, b := range blobs {
		m.mustPull(t, repo, b)
	}
	return d
}

// What an engine has pulled can be pinned by its name, without a registry; what is pinned
// holds when the tag moves, until it is pinned again, and outlives the mirror.
func TestPin(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	dir := filepath.Join(t.TempDir(), "mirror")
	m := newMirrorIn(t, dir, up, nil)
	config, layer, second := random(500, 1), random(2000, 2), random(3000, 3)
	first := up.PushImage(t, "app", "v1", config, layer)
	image := up.Host + "/app:v1"
	if status, _, text := m.pin(t, image); status != http.StatusNotFound || !strings.Contains(text, "nothing has been pulled under that name") {
		t.Errorf("pin of what was never pulled = %d %q", status, text)
	}
	if d := m.pullImageAs(t, "app", "v1", config, layer); d != first {
		t.Fatalf("app:v1 is %s, want %s", d, first)
	}
	up.Away()
	status, a, text := m.pin(t, image)
	if status != http.StatusOK || a.Image != image || a.Digest != first || a.Blobs != 3 || a.Bytes < 2500 || len(a.Missing) > 0 {
		t.Errorf("pin = %d %q", status, text)
	}
	up.Mend()
	moved := up.PushImage(t, "app", "v1", config, second)
	m.pullImageAs(t, "app", "v1")
	if pins := m.Pins(); len(pins) != 1 || pins[0].Digest != first {
		t.Errorf("pins once the tag has moved = %+v", pins)
	}
	missing := digest.FromBytes(second).String()
	if status, _, text := m.pin(t, image); status != http.StatusNotFound || !strings.Contains(text, missing) {
		t.Errorf("pin of what is half here = %d %q, want %s named", status, text, missing)
	}
	m.mustPull(t, "app", second)
	if status, a, text := m.pin(t, image); status != http.StatusOK || a.Digest != moved {
		t.Errorf("pin again = %d %q", status, text)
	}
	if status, a, text := m.pin(t, up.Host+"/app@"+first.String()); status != http.StatusOK || a.Digest != first {
		t.Errorf("pin by digest = %d %q", status, text)
	}

	m.close()
	m = newMirrorIn(t, dir, up, nil)
	if pins := m.Pins(); len(pins) != 2 || pins[0].Digest != moved || pins[1].Digest != first {
		t.Errorf("pins after a restart = %+v", pins)
	}
	if status, _, text := m.pin(t, image); status != http.StatusOK {
		t.Errorf("pin after a restart = %d %q", status, text)
	}
	if status := m.unpin(t, image); status != http.StatusNoContent {
		t.Errorf("unpin = %d", status)
	}
	if status := m.unpin(t, image); status != http.StatusNotFound {
		t.Errorf("unpin of what is not pinned = %d", status)
	}
	if pins := m.Pins(); len(pins) != 1 {
		t.Errorf("pins after unpin = %+v", pins)
	}
}

// Of an index what this host runs is pinned, and what else is here in full; platforms that
// are named must be.
func TestPinPlatforms(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	m := newMirror(t, up, nil)
	pushIndex(t, up, "app", "v1", "linux/riscv64", hostPlatform, "linux/s390x")
	image := up.Host + "/app:v1"
	fetch := func(platforms ...string) {
		t.Helper()
		mustEnd(t, m.prefetch(t, proxy.PrefetchRequest{Images: []proxy.PrefetchImage{{Ref: image}}, Platforms: platforms}), true)
	}
	expect := func(want, blobs int, platforms ...string) {
		t.Helper()
		if status, a, text := m.pin(t, image, platforms...); status != want || a.Blobs != blobs {
			t.Errorf("pin %v = %d %q, want %d and %d blobs", platforms, status, text, want, blobs)
		}
	}
	fetch("linux/riscv64")
	expect(http.StatusNotFound, 0) // this host's is not here
	expect(http.StatusOK, 4, "linux/riscv64")
	fetch(hostPlatform)
	expect(http.StatusOK, 7)
	expect(http.StatusOK, 4, hostPlatform)
	expect(http.StatusNotFound, 0, "all")
	expect(http.StatusBadRequest, 0, "linux")
}

// Prefetch pins what it has brought, and nothing when it has not brought all.
func TestPrefetchPin(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	m := newMirror(t, up, nil)
	index := pushIndex(t, up, "app", "v1", "linux/riscv64", hostPlatform)
	image := up.Host + "/app:v1"
	req := proxy.PrefetchRequest{Images: []proxy.PrefetchImage{{Ref: image}}, Pin: true}
	up.Fail(&registrytest.Fault{Path: digest.FromBytes(random(big/6, 201)).String(), Left: -1, Answer: func(w http.ResponseWriter, _ *http.Request) {
		registrytest.Refuse(w, http.StatusForbidden, "DENIED", "not this one")
	}})
	mustEnd(t, m.prefetch(t, req), false)
	if pins := m.Pins(); len(pins) != 0 {
		t.Errorf("pins after a prefetch that failed = %+v", pins)
	}
	up.Mend()
	events := m.prefetch(t, req)
	mustEnd(t, events, true)
	if done := of(events, "done"); len(done) != 1 || !done[0].Pinned {
		t.Errorf("done = %+v", done)
	}
	if pins := m.Pins(); len(pins) != 1 || pins[0].Image != image || pins[0].Digest != index || pins[0].Blobs != 4 || len(pins[0].Missing) > 0 {
		t.Errorf("pins = %+v", pins)
	}
}

// Requests that are none are refused in words.
func TestPinRequests(t *testing.T) {
	t.Parallel()
	m := newMirror(t, registrytest.New(t), nil)
	for body, want := range map[string]int{
		`{"image":""}`:                 http.StatusBadRequest,
		`{"image":"UPPER/case"}`:       http.StatusBadRequest,
		`{"image":"a","bogus":1}`:      http.StatusBadRequest,
		`[`:                            http.StatusBadRequest,
		`{"image":"never/pulled:tag"}`: http.StatusNotFound,
	} {
		resp, err := m.server.Client().Post(m.server.URL+"/v1/pins", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want || len(text) == 0 {
			t.Errorf("POST /v1/pins %s = %d %q, want %d", body, resp.StatusCode, text, want)
		}
	}
	resp, err := m.server.Client().Post(m.server.URL+"/v1/pins", "text/plain", strings.NewReader(`{"image":"a"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnsupportedMediaType {
		t.Errorf("a body that is not JSON: %d", resp.StatusCode)
	}
	if status := m.unpin(t, ""); status != http.StatusBadRequest {
		t.Errorf("unpin of nothing = %d", status)
	}
}
