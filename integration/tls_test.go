package integration

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/murderp2p/murder/layers"
)

// TestTLS pulls through mirrors whose every word is inside mutual TLS, and has
// strangers try to take part. The CA changes meanwhile, and nothing stops.
func TestTLS(t *testing.T) {
	needs(t, "docker-registry")
	image, err := makeImage(newRoot(t), "tls", 12<<20, 3<<20, 100<<10)
	if err != nil {
		t.Fatal(err)
	}
	c := newCerts(t)
	f := startFleet(t, fleetConfig{Mirrors: 3, Certs: c, SeederFlags: []string{"--upload-limit", "12MiB"}})
	push(t, f.Registry.Addr, "fleet/app:v1", image, nil)
	f.Registry.Forget()
	var pulls errgroup.Group
	for _, m := range f.Mirrors {
		pulls.Go(func() error {
			_, err := pullImage(t, m, f.Registry.Addr, "fleet/app", "v1")
			return err
		})
	}
	if err := pulls.Wait(); err != nil {
		t.Fatal(err)
	}
	f.checkEachBlobOnce(t, allBlobs(t, image)...)
	f.checkFromPeers(t)

	stranger := newCerts(t)
	blob := layerBlobs(t, image)[0]
	for who, config := range map[string]*tls.Config{"no certificate": (*certs)(nil).config(t), "one of another CA": stranger.config(t)} {
		f.checkAPI(t, who, config, fmt.Sprintf("/v1/torrents/%s?ns=%s&repo=fleet/app", blob.Digest, f.name()))
	}
	hello := append([]byte("\x13BitTorrent protocol"), make([]byte, 48)...)
	name := f.infoHash(t, c, fmt.Sprintf("/v1/torrents/%s?ns=%s&repo=fleet/app&wait=30s", blob.Digest, f.name()))
	copy(hello[28:], name[:])
	for _, addr := range []string{f.Seeder.PeerAddr, f.Mirrors[0].PeerAddr} {
		if got := hail(t, addr, c.config(t), hello); !strings.HasPrefix(string(got), "\x13BitTorrent protocol") {
			t.Fatalf("one of the fleet heard %q from %s", got, addr)
		}
		for who, config := range map[string]*tls.Config{"no TLS": nil, "no certificate": (*certs)(nil).config(t), "one of another CA": stranger.config(t)} {
			if got := hail(t, addr, config, hello); strings.Contains(string(got), "BitTorrent") || config != nil && len(got) > 0 {
				t.Errorf("%s: heard %q from %s", who, got, addr)
			}
		}
	}
	if _, errs, code := runMurder(t, nil, append([]string{"status", "--mirror", f.Seeder.URL()}, c.flags()...)...); code != 0 {
		t.Errorf("status of the seeder: %s", errs)
	}
	// Orders to a mirror go by TLS on the port of its engines.
	mirror := "https://" + f.Mirrors[0].Addr
	order := []string{"prefetch", "--mirror", mirror, f.Registry.Addr + "/fleet/app:v1"}
	if _, errs, code := runMurder(t, nil, append(order, c.flags()...)...); code != 0 {
		t.Errorf("prefetch by TLS: %s", errs)
	}
	if _, errs, code := runMurder(t, nil, append(order, stranger.flags()...)...); code == 0 || !strings.Contains(errs, "unknown authority") {
		t.Errorf("a stranger's prefetch by TLS = %d: %s", code, errs)
	}
	if got := get(t, "http://"+f.Mirrors[0].Addr+"/v2/"); got.Status != http.StatusOK {
		t.Errorf("an engine in plain is answered %d", got.Status)
	}
	if _, errs, code := runMurder(t, nil, append([]string{"status", "--mirror", f.Seeder.URL()}, stranger.flags()...)...); code == 0 || !strings.Contains(errs, "unknown authority") {
		t.Errorf("a stranger's status of the seeder = %d: %s", code, errs)
	}
}

// checkFromPeers wants that mirrors gave each other bytes, and the registry gave them none.
func (f *fleet) checkFromPeers(t *testing.T) {
	t.Helper()
	var peer, upstream float64
	for _, m := range f.Mirrors {
		got := m.Metrics(t)
		peer += got.Sum("murder_received_bytes_total", `from="peer"`)
		upstream += got.Sum("murder_received_bytes_total", `from="upstream"`)
	}
	if peer == 0 || upstream != 0 {
		t.Errorf("the mirrors got %.0f bytes from each other and %.0f from the registry", peer, upstream)
	}
}

// checkAPI asks the seeder for all that is for the fleet alone, and for what is not.
func (f *fleet) checkAPI(t *testing.T, who string, config *tls.Config, torrent string) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
	ask := func(path string) (int, string) {
		resp, err := (&http.Client{Transport: transport, Timeout: readyWithin}).Get(f.Seeder.URL() + path)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	for _, path := range []string{
		"/", "/v2/", "/v2/fleet/app/manifests/v1", "/v1/status", "/scrape", torrent,
		"/announce?info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=bbbbbbbbbbbbbbbbbbbb&port=1&left=1",
	} {
		if status, text := ask(path); status != 0 && (status != http.StatusForbidden || !strings.Contains(text, "certificate")) {
			t.Errorf("%s: GET %s = %d %.200s, want 403 that says why", who, path, status, text)
		}
	}
	if config.GetClientCertificate != nil { // who shows a false one is not even asked what it wants
		if status, text := ask("/livez"); status != 0 || !strings.Contains(text, "certificate") {
			t.Errorf("%s: GET /livez = %d %s", who, status, text)
		}
		return
	}
	for _, path := range []string{"/livez", "/readyz", "/healthz", "/metrics"} {
		if status, text := ask(path); status != http.StatusOK {
			t.Errorf("%s: GET %s = %d %s, want what probes get", who, path, status, text)
		}
	}
}

// infoHash is what the torrent file at path is of.
func (f *fleet) infoHash(t *testing.T, c *certs, path string) layers.InfoHash {
	t.Helper()
	client := http.Client{Transport: &http.Transport{TLSClientConfig: c.config(t), DisableKeepAlives: true}}
	resp, err := client.Get(f.Seeder.URL() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	m, err := layers.ParseMetainfo(content)
	if err != nil {
		t.Fatalf("%s: %v: %.200s", path, err, content)
	}
	return m.InfoHash()
}

// hail says hello to a peer, in TLS unless config is nil, and returns what it hears,
// up to the length of a greeting.
func hail(t *testing.T, addr string, config *tls.Config, hello []byte) []byte {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(readyWithin))
	if config != nil {
		conn = tls.Client(conn, config)
	}
	if _, err := conn.Write(hello); err != nil {
		return nil
	}
	got := make([]byte, len(hello))
	n, err := io.ReadFull(conn, got)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		t.Errorf("%s keeps a stranger's connection open", addr)
	}
	return got[:n]
}

// TestCertificatesAreReplaced changes certificates and CA under a fleet that runs: what
// is new is used, what is expired is refused by name, and pulls go on throughout.
func TestCertificatesAreReplaced(t *testing.T) {
	needs(t, "docker-registry")
	seeders, mirrors := newCerts(t), newCerts(t)
	writeFile(t, seeders.path("ca.crt"), string(readFile(t, mirrors.path("ca.crt"))))
	for _, name := range []string{"host.crt", "host.key", "ca.key"} { // one CA, two hosts
		writeFile(t, seeders.path(name), string(readFile(t, mirrors.path(name))))
	}
	seeders.make(t)
	reg := startRegistry(t, registryConfig{})
	seeder := startSeeder(t, daemonConfig{Insecure: []string{reg.Addr}, Certs: seeders})
	mirror := startMirror(t, daemonConfig{Insecure: []string{reg.Addr}, Seeders: []string{seeder.URL()}, Certs: mirrors})
	n := 0
	pull := func() (upstream float64) {
		t.Helper()
		n++
		tag := fmt.Sprintf("v%d", n)
		image, err := makeImage(newRoot(t), "replaced"+tag, 2<<20)
		if err != nil {
			t.Fatal(err)
		}
		push(t, reg.Addr, "fleet/app:"+tag, image, nil)
		before := mirror.Metrics(t).Sum("murder_received_bytes_total", `from="upstream"`)
		if _, err := pullImage(t, mirror, reg.Addr, "fleet/app", tag); err != nil {
			t.Fatalf("pull %d: %v", n, err)
		}
		return mirror.Metrics(t).Sum("murder_received_bytes_total", `from="upstream"`) - before
	}
	// pulled waits until a pull is served by the seeder, or not.
	pulled := func(what string, bySeeder bool) {
		t.Helper()
		waitUntil(t, what, func() error {
			if upstream := pull(); (upstream == 0) != bySeeder {
				return fmt.Errorf("the registry gave the mirror %.0f bytes: %w", upstream, errNotYet)
			}
			return nil
		})
	}
	pulled("the first certificates", true)

	// The connections that are open stay; so the seeder, started anew, is asked by new ones.
	mirrors.expire(t)
	restart := func() {
		seeder.Stop(t)
		seeder = startSeeder(t, daemonConfig{Insecure: []string{reg.Addr}, Certs: seeders, Listen: seeder.Addr})
	}
	restart()
	pulled("the mirror's certificate has expired", false)
	stdout, _, _ := runMurder(t, nil, "doctor", "--mirror", mirror.URL())
	for _, want := range []string{"refuses the certificate of this host, " + mirrors.path("host.crt"), "expired"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("doctor does not say %q:\n%s", want, stdout)
		}
	}
	mirrors.make(t)
	pulled("the mirror has a new one", true)

	seeders.expire(t)
	restart()
	pulled("the seeder's certificate has expired", false)
	stdout, _, _ = runMurder(t, nil, "doctor", "--mirror", mirror.URL())
	if want := "the certificate of " + seeder.Addr + " is refused"; !strings.Contains(stdout, want) || !strings.Contains(stdout, "expired") {
		t.Errorf("doctor does not say %q:\n%s", want, stdout)
	}
	seeders.make(t)
	pulled("the seeder has a new one", true)
	if strings.Contains(seeder.output.String(), "stopping") {
		t.Error("the seeder was started anew")
	}
}
