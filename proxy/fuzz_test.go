package proxy

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/murderp2p/murder/registry"
)

// FuzzPrefetchRequest reads orders to prefetch: images that are let through name a manifest
// of a repository, and platforms are few.
func FuzzPrefetchRequest(f *testing.F) {
	f.Add([]byte(`{"images":[{"ref":"reg.example:5000/app:v1","authorization":"Basic x"}],"platforms":["linux/arm64/v8"]}`))
	f.Add([]byte(`{"images":[{"ref":"app@sha256:0000000000000000000000000000000000000000000000000000000000000000"},{"ref":"localhost/a"}],"platforms":["all"]}`))
	f.Add([]byte(`{"images":[{"ref":"../../etc:latest"}],"platforms":["/","linux/"]}`))
	f.Add([]byte(`{"images":[{"ref":"[::1]:5000/a:b"}]}`))
	m := &Mirror{cfg: Config{DefaultRegistry: "docker.io"}}
	f.Fuzz(func(t *testing.T, body []byte) {
		var order PrefetchRequest
		decoder := json.NewDecoder(bytes.NewReader(body))
		decoder.DisallowUnknownFields()
		if decoder.Decode(&order) != nil {
			return
		}
		if p, err := parsePlatforms(order.Platforms); err == nil && len(p) > max(1, len(order.Platforms)) {
			t.Errorf("%d platforms of %q", len(p), order.Platforms)
		}
		for _, image := range order.Images {
			req, err := m.parseImage(image)
			if err != nil {
				continue
			}
			if again, err := registry.ParseRepository(req.Repo.Host, req.Repo.Name); err != nil || again != req.Repo {
				t.Errorf("%q is of %+v, which is none: %v", image.Ref, req.Repo, err)
			}
			if (req.Tag == "") == (req.Digest == "") || req.Authorization != image.Authorization {
				t.Errorf("%q is %+v", image.Ref, req)
			}
		}
	})
}
