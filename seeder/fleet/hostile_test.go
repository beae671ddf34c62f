package fleet

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// Bad orders get an answer that names what is wrong, and reach nobody.
func TestBadOrders(t *testing.T) {
	f := newFleet(t, Config{})
	known := f.mustOrder(Request{ID: NewID()})
	image := `"images":[{"ref":"reg.example/app:1"}]`
	many := strings.TrimSuffix(strings.Repeat(`{"ref":"reg.example/app:1"},`, maxImages+1), ",")
	for body, want := range map[string]string{
		``:                                     "EOF",
		`[]`:                                   "cannot unmarshal",
		`{}`:                                   "at least one image",
		`{"imges":[]}`:                         "imges",
		`{"images":[{"ref":""}]}`:              "from 1 to",
		`{"images":[` + many + `]}`:            "at most 16",
		`{"images":[{"ref":"a"},{"ref":"a"}]}`: "named twice",
		`{"images":[{"ref":"` + strings.Repeat("a", maxRef+1) + `"}]}`:       "from 1 to",
		`{` + image + `,"id":"../../etc"}`:                                   "hexadecimal",
		`{` + image + `,"lifetime":"-1s"}`:                                   "lifetime",
		`{` + image + `,"lifetime":"100h"}`:                                  "lifetime",
		`{` + image + `,"lifetime":5}`:                                       "duration",
		`{` + image + `,"percent":101}`:                                      "percent",
		`{` + image + `,"percent":-1}`:                                       "percent",
		`{` + image + `,"hosts":["a b"]}`:                                    "host name",
		`{` + image + `,"zones":["\u0000"]}`:                                 "zone",
		`{` + image + `,"hosts":[]}`:                                         "hosts is empty",
		`{` + image + `,"zones":[]}`:                                         "zones is empty",
		`{` + image + `,"labels":{}}`:                                        "labels is empty",
		`{` + image + `,"labels":{"":"x"}}`:                                  "label",
		`{"id":"` + known.ID + `","images":[{"ref":"reg.example/other:1"}]}`: "other images",
		`{"images":[{"ref":"` + strings.Repeat("a", 2<<20) + `"}]}`:          "too large",
	} {
		status, answer := f.order(body)
		var refusal Refusal
		if err := json.Unmarshal(answer, &refusal); err != nil || status < 400 || status >= 500 || !strings.Contains(refusal.Message, want) {
			t.Errorf("order %.60s = %d %s, want a refusal with %q", body, status, answer, want)
		}
	}
	resp, err := http.Post(f.server.URL+"/v1/prefetch", "text/plain", strings.NewReader("{"+image+"}"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnsupportedMediaType {
		t.Errorf("an order that a page could send = %s", resp.Status)
	}
	if jobs := f.Snapshot().Jobs; len(jobs) != 1 {
		t.Errorf("jobs = %+v, want only the good one", jobs)
	}
}

// There is an end to orders: those that are over make room, those that hold do not.
func TestTooManyOrders(t *testing.T) {
	f := newFleet(t, Config{})
	first := f.mustOrder(Request{})
	for range maxJobs - 1 {
		f.mustOrder(Request{})
	}
	if status, answer := f.order(Request{Images: []RequestImage{{Ref: "a"}}}); status != http.StatusTooManyRequests {
		t.Errorf("one order too many = %d %s, want 429", status, answer)
	}
	if _, err := f.cancel(first.ID); err != nil {
		t.Fatal(err)
	}
	f.mustOrder(Request{})
	if n := len(f.Snapshot().Jobs); n != maxJobs {
		t.Errorf("%d jobs, want %d", n, maxJobs)
	}
}

// Who asks for a link and is no host is told why not.
func TestBadHosts(t *testing.T) {
	f := newFleet(t, Config{})
	labels := strings.Repeat("&label=a=b", maxLabels+1)
	for query, want := range map[string]int{
		"name=h":                                 http.StatusSwitchingProtocols,
		"":                                       http.StatusBadRequest,
		"name=" + strings.Repeat("h", maxName+1): http.StatusBadRequest,
		"name=" + url.QueryEscape("a\x1b[31m"):   http.StatusBadRequest,
		"name=h&zone=" + url.QueryEscape("<b>"):  http.StatusBadRequest,
		"name=h&label=novalue":                   http.StatusBadRequest,
		"name=h&label=" + url.QueryEscape("a=b\nc"): http.StatusBadRequest,
		"name=h" + labels: http.StatusBadRequest,
		"name=h&version=" + strings.Repeat("1", 64): http.StatusBadRequest,
	} {
		status, conn := dialRaw(t, f, query)
		conn.Close()
		if status != want {
			t.Errorf("link with %.60q = %d, want %d", query, status, want)
		}
	}
	resp, err := http.Get(f.server.URL + Path + "?name=h")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("no upgrade = %s", resp.Status)
	}
}

// rawHost is a link without an agent.
type rawHost struct {
	net.Conn
	r *bufio.Reader
}

func dialRaw(t testing.TB, f *testFleet, query string) (status int, h *rawHost) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "GET %s?%s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", Path, query, protocol)
	h = &rawHost{conn, bufio.NewReader(conn)}
	resp, err := http.ReadResponse(h.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, h
}

// A host that says what no host says loses its link, and nobody else does.
func TestHostileHosts(t *testing.T) {
	f := newFleet(t, Config{})
	good := newHost(t, named("good"), nil, f)
	for name, text := range map[string]string{
		"garbage":  "\x00\x01\x02\n",
		"no JSON":  "GET / HTTP/1.1\r\n\r\n",
		"a long":   `{"report":{"error":"` + strings.Repeat("x", maxSaid) + "\"}}\n",
		"no end":   strings.Repeat("x", 2*maxSaid),
		"too much": strings.Repeat("{}\n", 10*saidBurst),
	} {
		status, h := dialRaw(t, f, "name=bad")
		if status != http.StatusSwitchingProtocols {
			t.Fatalf("link = %d", status)
		}
		go io.WriteString(h, text) // it may be cut off in the middle
		if _, err := io.Copy(io.Discard, h.r); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: the link stays", name)
		}
	}
	if good.Links() != 1 {
		t.Error("the good host has lost its link")
	}
}

// Reports about what a host was not told, with figures that cannot be, or after the end change nothing.
func TestFalseReports(t *testing.T) {
	f := newFleet(t, Config{})
	_, h := dialRaw(t, f, "name=liar")
	f.waitHosts(func(s Snapshot) bool { return hostIn(s, "liar").State == Connected })
	own := f.mustOrder(Request{Select: Select{Hosts: []string{"liar"}}})
	other := f.mustOrder(Request{Select: Select{Hosts: []string{"honest"}}})
	say := func(r Report) {
		t.Helper()
		if err := writeMessage(h, message{Report: &r}); err != nil {
			t.Fatal(err)
		}
	}
	say(Report{Order: other.ID, Progress: Progress{State: Ready}})
	say(Report{Order: "none", Progress: Progress{State: Ready}})
	say(Report{Order: own.ID, Progress: Progress{State: "splendid"}})
	say(Report{Order: own.ID, Progress: Progress{State: Refused}, Image: "reg.example/not-ordered:1", Challenge: "Basic"})
	say(Report{Order: own.ID, Progress: Progress{State: Fetching, Bytes: -5, BytesDone: 1 << 62, From: Sources{Peer: -1}, Error: strings.Repeat("é", 3000)}})
	j := f.waitJob(own.ID, "the last one is in", func(j Job) bool { return j.Working == 1 && j.Targets[0].State == Fetching })
	if target := j.Targets[0]; j.Bytes < 0 || j.BytesDone > j.Bytes || j.From.Peer < 0 || len(target.Error) > maxError+3 || len(j.Needs) != 0 {
		t.Errorf("job = %+v", j)
	}
	say(Report{Order: own.ID, Progress: Progress{State: Failed}})
	say(Report{Order: own.ID, Progress: Progress{State: Ready}})
	f.waitJob(own.ID, "it has failed", func(j Job) bool { return j.State == Done && j.Failed == 1 })
	if j := f.whole(other.ID); j.Ready != 0 {
		t.Errorf("the other's job = %+v, want it untouched", j)
	}
}

// A seeder that says nonsense costs a mirror the link, and a mirror without a link goes on asking.
func TestHostileSeeder(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	upgraded := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n"
	answers := []string{"nonsense\r\n\r\n", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", upgraded + "nonsense\n",
		upgraded + `{"order":{"id":"` + strings.Repeat("x", 2*maxLine)}
	asked := make(chan int, len(answers))
	go func() {
		for i := 0; ; i++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			http.ReadRequest(bufio.NewReader(conn))
			io.WriteString(conn, answers[i%len(answers)])
			conn.Close()
			select {
			case asked <- i:
			default:
			}
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	a := &Agent{Member: named("h"), Log: testLog(t),
		Carry: func(context.Context, Order, func(Progress)) error { t.Error("carried out nonsense"); return nil }}
	a.SetSeeders([]Seeder{{URL: &url.URL{Scheme: "http", Host: l.Addr().String()}}})
	ended := make(chan struct{})
	go func() { defer close(ended); a.Run(ctx) }()
	for range answers[:2] { // each next one is waited for longer
		select {
		case <-asked:
		case <-time.After(patience):
			t.Fatal("the mirror does not ask any more")
		}
	}
	cancel()
	<-ended
}

// Of two hosts with one name the newer counts, and the older is told.
func TestSameName(t *testing.T) {
	f := newFleet(t, Config{})
	_, old := dialRaw(t, f, "name=h&zone=old")
	f.waitHosts(func(s Snapshot) bool { return hostIn(s, "h").Zone == "old" })
	newHost(t, Member{Name: "h", Zone: "new"}, nil, f)
	text, err := io.ReadAll(old.r)
	if err != nil || !strings.Contains(string(text), "goes by the name h, too") {
		t.Errorf("the older host hears %q (%v), want the reason", text, err)
	}
	if h := hostIn(f.Snapshot(), "h"); h.Zone != "new" || h.State != Connected {
		t.Errorf("host = %+v, want the newer", h)
	}
}

// FuzzHost has a host say anything.
func FuzzHost(f *testing.F) {
	f.Add([]byte(`{"report":{"order":"0123456789abcdef0123456789abcdef","state":"ready","bytes":1}}` + "\n"))
	f.Add([]byte(`{"report":{"order":"0123456789abcdef0123456789abcdef","state":"refused","image":"a","challenge":"Basic"}}` + "\n{}\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		fleet := New(Config{Log: testLog(t)})
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		l := &link{member: named("h"), conn: near, queue: make(chan message, maxQueue)}
		fleet.join(l, "x")
		r := Request{ID: "0123456789abcdef0123456789abcdef", Images: []RequestImage{{Ref: "a"}}}
		if _, err := fleet.newJob(r, []OrderImage{{Ref: "a"}}); err != nil {
			t.Fatal(err)
		}
		readMessages(near, strings.NewReader(string(said)), maxSaid, func(m message) error {
			if m.Report != nil {
				fleet.report(l, *m.Report)
			}
			return nil
		})
		j, _, err := fleet.job(r.ID, true)
		if err != nil || j.BytesDone > j.Bytes || j.BytesDone < 0 || j.Hosts != 1 || j.Ready+j.Failed+j.Away+j.Working > 1 {
			t.Errorf("after %q: %+v, %v", said, j, err)
		}
	})
}

// FuzzKept reads any file.
func FuzzKept(f *testing.F) {
	f.Add([]byte(`{"hosts":[{"Name":"h"}],"jobs":[{"id":"0123456789abcdef0123456789abcdef","images":[{"ref":"a"}],"targets":[{"host":"h","state":"ready"}]}]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		k, err := parseKept(content)
		if err != nil {
			return
		}
		for _, j := range k.Jobs {
			if j.ID == "" || len(j.restored().order.Images) == 0 {
				t.Errorf("%q is taken for an order", content)
			}
		}
	})
}
