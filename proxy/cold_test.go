package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/registry/registrytest"
)

// coldAt is where the registry pauses in a cold blob: at the end of a piece, as all
// before it can have reached the hosts then.
const coldAt = 2 << 20

// coldPull is a client in the middle of a blob of which the registry has sent no
// more than coldAt bytes.
type coldPull struct {
	mirror *testMirror
	body   io.ReadCloser
	begun  []byte
}

// pullCold has mirrors pull a blob until each client has all that the registry has
// sent. The registry goes on when hold is closed.
func pullCold(t testing.TB, up *registrytest.Upstream, d digest.Digest, mirrors []*testMirror) (pulls []*coldPull, hold chan struct{}) {
	t.Helper()
	hold = make(chan struct{})
	up.Fail(&registrytest.Fault{Left: 1, At: coldAt, Hold: hold})
	pulls = make([]*coldPull, len(mirrors))
	var all sync.WaitGroup
	for i, m := range mirrors {
		all.Go(func() {
			p := &coldPull{m, http.NoBody, make([]byte, coldAt)}
			pulls[i] = p
			resp, err := m.open(t, "GET", blobPath("app", d), "")
			if err != nil {
				t.Errorf("pull: %v", err)
				return
			}
			t.Cleanup(func() { resp.Body.Close() })
			p.body = resp.Body
			if n, err := io.ReadFull(p.body, p.begun); err != nil {
				t.Errorf("a client has %d bytes of the %d that the registry has sent: %v", n, coldAt, err)
			}
		})
	}
	all.Wait()
	return pulls, hold
}

// finish reads the rest.
func (p *coldPull) finish() answer {
	rest, err := io.ReadAll(p.body)
	return answer{http.StatusOK, nil, slices.Concat(p.begun, rest), err}
}

func newMirrors(t testing.TB, n int, up *registrytest.Upstream, seeders ...string) []*testMirror {
	t.Helper()
	mirrors := make([]*testMirror, n)
	for i := range mirrors {
		mirrors[i] = newMirror(t, up, seeders)
	}
	return mirrors
}

// Mirrors that all pull a blob which nobody has get it from one another while the
// registry sends it, and it sends it once.
func TestColdSwarm(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 1)
	d := up.Push(t, "app", false, b)
	mirrors := newMirrors(t, 5, up, newSeeder(t, up).server.URL)
	pulls, hold := pullCold(t, up, d, mirrors)
	close(hold)
	var finishing sync.WaitGroup
	for _, p := range pulls {
		finishing.Go(func() { p.finish().mustBe(t, b) })
	}
	finishing.Wait()
	if gets := up.Seen("GET", d.String()); len(gets) != 1 {
		t.Errorf("the registry saw %d requests for the blob, want 1: %v", len(gets), gets)
	}
	var peers, all int64
	for _, m := range mirrors {
		r := m.settled(t, d)
		if r.Way != "swarm" || r.Why != "" {
			t.Errorf("record = %+v, want all from the swarm", r)
		}
		peers += r.From[layers.FromPeer]
		all += r.Size
	}
	// How much they bring depends on how late the last of them comes.
	if peers*5 < all {
		t.Errorf("of %d bytes %d came from peers, want a good part", all, peers)
	}
}

// A seeder that dies or hangs in the middle of a cold blob is left for the registry,
// at the byte up to which the swarm has brought it.
func TestSeederFailsInColdBlob(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"dies", "hangs"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			up := registrytest.New(t)
			b := random(big, 17)
			d := up.Push(t, "app", false, b)
			origin := newSeeder(t, up)
			mirrors := newMirrors(t, 3, up, origin.server.URL)
			var hung atomic.Bool
			if how == "hangs" {
				front := serveURL(t, hanging(&hung, origin.server.Config.Handler))
				for i := range mirrors {
					mirrors[i] = newMirror(t, up, nil, impatient(t, front))
				}
			}
			pulls, hold := pullCold(t, up, d, mirrors)
			defer close(hold)
			if hung.Store(true); how == "dies" {
				origin.close()
			}
			for _, p := range pulls {
				p.finish().mustBe(t, b)
				r := p.mirror.settled(t, d)
				swarm := r.From[layers.FromSeeder] + r.From[layers.FromPeer]
				if swarm < coldAt || r.From[layers.FromUpstream] != big-coldAt || r.Why != "seeder unreachable" {
					t.Errorf("record = %+v, want the rest from upstream", r)
				}
			}
			fromThere := func(a registrytest.Asked) bool { return a.Ranges == fmt.Sprintf("bytes=%d-", coldAt) }
			if gets := up.Seen("GET", d.String()); len(gets) != 4 || !slices.ContainsFunc(gets, fromThere) {
				t.Errorf("the registry was asked for %v, want once for all and 3 times for the rest", gets)
			}
		})
	}
}

// hanging is h, whose answers stop once hung is true.
func hanging(hung *atomic.Bool, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hung.Load() {
			<-r.Context().Done()
			return
		}
		h.ServeHTTP(&hangingWriter{w, hung, r}, r)
	})
}

type hangingWriter struct {
	http.ResponseWriter
	hung *atomic.Bool
	r    *http.Request
}

func (w *hangingWriter) Write(b []byte) (int, error) {
	if w.hung.Load() {
		<-w.r.Context().Done()
		return 0, w.r.Context().Err()
	}
	return w.ResponseWriter.Write(b)
}

func (w *hangingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// A registry that pauses is no swarm that stalls.
func TestRegistryPausesInColdBlob(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 24)
	d := up.Push(t, "app", false, b)
	m := newMirror(t, up, []string{newSeeder(t, up).server.URL})
	m.SetStall(time.Second)
	pulls, hold := pullCold(t, up, d, []*testMirror{m})
	// It may have stalled before, on a busy machine. All is here now.
	stalls := m.counter(t, "murder_fallbacks_total", "swarm stalled")
	pause := time.NewTimer(3 * time.Second)
	defer pause.Stop()
	<-pause.C
	if n := m.counter(t, "murder_fallbacks_total", "swarm stalled"); n != stalls {
		t.Error("the swarm was left while the registry paused")
	}
	close(hold)
	pulls[0].finish().mustBe(t, b)
}

// When the seeder's fetch fails for good, it is asked for another before any worse
// way is taken, and that goes on where the first one stopped.
func TestSeederFetchesColdBlobAgain(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 25)
	d := up.Push(t, "app", false, b)
	m := newMirror(t, up, []string{newSeeder(t, up).server.URL})
	// The seeder asks four times in a row for the same byte before it gives up.
	busy := func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "busy", http.StatusServiceUnavailable) }
	up.Fail(&registrytest.Fault{Left: 1, At: coldAt, Cut: true}, &registrytest.Fault{Left: 3, Answer: busy})
	m.mustPull(t, "app", b)
	if r := m.settled(t, d); r.Way != "swarm" || r.From[layers.FromUpstream] != 0 {
		t.Errorf("record = %+v, want all from the swarm", r)
	}
	gets := up.Seen("GET", d.String())
	if last := gets[len(gets)-1]; last.Ranges != fmt.Sprintf("bytes=%d-", coldAt) {
		t.Errorf("the registry was asked for %v, want the last question to be for the rest", gets)
	}
}

// Wrong bytes in a cold blob end politely on no host, also not as a range that lies
// before them or has them in its middle, and do not spoil the next pull.
func TestWrongBytesInColdBlob(t *testing.T) {
	t.Parallel()
	for _, at := range []int64{100, coldAt + 100, big - 1} {
		t.Run(fmt.Sprint("byte ", at), func(t *testing.T) {
			t.Parallel()
			up := registrytest.New(t)
			b := random(big, 26)
			d := up.Push(t, "app", false, b)
			mirrors := newMirrors(t, 3, up, newSeeder(t, up).server.URL)
			up.Fail(&registrytest.Fault{Left: -1, At: at, Flip: true})
			var pulls sync.WaitGroup
			for _, m := range mirrors {
				pulls.Go(func() { m.pull(t, "app", d).mustBeCut(t) })
				pulls.Go(func() {
					a := m.request(t, "GET", blobPath("app", d), "", "Range", fmt.Sprintf("bytes=%d-%d", max(0, at-50), at))
					a.mustBeCut(t)
				})
			}
			pulls.Wait()
			for _, m := range mirrors {
				m.settled(t, d)
				if _, ok := m.store.Stat(d); ok {
					t.Error("wrong bytes are cached")
				}
			}
			up.Mend()
			for _, m := range mirrors {
				m.mustPull(t, "app", b)
			}
		})
	}
}

// A small blob that nobody has takes one question to the seeder and one to the
// registry.
func TestColdSmallBlob(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(1000, 27)
	d := up.Push(t, "app", false, b)
	origin := newSeeder(t, up)
	m := newMirror(t, up, []string{origin.server.URL})
	m.mustPull(t, "app", b)
	if n := origin.requests.Load(); n != 1 {
		t.Errorf("the seeder was asked %d times, want once", n)
	}
	if r := m.settled(t, d); r.Way != "seeder" || r.From[layers.FromSeeder] != 1000 || !strings.Contains(r.Why, "small") {
		t.Errorf("record = %+v, want all from the seeder", r)
	}
	if n := len(up.Seen("GET", d.String())); n != 1 {
		t.Errorf("the registry saw %d requests for the blob, want 1", n)
	}
}
