package proxy_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/layers/swarm"
	"github.com/murderp2p/murder/proxy"
	"github.com/murderp2p/murder/registry/registrytest"
	"github.com/murderp2p/murder/seeder"
)

// TestMain runs more tests at once than there are processors: they wait most
// of the time, for what hangs or is away.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		log.Fatal(err)
	}
	os.Exit(m.Run())
}

// patience bounds every wait of these tests, also that of a mirror for its
// seeder: on a busy machine one that is well may be silent for long. Only tests
// of seeders that hang let a mirror be as impatient as it is; see impatient.
const patience = time.Minute

// big is the size of a blob of many pieces.
const big = 3<<20 + 12345

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// random makes n bytes that follow from seed.
func random(n int, seed uint64) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	return b
}

// eventually waits until ok is true, looking again and again.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func wait(t testing.TB, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s: not within %v", what, patience)
	}
}

// machine is what the two daemons have in common: a store, a swarm, a server.
type machine struct {
	store  *layers.Store
	swarm  *swarm.Client
	server *httptest.Server
	stop   context.CancelFunc
	wait   func()
	once   sync.Once

	requests atomic.Int64
}

// openMachine takes a folder and a port for peers. The daemon is joined in
// by serve.
func openMachine(t testing.TB, dir string, cfg swarm.Config) *machine {
	t.Helper()
	return openMachineOver(t, layers.StoreConfig{Dir: dir}, cfg)
}

func openMachineOver(t testing.TB, store layers.StoreConfig, cfg swarm.Config) *machine {
	t.Helper()
	m := &machine{wait: func() {}, stop: func() {}}
	var err error
	if cfg.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	cfg.Log = testLog(t)
	store.Log = testLog(t)
	if m.store, err = layers.OpenStore(store); err != nil {
		t.Fatal(err)
	}
	if m.swarm, err = swarm.Open(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.close)
	return m
}

func (m *machine) serve(h http.Handler) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	mux.Handle("/", h)
	m.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.requests.Add(1)
		mux.ServeHTTP(w, r)
	}))
	m.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	m.server.Start()
}

// close ends the daemon as cmd/murder does, without the courtesy. It may be
// called twice.
func (m *machine) close() {
	m.once.Do(func() {
		m.stop()
		if m.server != nil {
			m.server.CloseClientConnections()
			m.server.Close()
		}
		m.wait()
		m.swarm.Close()
		m.store.Close()
	})
}

// run runs a daemon until ctx ends, and returns how to wait for its end.
func run(t testing.TB, ctx context.Context, daemon interface {
	Run(context.Context) error
	Wait()
}) (wait func()) {
	var running sync.WaitGroup
	running.Go(func() {
		if err := daemon.Run(ctx); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	return func() {
		running.Wait()
		daemon.Wait()
	}
}

// testSeeder is a seeder's daemon.
type testSeeder struct {
	*machine
	*seeder.Seeder
}

func newSeeder(t testing.TB, up *registrytest.Upstream) *testSeeder {
	t.Helper()
	return newSeederIn(t, t.TempDir(), swarm.Config{}, up)
}

func newSeederIn(t testing.TB, dir string, cfg swarm.Config, up *registrytest.Upstream) *testSeeder {
	t.Helper()
	cfg.Seeder = true
	m := openMachine(t, dir, cfg)
	ctx, stop := context.WithCancel(context.Background())
	s := seeder.Open(ctx, seeder.Config{
		Store: m.store, Swarm: m.swarm, DefaultRegistry: up.Host,
		Upstream: registrytest.Client(up.Host),
		TagTTL:   time.Second, AuthTTL: time.Hour, AuthGrace: time.Hour,
		Metrics: seeder.NewMetrics(prometheus.NewRegistry()), Log: testLog(t),
	})
	m.stop, m.wait = stop, run(t, ctx, s)
	m.serve(s)
	return &testSeeder{m, s}
}

// testMirror is a mirror's daemon.
type testMirror struct {
	*machine
	*proxy.Mirror
	up      *registrytest.Upstream
	metrics *prometheus.Registry
}

// setting changes the Config of a mirror.
type setting func(*proxy.Config)

func authTTL(ttl time.Duration) setting { return func(cfg *proxy.Config) { cfg.AuthTTL = ttl } }

// insecure lets a mirror speak HTTP to several registries.
func insecure(ups ...*registrytest.Upstream) setting {
	var hosts []string
	for _, up := range ups {
		hosts = append(hosts, up.Host)
	}
	return func(cfg *proxy.Config) {
		cfg.Registries = registrytest.Client(hosts...)
	}
}

// impatient lets a mirror ask seeders at the URLs, and give them up as soon as
// murder does.
func impatient(t testing.TB, seeders ...string) setting {
	return func(cfg *proxy.Config) { cfg.Seeders = clients(t, 0, seeders) }
}

// clients ask seeders. A patience of 0 is murder's own.
func clients(t testing.TB, patience time.Duration, urls []string) (list []proxy.Seeder) {
	t.Helper()
	for _, u := range urls {
		list = append(list, seeder.NewClient(seeder.ClientConfig{URL: registrytest.ParseURL(t, u), Patience: patience}))
	}
	return list
}

// newMirror starts a mirror that asks the seeders at the URLs.
func newMirror(t testing.TB, up *registrytest.Upstream, seeders []string, settings ...setting) *testMirror {
	t.Helper()
	return newMirrorIn(t, filepath.Join(t.TempDir(), "mirror"), up, seeders, settings...)
}

func newMirrorIn(t testing.TB, dir string, up *registrytest.Upstream, seeders []string, settings ...setting) *testMirror {
	t.Helper()
	return newMirrorOver(t, layers.StoreConfig{Dir: dir}, up, seeders, settings...)
}

func newMirrorOver(t testing.TB, store layers.StoreConfig, up *registrytest.Upstream, seeders []string, settings ...setting) *testMirror {
	t.Helper()
	m := &testMirror{machine: openMachineOver(t, store, swarm.Config{}), up: up, metrics: prometheus.NewRegistry()}
	cfg := proxy.Config{
		Store: m.store, Swarm: m.swarm, DefaultRegistry: up.Host,
		Registries: registrytest.Client(up.Host),
		Seeders:    clients(t, patience, seeders),
		AuthTTL:    time.Hour, AuthGrace: time.Hour,
		Metrics: proxy.NewMetrics(m.metrics), Log: testLog(t),
	}
	for _, set := range settings {
		set(&cfg)
	}
	ctx, stop := context.WithCancel(context.Background())
	m.Mirror = proxy.Open(ctx, cfg)
	m.SetStall(patience)
	m.SetSlow(patience)
	m.stop, m.wait = stop, run(t, ctx, m.Mirror)
	m.serve(m.Mirror)
	return m
}

// answer is what a client got.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // of the body, when it was cut
}

// request asks for a path below /v2/. extra are header names and values.
func (m *machine) request(t testing.TB, method, path, authorization string, extra ...string) answer {
	t.Helper()
	resp, err := m.open(t, method, path, authorization, extra...)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, body, err}
}

// open returns an answer whose body is still to be read.
func (m *machine) open(t testing.TB, method, path, authorization string, extra ...string) (*http.Response, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, m.server.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	for i := 0; i < len(extra); i += 2 {
		req.Header.Set(extra[i], extra[i+1])
	}
	return m.server.Client().Do(req)
}

func blobPath(repo string, d digest.Digest) string { return "/v2/" + repo + "/blobs/" + d.String() }

// pull asks for a blob, without credentials.
func (m *machine) pull(t testing.TB, repo string, d digest.Digest) answer {
	t.Helper()
	return m.request(t, "GET", blobPath(repo, d), "")
}

// mustPull fails the test unless the blob comes whole and right.
func (m *machine) mustPull(t testing.TB, repo string, want []byte) {
	t.Helper()
	m.pull(t, repo, digest.FromBytes(want)).mustBe(t, want)
}

func (a answer) mustBe(t testing.TB, want []byte) {
	t.Helper()
	if a.err != nil || a.status != http.StatusOK || !bytes.Equal(a.body, want) {
		t.Errorf("pull: status %d, %d of %d bytes, right: %v, err %v", a.status, len(a.body), len(want), bytes.Equal(a.body, want), a.err)
	}
}

// mustRefuse fails the test unless the answer is an error in the
// spec's form.
func (a answer) mustRefuse(t testing.TB, status int, code string) {
	t.Helper()
	if a.status != status || a.err != nil || !strings.Contains(string(a.body), `"code":"`+code+`"`) {
		t.Errorf("answer = %d %q (%v), want %d %s", a.status, clip(a.body), a.err, status, code)
	}
}

func clip(b []byte) []byte { return b[:min(len(b), 200)] }

// mustBeCut fails the test unless the connection was cut, be it before the
// first byte had left.
func (a answer) mustBeCut(t testing.TB) {
	t.Helper()
	if a.err == nil {
		t.Errorf("answer = %d with %d bytes, want a cut connection", a.status, len(a.body))
	}
}

// record is what the ledger says of a blob.
func (m *testMirror) record(t testing.TB, d digest.Digest) layers.Record {
	t.Helper()
	records := m.Ledger().Records(d)
	if len(records) != 1 {
		t.Fatalf("%d records of %s", len(records), d)
	}
	return records[0]
}

// settled waits until no download of a blob is under way.
func (m *testMirror) settled(t testing.TB, d digest.Digest) layers.Record {
	t.Helper()
	eventually(t, "download over", func() bool { return m.record(t, d).State != "arriving" })
	return m.record(t, d)
}

// counter sums up a metric's counters, those with the label value if one is
// given.
func (m *testMirror) counter(t testing.TB, name, value string) (sum float64) {
	t.Helper()
	families, err := m.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			fits := value == ""
			for _, label := range metric.GetLabel() {
				fits = fits || label.GetValue() == value
			}
			if family.GetName() == name && fits {
				sum += metric.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// refusing is the URL of a server that refuses connections.
func refusing(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

// mute is a server that accepts connections and never answers.
type mute struct {
	url      string
	accepted atomic.Int64
}

func newMute(t testing.TB) *mute {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mute{url: "http://" + l.Addr().String()}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			m.accepted.Add(1)
			defer conn.Close()
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return m
}

// serveURL is the URL of a server that ends with the test.
func serveURL(t testing.TB, h http.Handler) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s.URL
}
