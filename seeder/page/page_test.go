package page

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

// source is a fleet that a test moves.
type source struct {
	mu     sync.Mutex // guards the rest
	totals Totals
	view   View
	asked  int
}

func (s *source) Totals() Totals {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.totals
}

func (s *source) View() View {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	v := s.view
	// What was given out once does not change under the page.
	v.Hosts, v.Swarms = append([]Host(nil), v.Hosts...), append([]Swarm(nil), v.Swarms...)
	v.Jobs, v.Fallbacks = append([]Job(nil), v.Jobs...), append([]Fallback(nil), v.Fallbacks...)
	return v
}

func (s *source) set(change func(*source)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

// private is in every name of secret.
const private = "private-"

// secret is a View whose every name is one.
func secret() View {
	v := View{
		Now:       Now{Version: private + "version", Hosts: 1, Ready: 1},
		Swarms:    []Swarm{{ID: 1, Name: private + "repo", Digest: private + "digest", Size: 123456789, Hosts: 1, Percent: 100}},
		Hosts:     []Host{{ID: 2, Name: private + "host", Addr: private + "addr", Zone: 1, ZoneName: private + "zone", State: Ready, Left: 7654321}},
		Jobs:      []Job{{ID: 3, Images: private + "image", Whom: private + "whom", State: Running, Slowest: private + "slowest", Error: private + "error", Have: 999_999_999}},
		Fallbacks: []Fallback{{Reason: "too slow", Count: 4}},
	}
	v.Swarms[0].Fill[10] = 1
	return v
}

// start serves the page of src at the pace of a test. Operators say so in a header.
func start(t testing.TB, src *source) *httptest.Server {
	t.Helper()
	p := New(Config{Source: src, Every: 5 * time.Millisecond, Operator: func(r *http.Request) (bool, error) {
		if r.Header.Get("Test-Operator") == "wrong" {
			return false, errors.New("wrong token")
		}
		return r.Header.Get("Test-Operator") != "", nil
	}})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.Run(ctx)
	}()
	server := httptest.NewServer(p)
	t.Cleanup(func() {
		stop()
		<-ended
		server.Close() // waits for the streams, which Run's end has ended
	})
	return server
}

// viewer is a client that keeps what it is told as the browser does.
type viewer struct {
	t     testing.TB
	body  io.Closer
	lines *bufio.Reader
	raw   bytes.Buffer // all that was sent
	seq   int
	names bool
	rows  map[string]map[string]map[string]any
	now   map[string]any
}

func look(t testing.TB, server *httptest.Server, operator string) *viewer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", server.URL+"/page/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	if operator != "" {
		req.Header.Set("Test-Operator", operator)
	}
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("GET /page/events = %s %v", resp.Status, resp.Header)
	}
	v := &viewer{t: t, body: resp.Body}
	v.lines = bufio.NewReader(io.TeeReader(resp.Body, &v.raw))
	return v
}

// next takes one event in.
func (v *viewer) next() (event string) {
	v.t.Helper()
	var data string
	for {
		line, err := v.lines.ReadString('\n')
		if err != nil {
			v.t.Fatalf("the stream ended: %v", err)
		}
		if line == "\n" {
			break
		}
		if s, ok := strings.CutPrefix(line, "event: "); ok {
			event = strings.TrimSpace(s)
		}
		if s, ok := strings.CutPrefix(line, "data: "); ok {
			data = s
		}
	}
	var got struct {
		Seq   int
		Names bool
		Now   map[string]any
	}
	var tables map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal([]byte(data), &got), json.Unmarshal([]byte(data), &tables)); err != nil {
		v.t.Fatalf("event %q: %v", data, err)
	}
	switch event {
	case "view":
		v.rows, v.now, v.names = map[string]map[string]map[string]any{}, map[string]any{}, got.Names
	case "delta":
		if got.Seq != v.seq+1 {
			v.t.Fatalf("delta %d after %d", got.Seq, v.seq)
		}
	default:
		v.t.Fatalf("event %q", event)
	}
	v.seq = got.Seq
	maps.Copy(v.now, got.Now)
	for _, name := range []string{"swarms", "hosts", "jobs", "fallbacks"} {
		v.merge(name, tables[name])
	}
	return event
}

func (v *viewer) merge(name string, change json.RawMessage) {
	v.t.Helper()
	if change == nil {
		return
	}
	var c struct {
		Set  []map[string]any
		Gone []any
	}
	if err := json.Unmarshal(change, &c); err != nil {
		v.t.Fatal(err)
	}
	if v.rows[name] == nil {
		v.rows[name] = map[string]map[string]any{}
	}
	for _, row := range c.Set {
		id := fmt.Sprint(row["id"])
		if v.rows[name][id] == nil {
			v.rows[name][id] = map[string]any{}
		}
		maps.Copy(v.rows[name][id], row)
	}
	for _, id := range c.Gone {
		delete(v.rows[name], fmt.Sprint(id))
	}
}

// until takes events in until ok.
func (v *viewer) until(ok func() bool) {
	v.t.Helper()
	for late := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(late) {
			v.t.Fatalf("never so; the last: %v %v", v.now, v.rows)
		}
		v.next()
	}
}

func TestDeltasLeadToWhatIs(t *testing.T) {
	src := &source{view: secret()}
	server := start(t, src)
	v := look(t, server, "yes")
	if event := v.next(); event != "view" || !v.names {
		t.Fatalf("the first event is %q, with names: %v", event, v.names)
	}
	src.set(func(s *source) {
		s.view.Hosts = append(s.view.Hosts, Host{ID: 9, Name: "new", State: Pulling, Percent: 40, Left: 5})
		s.view.Now.Hosts = 2
	})
	v.until(func() bool { return v.rows["hosts"]["9"] != nil })
	src.set(func(s *source) {
		s.view.Hosts[1].Percent, s.view.Hosts[1].Left, s.view.Hosts[1].State = 0, 0, Away // zeros are sent, too
		s.view.Swarms = nil
		s.view.Fallbacks = nil
	})
	v.until(func() bool { return len(v.rows["swarms"]) == 0 && len(v.rows["fallbacks"]) == 0 })
	v.until(func() bool { return v.rows["hosts"]["9"]["state"] == Away })
	fresh := look(t, server, "yes")
	fresh.next()
	if !reflect.DeepEqual(v.now["hosts"], fresh.now["hosts"]) || len(v.rows["hosts"]) != len(fresh.rows["hosts"]) {
		t.Errorf("by deltas %v %v, anew %v %v", v.now, v.rows["hosts"], fresh.now, fresh.rows["hosts"])
	}
	for id, row := range v.rows["hosts"] {
		for field, value := range fresh.rows["hosts"][id] {
			if row[field] != value {
				t.Errorf("host %s: %s = %v by deltas, %v anew", id, field, row[field], value)
			}
		}
	}
	for _, field := range []string{"percent", "left"} {
		if got := v.rows["hosts"]["9"][field]; got != 0.0 && got != nil { // which a view that comes whole leaves out
			t.Errorf("host 9: %s = %v, want 0", field, got)
		}
	}
}

func TestWhatIsGoneIsSaid(t *testing.T) {
	f := newFrames(true)
	f.turn(View{Hosts: []Host{{ID: 1}, {ID: 2}}, Fallbacks: []Fallback{{Reason: "too slow"}}})
	for _, want := range []string{
		`{"seq":2,"hosts":{"set":[],"gone":[1]},"fallbacks":{"set":[],"gone":["too slow"]}}`,
		`{"seq":3}`,
	} {
		got := string(f.turn(View{Hosts: []Host{{ID: 2}}}))
		if got != "event: delta\ndata: "+want+"\n\n" {
			t.Errorf("got %s want %s", got, want)
		}
	}
}

// TestNamesAreTheOperators looks at every byte that a stranger is sent.
func TestNamesAreTheOperators(t *testing.T) {
	src := &source{view: secret()}
	server := start(t, src)
	stranger, operator := look(t, server, ""), look(t, server, "yes")
	stranger.next()
	operator.next()
	src.set(func(s *source) {
		s.view.Hosts[0].Name += "2"
		s.view.Hosts[0].Percent = 5
		s.view.Swarms[0].Name += "2"
		s.view.Swarms[0].Hosts = 2
		s.view.Jobs[0].Error += "2"
		s.view.Jobs[0].Done = 1
		s.view.Swarms = append(s.view.Swarms, Swarm{ID: 77, Name: private + "late"})
	})
	done := func(v *viewer) func() bool {
		return func() bool { return v.rows["swarms"]["77"] != nil && v.rows["jobs"]["3"]["done"] == 1.0 }
	}
	stranger.until(done(stranger))
	operator.until(done(operator))
	if raw := stranger.raw.String(); strings.Contains(raw, private) || stranger.names {
		t.Errorf("a stranger is told names: %s", raw)
	}
	for _, exact := range []string{"123456789", "7654321", "999999999"} {
		if strings.Contains(stranger.raw.String(), exact) {
			t.Errorf("a stranger is told an exact size, %s", exact)
		}
	}
	for _, name := range []string{"version", "repo", "digest", "host", "addr", "zone", "image", "whom", "slowest", "error", "late"} {
		if !strings.Contains(operator.raw.String(), private+name) {
			t.Errorf("the operator is not told the %s", name)
		}
	}
}

// TestFieldsAreNamesUnlessMarked holds a new field back from strangers.
func TestFieldsAreNamesUnlessMarked(t *testing.T) {
	type row struct {
		ID   int    `json:"id" page:"open"`
		Name string `json:"name"`
	}
	e := encoder{}
	got, _ := e.row(nil, columns[row](), reflect.ValueOf(row{1, private}), reflect.ValueOf(row{}), 1)
	if string(got) != `{"id":1}` {
		t.Errorf("a stranger is sent %s", got)
	}
	for _, of := range []reflect.Type{reflect.TypeFor[Now](), reflect.TypeFor[Swarm](), reflect.TypeFor[Host](), reflect.TypeFor[Job](), reflect.TypeFor[Fallback]()} {
		for i := range of.NumField() {
			f := of.Field(i)
			open := f.Tag.Get("page") != ""
			if text := f.Type.Kind() == reflect.String; text && open && f.Name != "State" && f.Name != "Reason" {
				t.Errorf("%s.%s is text for everybody", of.Name(), f.Name)
			}
		}
	}
}

func TestHostileTextStaysInItsPlace(t *testing.T) {
	names := []string{
		"a\n\nevent: view\ndata: {}\n\n", "\u202egnp.exe", "\x00\x1b[31m", "\xff\xfe", `"},"hosts":{`, "</script><b>", "\u2028\u2029",
		strings.Repeat("w", 10_000), strings.Repeat("é", 10_000),
	}
	for _, name := range names {
		src := &source{view: View{Hosts: []Host{{ID: 1, Name: name, State: Ready}}}}
		v := look(t, start(t, src), "yes")
		v.next()
		got, _ := v.rows["hosts"]["1"]["name"].(string)
		if len(v.rows["hosts"]) != 1 || len([]rune(got)) > maxText {
			t.Errorf("name %.20q is shown as %q", name, got)
		}
		for _, r := range got {
			if r < ' ' || r == '\u202e' || r == '\u2028' {
				t.Errorf("name %.20q is shown with %q in it", name, r)
			}
		}
		if raw := v.raw.String(); strings.ContainsAny(raw, "<>") {
			t.Errorf("name %.20q comes as markup: %s", name, raw)
		}
	}
}

func TestViewersAreBounded(t *testing.T) {
	server := start(t, &source{view: secret()})
	first := look(t, server, "")
	for range maxViewers - 1 {
		look(t, server, "")
	}
	refused := func() int {
		resp, err := server.Client().Get(server.URL + "/page/events")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	if got := refused(); got != http.StatusServiceUnavailable {
		t.Errorf("one viewer too many is answered %d", got)
	}
	look(t, server, "yes").next() // strangers do not keep the operator out
	first.body.Close()
	for late := time.Now().Add(30 * time.Second); refused() != http.StatusOK; {
		if time.Now().After(late) {
			t.Fatal("a place that was left is not given again")
		}
	}
}

func TestNobodyLooksNobodyIsAsked(t *testing.T) {
	src := &source{view: secret()}
	server := start(t, src)
	v := look(t, server, "")
	v.next()
	v.body.Close()
	asked := func() (n int) {
		src.set(func(s *source) { n = s.asked })
		return n
	}
	for late := time.Now().Add(30 * time.Second); ; {
		before := asked()
		time.Sleep(50 * time.Millisecond) // ten of the page's turns
		if asked() == before {
			return
		}
		if time.Now().After(late) {
			t.Fatal("the source is asked though nobody looks")
		}
	}
}

// TestRates has a fleet receive a thousand bytes a turn.
func TestRates(t *testing.T) {
	src := &source{}
	p := New(Config{Source: src, Every: time.Second})
	for range 10 {
		src.set(func(s *source) { s.totals.Fleet += 1000; s.totals.Registry += 10 })
		p.sample()
	}
	src.set(func(s *source) { s.totals = Totals{} }) // a count that begins anew is no rate
	p.sample()
	if got := fmt.Sprint(p.rates.fleet, p.rates.registry); got != "[0 1000 1000 1000 1000 1000 1000 1000 1000 1000 0] [0 10 10 10 10 10 10 10 10 10 0]" {
		t.Errorf("rates = %s", got)
	}
	for range 2 * History {
		p.sample()
	}
	if len(p.rates.fleet) != History || len(p.totals) != smooth+1 {
		t.Errorf("%d rates and %d totals are kept", len(p.rates.fleet), len(p.totals))
	}
}

func TestWrongTokenIsSaid(t *testing.T) {
	server := start(t, &source{})
	req, _ := http.NewRequestWithContext(t.Context(), "GET", server.URL+"/page/events", nil)
	req.Header.Set("Test-Operator", "wrong")
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 400 {
		t.Errorf("a wrong token is answered %s", resp.Status)
	}
}

func TestAssets(t *testing.T) {
	server := start(t, &source{})
	for path, kind := range map[string]string{"/": "text/html", "/page/style.css": "text/css", "/page/page.js": "text/javascript"} {
		resp, err := server.Client().Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), kind) || len(body) == 0 {
			t.Errorf("GET %s = %s, %v", path, resp.Status, resp.Header)
		}
		csp := resp.Header.Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || strings.Contains(csp, "*") {
			t.Errorf("GET %s: Content-Security-Policy %q", path, csp)
		}
		for _, far := range []string{"http://", "https://", "innerHTML", "style=\"", "onclick"} {
			if bytes.Contains(body, []byte(far)) {
				t.Errorf("GET %s has %s in it", path, far)
			}
		}
		again, _ := http.NewRequestWithContext(t.Context(), "GET", server.URL+path, nil)
		again.Header.Set("If-None-Match", resp.Header.Get("Etag"))
		again.Header.Set("Accept-Encoding", "gzip")
		resp, err = server.Client().Do(again)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotModified {
			t.Errorf("GET %s of what is there = %s", path, resp.Status)
		}
	}
	for path, want := range map[string]int{"/index.html": 404, "/page/": 404, "/page/index.html": 404, "/page/../page.go": 404} {
		resp, err := server.Client().Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("GET %s = %s", path, resp.Status)
		}
	}
}

// Marks that languages have stay, those that would grow over other lines do not.
func TestMarksDoNotPileUp(t *testing.T) {
	for name, want := range map[string]string{
		"Việt e\u0302\u0301":               "Việt e\u0302\u0301",
		"e\u0300\u0301\u0302\u0303x\u0301": "e\u0300\u0301x\u0301",
		"\u0300\u0301\u0302":               "\u0300\u0301",
	} {
		if got := string(appendText(nil, name)); got != `"`+want+`"` {
			t.Errorf("%q is sent as %s, want %q", name, got, want)
		}
	}
}
