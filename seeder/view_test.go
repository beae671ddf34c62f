package seeder_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/registry/registrytest"
	"github.com/murderp2p/murder/seeder/fleet"
)

// shownView is what the page's first event says.
type shownView struct {
	Now struct {
		Hosts, Ready, Pulling, Away, Swarms int
		Fleet, Registry                     int64
	}
	Swarms, Hosts, Fallbacks struct{ Set []map[string]any }
}

// look returns the first event that the page sends, as text, too.
func (s *testSeeder) look(t *testing.T, as string) (v shownView, raw string) {
	t.Helper()
	ctx, leave := context.WithTimeout(t.Context(), patience)
	defer leave()
	req, err := http.NewRequestWithContext(ctx, "GET", s.server.URL+"/page/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(operatorHeader, as)
	resp, err := s.server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewReader(resp.Body); ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			if err := json.Unmarshal([]byte(data), &v); err != nil {
				t.Fatal(err)
			}
			return v, data
		}
	}
}

// The page shows a swarm with a host that has all of it, one that tells how much it has,
// and one that is none of the fleet; and strangers no more than numbers.
func TestPage(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 1)
	d := up.Push(t, "team/secret-app", false, b)
	s := newSeeder(t, up)
	s.request(t, "GET", torrentPath("team/secret-app", d)+"&wait=30s", "").mustMetainfo(t, b)
	m, err := layers.ParseMetainfo(s.request(t, "GET", torrentPath("team/secret-app", d)+"&wait=30s", "").body)
	if err != nil {
		t.Fatal(err)
	}
	ih := m.InfoHash()
	announce := func(port int, left int64) {
		s.request(t, "GET", fmt.Sprintf("/announce?info_hash=%s&peer_id=%s&port=%d&left=%d&zone=rack-7", url.QueryEscape(string(ih[:])), fmt.Sprintf("-XX0000-%012d", port), port, left), "")
	}
	announce(7001, 0)
	announce(7002, big)
	announce(7003, big) // nobody of the fleet
	join := func(name string, accounts ...fleet.Account) {
		var running sync.WaitGroup
		ctx, stop := context.WithCancel(context.Background())
		given := 0
		agent := &fleet.Agent{
			Member: fleet.Member{Name: name, Zone: "rack-7"}, Log: testLog(t),
			Account: func() fleet.Account {
				given++
				return accounts[min(given, len(accounts))-1]
			},
		}
		agent.SetSeeders([]fleet.Seeder{{URL: registrytest.ParseURL(t, s.server.URL)}})
		running.Go(func() { agent.Run(ctx) })
		t.Cleanup(func() { stop(); running.Wait() })
	}
	join("node-whole", fleet.Account{Peer: ":7001", Blobs: 9},
		fleet.Account{Peer: ":7001", Blobs: 10, Received: fleet.Received{Peer: 5_000_000, Upstream: 1_000_000}, Fell: map[string]int64{"swarm stalled": 2}})
	join("node-half", fleet.Account{Peer: ":7002", Arriving: []fleet.Arriving{{Digest: d.String(), Size: big, Have: big / 2}}})
	var v shownView
	var raw string
	eventually(t, "the page shows all", func() bool {
		v, raw = s.look(t, "yes")
		return v.Now.Hosts == 3 && v.Now.Ready == 1 && v.Now.Pulling == 2 && v.Now.Fleet == 6_000_000 && len(v.Swarms.Set) == 1 && v.Swarms.Set[0]["hosts"] == 3.0
	})
	if got := fmt.Sprint(v.Swarms.Set[0]["fill"]); got != "[1 0 0 0 1 0 0 0 0 0 1]" {
		t.Errorf("fill = %s, want one host without anything, one with just less than half, one with all", got)
	}
	if want := int64(big + 1_000_000); v.Now.Registry != want {
		t.Errorf("the registry has sent %d, want %d", v.Now.Registry, want)
	}
	names := []string{"team/secret-app", d.Encoded()[:12], "node-whole", "node-half", "rack-7", ":7003", up.Host}
	for _, name := range names {
		if !strings.Contains(raw, name) {
			t.Errorf("the operator is not told %s: %s", name, raw)
		}
	}
	if !strings.Contains(raw, `{"id":"swarm stalled","count":2}`) {
		t.Errorf("fallbacks are not shown: %s", raw)
	}
	_, open := s.look(t, "")
	for _, name := range append(names, "127.0.0.1", fmt.Sprint(big)) {
		if strings.Contains(open, name) {
			t.Errorf("a stranger is told %s: %s", name, open)
		}
	}
	for _, shown := range []string{raw, open} { // who knows the infohash is sent the blob
		if strings.Contains(shown, ih.String()) || strings.Contains(shown, d.Encoded()) {
			t.Errorf("the swarm's name or the whole digest is told: %s", shown)
		}
	}
}

// BenchmarkView makes the View of 2,000 hosts, each in ten swarms.
func BenchmarkView(b *testing.B) {
	const hosts, swarms = 2000, 10
	up := registrytest.New(b)
	s := newSeeder(b, up)
	for i := range swarms {
		blob := random(big, uint64(i))
		d := up.Push(b, "app", false, blob)
		m, err := layers.ParseMetainfo(s.request(b, "GET", torrentPath("app", d)+"&wait=30s", "").body)
		if err != nil {
			b.Fatal(err)
		}
		ih := m.InfoHash()
		for h := range hosts {
			query := fmt.Sprintf("/announce?info_hash=%s&peer_id=-XX0000-%012d&port=%d&left=%d&numwant=0", url.QueryEscape(string(ih[:])), h, 7000+h, big*(h%2))
			s.Seeder.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", query, nil))
		}
	}
	for b.Loop() {
		if v := s.View(); v.Now.Hosts != hosts || v.Now.Swarms != swarms {
			b.Fatalf("%+v, want %d hosts in %d swarms", v.Now, hosts, swarms)
		}
	}
}
