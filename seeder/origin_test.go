package seeder_test

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/registry/registrytest"
)

// The registry cuts the body, ignores ranges, is away for a moment: the fetch
// goes on where it stopped, and nobody notices.
func TestFetchResumes(t *testing.T) {
	t.Parallel()
	const at = 1<<20 + 77
	for name, faults := range map[string][]*registrytest.Fault{
		"cut":       {{Left: 1, At: at, Cut: true}},
		"no ranges": {{Left: 1, At: at, Cut: true}, {Left: -1, NoRange: true, At: big}},
		"restarts":  {{Left: 1, At: at, Cut: true}, {Left: 2, Drop: true}},
		"503": {{Left: 1, At: at, Cut: true}, {Left: 1, Answer: func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "busy", http.StatusServiceUnavailable)
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := registrytest.New(t)
			b := random(big, 10)
			d := up.Push(t, "app", false, b)
			s := newSeeder(t, up)
			up.Fail(faults...)
			s.pull(t, "app", d, "").mustBe(t, b)
			gets := up.Seen("GET", d.String())
			if last := gets[len(gets)-1]; last.Ranges != fmt.Sprintf("bytes=%d-", at) {
				t.Errorf("requests = %v, want the last from byte %d", gets, at)
			}
		})
	}
}

// Wrong bytes never end politely, are not kept, and do not spoil the next try.
func TestWrongBytes(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	s := newSeeder(t, up)
	for i, size := range []int{1, 1000, big} {
		b := random(size, uint64(20+i))
		d := up.Push(t, "app", false, b)
		up.Fail(&registrytest.Fault{Left: -1, At: int64(size - 1), Flip: true})
		s.pull(t, "app", d, "").mustBeCut(t)
		if _, ok := s.store.Stat(d); ok {
			t.Errorf("%d bytes: kept", size)
		}
		up.Mend()
		s.pull(t, "app", d, "").mustBe(t, b)
	}
}

// A registry that fails once is asked once more, since all hosts that wait for the blob would
// else go to it themselves.
func TestRegistryFailsOnce(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]*registrytest.Fault{
		"no answer": {Left: 1, Drop: true},
		"an error": {Left: 1, Answer: func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "busy", http.StatusServiceUnavailable)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			up := registrytest.New(t)
			s := newSeeder(t, up)
			b := random(big, 36)
			d := up.Push(t, "app", false, b)
			up.Fail(fault)
			s.request(t, "GET", torrentPath("app", d)+"&wait=30s", "").mustMetainfo(t, b)
			if n := len(up.Seen("GET", d.String())); n != 2 {
				t.Errorf("the registry was asked %d times, want twice", n)
			}
		})
	}
}

// What cannot be kept is passed through: a size that is not told, a store that
// takes nothing, a blob that cannot be opened.
func TestPassesThrough(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	dir := t.TempDir()
	s := newSeederIn(t, dir, up)
	b := random(big, 30)
	d := up.Push(t, "app", false, b)
	up.Fail(&registrytest.Fault{Method: "*", Left: -1, At: big, NoSize: true, NoRange: true})
	s.pull(t, "app", d, "").mustBe(t, b)
	up.Mend()
	s.pull(t, "app", d, "").mustBe(t, b)
	eventually(t, "blob kept", func() bool { _, ok := s.store.Stat(d); return ok })

	path := filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded())
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, path); err != nil { // opens for nobody, not even root
		t.Fatal(err)
	}
	s.pull(t, "app", d, "").mustBe(t, b)

	b = random(big, 31)
	d = up.Push(t, "app", false, b)
	if err := s.store.Close(); err != nil {
		t.Fatal(err)
	}
	s.pull(t, "app", d, "").mustBe(t, b)
	s.request(t, "GET", torrentPath("app", d), "").mustRefuse(t, http.StatusBadGateway, "UNAVAILABLE")
}

// A disk that fails in the middle of a blob cuts no client.
func TestDiskFailsInMidBlob(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	s := newSeeder(t, up)
	b := random(big, 32)
	d := up.Push(t, "app", false, b)
	held, hold := make(chan struct{}), make(chan struct{})
	up.Fail(&registrytest.Fault{Left: 1, At: 2 << 20, Held: held, Hold: hold})
	pulled := make(chan answer, 1)
	go func() { pulled <- s.pull(t, "app", d, "") }()
	wait(t, "registry waits", held)
	p, err := s.store.Partial(d, big, up.Host) // the one that arrives
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "some has come", func() bool { return p.Prefix() >= 1<<20 })
	p.Fail(syscall.ENOSPC)
	close(hold)
	(<-pulled).mustBe(t, b)
	if s.store.Usage().Failures == 0 {
		t.Error("no failure of the disk was counted")
	}
	s.pull(t, "app", d, "").mustBe(t, b)
}

// Strangers in any number do not push those out in whose name a fetch goes on.
func TestRightsOfStrangers(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 40)
	d := up.Push(t, "secret", true, b)
	up.Admit(registrytest.Basic("alice"))
	up.Admit(registrytest.Basic("bob"))
	s := newSeeder(t, up)
	held, hold := make(chan struct{}), make(chan struct{})
	up.Fail(&registrytest.Fault{Left: 1, At: 1 << 20, Cut: true, Held: held, Hold: hold})
	answers := make(chan answer, 2)
	go func() { answers <- s.pull(t, "secret", d, registrytest.Basic("alice")) }()
	wait(t, "fetch under way", held)
	go func() { answers <- s.pull(t, "secret", d, registrytest.Basic("bob")) }()
	eventually(t, "bob is let in", func() bool { return len(up.Seen("HEAD", d.String())) == 1 })
	for _, who := range strings.Split("abcdefghijkl", "") {
		s.pull(t, "secret", d, registrytest.Basic(who)).mustRefuse(t, http.StatusUnauthorized, "UNAUTHORIZED")
		s.request(t, "GET", torrentPath("secret", d), registrytest.Basic(who)).mustRefuse(t, http.StatusUnauthorized, "UNAUTHORIZED")
		s.request(t, "GET", blobPath("secret", d), registrytest.Basic(who), "Range", "bytes=0-9").mustRefuse(t, http.StatusUnauthorized, "UNAUTHORIZED")
	}
	up.Revoke(registrytest.Basic("bob"))
	close(hold)
	(<-answers).mustBe(t, b)
	(<-answers).mustBe(t, b)
	s.pull(t, "secret", d, "").mustRefuse(t, http.StatusUnauthorized, "UNAUTHORIZED")
	s.pull(t, "secret", d, registrytest.Basic("alice")).mustBe(t, b)
}

// With the registry away, what is here is for those who were admitted.
func TestGrace(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(1000, 50)
	manifest := up.PushImage(t, "app", "v1", random(10, 51), b)
	d := digest.FromBytes(b)
	s := newSeeder(t, up)
	s.pull(t, "app", d, "").mustBe(t, b)
	for range 5 {
		if a := s.request(t, "GET", "/v2/app/manifests/v1", ""); digest.FromBytes(a.body) != manifest {
			t.Errorf("manifest = %d %q", a.status, clip(a.body))
		}
	}
	if n := len(up.Seen("HEAD", "/v1")); n > 1 {
		t.Errorf("the registry was asked %d times for one tag", n)
	}
	up.Away()
	s.pull(t, "app", d, "").mustBe(t, b)
	if a := s.request(t, "GET", "/v2/app/manifests/v1", ""); digest.FromBytes(a.body) != manifest {
		t.Errorf("manifest while the registry is away = %d %q", a.status, clip(a.body))
	}
	s.pull(t, "app", d, registrytest.Basic("mallory")).mustRefuse(t, http.StatusBadGateway, "UNAVAILABLE")
	s.pull(t, "app", digest.FromString("unknown"), "").mustRefuse(t, http.StatusBadGateway, "UNAVAILABLE")
}

// When the daemon's context ends in mid-fetch all comes to rest, and the next
// daemon goes on where this one stopped.
func TestStopsAndResumes(t *testing.T) { // not parallel: it counts goroutines
	up := registrytest.New(t)
	b := random(big, 60)
	d := up.Push(t, "app", false, b)
	dir := t.TempDir()
	const at = 1<<20 + 99
	held := make(chan struct{})
	up.Fail(&registrytest.Fault{Left: 1, At: at, Held: held, Hold: make(chan struct{})})
	s := newSeederIn(t, dir, up)
	var asking sync.WaitGroup
	asking.Go(func() { s.pull(t, "app", d, "").mustBeCut(t) })
	asking.Go(func() {
		if a := s.request(t, "GET", torrentPath("app", d)+"&wait=1m", ""); a.status == http.StatusOK {
			t.Errorf("torrent = %d", a.status)
		}
	})
	wait(t, "fetch under way", held)
	eventually(t, "both ask", func() bool { return s.requests.Load() >= 2 })
	eventually(t, "all that was sent is here", func() bool {
		var arrival layers.Arrival
		err := json.Unmarshal(s.request(t, "GET", torrentPath("app", d), "").body, &arrival)
		return err == nil && arrival.Received == at
	})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.close()
		asking.Wait()
	}()
	wait(t, "all at rest", stopped)
	eventually(t, "no goroutines left", func() bool { return ours() == "" })

	before := len(up.Seen("GET", d.String()))
	s = newSeederIn(t, dir, up)
	s.pull(t, "app", d, "").mustBe(t, b)
	gets := up.Seen("GET", d.String())[before:]
	kept := at / layers.PieceLength(int64(len(b))) * layers.PieceLength(int64(len(b)))
	if len(gets) != 1 || gets[0].Ranges != fmt.Sprintf("bytes=%d-", kept) {
		t.Errorf("requests = %v, want one, from byte %d", gets, kept)
	}
}

// ours returns the stacks of goroutines that run this package's code.
func ours() string {
	buf := make([]byte, 4<<20)
	var b strings.Builder
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "murder/seeder.") && !strings.Contains(stack, "testing.tRunner") {
			b.WriteString(stack + "\n\n")
		}
	}
	return b.String()
}

// A registry without ranges sends what is here once more; nobody waits for that before
// getting what is here, be it a part of the blob or, after a crash at the very end, all.
func TestWhatIsHereIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	for name, here := range map[string]int{"a part": 2 << 20, "all": big} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := registrytest.New(t)
			b := random(big, 61)
			d := up.Push(t, "app", false, b)
			dir := t.TempDir()
			leave(t, dir, up.Host, d, b[:here])
			hold := make(chan struct{})
			up.Fail(&registrytest.Fault{Left: -1, NoRange: true, At: 1 << 20, Hold: hold})
			s := newSeederIn(t, dir, up)
			resp := s.open(t, "GET", blobPath("app", d), "")
			defer resp.Body.Close()
			got := make([]byte, here-1)
			if _, err := io.ReadFull(resp.Body, got); err != nil {
				t.Fatal(err)
			}
			if here < big {
				close(hold)
			}
			rest, err := io.ReadAll(resp.Body)
			if err != nil || !bytes.Equal(append(got, rest...), b) {
				t.Errorf("%d bytes that are not the blob's %d, err %v", len(got)+len(rest), len(b), err)
			}
		})
	}
}

// leave puts the first bytes of a blob into a store's folder, as a crash does.
func leave(t *testing.T, dir, host string, d digest.Digest, b []byte) {
	t.Helper()
	path := filepath.Join(dir, "partial", d.Algorithm().String()+"-"+d.Encoded())
	store, err := layers.OpenStore(layers.StoreConfig{Dir: dir, Log: testLog(t)})
	if err == nil {
		err = store.Close()
	}
	if err == nil {
		err = os.WriteFile(path, b, 0o644)
	}
	hashes := binary.BigEndian.AppendUint64(nil, big)
	for piece := range slices.Chunk(b, int(layers.PieceLength(big))) {
		sum := sha1.Sum(piece)
		hashes = append(hashes, sum[:]...)
	}
	if err == nil {
		err = os.WriteFile(path+".hashes", hashes, 0o600)
	}
	if err == nil {
		err = os.WriteFile(path+".origin", []byte(host), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// An answer that stops or trickles is asked for anew at the same byte. One that is slow
// whoever asks is not asked for again and again.
func TestRegistryTrickles(t *testing.T) {
	t.Parallel()
	const at = 1<<20 + 77
	up := registrytest.New(t)
	s := newSeeder(t, up)
	s.SetSlow(time.Second)
	hold := make(chan struct{})
	defer close(hold)
	b := random(big, 44)
	d := up.Push(t, "app", false, b)
	up.Fail(&registrytest.Fault{Left: 1, At: at, Hold: hold})
	s.pull(t, "app", d, "").mustBe(t, b)
	if gets := up.Seen("GET", d.String()); len(gets) != 2 || gets[1].Ranges != fmt.Sprintf("bytes=%d-", at) {
		t.Errorf("requests = %v, want a second one from byte %d", gets, at)
	}
}

// Two registries have one layer, and half of a fleet asks for it by either name: each of
// them sends it once, or the second not at all.
func TestArrivingFromAnotherRegistry(t *testing.T) {
	t.Parallel()
	first, second := registrytest.New(t), registrytest.New(t)
	b := random(big, 48)
	first.Push(t, "app", false, b)
	d := second.Push(t, "secret", true, b)
	alice := registrytest.Basic("alice")
	second.Admit(alice)
	begin := func(t *testing.T, tick time.Duration) (s *testSeeder, hold chan struct{}) {
		s = newSeeder(t, second, first)
		s.SetOtherTick(tick)
		hold = make(chan struct{})
		first.Fail(&registrytest.Fault{Left: 1, At: 1 << 20, Hold: hold})
		if _, err := s.client.Ask(t.Context(), repository(t, first.Host, "app"), d, ""); err != nil {
			t.Fatal(err)
		}
		return s, hold
	}
	whole := func() (n int) {
		for _, get := range second.Seen("GET", d.String()) {
			if get.Ranges == "" && get.Authorization == alice {
				n++
			}
		}
		return n
	}

	s, hold := begin(t, time.Hour) // as if it went on fast
	s.pull(t, "secret", d, "").mustRefuse(t, http.StatusUnauthorized, "UNAUTHORIZED")
	answers := make(chan answer, 3)
	for range cap(answers) {
		go func() { answers <- s.pull(t, "secret", d, alice) }()
	}
	eventually(t, "all have been let in", func() bool { return len(second.Seen("HEAD", d.String())) == 1+cap(answers) })
	close(hold)
	for range cap(answers) {
		(<-answers).mustBe(t, b)
	}
	if n := whole(); n != 0 {
		t.Errorf("the second registry sent %d copies, though the layer was here by then", n)
	}

	s, hold = begin(t, time.Millisecond) // and now it stands
	defer close(hold)
	s.pull(t, "secret", d, alice).mustBe(t, b)
	if n := whole(); n != 1 {
		t.Errorf("the second registry sent %d copies, where the first sent none", n)
	}
}

// A registry whose blobs never end takes up so many places and no more; what comes then
// is served all the same, but not kept.
func TestFetchesAreBounded(t *testing.T) {
	t.Parallel()
	up, endless := registrytest.New(t), registrytest.New(t)
	s := newSeeder(t, up, endless)
	s.SetMaxFetches(2)
	hold := make(chan struct{})
	defer close(hold)
	endless.Fail(&registrytest.Fault{Left: -1, At: 10, Hold: hold})
	repo := repository(t, endless.Host, "app")
	for i := range 2 {
		d := endless.Push(t, "app", false, random(big, uint64(45+i)))
		if _, err := s.client.Ask(t.Context(), repo, d, ""); err != nil {
			t.Fatal(err)
		}
	}
	b := random(1000, 47)
	d := up.Push(t, "app", false, b)
	s.pull(t, "app", d, "").mustBe(t, b)
	if _, ok := s.store.Stat(d); ok {
		t.Error("kept, though all places were taken")
	}
	if _, err := s.client.Ask(t.Context(), repository(t, up.Host, "app"), d, ""); err == nil {
		t.Error("a third blob is fetched for the swarm")
	}
}

// A blob that has rotted while the seeder was away is fetched once, for all who ask.
func TestRottenSinceAnEarlierRun(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	dir := t.TempDir()
	b := random(5000, 70)
	d := up.Push(t, "app", false, b)
	s := newSeederIn(t, dir, up)
	s.pull(t, "app", d, "").mustBe(t, b)
	eventually(t, "cached", func() bool { _, ok := s.store.Stat(d); return ok })
	s.close()
	if err := os.WriteFile(filepath.Join(dir, "blobs/sha256", d.Encoded()), b[:2000], 0o644); err != nil {
		t.Fatal(err)
	}
	s = newSeederIn(t, dir, up)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() { s.pull(t, "app", d, "").mustBe(t, b) })
	}
	all.Wait()
	if n := len(up.Seen("GET", d.String())); n > 2 {
		t.Errorf("the registry was asked %d times, want once for each fetch", n)
	}
}
