package seeder

import (
	"net/http"
	"net/url"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/registry"
)

// FuzzParseTorrent asks for metainfo in all ways: what is let through names a registry, a
// repository and a digest, and no wait for ever.
func FuzzParseTorrent(f *testing.F) {
	const d = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	f.Add(d, "ns=reg.example:5000&repo=team/app&wait=30s")
	f.Add(d, "repo=app&draft=1&magnet=1&wait=99999h")
	f.Add("sha256:../../x", "ns=[::1]&repo=a//b&wait=-1s")
	f.Add("md5:0", "ns=%zz&repo=..")
	s := &Seeder{cfg: Config{DefaultRegistry: "reg.example"}}
	f.Fuzz(func(t *testing.T, d, query string) {
		r := &http.Request{Method: "GET", URL: &url.URL{Path: "/v1/torrents/x", RawQuery: query}, Header: http.Header{}}
		r.SetPathValue("digest", d)
		req, q, err := s.parseTorrent(r)
		if err != nil {
			if e, ok := err.(*registry.Error); !ok || e.Status/100 != 4 {
				t.Errorf("the fault of who asks %q of %q is %v", query, d, err)
			}
			return
		}
		if q.wait < 0 || q.wait > maxWait {
			t.Errorf("%q waits %v", query, q.wait)
		}
		if _, err := registry.ParseDigest(req.Digest.String()); err != nil {
			t.Error(err)
		}
		if again, err := registry.ParseRepository(req.Repo.Host, req.Repo.Name); err != nil || again != req.Repo {
			t.Errorf("%q names %+v, which is none: %v", query, req.Repo, err)
		}
	})
}

// FuzzParsePushed reads what a registry sends as a manifest: what is let through names
// digests that can be asked for.
func FuzzParsePushed(f *testing.F) {
	const d = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	f.Add([]byte(`{"config":{"digest":"` + d + `"},"layers":[{"digest":"` + d + `","urls":["https://x"]}]}`))
	f.Add([]byte(`{"manifests":[{"digest":"` + d + `","platform":{"os":"linux","architecture":"arm64"}}]}`))
	f.Add([]byte(`{"manifests":[{"digest":"../x"}]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		m, err := parsePushed(d, content)
		if err != nil {
			return
		}
		tree := &pushedTree{known: make(map[digest.Digest]bool)}
		if err := tree.add(m); err == nil && len(tree.blobs) > maxWarmBlobs {
			t.Errorf("%d blobs", len(tree.blobs))
		}
		for _, part := range append(tree.blobs, m.Manifests...) {
			if _, err := registry.ParseDigest(part.Digest.String()); err != nil {
				t.Errorf("let through %q: %v", part.Digest, err)
			}
		}
	})
}
