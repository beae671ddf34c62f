package seeder_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
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
	for i := range 3 {
		a := s.request(t, "GET", torrentPath("app", d), "")
		var arrival layers.Arrival
		if err := json.Unmarshal(a.body, &arrival); err != nil || a.status != http.StatusAccepted {
			t.Fatalf("answer = %d %q, %v; want 202", a.status, clip(a.body), err)
		}
		if arrival.Digest != d || arrival.Size != big || arrival.Received > 1<<20 || arrival.Stream != (i == 0) {
			t.Errorf("question %d: %+v", i, arrival)
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
	up.Fail(&registrytest.Fault{Left: -1, At: big, NoSize: true})
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
	announce := func(ih layers.InfoHash) string {
		query := url.Values{"info_hash": {string(ih[:])}, "peer_id": {"-XX0001-abcdefghijkl"}, "port": {"1"}, "left": {"1"}, "compact": {"0"}, "uploaded": {"0"}, "downloaded": {"0"}}
		return string(s.request(t, "GET", "/announce?"+query.Encode(), "").body)
	}
	_, port, _ := strings.Cut(s.swarm.Addr().String(), ":")
	if got := announce(m.InfoHash()); !strings.Contains(got, "9:127.0.0.1") || !strings.Contains(got, "4:porti"+port+"e") {
		t.Errorf("announce = %q, want the seeder at 127.0.0.1:%s", got, port)
	}
	if got := announce(layers.InfoHash{1}); strings.Contains(got, "4:porti"+port+"e") {
		t.Errorf("announce of what is not seeded = %q", got)
	}
	s.Evicted(d)
	if got := announce(m.InfoHash()); strings.Contains(got, "4:porti"+port+"e") {
		t.Errorf("announce of what has been evicted = %q", got)
	}
}
