package proxy_test

import (
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/registry/registrytest"
)

// A seeder that names a swarm and dies does not keep a pull from the registry.
func TestSeederDiesOnceItHasNamedTheSwarm(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	blob := random(big, 77)
	up.Push(t, "lib/a", false, blob)
	var dead atomic.Bool
	url := serveURL(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/v1/torrents/") || dead.Swap(true) {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set(registry.SeederHeader, "1")
		w.Header().Set("Content-Type", "application/x-bittorrent")
		w.Header().Set("Murder-Swarm", strings.Repeat("ab", 20))
		w.Header().Set("Murder-Size", strconv.Itoa(len(blob)))
		w.Header().Set("Content-Length", "0")
	}))
	m := newMirror(t, up, []string{url}, impatient(t, url))
	m.SetStall(time.Second)
	m.mustPull(t, "lib/a", blob)
}
