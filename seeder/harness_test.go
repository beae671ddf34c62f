package seeder_test

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
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/layers/swarm"
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

// patience bounds every wait of these tests, also that for a seeder which is
// well: on a busy machine it may be silent for long.
const patience = time.Minute

// operatorHeader is shown by who may be told names on the page of a testSeeder.
const operatorHeader = "Test-Operator"

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

// testSeeder is a seeder's daemon.
type testSeeder struct {
	*seeder.Seeder
	store    *layers.Store
	swarm    *swarm.Client
	server   *httptest.Server
	client   *seeder.Client
	requests atomic.Int64
	metrics  *prometheus.Registry

	end  sync.Once
	stop func()
}

func newSeeder(t testing.TB, up ...*registrytest.Upstream) *testSeeder {
	t.Helper()
	return newSeederIn(t, t.TempDir(), up...)
}

func newSeederIn(t testing.TB, dir string, up ...*registrytest.Upstream) *testSeeder {
	t.Helper()
	return newSeederWith(t, dir, func(*seeder.Config) {}, up...)
}

func newSeederWith(t testing.TB, dir string, set func(*seeder.Config), up ...*registrytest.Upstream) *testSeeder {
	t.Helper()
	return newSeederOver(t, layers.StoreConfig{Dir: dir}, set, up...)
}

func newSeederOver(t testing.TB, store layers.StoreConfig, set func(*seeder.Config), up ...*registrytest.Upstream) *testSeeder {
	t.Helper()
	s := &testSeeder{metrics: prometheus.NewRegistry()}
	var hosts []string
	for _, u := range up {
		hosts = append(hosts, u.Host)
	}
	var err error
	store.Log = testLog(t)
	if s.store, err = layers.OpenStore(store); err != nil {
		t.Fatal(err)
	}
	peers, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if s.swarm, err = swarm.Open(swarm.Config{Listener: peers, Seeder: true, Log: testLog(t)}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	cfg := seeder.Config{
		Store: s.store, Swarm: s.swarm, DefaultRegistry: up[0].Host,
		Upstream: registrytest.Client(hosts...),
		TagTTL:   time.Hour, AuthTTL: time.Hour, AuthGrace: time.Hour,
		Operator: func(r *http.Request) (bool, error) { return r.Header.Get(operatorHeader) != "", nil },
		Metrics:  seeder.NewMetrics(s.metrics), Log: testLog(t),
	}
	set(&cfg)
	s.Seeder = seeder.Open(ctx, cfg)
	s.SetWarmPause(10 * time.Millisecond)
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	s.stop = func() {
		stop()
		running.Wait()
		s.Wait()
	}
	s.serve()
	s.client = newClient(t, s.server.URL, patience)
	t.Cleanup(s.close)
	return s
}

// newClient asks a seeder. A patience of 0 is murder's own.
func newClient(t testing.TB, u string, patience time.Duration) *seeder.Client {
	t.Helper()
	return seeder.NewClient(seeder.ClientConfig{URL: registrytest.ParseURL(t, u), Patience: patience})
}

func (s *testSeeder) serve() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		s.Seeder.ServeHTTP(w, r)
	})
	s.server = httptest.NewUnstartedServer(mux)
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.server.Start()
}

// close ends the daemon as cmd/murder does, without the courtesy. It may be
// called twice.
func (s *testSeeder) close() {
	s.end.Do(func() {
		s.server.CloseClientConnections()
		s.stop()
		s.server.Close()
		s.swarm.Close()
		s.store.Close()
	})
}

// answer is what a client got.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // of the body, when it was cut
}

// request asks for a path. extra are header names and values.
func (s *testSeeder) request(t testing.TB, method, path, authorization string, extra ...string) answer {
	t.Helper()
	resp, err := s.try(t, method, path, authorization, extra...)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, body, err}
}

// open returns an answer whose body is still to be read.
func (s *testSeeder) open(t testing.TB, method, path, authorization string) *http.Response {
	t.Helper()
	resp, err := s.try(t, method, path, authorization)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func (s *testSeeder) try(t testing.TB, method, path, authorization string, extra ...string) (*http.Response, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, s.server.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	for i := 0; i < len(extra); i += 2 {
		req.Header.Set(extra[i], extra[i+1])
	}
	return s.server.Client().Do(req)
}

func blobPath(repo string, d digest.Digest) string { return "/v2/" + repo + "/blobs/" + d.String() }

func torrentPath(repo string, d digest.Digest) string {
	return "/v1/torrents/" + d.String() + "?repo=" + repo
}

func (s *testSeeder) pull(t testing.TB, repo string, d digest.Digest, authorization string) answer {
	t.Helper()
	return s.request(t, "GET", blobPath(repo, d), authorization)
}

// mustBe fails the test unless all bytes came, and are right.
func (a answer) mustBe(t testing.TB, want []byte) {
	t.Helper()
	if a.err != nil || a.status != http.StatusOK || !bytes.Equal(a.body, want) {
		t.Errorf("answer: status %d, %d of %d bytes, right: %v, err %v", a.status, len(a.body), len(want), bytes.Equal(a.body, want), a.err)
	}
}

// mustRefuse fails the test unless the answer is an error in the spec's form.
func (a answer) mustRefuse(t testing.TB, status int, code string) {
	t.Helper()
	if a.status != status || a.err != nil || !strings.Contains(string(a.body), `"code":"`+code+`"`) {
		t.Errorf("answer = %d %q (%v), want %d %s", a.status, clip(a.body), a.err, status, code)
	}
}

// mustBeCut fails the test unless the connection was cut, be it before the
// first byte had left.
func (a answer) mustBeCut(t testing.TB) {
	t.Helper()
	if a.err == nil {
		t.Errorf("answer = %d with %d bytes, want a cut connection", a.status, len(a.body))
	}
}

func clip(b []byte) []byte { return b[:min(len(b), 200)] }

// mustMetainfo fails the test unless the answer is the metainfo of b.
func (a answer) mustMetainfo(t testing.TB, b []byte) {
	t.Helper()
	m, err := layers.ParseMetainfo(a.body)
	if a.status != http.StatusOK || err != nil || a.header.Get("Content-Type") != "application/x-bittorrent" {
		t.Errorf("answer = %d %v %q, err %v; want metainfo", a.status, a.header, clip(a.body), err)
		return
	}
	if m.Digest() != digest.FromBytes(b) || m.Size() != int64(len(b)) {
		t.Errorf("metainfo of %s, %d bytes; want %s, %d", m.Digest(), m.Size(), digest.FromBytes(b), len(b))
	}
}
