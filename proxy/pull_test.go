package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"

	"github.com/murderp2p/murder/registry/registrytest"
)

// What a seeder has already goes through the swarm, and nothing but a question
// whether the caller may have it goes to the registry.
func TestWarmSeeder(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 2)
	d := up.Push(t, "app", false, b)
	origin := newSeeder(t, up)
	origin.mustPull(t, "app", b)
	for range 2 {
		m := newMirror(t, up, []string{origin.server.URL})
		m.mustPull(t, "app", b)
		r := m.settled(t, d)
		if r.Way != "swarm" || r.Why != "" || r.From[layers.FromPeer]+r.From[layers.FromSeeder] < big || r.From[layers.FromUpstream] > 0 {
			t.Errorf("record = %+v, want all from the swarm", r)
		}
		// A client has its last byte before the pull is counted.
		eventually(t, "pull counted", func() bool { return m.counter(t, "murder_pulls_total", "") == 1 })
		if n := m.counter(t, "murder_pulls_total", "swarm"); n != 1 {
			t.Errorf("%v pulls counted as swarm, want 1", n)
		}
	}
	if n := len(up.Seen("GET", d.String())); n != 1 {
		t.Errorf("the registry sent the blob %d times, want once", n)
	}
}

// Many clients of one mirror share one download, and the cache serves those
// who come later.
func TestClientsShareOneDownload(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 3)
	d := up.Push(t, "app", false, b)
	m := newMirror(t, up, nil)
	held, hold := make(chan struct{}), make(chan struct{})
	up.Fail(&registrytest.Fault{Left: 1, At: 2 << 20, Held: held, Hold: hold})
	var pulls sync.WaitGroup
	for range 8 {
		pulls.Go(func() { m.mustPull(t, "app", b) })
	}
	wait(t, "upstream in mid-blob", held)
	eventually(t, "all clients in", func() bool { return m.requests.Load() == 8 })
	close(hold)
	pulls.Wait()
	m.settled(t, d)
	m.mustPull(t, "app", b)
	if n := len(up.Seen("GET", d.String())); n != 1 {
		t.Errorf("the registry saw %d requests for the blob, want 1", n)
	}
	if up8, cache := m.counter(t, "murder_pulls_total", "upstream"), m.counter(t, "murder_pulls_total", "cache"); up8+cache != 9 || cache < 1 {
		t.Errorf("pulls counted: upstream %v, cache %v", up8, cache)
	}
}

// A client that leaves ends nothing for the others.
func TestFirstClientLeaves(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 4)
	d := up.Push(t, "app", false, b)
	m := newMirror(t, up, nil)
	hold := make(chan struct{})
	up.Fail(&registrytest.Fault{Left: 1, At: 2 << 20, Hold: hold})
	first, err := m.open(t, "GET", blobPath("app", d), "")
	if err != nil {
		t.Fatal(err)
	}
	second, err := m.open(t, "GET", blobPath("app", d), "")
	if err != nil {
		t.Fatal(err)
	}
	first.Body.Close()
	close(hold)
	defer second.Body.Close()
	got, err := io.ReadAll(second.Body)
	answer{second.StatusCode, second.Header, got, err}.mustBe(t, b)
	if n := len(up.Seen("GET", d.String())); n != 1 {
		t.Errorf("the registry saw %d requests for the blob, want 1", n)
	}
}

// A client reads the first bytes while the registry still sends, through a
// mirror alone and through mirror and seeder.
func TestStreams(t *testing.T) {
	t.Parallel()
	for _, withSeeder := range []bool{false, true} {
		t.Run(fmt.Sprint("seeder=", withSeeder), func(t *testing.T) {
			t.Parallel()
			up := registrytest.New(t)
			b := random(big, 5)
			d := up.Push(t, "app", false, b)
			var seeders []string
			if withSeeder {
				seeders = []string{newSeeder(t, up).server.URL}
			}
			m := newMirror(t, up, seeders)
			hold := make(chan struct{})
			up.Fail(&registrytest.Fault{Left: 1, At: 1 << 20, Hold: hold})
			resp, err := m.open(t, "GET", blobPath("app", d), "")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.ContentLength != big || resp.Header.Get("Docker-Content-Digest") != d.String() || resp.Header.Get("Etag") != `"`+d.String()+`"` {
				t.Errorf("length %d, header %v", resp.ContentLength, resp.Header)
			}
			got := make([]byte, 1<<20)
			if _, err := io.ReadFull(resp.Body, got); err != nil {
				t.Fatalf("first bytes: %v", err)
			}
			close(hold)
			rest, err := io.ReadAll(resp.Body)
			answer{resp.StatusCode, resp.Header, append(got, rest...), err}.mustBe(t, b)
		})
	}
}

// Ranges are exact, of whole blobs and of such as still arrive.
func TestRanges(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	b := random(big, 6)
	d := up.Push(t, "app", false, b)
	m := newMirror(t, up, nil)
	held, hold := make(chan struct{}), make(chan struct{})
	up.Fail(&registrytest.Fault{Left: 1, At: 2 << 20, Held: held, Hold: hold})
	first, err := m.open(t, "GET", blobPath("app", d), "")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Body.Close()
	wait(t, "upstream in mid-blob", held)

	check := func(t *testing.T, header string, off, n int) {
		t.Helper()
		a := m.request(t, "GET", blobPath("app", d), "", "Range", header)
		want := fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, len(b))
		if a.status != http.StatusPartialContent || a.header.Get("Content-Range") != want {
			t.Errorf("%s: %d, Content-Range %q, want 206 %q", header, a.status, a.header.Get("Content-Range"), want)
		}
		a.status = http.StatusOK
		a.mustBe(t, b[off:off+n])
	}
	unsatisfiable := func(t *testing.T) {
		a := m.request(t, "GET", blobPath("app", d), "", "Range", fmt.Sprintf("bytes=%d-", len(b)))
		if a.status != http.StatusRequestedRangeNotSatisfiable || a.header.Get("Content-Range") != fmt.Sprintf("bytes */%d", len(b)) {
			t.Errorf("beyond the end: %d, Content-Range %q", a.status, a.header.Get("Content-Range"))
		}
	}
	t.Run("arriving", func(t *testing.T) {
		unsatisfiable(t)
		var tail, middle sync.WaitGroup
		tail.Go(func() { check(t, "bytes=-1000", len(b)-1000, 1000) })
		middle.Go(func() { check(t, fmt.Sprintf("bytes=%d-", 3<<20), 3<<20, len(b)-3<<20) })
		eventually(t, "ranges are waited for", func() bool { return m.requests.Load() >= 4 })
		close(hold)
		tail.Wait()
		middle.Wait()
	})
	io.Copy(io.Discard, first.Body)
	m.settled(t, d)
	t.Run("whole", func(t *testing.T) {
		check(t, "bytes=0-0", 0, 1)
		check(t, "bytes=1000000-1999999", 1_000_000, 1_000_000)
		check(t, "bytes=-1", len(b)-1, 1)
		check(t, "bytes=3000000-99999999999", 3_000_000, len(b)-3_000_000)
		unsatisfiable(t)
	})
	if n := len(up.Seen("GET", d.String())); n != 1 {
		t.Errorf("the registry saw %d requests for the blob, want 1", n)
	}
}

// HEAD tells the size without fetching, and what is small comes over HTTP.
func TestHeadAndSmallBlobs(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	origin := newSeeder(t, up)
	m := newMirror(t, up, []string{origin.server.URL})
	for _, size := range []int{0, 1, 1000} {
		b := random(size, 7)
		d := up.Push(t, "app", false, b)
		if a := m.request(t, "HEAD", blobPath("app", d), ""); a.status != 200 || a.header.Get("Content-Length") != fmt.Sprint(size) {
			t.Errorf("HEAD of %d bytes = %d %v", size, a.status, a.header)
		}
		if n := len(up.Seen("GET", d.String())); n != 0 {
			t.Errorf("HEAD of %d bytes fetched the blob", size)
		}
		m.mustPull(t, "app", b)
		m.settled(t, d)
		m.mustPull(t, "app", b)
		if n := len(up.Seen("GET", d.String())); n != 1 {
			t.Errorf("%d bytes: the registry saw %d requests for the blob, want 1", size, n)
		}
	}
	unknown := digest.FromString("unknown")
	m.pull(t, "app", unknown).mustRefuse(t, http.StatusNotFound, "BLOB_UNKNOWN")
	if a := m.request(t, "HEAD", blobPath("app", unknown), ""); a.status != http.StatusNotFound {
		t.Errorf("HEAD of what is not there = %d, want 404", a.status)
	}
}
