package integration

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// outsideAddr is an address of this machine that is not loopback: who asks
// there seems to be another host.
func outsideAddr(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() {
			return n.IP.String()
		}
	}
	t.Skip("this machine has no address but loopback")
	return ""
}

// TestOwnAPI asks daemons that listen on all addresses, from afar and from
// their own host, with murder's commands too.
func TestOwnAPI(t *testing.T) {
	outside, images := outsideAddr(t), loadFixtures(t)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("a-token-of-the-operator\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	reg := startRegistry(t, registryConfig{Storage: images.Storage})
	for _, role := range []string{"seeder", "mirror"} {
		for _, flags := range [][]string{nil, {"--api-token-file", token}} {
			d := startDaemon(t, role, daemonConfig{Listen: "0.0.0.0:0", Insecure: []string{reg.Addr}, Default: reg.Addr, Flags: flags})
			_, port, _ := net.SplitHostPort(d.Addr)
			near, far := "http://127.0.0.1:"+port, "http://"+net.JoinHostPort(outside, port)
			nearStatus, farStatus := http.StatusOK, http.StatusForbidden
			if flags != nil {
				nearStatus, farStatus = http.StatusUnauthorized, http.StatusUnauthorized
			}
			for url, want := range map[string]int{
				near + "/v1/status": nearStatus, far + "/v1/status": farStatus,
				near + "/v1/limits": nearStatus, far + "/v1/limits": farStatus,
				near + "/v2/": 200, far + "/v2/": 200, far + "/metrics": 200, far + "/livez": 200, far + "/readyz": 200,
				far + "/v2/" + publicRepo + "/manifests/" + fixtureTag: 200,
			} {
				if a := get(t, url); a.Status != want {
					t.Errorf("%s %v: GET %s = %d, want %d: %.200s", role, flags, url, a.Status, want, a.Body)
				}
			}
			if _, errs, code := runMurder(t, nil, "status", "--mirror", far); code == 0 || !strings.Contains(errs, "--api-token-file") {
				t.Errorf("%s %v: status from afar = %d: %s", role, flags, code, errs)
			}
			env := []string{"MURDER_API_TOKEN_FILE=" + token}
			if _, errs, code := runMurder(t, env, "status", "--mirror", far); (code == 0) != (flags != nil) {
				t.Errorf("%s %v: status from afar with the token = %d: %s", role, flags, code, errs)
			}
			if role == "mirror" && flags != nil {
				image := reg.Addr + "/" + publicRepo + ":" + fixtureTag
				if _, errs, code := runMurder(t, env, "prefetch", "--mirror", far, image); code != 0 {
					t.Errorf("prefetch from afar with the token = %d: %s", code, errs)
				}
			}
		}
	}
}

// TestAllowedRegistries names registries to daemons that may ask one only, and
// such as lead to where nothing may be fetched from.
func TestAllowedRegistries(t *testing.T) {
	images := loadFixtures(t)
	named, other := startRegistry(t, registryConfig{Storage: images.Storage}), startRegistry(t, registryConfig{Storage: images.Storage})
	_, otherPort, _ := net.SplitHostPort(other.Addr)
	seeder := startSeeder(t, daemonConfig{Insecure: []string{named.Addr}})
	for what, d := range map[string]*daemon{
		"a seeder":                    seeder,
		"a mirror":                    startMirror(t, daemonConfig{Insecure: []string{named.Addr}}),
		"a mirror of a seeder":        startMirror(t, daemonConfig{Seeders: []string{seeder.URL()}, Insecure: []string{named.Addr}}),
		"a seeder with an allow list": startSeeder(t, daemonConfig{Insecure: []string{named.Addr}, Flags: []string{"--allow-registry", "*.corp.example"}}),
		"a mirror with an allow list": startMirror(t, daemonConfig{Seeders: []string{seeder.URL()}, Insecure: []string{named.Addr}, Flags: []string{"--allow-registry", "*.corp.example"}}),
	} {
		if _, err := pullImage(t, d, named.Addr, publicRepo, fixtureTag); err != nil {
			t.Errorf("%s: pull from the registry that is named: %v", what, err)
		}
		strangers := []string{other.Addr, "localhost:" + otherPort, "0.0.0.0:" + otherPort, "169.254.169.254", "[fe80::1]", "[fd00:ec2::254]"}
		if strings.Contains(what, "allow list") {
			strangers = append(strangers, "reg.other.example")
		}
		for _, ns := range strangers {
			for _, path := range []string{"/manifests/" + fixtureTag, "/blobs/" + missingDigest.String(), "/tags/list"} {
				a := get(t, fmt.Sprintf("%s/v2/%s%s?ns=%s", d.URL(), publicRepo, path, ns))
				if a.Status != http.StatusForbidden || !strings.Contains(string(a.Body), ns) {
					t.Errorf("%s: %s of %s = %d %s, want 403 that names it", what, path, ns, a.Status, a.Body)
				}
				checkErrorBody(t, what+" of "+ns, a, "DENIED")
			}
		}
	}
	if got := other.Requests(); len(got) > 0 {
		t.Errorf("the registry that nobody named was asked: %+v", got)
	}
}
