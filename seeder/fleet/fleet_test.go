package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

const patience = time.Minute

const testDigest = digest.Digest("sha256:9834876dcfb05cb167a5c24953eba58c4ac89b1adf57f28f2f9d09af107ee8f0")

func testLog(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

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

// testFleet is a seeder that can be restarted at its address.
type testFleet struct {
	*Fleet
	t      testing.TB
	cfg    Config
	server *httptest.Server
	mux    atomic.Pointer[http.ServeMux] // nil while it is away
	stop   func()
}

func newFleet(t testing.TB, cfg Config) *testFleet {
	t.Helper()
	if cfg.Resolve == nil {
		cfg.Resolve = func(_ context.Context, i RequestImage) (digest.Digest, error) { return testDigest, nil }
	}
	cfg.Log = testLog(t)
	f := &testFleet{t: t, cfg: cfg}
	f.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mux := f.mux.Load()
		if mux == nil {
			panic(http.ErrAbortHandler)
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		f.die()
		f.server.Close()
	})
	f.start()
	return f
}

func (f *testFleet) start() {
	f.Fleet = New(f.cfg)
	mux := http.NewServeMux()
	f.Routes(mux)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { f.Run(ctx) })
	f.stop = func() {
		cancel()
		running.Wait()
	}
	f.mux.Store(mux)
}

func (f *testFleet) die() {
	f.mux.Store(nil)
	f.stop()
}

// seeder is the fleet as agents know it.
func (f *testFleet) seeder() Seeder {
	u, err := url.Parse(f.server.URL)
	if err != nil {
		f.t.Fatal(err)
	}
	return Seeder{URL: u}
}

// testHost is an agent that can be stopped.
type testHost struct {
	*Agent
	carried atomic.Int64
	stop    func()
}

// newHost starts an agent. Without a carry it has everything at once.
func newHost(t testing.TB, m Member, carry Carry, seeders ...*testFleet) *testHost {
	t.Helper()
	h := new(testHost)
	if carry == nil {
		carry = func(_ context.Context, _ Order, say func(Progress)) error {
			say(Progress{State: Fetching, Bytes: 100, BytesDone: 100, From: Sources{Peer: 60, Seeder: 40}})
			return nil
		}
	}
	h.Agent = &Agent{Member: m, Log: testLog(t), Carry: func(ctx context.Context, o Order, say func(Progress)) error {
		h.carried.Add(1)
		return carry(ctx, o, say)
	}}
	var known []Seeder
	for _, f := range seeders {
		known = append(known, f.seeder())
	}
	h.SetSeeders(known)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { h.Run(ctx) })
	h.stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(h.stop)
	eventually(t, m.Name+" is linked", func() bool { return h.Links() == len(seeders) })
	for _, f := range seeders {
		f.waitHosts(func(s Snapshot) bool { return hostIn(s, m.Name).State == Connected })
	}
	return h
}

func hostIn(s Snapshot, name string) Host {
	for _, h := range s.Hosts {
		if h.Name == name {
			return h
		}
	}
	return Host{}
}

func (f *testFleet) waitHosts(ok func(Snapshot) bool) {
	f.t.Helper()
	eventually(f.t, "the hosts as they are to be", func() bool { return ok(f.Snapshot()) })
}

// order posts a request and returns the status and the answer.
func (f *testFleet) order(body any) (status int, answer []byte) {
	f.t.Helper()
	text, ok := body.(string)
	if !ok {
		encoded, err := json.Marshal(body)
		if err != nil {
			f.t.Fatal(err)
		}
		text = string(encoded)
	}
	resp, err := http.Post(f.server.URL+"/v1/prefetch", "application/json", strings.NewReader(text))
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return resp.StatusCode, answer
}

// mustOrder is an order that is taken.
func (f *testFleet) mustOrder(r Request) Job {
	f.t.Helper()
	if len(r.Images) == 0 {
		r.Images = []RequestImage{{Ref: "reg.example/app:1"}}
	}
	status, answer := f.order(r)
	var j Job
	if err := json.Unmarshal(answer, &j); status != http.StatusAccepted || err != nil {
		f.t.Fatalf("POST /v1/prefetch = %d %s (%v), want 202 and a job", status, answer, err)
	}
	return j
}

// whole is a job with all its targets.
func (f *testFleet) whole(id string) Job {
	f.t.Helper()
	resp, err := http.Get(f.server.URL + "/v1/prefetch/" + id + "?all=1")
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	var j Job
	if err := json.NewDecoder(resp.Body).Decode(&j); err != nil || resp.StatusCode != http.StatusOK {
		f.t.Fatalf("GET /v1/prefetch/%s = %s, %v", id, resp.Status, err)
	}
	return j
}

func (f *testFleet) waitJob(id, what string, ok func(Job) bool) (j Job) {
	f.t.Helper()
	eventually(f.t, what, func() bool { j = f.whole(id); return ok(j) })
	return j
}

func named(name string) Member { return Member{Name: name} }

func TestOrderReachesAllHostsOnce(t *testing.T) {
	f := newFleet(t, Config{})
	var got sync.Map
	var hosts []*testHost
	for i := range 5 {
		m := Member{Name: fmt.Sprintf("h%d", i), Zone: fmt.Sprintf("z%d", i%2), Labels: map[string]string{"role": "web"}, Version: "1"}
		hosts = append(hosts, newHost(t, m, func(_ context.Context, o Order, say func(Progress)) error {
			got.Store(m.Name, o)
			say(Progress{State: Fetching, Bytes: 100, BytesDone: 100, From: Sources{Peer: 60, Seeder: 40}})
			return nil
		}, f))
	}
	j := f.mustOrder(Request{Pin: true})
	j = f.waitJob(j.ID, "all are ready", func(j Job) bool { return j.State == Done })
	if j.Ready != 5 || j.Failed+j.Away+j.Working != 0 || j.Bytes != 500 || j.BytesDone != 500 || j.From != (Sources{Peer: 300, Seeder: 200}) {
		t.Errorf("job = %+v, want 5 of 5 ready with 500 bytes", j)
	}
	for i, h := range hosts {
		o, _ := got.Load(h.Member.Name)
		order, _ := o.(Order)
		if h.carried.Load() != 1 || order.ID != j.ID || !order.Pin || len(order.Images) != 1 || order.Images[0].Digest != testDigest {
			t.Errorf("%s carried out %+v %d times, want the order once", h.Member.Name, order, h.carried.Load())
		}
		if target := j.Targets[i]; target.Host != h.Member.Name || target.State != Ready || target.FirstByteMS == 0 || target.TookMS == 0 {
			t.Errorf("target %d = %+v", i, target)
		}
	}
	if s := f.Snapshot(); len(s.Hosts) != 5 || s.Hosts[3].Zone != "z1" || s.Hosts[3].Labels["role"] != "web" || len(s.Jobs) != 1 {
		t.Errorf("Snapshot = %+v", s)
	}
}

func TestSelect(t *testing.T) {
	var known []Member
	for i := range 10 {
		m := Member{Name: fmt.Sprintf("h%d", i), Zone: "a", Labels: map[string]string{"role": "web"}}
		if i >= 6 {
			m.Zone, m.Labels = "b", map[string]string{"role": "db", "disk": "ssd"}
		}
		known = append(known, m)
	}
	for _, test := range []struct {
		sel  Select
		want int
	}{
		{Select{}, 10},
		{Select{Zones: []string{"b"}}, 4},
		{Select{Zones: []string{"a", "b"}}, 10},
		{Select{Zones: []string{"c"}}, 0},
		{Select{Labels: map[string]string{"role": "db"}}, 4},
		{Select{Labels: map[string]string{"role": "db", "disk": "hdd"}}, 0},
		{Select{Hosts: []string{"h1", "h2", "stranger"}}, 3}, // who is named counts, known or not
		{Select{Hosts: []string{"h1", "h7"}, Zones: []string{"b"}}, 1},
		{Select{Percent: 20}, 2},
		{Select{Percent: 1}, 1}, // some are never none
		{Select{Percent: 50, Zones: []string{"b"}}, 2},
		{Select{Percent: 100}, 10},
	} {
		if names, _ := test.sel.choose(known); len(names) != test.want {
			t.Errorf("%+v chooses %v, want %d", test.sel, names, test.want)
		}
	}
	few, cutoff := Select{Percent: 20}.choose(known)
	more, _ := Select{Percent: 50}.choose(known)
	if strings.Join(more[:len(few)], " ") != strings.Join(few, " ") {
		t.Errorf("20%% are %v, and 50%% %v: the first are not among them", few, more)
	}
	for _, m := range known { // a host that comes later is judged as if it had been there
		if in := rank(m.Name) <= cutoff; in != strings.Contains(" "+strings.Join(few, " ")+" ", " "+m.Name+" ") {
			t.Errorf("%s below the cutoff: %v, chosen: %v", m.Name, in, few)
		}
	}
}

// A host that is away when the order is given carries it out when it comes back, and so does one that nobody knew.
func TestHostsThatComeLater(t *testing.T) {
	f := newFleet(t, Config{})
	newHost(t, named("here"), nil, f)
	newHost(t, named("away"), nil, f).stop()
	f.waitHosts(func(s Snapshot) bool { return hostIn(s, "away").State == Away })
	j := f.mustOrder(Request{})
	j = f.waitJob(j.ID, "one is ready", func(j Job) bool { return j.Ready == 1 })
	if j.State != Running || j.Hosts != 2 || j.Away != 1 || len(j.Missing) != 1 || j.Missing[0].Host != "away" {
		t.Fatalf("job = %+v, want it to wait for the host that is away", j)
	}
	newHost(t, named("away"), nil, f)
	j = f.waitJob(j.ID, "both are ready", func(j Job) bool { return j.State == Done })
	if j.Ready != 2 {
		t.Errorf("job = %+v, want 2 ready", j)
	}
	newHost(t, named("new"), nil, f)
	f.waitJob(j.ID, "the new one is ready", func(j Job) bool { return j.State == Done && j.Ready == 3 })
}

// A host that stops in the middle has not failed, and goes on when it is back.
func TestHostStopsInTheMiddle(t *testing.T) {
	f := newFleet(t, Config{})
	begun := make(chan struct{})
	h := newHost(t, named("h"), func(ctx context.Context, _ Order, say func(Progress)) error {
		say(Progress{State: Fetching, Bytes: 100, BytesDone: 50})
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	}, f)
	j := f.mustOrder(Request{})
	<-begun
	h.stop()
	j = f.waitJob(j.ID, "it is away", func(j Job) bool { return j.Away == 1 })
	if j.Failed != 0 || j.State != Running {
		t.Errorf("job = %+v, want it to wait for the host", j)
	}
	newHost(t, named("h"), nil, f)
	f.waitJob(j.ID, "it is ready", func(j Job) bool { return j.State == Done && j.Ready == 1 })
}

// A seeder that is restarted knows its hosts and orders, and who is done; hosts at work go on, and are not told to begin anew. The
// credentials are not in the file.
func TestSeederRestarts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "fleet.json")
	f := newFleet(t, Config{File: file, Credentials: true})
	release, begun := make(chan struct{}), make(chan struct{})
	newHost(t, named("quick"), nil, f).stop()
	slow := newHost(t, named("slow"), func(ctx context.Context, _ Order, say func(Progress)) error {
		say(Progress{State: Fetching, Bytes: 100, BytesDone: 1})
		close(begun)
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}, f)
	quick := newHost(t, named("quick"), nil, f)
	r := Request{ID: NewID(), Images: []RequestImage{{Ref: "reg.example/app:1", Authorization: "Bearer secret"}}}
	j := f.mustOrder(r)
	<-begun
	f.waitJob(j.ID, "one is ready", func(j Job) bool { return j.Ready == 1 })
	quick.stop()
	f.die()
	content, err := os.ReadFile(file)
	if err != nil || bytes.Contains(content, []byte("secret")) || !bytes.Contains(content, []byte(j.ID)) {
		t.Fatalf("file: %v\n%s\nwant the order, without credentials", err, content)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file: %v, %v; want it to be ours only", info, err)
	}
	f.start()
	if s := f.Snapshot(); len(s.Hosts) != 2 {
		t.Errorf("Snapshot after the restart = %+v, want both hosts", s)
	}
	j = f.waitJob(j.ID, "the slow host is back", func(j Job) bool { return j.Working == 1 })
	if j.Ready != 1 || j.State != Running || !j.Images[0].Private {
		t.Errorf("job after the restart = %+v, want one of two ready", j)
	}
	close(release)
	f.waitJob(j.ID, "all are ready", func(j Job) bool { return j.State == Done && j.Ready == 2 })
	if n := slow.carried.Load(); n != 1 {
		t.Errorf("the slow host began %d times, want once", n)
	}
}

// A file that cannot be used costs the orders in it, and not the seeder.
func TestBadFile(t *testing.T) {
	for _, content := range []string{"{", `{"hosts":[{"Name":"a b"}]}`, `{"jobs":[{"id":"x"}]}`, `{"jobs":[null]}`, "[]", strings.Repeat("[", 20000)} {
		file := filepath.Join(t.TempDir(), "fleet.json")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		f := newFleet(t, Config{File: file})
		newHost(t, named("h"), nil, f)
		j := f.mustOrder(Request{})
		f.waitJob(j.ID, "it is ready", func(j Job) bool { return j.Ready == 1 })
	}
}

// Each mirror holds a link to each seeder; an order that both tell of is carried out once, and both hear of it.
func TestTwoSeeders(t *testing.T) {
	a, b := newFleet(t, Config{}), newFleet(t, Config{})
	h := newHost(t, named("h"), nil, a, b)
	r := Request{ID: NewID()}
	a.mustOrder(r)
	b.mustOrder(r)
	a.waitJob(r.ID, "a hears of it", func(j Job) bool { return j.Ready == 1 })
	b.waitJob(r.ID, "b hears of it", func(j Job) bool { return j.Ready == 1 })
	if n := h.carried.Load(); n != 1 {
		t.Errorf("carried out %d times, want once", n)
	}
	a.die()
	j := b.mustOrder(Request{})
	b.waitJob(j.ID, "b goes on alone", func(j Job) bool { return j.Ready == 1 })
}

// Seeders come and go: who is left is taken leave of, and what it has ordered is carried out.
func TestSeedersComeAndGo(t *testing.T) {
	a, b := newFleet(t, Config{}), newFleet(t, Config{})
	release := make(chan struct{})
	h := newHost(t, named("h"), func(ctx context.Context, _ Order, say func(Progress)) error {
		say(Progress{State: Fetching, Bytes: 100, BytesDone: 50})
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}, a)
	r := Request{ID: NewID()}
	a.mustOrder(r)
	a.waitJob(r.ID, "it works", func(j Job) bool { return j.Working == 1 })
	h.SetSeeders([]Seeder{b.seeder()})
	a.waitHosts(func(s Snapshot) bool { return hostIn(s, "h").State == Away })
	b.waitHosts(func(s Snapshot) bool { return hostIn(s, "h").State == Connected })
	b.mustOrder(r)
	close(release)
	b.waitJob(r.ID, "it is ready", func(j Job) bool { return j.Ready == 1 })
	if n := h.carried.Load(); n != 1 {
		t.Errorf("carried out %d times, want once", n)
	}
}

// A registry's challenge to a host comes back to whoever ordered, and new credentials go on to the hosts that need them.
func TestCredentialsAreRenewed(t *testing.T) {
	f := newFleet(t, Config{Credentials: true})
	carry := func(_ context.Context, o Order, _ func(Progress)) error {
		if o.Images[0].Authorization != "Bearer new" {
			return &NeedCredentials{Image: o.Images[0].Ref, Challenge: `Bearer realm="r"`, Err: errors.New("unauthorized")}
		}
		return nil
	}
	h := newHost(t, named("h"), carry, f)
	r := Request{ID: NewID(), Images: []RequestImage{{Ref: "reg.example/app:1", Authorization: "Bearer old"}}}
	f.mustOrder(r)
	j := f.waitJob(r.ID, "it is refused", func(j Job) bool { return len(j.Needs) == 1 })
	if want := (Need{"reg.example/app:1", `Bearer realm="r"`}); j.Needs[0] != want || j.Targets[0].State != Refused {
		t.Errorf("job = %+v, want it to need %+v", j, want)
	}
	if text, _ := json.Marshal(j); bytes.Contains(text, []byte("Bearer old")) {
		t.Errorf("the job tells its credentials: %s", text)
	}
	f.mustOrder(r) // the same once more are none
	r.Images[0].Authorization = "Bearer new"
	f.mustOrder(r)
	j = f.waitJob(r.ID, "it is ready", func(j Job) bool { return j.Ready == 1 })
	if len(j.Needs) != 0 || h.carried.Load() != 2 {
		t.Errorf("job = %+v after %d attempts, want nothing needed after 2", j, h.carried.Load())
	}
}

// Whoever calls itself a host is told an order's credentials, so there are none where anybody can.
func TestCredentialsNeedTLS(t *testing.T) {
	f := newFleet(t, Config{})
	status, answer := f.order(Request{Images: []RequestImage{{Ref: "reg.example/app:1", Authorization: "Bearer secret"}}})
	if status != http.StatusForbidden || !bytes.Contains(answer, []byte("--tls-ca")) {
		t.Errorf("answer = %d %s, want 403 and what to do", status, answer)
	}
}

// What the registry refuses to whoever orders it reaches no host.
func TestRegistryRefuses(t *testing.T) {
	f := newFleet(t, Config{Resolve: func(_ context.Context, i RequestImage) (digest.Digest, error) {
		return "", &Refusal{Status: http.StatusUnprocessableEntity, Message: "no", Image: i.Ref, Challenge: "Basic"}
	}})
	h := newHost(t, named("h"), nil, f)
	status, answer := f.order(Request{Images: []RequestImage{{Ref: "reg.example/app:1"}}})
	var refusal Refusal
	if err := json.Unmarshal(answer, &refusal); err != nil || status != http.StatusUnprocessableEntity || refusal.Image != "reg.example/app:1" || refusal.Challenge != "Basic" {
		t.Errorf("answer = %d %s, want the registry's refusal", status, answer)
	}
	if len(f.Snapshot().Jobs) != 0 || h.carried.Load() != 0 {
		t.Error("the order was taken")
	}
}

// An attempt that fails is made again, one that is hopeless is not, and the reason is told.
func TestFailures(t *testing.T) {
	f := newFleet(t, Config{})
	var once sync.Once
	newHost(t, named("again"), func(context.Context, Order, func(Progress)) error {
		err := error(nil)
		once.Do(func() { err = errors.New("the registry has a cold") })
		return err
	}, f)
	hopeless := newHost(t, named("hopeless"), func(context.Context, Order, func(Progress)) error {
		return fmt.Errorf("%w: no such platform\x1b[31m\u009b31m\u202e", ErrHopeless)
	}, f)
	j := f.mustOrder(Request{})
	j = f.waitJob(j.ID, "both are done", func(j Job) bool { return j.State == Done })
	if j.Ready != 1 || j.Failed != 1 || len(j.Failures) != 1 || hopeless.carried.Load() != 1 {
		t.Fatalf("job = %+v, want one ready and one failed", j)
	}
	if e := j.Failures[0].Error; !strings.Contains(e, "no such platform") || strings.ContainsAny(e, "\x1b\u009b\u202e") {
		t.Errorf("error = %q, want the reason, without what a terminal obeys", e)
	}
}

func TestCancel(t *testing.T) {
	f := newFleet(t, Config{})
	ended := make(chan struct{})
	h := newHost(t, named("h"), func(ctx context.Context, _ Order, _ func(Progress)) error {
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	}, f)
	j := f.mustOrder(Request{})
	eventually(t, "it works", func() bool { return h.carried.Load() == 1 })
	req, err := http.NewRequest(http.MethodDelete, f.server.URL+"/v1/prefetch/"+j.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("DELETE = %v, %v", resp, err)
	}
	resp.Body.Close()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the host goes on")
	}
	if j := f.whole(j.ID); j.State != Cancelled {
		t.Errorf("job = %+v, want it cancelled", j)
	}
	newHost(t, named("late"), func(context.Context, Order, func(Progress)) error { t.Error("told of a cancelled order"); return nil }, f)
}

// Time ends orders, and makes the fleet forget.
func TestTimePasses(t *testing.T) {
	f := newFleet(t, Config{})
	newHost(t, named("h"), nil, f).stop()
	f.waitHosts(func(s Snapshot) bool { return hostIn(s, "h").State == Away })
	j := f.mustOrder(Request{Lifetime: Duration(time.Hour)})
	f.expire(time.Now().Add(59 * time.Minute))
	if got := f.whole(j.ID); got.State != Running {
		t.Errorf("a minute before its end the order is %s", got.State)
	}
	if hosts := f.Snapshot().Hosts; len(hosts) != 0 {
		t.Errorf("after an hour away the hosts are %+v, want none", hosts)
	}
	f.expire(time.Now().Add(61 * time.Minute))
	if got := f.whole(j.ID); got.State != Expired || got.Away != 1 {
		t.Errorf("after its end the order is %+v, want it expired with one host away", got)
	}
	f.expire(time.Now().Add(3 * time.Hour))
	if jobs := f.Snapshot().Jobs; len(jobs) != 0 {
		t.Errorf("jobs = %+v, want it forgotten", jobs)
	}
}

// Who watches a job is sent it until it is over.
func TestWatch(t *testing.T) {
	f := newFleet(t, Config{})
	release := make(chan struct{})
	newHost(t, named("h"), func(ctx context.Context, _ Order, say func(Progress)) error {
		say(Progress{State: Fetching, Bytes: 100, BytesDone: 50})
		<-release
		return nil
	}, f)
	j := f.mustOrder(Request{})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.server.URL+"/v1/prefetch/"+j.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var last Job
	halfway := sync.OnceFunc(func() { close(release) })
	defer halfway()
	body, read := make([]byte, 0, 1<<16), make([]byte, 4096)
	for {
		n, err := resp.Body.Read(read)
		body = append(body, read[:n]...)
		if bytes.Contains(body, []byte(`"bytes_done":50`)) {
			halfway()
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	events := strings.Split(strings.TrimSpace(string(body)), "\n\n")
	_, data, _ := strings.Cut(events[len(events)-1], "data: ")
	if err := json.Unmarshal([]byte(data), &last); err != nil || last.State != Done || last.Ready != 1 {
		t.Errorf("the last event is %q (%v), want the job done", events[len(events)-1], err)
	}
}
