package proxy_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/registry/registrytest"
)

// A mirror serves and shares what the engine has without a copy and without fetching it, to
// those whom the registry admits; what the engine has wrong is fetched.
func TestServesWhatEngineHas(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b, wrong := random(big, 300), random(big, 301)
	d, dWrong := up.Push(t, "secret", true, b), up.Push(t, "secret", true, wrong)
	up.Admit(registrytest.Basic("alice"))
	engine := t.TempDir()
	spoilt := bytes.Clone(wrong)
	for i := 0; i < len(spoilt); i += 1000 {
		spoilt[i]++
	}
	for d, b := range map[digest.Digest][]byte{d: b, dWrong: spoilt} {
		path := filepath.Join(engine, "blobs/sha256", d.Encoded())
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m := newMirrorOver(t, layers.StoreConfig{Dir: t.TempDir(), Shelf: layers.EngineShelf(engine)}, up, nil)

	m.request(t, "GET", blobPath("secret", d), "").mustChallenge(t, up)
	m.request(t, "GET", blobPath("secret", d), registrytest.Basic("alice")).mustBe(t, b)
	m.settled(t, d)
	m.request(t, "GET", blobPath("secret", d), registrytest.Basic("mallory")).mustChallenge(t, up)
	m.request(t, "GET", blobPath("secret", d), registrytest.Basic("alice")).mustBe(t, b)
	for _, asked := range up.Seen("GET", d.String()) {
		if asked.Ranges == "" && asked.Authorization == registrytest.Basic("alice") {
			t.Errorf("the blob was fetched: %+v", asked)
		}
	}
	if u := m.store.Usage(); u.Bytes != 0 || u.Shelved != big {
		t.Errorf("usage %+v", u)
	}
	eventually(t, "it is in the swarm", func() bool { return m.swarm.Stats().Active == 1 })
	if got := m.Ledger().Records(d)[0]; got.Way != "cache" || got.Why != "" {
		t.Errorf("it came by %q, because %q", got.Way, got.Why)
	}

	m.request(t, "GET", blobPath("secret", dWrong), registrytest.Basic("alice")).mustBe(t, wrong)
}
