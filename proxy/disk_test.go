package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/registry/registrytest"
)

// A disk that fails in the middle of a blob cuts no client: it is given the rest past the
// cache, from the byte where it stands.
func TestDiskFailsInMidBlob(t *testing.T) {
	const at = 2 << 20
	withAndWithoutSeeder(t, func(t *testing.T, up *registrytest.Upstream, m *testMirror) {
		b := random(big, 60)
		d := up.Push(t, "app", false, b)
		held, hold := make(chan struct{}), make(chan struct{})
		up.Fail(&registrytest.Fault{Left: 1, At: at, Held: held, Hold: hold})
		resp, err := m.open(t, "GET", blobPath("app", d), "")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		ranged, err := m.open(t, "GET", blobPath("app", d), "", "Range", "bytes=1000000-2999999")
		if err != nil {
			t.Fatal(err)
		}
		defer ranged.Body.Close()
		body := make([]byte, 1<<20) // the client has this, and more is on its way
		if _, err := io.ReadFull(resp.Body, body); err != nil {
			t.Fatal(err)
		}
		part := make([]byte, 500_000)
		if _, err := io.ReadFull(ranged.Body, part); err != nil {
			t.Fatal(err)
		}
		wait(t, "registry waits", held)
		p, err := m.store.Partial(d, big, up.Host) // the one that arrives
		if err != nil {
			t.Fatal(err)
		}
		p.Fail(fmt.Errorf("write: %w", syscall.ENOSPC))
		close(hold)
		rest, err := io.ReadAll(resp.Body)
		answer{resp.StatusCode, resp.Header, append(body, rest...), err}.mustBe(t, b)
		rest, err = io.ReadAll(ranged.Body)
		answer{http.StatusOK, resp.Header, append(part, rest...), err}.mustBe(t, b[1_000_000:3_000_000])
		if n := m.counter(t, "murder_fallbacks_total", "cache unusable"); n < 2 {
			t.Errorf("%v clients were counted", n)
		}
		if n := m.store.Usage().Failures; n == 0 {
			t.Error("no failure of the disk was counted")
		}
		m.mustPull(t, "app", b)
	})
}

// Wrong bytes of a registry are not passed on whole, be it that the disk fails meanwhile.
func TestDiskFailsInWrongBlob(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	m := newMirror(t, up, nil)
	b := random(big, 61)
	d := up.Push(t, "app", false, b)
	held, hold := make(chan struct{}), make(chan struct{})
	up.Fail(&registrytest.Fault{Left: 1, At: 2 << 20, Held: held, Hold: hold}, &registrytest.Fault{Left: -1, At: big - 100_000, Flip: true})
	resp, err := m.open(t, "GET", blobPath("app", d), "")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	wait(t, "registry waits", held)
	p, err := m.store.Partial(d, big, up.Host)
	if err != nil {
		t.Fatal(err)
	}
	p.Fail(syscall.EIO)
	close(hold)
	body, err := io.ReadAll(resp.Body)
	answer{resp.StatusCode, resp.Header, body, err}.mustBeCut(t)
}

// The mirror's folder is deleted while it pulls: this pull ends well, the next does, and
// soon what is pulled is cached again.
func TestFolderIsDeleted(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	dir := filepath.Join(t.TempDir(), "mirror")
	m := newMirrorIn(t, dir, up, []string{newSeeder(t, up).server.URL})
	b := random(big, 62)
	d := up.Push(t, "app", false, b)
	held, hold := make(chan struct{}), make(chan struct{})
	up.Fail(&registrytest.Fault{Left: 1, At: 1 << 20, Held: held, Hold: hold})
	resp, err := m.open(t, "GET", blobPath("app", d), "")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	wait(t, "registry waits", held)
	eventually(t, "folder deleted", func() bool { return os.RemoveAll(dir) == nil }) // the mirror writes into it meanwhile
	close(hold)
	body, err := io.ReadAll(resp.Body)
	answer{resp.StatusCode, resp.Header, body, err}.mustBe(t, b)
	m.mustPull(t, "app", b)
	seed := uint64(63)
	eventually(t, "blobs are cached again", func() bool {
		b := random(2<<20, seed)
		seed++
		d := up.Push(t, "app", false, b)
		m.mustPull(t, "app", b)
		return slices.ContainsFunc(m.store.Blobs(), func(has layers.BlobInfo) bool { return has.Digest == d })
	})
}

// What has rotted while the mirror was away fails nobody's pull, and is pulled once for all
// who ask, also where it would have been the proof of a caller's right.
func TestRottenSinceAnEarlierRun(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(content []byte) []byte{
		"flipped":   func(content []byte) []byte { content[len(content)/2]++; return content },
		"cut short": func(content []byte) []byte { return content[:100] },
		"longer":    func(content []byte) []byte { return append(content, "more"...) },
		"emptied":   func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := registrytest.New(t)
			dir := t.TempDir()
			b := random(5000, 64)
			d := up.Push(t, "app", false, b)
			m := newMirrorIn(t, dir, up, nil)
			m.mustPull(t, "app", b)
			eventually(t, "cached", func() bool { _, ok := m.store.Stat(d); return ok })
			m.close()
			file := filepath.Join(dir, "blobs/sha256", d.Encoded())
			if err := os.WriteFile(file, spoil(slices.Clone(b)), 0o644); err != nil {
				t.Fatal(err)
			}
			m = newMirrorIn(t, dir, up, nil)
			m.mustPull(t, "app", b)
			eventually(t, "cached again", func() bool { size, _ := m.store.Stat(d); return size == int64(len(b)) })
			m.mustPull(t, "app", b)
		})
	}
}
