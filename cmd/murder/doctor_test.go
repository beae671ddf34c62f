package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/murderp2p/murder/proxy"
)

// patient is a mirror for doctors, and what it answers for registries by their ns.
type patient struct {
	report     statusReport
	registries map[string]int // status of what they answer it
	notReady   bool
}

// healthy is a patient whose peer port takes connections.
func healthy(t *testing.T) *patient {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &patient{
		report: statusReport{
			Version: "1.0", Role: "mirror", DefaultRegistry: "docker.io", DataDir: t.TempDir(), PeerListen: l.Addr().String(),
			Seeders: []seederStatus{{URL: "http://s1:7070", OK: true}},
			Cache:   cacheStatus{Limit: 1 << 20},
			Blobs:   []blobStatus{{Registry: "ghcr.io"}, {Registry: "private.example"}, {Registry: "ghcr.io"}},
		},
		registries: map[string]int{"ghcr.io": 200, "private.example": 401, "docker.io": 502},
	}
}

func (p *patient) serve(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(p.report) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if p.notReady {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("GET /v1/check", func(w http.ResponseWriter, r *http.Request) {
		var check proxy.Check
		for _, s := range p.report.Seeders {
			check.Seeders = append(check.Seeders, proxy.SeederHealth(s))
		}
		for _, name := range r.URL.Query()["registry"] {
			status := p.registries[name]
			health := proxy.RegistryHealth{Registry: name, OK: status < 500, Credentials: status == 401}
			if !health.OK {
				health.Error = fmt.Sprintf("registry %s answered %d", name, status)
			}
			check.Registries = append(check.Registries, health)
		}
		json.NewEncoder(w).Encode(check)
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv.URL
}

// host is the file tree of a machine with engines, and files with MIRROR in place of the mirror's HOST:PORT.
func host(t *testing.T, mirror string, engines string, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	write := func(path, content string) {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range strings.Fields(engines) {
		write("usr/bin/"+e, "")
	}
	for path, content := range files {
		write(path, strings.ReplaceAll(content, "MIRROR", strings.TrimPrefix(mirror, "http://")))
	}
	return root
}

// doctorSays runs `murder doctor` and returns its findings as "state check: found".
func doctorSays(t *testing.T, args ...string) (says []string, err error) {
	t.Helper()
	stdout, _, err := runMurder(t, t.Context(), append([]string{"doctor", "--output", "json"}, args...)...)
	var doc struct {
		OK     bool
		Checks []finding
	}
	if jsonErr := json.Unmarshal([]byte(stdout), &doc); jsonErr != nil {
		t.Fatalf("stdout is no JSON document: %v\n%s", jsonErr, stdout)
	}
	if doc.OK != (err == nil) || err != nil && exitCode(err) != exitFailure {
		t.Errorf("ok is %v, error %v", doc.OK, err)
	}
	for _, f := range doc.Checks {
		says = append(says, fmt.Sprintf("%s %s: %s", f.State, f.Check, f.Found))
		if f.State == stateFail && f.Mend == "" {
			t.Errorf("%q does not say what to mend", f.Found)
		}
	}
	return says, err
}

const podmanConf = "[[registry]]\nlocation = \"ghcr.io\"\n[[registry.mirror]]\nlocation = \"MIRROR/ghcr.io\"\n"

func TestDoctorHealthy(t *testing.T) {
	mirror := healthy(t).serve(t)
	root := host(t, mirror, "podman", map[string]string{"etc/containers/registries.conf": podmanConf})
	says, err := doctorSays(t, "--mirror", mirror, "--root", root)
	if err != nil {
		t.Errorf("doctor: %v\n%s", err, strings.Join(says, "\n"))
	}
	for _, want := range []string{
		"ok mirror: " + mirror + " answers, version 1.0",
		"ok seeder: http://s1:7070 answers the mirror",
		"ok registry: ghcr.io answers the mirror",
		"ok registry: private.example answers the mirror and wants credentials",
		"ok peers: ", "ok disk: ", "ok engine: podman uses the mirror for the registries in ",
	} {
		if !strings.Contains(strings.Join(says, "\n"), want) {
			t.Errorf("doctor does not say %q:\n%s", want, strings.Join(says, "\n"))
		}
	}
	stdout, _, err := runMurder(t, t.Context(), "doctor", "--mirror", mirror, "--root", root)
	if err != nil || !strings.HasPrefix(stdout, "ok    mirror     "+mirror+" answers") {
		t.Errorf("as text, %v:\n%s", err, stdout)
	}
}

func TestDoctorFindings(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, test := range []struct {
		name string
		ill  func(p *patient)
		args string
		fail bool
		want string
	}{
		{"a seeder", func(p *patient) { p.report.Role = "seeder" }, "", true, "fail mirror: "},
		{"not ready", func(p *patient) { p.notReady = true }, "", false, "is up but not ready: answered 503"},
		{"no seeder", func(p *patient) { p.report.Seeders = nil }, "", true, "fail seeder: the mirror knows none"},
		{"seeder down", func(p *patient) { p.report.Seeders[0] = seederStatus{URL: "http://s1", Error: "refused"} }, "", true,
			"fail seeder: http://s1 does not answer the mirror: refused"},
		{"one of two", func(p *patient) { p.report.Seeders = append(p.report.Seeders, seederStatus{URL: "http://s2"}) }, "", false, "warn seeder: http://s2"},
		{"registry down", func(p *patient) { p.registries["ghcr.io"] = 503 }, "", true,
			"fail registry: ghcr.io does not answer the mirror: registry ghcr.io answered 503"},
		{"engine's store", func(p *patient) { p.report.Shelf = &shelfStatus{Dir: "/content", Bytes: 3 << 20} }, "", false, "ok store: the mirror shares 3.0 MiB from /content"},
		{"engine's store is closed", func(p *patient) {
			p.report.Shelf = &shelfStatus{Dir: "/content", Error: "open /content: permission denied"}
		}, "", true,
			"fail store: the mirror may not read the engine's blobs: open /content: permission denied"},
		{"engine's store is elsewhere", func(p *patient) {
			p.report.Shelf = &shelfStatus{Dir: "/content", Error: "openat blobs: no such file or directory"}
		}, "", true,
			"fail store: the mirror finds no blobs of the engine"},
		{"loader", func(p *patient) { p.report.LoadInto = &loaderStatus{Engine: "cri", Socket: "/run/x.sock"} }, "", false,
			"ok load: the mirror reaches cri at /run/x.sock"},
		{"loader is closed", func(p *patient) {
			p.report.LoadInto = &loaderStatus{Engine: "cri", Socket: "/run/x.sock", Error: "permission denied"}
		}, "", true, "fail load: orders with --load fail, as the mirror does not reach cri at /run/x.sock: permission denied"},
		{"named registry", func(*patient) {}, "--registry docker.io", true, "fail registry: docker.io"},
		{"default registry", func(p *patient) { p.report.Blobs = nil }, "", false, "warn registry: docker.io"},
		{"peer port", func(p *patient) { p.report.PeerListen = closed.Addr().String() }, "", true, "takes no connections: dial tcp"},
		{"peer port of all addresses", func(p *patient) { p.report.PeerListen = "[::]" + p.report.PeerListen[len("127.0.0.1"):] }, "", false,
			"ok peers: 127.0.0.1:"},
		{"peer port unknown", func(p *patient) { p.report.PeerListen = "" }, "", true, `fail peers: the mirror says that it listens on ""`},
		{"no limit", func(p *patient) { p.report.Cache.Limit = 0 }, "", false, "warn disk: "},
		{"limit too high", func(p *patient) { p.report.Cache.Limit = 1 << 60 }, "", false, "warn disk: the cache may grow by 1.0 EiB, but only"},
		{"no folder", func(p *patient) { p.report.DataDir += "/gone" }, "", false, "ok disk: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := healthy(t)
			test.ill(p)
			mirror := p.serve(t)
			root := host(t, mirror, "podman", map[string]string{"etc/containers/registries.conf": podmanConf})
			says, err := doctorSays(t, append([]string{"--mirror", mirror, "--root", root}, strings.Fields(test.args)...)...)
			if all := strings.Join(says, "\n"); (err != nil) != test.fail || !strings.Contains(all, test.want) {
				t.Errorf("error %v, want %q:\n%s", err, test.want, all)
			}
		})
	}
}

func TestDoctorEngines(t *testing.T) {
	const (
		toml  = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"
		hosts = "server = \"https://ghcr.io\"\n[host.\"http://MIRROR\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
	)
	for _, test := range []struct {
		name, engines string
		files         map[string]string
		fail          bool
		want          string
	}{
		{"none", "", nil, false, "warn engine: neither containerd"},
		{"containerd without", "containerd", nil, true, "fail engine: containerd: its configuration does not lead to the mirror"},
		{"containerd for one", "containerd", map[string]string{
			"etc/containerd/config.toml": toml, "etc/containerd/certs.d/ghcr.io/hosts.toml": hosts,
		}, false, "ok engine: containerd uses the mirror for ghcr.io"},
		{"containerd that does not look", "containerd", map[string]string{
			"etc/containerd/config.toml": "version = 2\n", "etc/containerd/certs.d/ghcr.io/hosts.toml": hosts,
		}, true, "but /etc/containerd/config.toml does not lead there"},
		{"containerd throws away", "containerd", map[string]string{
			"etc/containerd/config.toml":                toml + "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  discard_unpacked_layers = true\n",
			"etc/containerd/certs.d/ghcr.io/hosts.toml": hosts,
		}, false, "warn store: containerd throws layers away"},
		{"docker", "dockerd", map[string]string{"etc/docker/daemon.json": `{"registry-mirrors":["http://MIRROR"]}`}, false,
			"ok engine: docker uses the mirror for docker.io"},
		{"one is enough", "dockerd podman", map[string]string{"etc/docker/daemon.json": `{"registry-mirrors":["http://MIRROR"]}`}, false,
			"warn engine: podman: its configuration does not lead to the mirror"},
		{"in a comment", "podman", map[string]string{"etc/containers/registries.conf.d/x.conf": "# location = \"MIRROR/ghcr.io\"\n"}, true,
			"fail engine: podman"},
		{"broken", "dockerd", map[string]string{"etc/docker/daemon.json": `{`}, true, "fail engine: docker: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := healthy(t)
			p.report.Shelf = &shelfStatus{Dir: "/content"}
			mirror := p.serve(t)
			says, err := doctorSays(t, "--mirror", mirror, "--root", host(t, mirror, test.engines, test.files))
			if all := strings.Join(says, "\n"); (err != nil) != test.fail || !strings.Contains(all, test.want) {
				t.Errorf("error %v, want %q:\n%s", err, test.want, all)
			}
		})
	}
}

// What `murder setup` has done satisfies doctor.
func TestDoctorAfterSetup(t *testing.T) {
	mirror := healthy(t).serve(t)
	for _, engine := range []string{"containerd", "docker", "podman"} {
		program := strings.Replace(engine, "docker", "dockerd", 1)
		root := host(t, mirror, program, map[string]string{"etc/containerd/config.toml": "version = 2\n"})
		if _, stderr, err := runMurder(t, t.Context(), "setup", engine, "--mirror", mirror, "--root", root); err != nil {
			t.Errorf("setup %s: %v\n%s", engine, err, stderr)
		}
		if says, err := doctorSays(t, "--mirror", mirror, "--root", root); err != nil {
			t.Errorf("doctor after setup %s: %v\n%s", engine, err, strings.Join(says, "\n"))
		}
	}
}

func TestDoctorWithoutMirror(t *testing.T) {
	srv := httptest.NewServer(nil)
	srv.Close()
	says, err := doctorSays(t, "--mirror", srv.URL, "--root", t.TempDir())
	if err == nil || len(says) == 0 || !strings.HasPrefix(says[0], "fail mirror: "+srv.URL+": dial tcp") {
		t.Errorf("doctor: %v\n%s", err, strings.Join(says, "\n"))
	}
}
