package proxy_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/murderp2p/murder/proxy"
	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/registry/registrytest"
)

// check asks a mirror how it finds its seeders and a registry.
func (m *testMirror) check(t *testing.T, host string) (seeders []proxy.SeederHealth, health proxy.RegistryHealth) {
	t.Helper()
	a := m.request(t, "GET", "/v1/check?"+url.Values{"registry": {host}}.Encode(), "")
	var check proxy.Check
	if err := json.Unmarshal(a.body, &check); a.status != 200 || err != nil || len(check.Registries) != 1 || check.Registries[0].Registry != host {
		t.Fatalf("check of %s = %d %q, %v", host, a.status, clip(a.body), err)
	}
	return check.Seeders, check.Registries[0]
}

// A check asks, and does not hope: GET /v2/ says yes for a registry that is away, and a seeder is thought to be well until a pull finds out.
func TestCheck(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	m := newMirror(t, up, []string{refusing(t)})
	if seeders, health := m.check(t, up.Host); !health.OK || health.Credentials || len(seeders) != 1 || seeders[0].OK || !strings.Contains(seeders[0].Error, "refused") {
		t.Errorf("check = %+v, %+v, want a registry that is well and a seeder that is not", seeders, health)
	}
	if _, health := m.check(t, "registry/with/path"); health.OK || !strings.Contains(health.Error, "registry/with/path") {
		t.Errorf("check of what is no registry = %+v", health)
	}
	up.Fail(&registrytest.Fault{Path: "/v2/", Left: 1, Answer: func(w http.ResponseWriter, _ *http.Request) {
		registrytest.Refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "who are you?")
	}})
	if _, health := m.check(t, up.Host); !health.OK || !health.Credentials {
		t.Errorf("check of a private registry = %+v", health)
	}
	up.Away()
	if _, health := m.check(t, up.Host); health.OK || health.Error == "" {
		t.Errorf("check of a registry that is away = %+v", health)
	}
	if a := m.request(t, "GET", "/v2/", ""); a.status != http.StatusOK {
		t.Errorf("GET /v2/ with the registry away = %d", a.status)
	}
}

// A registry that this host may not ask is none that answers, though the refusal is a 403.
func TestCheckOfARegistryThatMayNotBeAsked(t *testing.T) {
	t.Parallel()
	m := newMirror(t, registrytest.New(t), nil, func(cfg *proxy.Config) {
		cfg.Registries = registry.NewClient(registry.ClientConfig{Allow: []string{"reg.example"}})
	})
	if _, health := m.check(t, "other.example"); health.OK || !strings.Contains(health.Error, "--allow-registry") {
		t.Errorf("check = %+v", health)
	}
}

// One question does not have the mirror call thousands.
func TestCheckIsBounded(t *testing.T) {
	t.Parallel()
	m := newMirror(t, registrytest.New(t), nil)
	if a := m.request(t, "GET", "/v1/check?"+strings.Repeat("registry=a/b&", 256), ""); a.status != http.StatusOK {
		t.Errorf("of 256 registries = %d %q", a.status, clip(a.body))
	}
	if a := m.request(t, "GET", "/v1/check?"+strings.Repeat("registry=a/b&", 257), ""); a.status != http.StatusBadRequest || !strings.Contains(string(a.body), "257 registries") {
		t.Errorf("of 257 registries = %d %q", a.status, clip(a.body))
	}
}
