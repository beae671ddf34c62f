package proxy_test

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/layers/swarm"
	"github.com/murderp2p/murder/registry/registrytest"
)

// trickling is a server before a seeder whose answers about content are all but stuck:
// their first bytes come, and then one now and then.
func trickling(t testing.TB, origin *testSeeder, paths ...string) string {
	return serveURL(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" && slices.ContainsFunc(paths, func(path string) bool { return strings.HasPrefix(r.URL.Path, path) }) {
			w = &tricklingWriter{w, r}
		}
		origin.server.Config.Handler.ServeHTTP(w, r)
	}))
}

type tricklingWriter struct {
	http.ResponseWriter
	r *http.Request
}

func (w *tricklingWriter) Write(b []byte) (n int, err error) {
	for ; n < len(b) && err == nil && w.r.Context().Err() == nil; n++ {
		_, err = w.ResponseWriter.Write(b[n : n+1])
		http.NewResponseController(w.ResponseWriter).Flush()
		time.Sleep(20 * time.Millisecond)
	}
	return n, err
}

// A swarm and a seeder that trickle, without ever being silent, are left for who may be
// faster, at the byte where they stand; status and metrics say why.
func TestTrickles(t *testing.T) {
	t.Parallel()
	slow := swarm.Config{Upload: layers.NewLimiter(1 << 10)} // after a burst of 256 KiB
	for name, test := range map[string]struct {
		swarm     swarm.Config
		trickling []string // paths at the seeder
		warm      bool
		way       string
	}{
		"the swarm":                        {slow, nil, true, "seeder"},
		"swarm and seeder":                 {slow, []string{"/v2/"}, true, "upstream"},
		"the hashes of what is being made": {slow, []string{"/v1/torrents/", "/v2/"}, false, "upstream"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := registrytest.New(t)
			b := random(big, 91)
			d := up.Push(t, "app", false, b)
			origin := newSeederIn(t, t.TempDir(), test.swarm, up)
			if test.warm {
				origin.mustPull(t, "app", b)
			} else { // the seeder is in the middle of it, so that what it answers grows
				hold := make(chan struct{})
				defer close(hold)
				up.Fail(&registrytest.Fault{Left: 1, At: 1 << 20, Hold: hold})
			}
			m := newMirror(t, up, []string{trickling(t, origin, test.trickling...)})
			m.SetSlow(time.Second)
			m.mustPull(t, "app", b)
			r := m.settled(t, d)
			if r.Way != test.way || r.Why != "too slow" || m.counter(t, "murder_fallbacks_total", "too slow") == 0 {
				t.Errorf("record = %+v, want the rest by %s since it was too slow", r, test.way)
			}
			if came := r.From[layers.FromPeer] + r.From[layers.FromSeeder] + r.From[layers.FromUpstream]; came > big+big/4 {
				t.Errorf("%d bytes came of a blob of %d", came, big)
			}
		})
	}
}

// A registry whose answer trickles is asked anew, where there is no other way.
func TestRegistryTricklesAlone(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 92)
	d := up.Push(t, "app", false, b)
	hold := make(chan struct{})
	defer close(hold)
	up.Fail(&registrytest.Fault{Left: 1, At: coldAt, Hold: hold})
	m := newMirror(t, up, nil)
	m.SetSlow(time.Second)
	m.mustPull(t, "app", b)
	if gets := up.Seen("GET", d.String()); len(gets) != 2 || gets[1].Ranges != fmt.Sprintf("bytes=%d-", coldAt) {
		t.Errorf("requests = %v, want a second one from byte %d", gets, coldAt)
	}
}

// A tracker that names hosts which are not there, or says what is no answer, costs the
// swarm and nothing else.
func TestTrackerLies(t *testing.T) {
	t.Parallel()
	dead := make([]byte, 0, 6*5000)
	for i := range 5000 { // of a network for documentation, and closed ports of our own
		ip := [4]byte{127, 0, 0, 1}
		if i%2 == 0 {
			ip = [4]byte{192, 0, 2, byte(i)}
		}
		dead = binary.BigEndian.AppendUint16(append(dead, ip[:]...), uint16(1+i%1000))
	}
	for name, answer := range map[string]string{
		"dead hosts":  fmt.Sprintf("d8:completei9e10:incompletei9e8:intervali1e5:peers%d:%se", len(dead), dead),
		"for ever":    strings.Repeat("d5:peers9999999:", 100_000),
		"nonsense":    "<html>",
		"an absurd n": "d8:completei-9e8:intervali-1e12:min intervali99999999999999e5:peers0:e",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := registrytest.New(t)
			b := random(big, 93)
			d := up.Push(t, "app", false, b)
			origin := newSeeder(t, up)
			origin.mustPull(t, "app", b)
			m := newMirror(t, up, []string{serveURL(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/announce" {
					w.Write([]byte(answer))
					return
				}
				origin.server.Config.Handler.ServeHTTP(w, r)
			}))})
			m.SetStall(time.Second)
			m.mustPull(t, "app", b)
			if r := m.settled(t, d); r.Way != "seeder" || r.Why != "swarm stalled" || r.From[layers.FromSeeder] != big {
				t.Errorf("record = %+v, want all by HTTP since the swarm stalled", r)
			}
		})
	}
}
