package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/murderp2p/murder/registry"
)

// checkTimeout bounds a look at seeders and registries: what takes longer is ill for a pull, too.
const checkTimeout = 8 * time.Second

// maxChecked bounds the registries of one question, as all are asked at the same time.
const maxChecked = 256

// Check is how seeders and registries answer this host: the answer to GET /v1/check?registry=HOST.
type Check struct {
	Seeders    []SeederHealth   `json:"seeders"`
	Registries []RegistryHealth `json:"registries"`
}

// RegistryHealth tells whether a registry answers this host itself.
type RegistryHealth struct {
	Registry string `json:"registry"`
	OK       bool   `json:"ok"`
	// Credentials are what it wants before anything else.
	Credentials bool   `json:"credentials,omitempty"`
	Error       string `json:"error,omitempty"`
}

// serveCheck answers GET /v1/check?registry=HOST, repeatable. GET /v2/ and [Mirror.Seeders] tell what pulls go by, which in doubt is that
// all is well; here everybody is asked, now and by this host.
func (m *Mirror) serveCheck(w http.ResponseWriter, r *http.Request) {
	seeders, names := m.seeders.all(), r.URL.Query()["registry"]
	if len(names) > maxChecked {
		http.Error(w, fmt.Sprintf("%d registries; more than %d in one question are too many", len(names), maxChecked), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), checkTimeout, errors.New("no answer in time"))
	defer cancel()
	check := Check{Seeders: m.seeders.health(seeders), Registries: make([]RegistryHealth, len(names))}
	var wg sync.WaitGroup
	for i, seeder := range seeders {
		wg.Go(func() { check.Seeders[i] = alive(ctx, seeder, check.Seeders[i]) })
	}
	for i, name := range names {
		wg.Go(func() { check.Registries[i] = m.checkRegistry(ctx, name) })
	}
	wg.Wait()
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(check) // fails only with the client
}

// alive asks a seeder that is thought to be well.
func alive(ctx context.Context, seeder Seeder, known SeederHealth) SeederHealth {
	if !known.OK {
		return known
	}
	if err := seeder.Alive(ctx); err != nil {
		return SeederHealth{URL: seeder.URL(), Error: err.Error(), Checked: time.Now()}
	}
	return known
}

func (m *Mirror) checkRegistry(ctx context.Context, name string) RegistryHealth {
	host, err := registry.ParseHost(name)
	if err == nil {
		err = m.cfg.Registries.Ping(ctx, host, "")
	}
	if e, ok := errors.AsType[*registry.Error](err); ok && e.Header.Get(registry.UpstreamHeader) != "" &&
		(e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden) {
		return RegistryHealth{Registry: name, OK: true, Credentials: true}
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return RegistryHealth{Registry: name, Error: err.Error()}
	}
	return RegistryHealth{Registry: name, OK: true}
}
