package seeder_test

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/registry/registrytest"
	"github.com/murderp2p/murder/seeder"
)

// newSeederBeside is a seeder on the host of a registry that has its blobs in storage.
func newSeederBeside(t testing.TB, storage string, up ...*registrytest.Upstream) *testSeeder {
	t.Helper()
	store := layers.StoreConfig{Dir: t.TempDir(), Shelf: layers.RegistryShelf(storage)}
	return newSeederOver(t, store, func(*seeder.Config) {}, up...)
}

// storage is a registry's folder that has the blobs.
func storage(t testing.TB, blobs ...[]byte) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, b := range blobs {
		store(t, dir, digest.FromBytes(b), b)
	}
	return dir
}

// store puts a blob into a registry's folder, and returns its file.
func store(t testing.TB, dir string, d digest.Digest, b []byte) string {
	t.Helper()
	path := filepath.Join(dir, "docker/registry/v2/blobs/sha256", d.Encoded()[:2], d.Encoded(), "data")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// mustNotFetch fails the test if the registry was asked for more of a blob than it takes
// to see whether it has it: 64 KiB.
func mustNotFetch(t testing.TB, up *registrytest.Upstream, d digest.Digest) {
	t.Helper()
	for _, asked := range up.Seen("GET", d.String()) {
		if asked.Ranges == "" {
			t.Errorf("the registry was asked for the whole blob: %+v", asked)
		}
	}
}

// What lies in the registry's folder is seeded from there, and not fetched: the same
// metainfo as ever, for those whom the registry admits.
func TestSeedsFromRegistryStorage(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1000, big} {
		up := registrytest.New(t)
		b := random(size, 40)
		d := up.Push(t, "secret", true, b)
		up.Admit(registrytest.Basic("alice"))
		dir := storage(t, b)
		s := newSeederBeside(t, dir, up)

		for range 2 { // as it lies on the shelf, and when it has been verified
			if a := s.pull(t, "secret", d, ""); a.status != http.StatusUnauthorized {
				t.Errorf("a stranger's pull = %d", a.status)
			}
			if a := s.pull(t, "secret", d, registrytest.Basic("mallory")); a.status != http.StatusUnauthorized {
				t.Errorf("mallory's pull = %d", a.status)
			}
			s.pull(t, "secret", d, registrytest.Basic("alice")).mustBe(t, b)
		}
		s.request(t, "GET", torrentPath("secret", d)+"&wait=30s", registrytest.Basic("alice")).mustMetainfo(t, b)
		for _, asked := range up.Seen("GET", d.String()) {
			if asked.Authorization == registrytest.Basic("alice") && asked.Ranges == "" {
				t.Errorf("alice's blob of %d bytes was fetched: %+v", size, asked)
			}
		}
		if u := s.store.Usage(); u.Bytes != 0 || u.Shelved != int64(size) {
			t.Errorf("usage %+v", u)
		}
	}
}

// What the folder has wrong, or no more, is fetched.
func TestFetchesWhatStorageHasNot(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b, rotten, gone := random(big, 41), random(big, 42), random(big, 43)
	d, dRotten, dGone := up.Push(t, "app", false, b), up.Push(t, "app", false, rotten), up.Push(t, "app", false, gone)
	dir := storage(t, gone)
	spoilt := bytes.Clone(rotten)
	for i := 0; i < len(spoilt); i += 1000 {
		spoilt[i]++
	}
	store(t, dir, dRotten, spoilt)
	s := newSeederBeside(t, dir, up)

	s.pull(t, "app", d, "").mustBe(t, b)
	s.pull(t, "app", dRotten, "").mustBe(t, rotten)
	s.pull(t, "app", dGone, "").mustBe(t, gone)
	mustNotFetch(t, up, dGone)
	eventually(t, "verified", func() bool { _, ok := s.store.Stat(dGone); return ok })
	if err := os.Remove(filepath.Join(dir, "docker/registry/v2/blobs/sha256", dGone.Encoded()[:2], dGone.Encoded(), "data")); err != nil {
		t.Fatal(err)
	}
	s.pull(t, "app", dGone, "").mustBe(t, gone)
}

// A registry that only says that it has a blob is not given what lies in another's folder.
func TestStorageIsNotGivenToForeignRegistry(t *testing.T) {
	t.Parallel()
	up, evil := registrytest.New(t), registrytest.New(t)
	b := random(big, 44)
	d := up.Push(t, "secret", true, b)
	evil.Fail(&registrytest.Fault{Method: "*", Left: -1, Path: d.String(), Answer: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Docker-Content-Digest", d.String())
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		if r.Method == http.MethodGet {
			w.Write(make([]byte, len(b)))
		}
	}})
	s := newSeederBeside(t, storage(t, b), up, evil)
	a := s.request(t, "GET", "/v2/any/blobs/"+d.String()+"?ns="+evil.Host, "")
	if a.err == nil && a.status == http.StatusOK {
		t.Errorf("answer = %d with %d bytes", a.status, len(a.body))
	}
	if bytes.Contains(a.body, b[:64]) {
		t.Error("it was given the blob's bytes")
	}
	if a := s.request(t, "GET", torrentPath("any", d)+"&draft=1&ns="+evil.Host, ""); bytes.Contains(a.body, b[:64]) {
		t.Error("it was given the blob's torrent")
	}
}
