package seeder_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"

	"github.com/murderp2p/murder/registry/registrytest"
)

// The first question for metainfo begins the fetch; 202 tells how far it is,
// wait= waits for it; and the blob is fetched once however many ask.
func TestTorrents(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 1)
	d := up.Push(t, "app", false, b)
	s := newSeeder(t, up)
	held, hold := make(chan struct{}), make(chan struct{})
	up.Fail(&registrytest.Fault{Left: 1, At: 1 << 20, Held: held, Hold: hold})
	for range 3 {
		a := s.request(t, "GET", torrentPath("app", d), "")
		var arrival layers.Arrival
		if err := json.Unmarshal(a.body, &arrival); err != nil || a.status != http.StatusAccepted {
			t.Fatalf("answer = %d %q, %v; want 202", a.status, clip(a.body), err)
		}
		if arrival.Digest != d || arrival.Size != big || arrival.Received > 1<<20 {
			t.Errorf("arrival = %+v", arrival)
		}
		wait(t, "fetch under way", held)
	}
	begun := time.Now()
	if a := s.request(t, "GET", torrentPath("app", d)+"&wait=50ms", ""); a.status != http.StatusAccepted || time.Since(begun) < 50*time.Millisecond {
		t.Errorf("wait=50ms: %d after %v, want 202", a.status, time.Since(begun))
	}
	var waiting sync.WaitGroup
	for range 4 {
		waiting.Go(func() { s.request(t, "GET", torrentPath("app", d)+"&wait=30s", "").mustMetainfo(t, b) })
		waiting.Go(func() { s.pull(t, "app", d, "").mustBe(t, b) })
	}
	eventually(t, "all wait", func() bool { return s.requests.Load() == 12 })
	close(hold)
	waiting.Wait()
	s.request(t, "GET", torrentPath("app", d)+"&ns="+url.QueryEscape(up.Host), "").mustMetainfo(t, b)
	if n := len(up.Seen("GET", d.String())); n != 1 {
		t.Errorf("the registry saw %d requests for the blob, want 1", n)
	}
}

// Metainfo follows from the blob alone, whoever makes it, and by whatever way.
func TestMetainfoIsTheSameEverywhere(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 2)
	d := up.Push(t, "app", false, b)
	one, other := newSeeder(t, up), newSeeder(t, up)
	first := one.request(t, "GET", torrentPath("app", d)+"&wait=30s", "")
	other.pull(t, "app", d, "").mustBe(t, b)
	second := other.request(t, "GET", torrentPath("app", d)+"&wait=30s", "")
	first.mustMetainfo(t, b)
	if !bytes.Equal(first.body, second.body) {
		t.Error("two seeders made two metainfos of one blob")
	}
	empty := up.Push(t, "app", false, nil)
	one.request(t, "GET", torrentPath("app", empty)+"&wait=30s", "").mustMetainfo(t, nil)
}

func TestTorrentsRefused(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(1000, 3)
	d := up.Push(t, "secret", true, b)
	up.Push(t, "public", false, random(10, 4))
	up.Admit(registrytest.Basic("alice"))
	s := newSeeder(t, up)
	for path, code := range map[string]string{
		"/v1/torrents/sha256:abc?repo=app":                                       "DIGEST_INVALID",
		"/v1/torrents/md5:d41d8cd98f00b204e9800998ecf8427e?repo=app":             "DIGEST_INVALID",
		"/v1/torrents/" + d.String():                                             "NAME_INVALID",
		torrentPath("App", d):                                                    "NAME_INVALID",
		torrentPath("../x", d):                                                   "NAME_INVALID",
		torrentPath("app", d) + "&ns=a/b":                                        "NAME_INVALID",
		torrentPath("app", d) + "&wait=soon":                                     "UNSUPPORTED",
		torrentPath("app", d) + "&wait=-1s":                                      "UNSUPPORTED",
		torrentPath("app", d) + "&wait=" + strings.Repeat("9", 4000):             "UNSUPPORTED",
		"/v1/torrents/" + strings.Repeat("a", 3000) + "?repo=" + "app&wait=1000": "DIGEST_INVALID",
	} {
		s.request(t, "GET", path, "").mustRefuse(t, http.StatusBadRequest, code)
	}
	if a := s.request(t, "POST", torrentPath("app", d), ""); a.status != http.StatusMethodNotAllowed {
		t.Errorf("POST = %d", a.status)
	}
	unknown := digest.FromString("unknown")
	s.request(t, "GET", torrentPath("public", unknown), "").mustRefuse(t, http.StatusNotFound, "BLOB_UNKNOWN")
	stranger := func() {
		t.Helper()
		for _, who := range []string{"", registrytest.Basic("mallory")} {
			a := s.request(t, "GET", torrentPath("secret", d)+"&wait=1s", who)
			a.mustRefuse(t, http.StatusUnauthorized, "UNAUTHORIZED")
			if got := a.header.Get("Www-Authenticate"); got != up.Challenge("secret") {
				t.Errorf("challenge = %q, want the registry's", got)
			}
			s.request(t, "GET", torrentPath("public", d), who).mustRefuse(t, http.StatusNotFound, "BLOB_UNKNOWN")
		}
	}
	stranger()
	s.request(t, "GET", torrentPath("secret", d)+"&wait=30s", registrytest.Basic("alice")).mustMetainfo(t, b)
	stranger()
}

// A fetch that fails is told to those who wait for its metainfo, and the next
// question begins another.
func TestTorrentOfWhatFails(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 5)
	d := up.Push(t, "app", false, b)
	s := newSeeder(t, up)
	up.Fail(&registrytest.Fault{Left: -1, At: 1 << 20, Flip: true})
	if a := s.request(t, "GET", torrentPath("app", d)+"&wait=30s", ""); a.status != http.StatusBadGateway {
		t.Errorf("wrong bytes: %d %q, want 502", a.status, clip(a.body))
	}
	up.Fail(&registrytest.Fault{Method: "*", Left: -1, At: big, NoSize: true, NoRange: true})
	s.request(t, "GET", torrentPath("app", d)+"&wait=30s", "").mustRefuse(t, http.StatusBadGateway, "UNAVAILABLE")
	up.Away()
	s.request(t, "GET", torrentPath("app", d)+"&wait=30s", "").mustRefuse(t, http.StatusBadGateway, "UNAVAILABLE")
	up.Mend()
	s.request(t, "GET", torrentPath("app", d)+"&wait=30s", "").mustMetainfo(t, b)
}

// The tracker lists the seeder itself, for what it seeds, by the address that
// the asker reached it on.
func TestTrackerListsSeeder(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 6)
	d := up.Push(t, "app", false, b)
	s := newSeeder(t, up)
	a := s.request(t, "GET", torrentPath("app", d)+"&wait=30s", "")
	a.mustMetainfo(t, b)
	m, err := layers.ParseMetainfo(a.body)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.announce(t, m.InfoHash()); !s.listsItself(got) {
		t.Errorf("announce = %q, want the seeder at %s", got, s.swarm.Addr())
	}
	if got := s.announce(t, layers.InfoHash{1}); s.listsItself(got) {
		t.Errorf("announce of what is not seeded = %q", got)
	}
	if err := s.store.Remove(d); err != nil {
		t.Fatal(err)
	}
	s.Evicted(d)
	if got := s.announce(t, m.InfoHash()); s.listsItself(got) {
		t.Errorf("announce of what has been evicted = %q", got)
	}
}

// announce tells the tracker of a peer that lacks some.
func (s *testSeeder) announce(t testing.TB, ih layers.InfoHash) string {
	t.Helper()
	query := url.Values{"info_hash": {string(ih[:])}, "peer_id": {"-XX0001-abcdefghijkl"}, "port": {"1"}, "left": {"1"}, "compact": {"0"}, "uploaded": {"0"}, "downloaded": {"0"}}
	return string(s.request(t, "GET", "/announce?"+query.Encode(), "").body)
}

// listsItself tells whether the answer to an announce names the seeder.
func (s *testSeeder) listsItself(answer string) bool {
	_, port, _ := strings.Cut(s.swarm.Addr().String(), ":")
	return strings.Contains(answer, "9:127.0.0.1") && strings.Contains(answer, "4:porti"+port+"e")
}

// draftPath is how a mirror asks.
func draftPath(repo string, d digest.Digest) string { return torrentPath(repo, d) + "&draft=1" }

// openDraft asks as a mirror does, for a blob that is being fetched.
func (s *testSeeder) openDraft(t testing.TB, repo string, d digest.Digest, authorization string, query ...string) *http.Response {
	t.Helper()
	resp := s.open(t, "GET", draftPath(repo, d)+strings.Join(query, ""), authorization)
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Murder-Swarm") == "" {
		t.Fatalf("answer = %d %v, want a torrent that grows", resp.StatusCode, resp.Header)
	}
	return resp
}

// A mirror is sent the torrent file while it comes into being. Who waits for the end
// has the ordinary one.
func TestDraft(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 90)
	d := up.Push(t, "app", false, b)
	s := newSeeder(t, up)
	const at = 1 << 20
	hold := make(chan struct{})
	up.Fail(&registrytest.Fault{Left: 1, At: at, Hold: hold})
	var files [3]answer
	var reading sync.WaitGroup
	for i := range files {
		resp := s.openDraft(t, "app", d, "")
		if got := resp.Header.Get("Murder-Size"); got != strconv.Itoa(big) || resp.ContentLength >= 0 {
			t.Errorf("size %s, length %d", got, resp.ContentLength)
		}
		head := make([]byte, 20*at/layers.PieceLength(big)) // as many bytes as hashes are known
		if _, err := io.ReadFull(resp.Body, head); err != nil {
			t.Fatalf("the file's beginning: %v", err)
		}
		reading.Go(func() {
			rest, err := io.ReadAll(resp.Body)
			files[i] = answer{resp.StatusCode, resp.Header, append(head, rest...), err}
		})
	}
	close(hold)
	reading.Wait()
	for _, f := range files {
		f.mustMetainfo(t, b)
		if f.err != nil {
			t.Errorf("the file's end: %v", f.err)
		}
	}
	s.request(t, "GET", draftPath("app", d), "").mustMetainfo(t, b)
	if n := len(up.Seen("GET", d.String())); n != 1 {
		t.Errorf("the registry saw %d requests for the blob, want 1", n)
	}
}

// A fetch that fails cuts the torrent off, and the next question begins another.
func TestDraftOfWhatFails(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 91)
	d := up.Push(t, "app", false, b)
	s := newSeeder(t, up)
	hold := make(chan struct{})
	up.Fail(&registrytest.Fault{Left: 1, At: big - 1, Flip: true, Hold: hold})
	resp := s.openDraft(t, "app", d, "")
	close(hold)
	if file, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("a torrent of wrong bytes ended politely after %d bytes", len(file))
	}
	eventually(t, "another fetch", func() bool {
		a := s.request(t, "GET", draftPath("app", d), "")
		return a.err == nil && a.status == http.StatusOK
	})
	s.request(t, "GET", draftPath("app", d), "").mustMetainfo(t, b)
}

// The name of a draft's swarm is for those alone whom the registry admits: it does
// not follow from the digest, and is told to nobody else.
func TestDraftIsPrivate(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 92)
	d := up.Push(t, "secret", true, b)
	up.Push(t, "public", false, random(10, 93))
	up.Admit(registrytest.Basic("alice"))
	up.Admit(registrytest.Basic("bob"))
	s := newSeeder(t, up)
	hold := make(chan struct{})
	defer close(hold)
	up.Fail(&registrytest.Fault{Left: 1, Path: d.String(), At: 1 << 20, Hold: hold})
	name := s.openDraft(t, "secret", d, registrytest.Basic("alice")).Header.Get("Murder-Swarm")
	for _, who := range []string{"", registrytest.Basic("mallory")} {
		for path, status := range map[string]int{draftPath("secret", d): 401, draftPath("public", d): 404} {
			if a := s.request(t, "GET", path, who); a.status != status || a.header.Get("Murder-Swarm") != "" || strings.Contains(string(a.body), name) {
				t.Errorf("GET %s as %q = %d %v %q", path, who, a.status, a.header, clip(a.body))
			}
		}
	}
	if got := s.openDraft(t, "secret", d, registrytest.Basic("bob")).Header.Get("Murder-Swarm"); got != name {
		t.Errorf("bob's swarm is %s, alice's %s", got, name)
	}
	if a := s.request(t, "GET", draftPath("public", d), registrytest.Basic("alice")); a.status != 404 {
		t.Errorf("alice in another repository = %d", a.status)
	}
	// Another seeder, or the same after a restart, names it differently.
	other := newSeeder(t, up)
	if got := other.openDraft(t, "secret", d, registrytest.Basic("alice")).Header.Get("Murder-Swarm"); got == name {
		t.Error("two seeders gave a draft one name")
	}
}

// Whoever runs a registry that begins to send a blob which it has not does not learn from
// it by what name the blob will be shared when its own registry sends it.
func TestDraftIsNotNamedByForeignRegistry(t *testing.T) {
	t.Parallel()
	up, evil := registrytest.New(t), registrytest.New(t)
	d := up.Push(t, "secret", true, random(big, 95))
	up.Admit(registrytest.Basic("alice"))
	s := newSeeder(t, up, evil)
	hold, ended := make(chan struct{}), make(chan struct{})
	evil.Fail(&registrytest.Fault{Left: -1, Path: d.String(), Answer: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(big))
		w.Write(make([]byte, 1000))
		w.(http.Flusher).Flush()
		<-ended
		w.Write(make([]byte, big-1000))
	}})
	theirs := s.openDraft(t, "any", d, "", "&ns="+evil.Host)
	close(ended)
	if _, err := io.Copy(io.Discard, theirs.Body); err == nil {
		t.Error("a torrent of wrong bytes ended politely")
	}
	defer close(hold)
	up.Fail(&registrytest.Fault{Left: -1, Path: d.String(), At: 1 << 20, Hold: hold})
	ours := s.openDraft(t, "secret", d, registrytest.Basic("alice"))
	if name := ours.Header.Get("Murder-Swarm"); name == theirs.Header.Get("Murder-Swarm") {
		t.Errorf("the swarm of a private blob goes by the name %s, which a stranger knows", name)
	}
}

// The tracker lists the seeder for a draft as soon as a mirror knows its name.
func TestTrackerListsSeederOfDraft(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	d := up.Push(t, "app", false, random(big, 94))
	s := newSeeder(t, up)
	hold := make(chan struct{})
	defer close(hold)
	up.Fail(&registrytest.Fault{Left: 1, At: 0, Hold: hold})
	name, err := hex.DecodeString(s.openDraft(t, "app", d, "").Header.Get("Murder-Swarm"))
	if err != nil {
		t.Fatal(err)
	}
	if got := s.announce(t, layers.InfoHash(name)); !s.listsItself(got) {
		t.Errorf("announce = %q, want the seeder", got)
	}
}
