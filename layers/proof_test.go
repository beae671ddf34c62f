package layers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"
)

// serve returns what a client gets of a blob, by sendfile or through Read.
func serve(t testing.TB, s *Store, d digest.Digest, off, n int64, through bool) ([]byte, error) {
	t.Helper()
	b, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	c := b.Content()
	defer c.Close()
	var got bytes.Buffer
	r := c.Section(t.Context(), off, n)
	if through {
		r = struct{ io.Reader }{r}
	}
	_, err = io.Copy(&got, r)
	return got.Bytes(), err
}

// A byte of a cached blob flips, while the daemon is away or while it runs: it is served to
// nobody, whatever is right before it is, and the blob makes room for a new one.
func TestFlippedByteIsNotServed(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 10*pl+5)
	for _, away := range []bool{true, false} {
		for _, through := range []bool{true, false} {
			s := openStore(t, StoreConfig{})
			d := put(t, s, b)
			dir := s.dir
			if away {
				s.Close()
			}
			damage(t, s.blobPath(d), 5*pl+7)
			gone := make(chan digest.Digest, 1)
			if !away {
				s.Close()
			}
			s = openStore(t, StoreConfig{Dir: dir, OnEvict: func(d digest.Digest) { gone <- d }})
			if !away { // all has been looked at, and then it flips again
				damage(t, s.blobPath(d), 5*pl+7)
				undo(t, s.blobPath(d), b)
				if got, err := serve(t, s, d, 0, int64(len(b)), through); err != nil || !bytes.Equal(got, b) {
					t.Fatalf("%d bytes of a sound blob, %v", len(got), err)
				}
				damage(t, s.blobPath(d), 5*pl+7)
			}
			if got, err := serve(t, s, d, 0, 5*pl, through); err != nil || !bytes.Equal(got, b[:5*pl]) {
				t.Errorf("what is right: %d bytes, %v", len(got), err)
			}
			got, err := serve(t, s, d, pl+1, int64(len(b))-pl-1, through)
			if !errors.Is(err, ErrMismatch) || !bytes.HasPrefix(b[pl+1:5*pl], got) {
				t.Errorf("%d bytes, %v; want none from %d on, and %v", len(got), err, 5*pl, ErrMismatch)
			}
			if _, err := s.Open(d); !errors.Is(err, ErrNotFound) {
				t.Errorf("the blob is still there: %v", err)
			}
			if u := s.Usage(); u.Rotten != 1 || u.Bytes != 0 || u.Evictions != 0 {
				t.Errorf("usage is %+v", u)
			}
			select {
			case got := <-gone:
				if got != d {
					t.Errorf("told of %s", got)
				}
			case <-time.After(timeout):
				t.Fatal("the owner is not told")
			}
			put(t, s, b)
			wantBlob(t, s, d, b)
		}
	}
}

func undo(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// Without saved metainfo all of a blob is hashed before any of it is served.
func TestFlippedByteWithoutMetainfo(t *testing.T) {
	b := content(1, 300<<10)
	s := openStore(t, StoreConfig{})
	d := put(t, s, b)
	s.Close()
	damage(t, s.blobPath(d), 299<<10)
	if err := os.Remove(s.torrentPath(d)); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, StoreConfig{Dir: s.dir})
	if got, err := serve(t, s, d, 0, 10, false); !errors.Is(err, ErrMismatch) || len(got) > 0 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if u := s.Usage(); u.Rotten != 1 {
		t.Errorf("usage is %+v", u)
	}
}

// Use is noted as the file's mtime. That is no reason to hash it again.
func TestUseKeepsProof(t *testing.T) {
	s := openStore(t, StoreConfig{})
	d := put(t, s, content(1, 100<<10))
	s.mu.Lock()
	e := s.blobs[d]
	e.touched = time.Now().Add(-time.Hour)
	s.mu.Unlock()
	b, err := s.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if !b.proven() {
		t.Error("a blob that has just come in would be hashed")
	}
	e.proof.mu.Lock()
	e.proof.since = time.Now().Add(-believedFor - time.Second)
	e.proof.mu.Unlock()
	if b.proven() {
		t.Error("a blob would never be hashed again")
	}
}

// proven tells whether all of the blob can be believed as it is, for peers.
func (b *Blob) proven() bool {
	fi, err := b.file.Stat()
	return err == nil && b.entry.proof.holds(fi, 1, 0, peers)
}

var unpaced = rate.NewLimiter(rate.Inf, 1<<20)

// The scrub takes what was not looked at for longest, over restarts, drops what has rotted,
// and does not count as use.
func TestScrub(t *testing.T) {
	s := openStore(t, StoreConfig{})
	a, b, c := put(t, s, content(1, 300<<10)), put(t, s, content(2, 200<<10)), put(t, s, content(3, 100))
	now := time.Now()
	for d, age := range map[digest.Digest]time.Duration{a: 8, b: 9, c: 1} {
		at := now.Add(-age * 24 * time.Hour)
		if err := os.Chtimes(s.torrentPath(d), at, at); err != nil {
			t.Fatal(err)
		}
	}
	damage(t, s.blobPath(a), 1000)
	used := now.Add(-time.Hour).Truncate(time.Second)
	if err := os.Chtimes(s.blobPath(b), used, used); err != nil {
		t.Fatal(err)
	}
	s = restart(t, s)
	digests := func(list []*entry) (ds []digest.Digest) {
		for _, e := range list {
			ds = append(ds, e.digest)
		}
		return ds
	}
	due := s.due(now.Add(-scrubTurn))
	if got := digests(due); !slices.Equal(got, []digest.Digest{b, a}) {
		t.Fatalf("due are %v, want %v", got, []digest.Digest{b, a})
	}
	for _, e := range due {
		if err := s.rehash(t.Context(), e, unpaced); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := s.Stat(a); ok {
		t.Error("what has rotted is kept")
	}
	if fi, err := os.Stat(s.blobPath(b)); err != nil || !fi.ModTime().Equal(used) {
		t.Errorf("the scrub counts as use: %v", err)
	}
	if u := s.Usage(); u.Rotten != 1 || u.Blobs != 2 {
		t.Errorf("usage is %+v", u)
	}
	if blob, err := s.Open(b); err != nil || !blob.proven() {
		t.Errorf("what the scrub found right would be hashed again: %v", err)
	} else {
		blob.Close()
	}
	s = restart(t, s)
	if got := digests(s.due(now.Add(-scrubTurn))); len(got) > 0 {
		t.Errorf("due after a restart are %v", got)
	}
}

// A blob that is evicted while the scrub reads it, and a daemon that stops, are no rot.
func TestScrubGivesUp(t *testing.T) {
	s := openStore(t, StoreConfig{})
	d := put(t, s, content(1, 1000))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e := s.due(time.Now().Add(time.Hour))[0]
	if err := s.rehash(ctx, e, rate.NewLimiter(1, 10)); err != nil {
		t.Error(err)
	}
	if err := s.Remove(d); err != nil {
		t.Fatal(err)
	}
	put(t, s, content(1, 1000))
	if err := s.rehash(t.Context(), e, unpaced); err != nil {
		t.Error(err)
	}
	if u := s.Usage(); u.Rotten != 0 || u.Blobs != 1 {
		t.Errorf("usage is %+v", u)
	}
}

// Metainfo that has rotted is made anew.
func TestScrubMendsMetainfo(t *testing.T) {
	b := content(1, 200<<10)
	s := openStore(t, StoreConfig{})
	d := put(t, s, b)
	m := newMetainfo(d, int64(len(b)), make([]byte, 80))
	if err := os.WriteFile(s.torrentPath(d), m.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.rehash(t.Context(), s.due(time.Now().Add(time.Hour))[0], unpaced); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, s, d, b)
	if got, err := s.Metainfo(d); err != nil || got.InfoHash() != metainfoOf(t, b).InfoHash() {
		t.Errorf("metainfo is wrong, %v", err)
	}
}

// A disk that takes no mtime is not read again and again.
func TestScrubWithoutMtime(t *testing.T) {
	s := openStore(t, StoreConfig{})
	d := put(t, s, content(1, 1000))
	s = restart(t, s)
	old := time.Now().Add(-2 * scrubTurn)
	for range 2 {
		if err := os.Chtimes(s.torrentPath(d), old, old); err != nil {
			t.Fatal(err)
		}
		for _, e := range s.due(time.Now().Add(-scrubTurn)) {
			if !e.proof.lastHashed().IsZero() {
				t.Fatal("hashed a moment ago, and due again")
			}
			if err := s.rehash(t.Context(), e, unpaced); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// onFirst is a client that something happens to once it has its first bytes.
type onFirst struct {
	bytes.Buffer
	then func()
}

func (w *onFirst) Write(b []byte) (int, error) {
	defer func() {
		if w.then != nil {
			w.then()
			w.then = nil
		}
	}()
	return w.Buffer.Write(b)
}

// A byte flips behind what a client has had of a blob that is still arriving, when it has been
// hashed for the digest already: neither that client is sent it nor one who comes later.
func TestByteFlipsAsItArrives(t *testing.T) {
	b := content(8, 2<<20)
	m := metainfoOf(t, b)
	const flipped = 1<<20 + 5
	for _, pieces := range []bool{false, true} {
		for _, through := range []bool{false, true} {
			for _, reading := range []bool{false, true} {
				t.Run(fmt.Sprintf("by pieces %v, through %v, while it is read %v", pieces, through, reading), func(t *testing.T) {
					s := openStore(t, StoreConfig{})
					p := partial(t, s, m.Digest(), len(b))
					most := p.Size() - 1 // all but what makes it whole
					if pieces {
						mustSet(t, p, m.Torrent())
						most -= most % m.PieceLength()
						for i := range m.Pieces() - 1 {
							mustWrite(t, p, m, b, i)
						}
					} else if err := p.Append(b[:most]); err != nil {
						t.Fatal(err)
					}
					awaitHashed(t, p, most)
					path := s.partialPath(m.Digest())
					c, got := p.Content(), bytes.Buffer{}
					defer c.Close()
					section := c.Section(t.Context(), 0, p.Size())
					if through {
						section = struct{ io.Reader }{section}
					}
					if _, err := io.CopyN(&got, section, 1000); err != nil {
						t.Fatal(err)
					}
					damage(t, path, flipped)
					if reading {
						_, err := io.Copy(&got, section)
						if !DiskFailed(err) || int64(got.Len()) > flipped || !bytes.HasPrefix(b, got.Bytes()) {
							t.Errorf("read %d bytes, %v; want those before byte %d, and that the disk failed", got.Len(), err, flipped)
						}
						return
					}
					if pieces {
						mustWrite(t, p, m, b, m.Pieces()-1)
					} else if err := p.Append(b[most:]); err != nil {
						t.Fatal(err)
					}
					await(t, p.Done())
					blob, err := s.Open(m.Digest())
					if err != nil {
						t.Fatal(err)
					}
					defer blob.Close()
					if _, err := io.Copy(io.Discard, blob.Content().Section(t.Context(), 0, p.Size())); !DiskFailed(err) {
						t.Errorf("a later client was sent the blob to its end: %v", err)
					}
					if _, ok := s.Stat(m.Digest()); ok {
						t.Error("it is still in the store")
					}
				})
			}
		}
	}
}

// A byte flips while a slow client is being sent the blob, from the cache or since it was
// arriving: what is wrong is not sent, and it is our disk that is to blame.
func TestByteFlipsAsItIsServed(t *testing.T) {
	b := content(7, 3*maxSpan)
	const flipped = 2*maxSpan + 5
	for _, arriving := range []bool{false, true} {
		for _, through := range []bool{true, false} {
			s := openStore(t, StoreConfig{})
			var c *Content
			if arriving {
				p := partial(t, s, sha256Of(b), len(b))
				c = p.Content()
				if err := p.Append(b); err != nil {
					t.Fatal(err)
				}
				await(t, p.Done())
			} else {
				blob, err := s.Open(put(t, s, b))
				if err != nil {
					t.Fatal(err)
				}
				c = blob.Content()
			}
			path := s.blobPath(sha256Of(b))
			other, err := s.Open(sha256Of(b))
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			client := &onFirst{then: func() {
				damage(t, path, flipped)
				later := time.Now().Add(time.Second) // than a coarse clock may have said at the last write
				if err := os.Chtimes(path, later, later); err != nil {
					t.Fatal(err)
				}
			}}
			r := c.Section(t.Context(), 0, int64(len(b)))
			if through {
				r = struct{ io.Reader }{r}
			}
			_, err = io.Copy(struct{ io.Writer }{client}, r)
			if !DiskFailed(err) || !bytes.HasPrefix(b[:flipped], client.Bytes()) || client.Len() < maxSpan {
				t.Errorf("arriving %v, through %v: %d bytes, %v; want those before %d and a failure of the disk", arriving, through, client.Len(), err, flipped)
			}
			if _, err := other.ReadAt(make([]byte, 10), flipped); !DiskFailed(err) {
				t.Errorf("arriving %v, through %v: another reader gets %v", arriving, through, err)
			}
			if u := s.Usage(); u.Rotten != 1 || u.Blobs != 0 {
				t.Errorf("arriving %v, through %v: usage is %+v", arriving, through, u)
			}
			c.Close()
		}
	}
}

// A file that is cut short while it is being sent is a failure of our disk, too.
func TestFileIsCutAsItIsServed(t *testing.T) {
	b := content(9, 4*maxSpan)
	s := openStore(t, StoreConfig{})
	blob, err := s.Open(put(t, s, b))
	if err != nil {
		t.Fatal(err)
	}
	c := blob.Content()
	defer c.Close()
	client := &onFirst{then: func() {
		if err := os.Truncate(s.blobPath(blob.Digest()), 2*maxSpan+maxSpan/2); err != nil {
			t.Fatal(err)
		}
	}}
	_, err = io.Copy(struct{ io.Writer }{client}, c.Section(t.Context(), 0, 4*maxSpan))
	if !DiskFailed(err) || !bytes.HasPrefix(b, client.Bytes()) {
		t.Errorf("%d bytes, %v; want a failure of the disk", client.Len(), err)
	}
}

// A piece rots after it was found right and before the blob is whole. Who sent it is not
// to blame: the blob is begun anew, and nobody was given all of it.
func TestPieceRotsBeforeTheBlobIsWhole(t *testing.T) {
	b := content(8, 6*minPieceLength)
	s := openStore(t, StoreConfig{})
	tr, m := newTorrent(t, b)
	mustAdd(t, tr, hashesOf(m, 0, m.Pieces()))
	p := partial(t, s, m.Digest(), len(b))
	mustSet(t, p, tr)
	got := read(t.Context(), p, 0, int64(len(b)))
	mustWrite(t, p, m, b, 1, 2, 3, 4, 5)
	damage(t, s.partialPath(m.Digest()), 3*minPieceLength+1)
	mustWrite(t, p, m, b, 0)
	await(t, p.Done())
	if err := p.Err(); !DiskFailed(err) || errors.Is(err, ErrMismatch) {
		t.Errorf("it fails by %v, want the disk to be blamed", err)
	}
	if r := end(t, got); !DiskFailed(r.err) || len(r.got) == len(b) {
		t.Errorf("a reader was given %d bytes and %v", len(r.got), r.err)
	}
	<-p.atRest
	if u := s.Usage(); u.Rotten != 1 || u.Failures == 0 {
		t.Errorf("usage is %+v", u)
	}
	again := partial(t, s, m.Digest(), len(b))
	if n := again.Received(); n != 0 {
		t.Errorf("%d bytes are gone on with", n)
	}
	mustSet(t, again, m.Torrent())
	writePieces(t, again, m, b)
	wantWhole(t, s, again, b)
}

// What was noted while the clock was ahead keeps no blob from being verified, nor from
// making room.
func TestClockWasAhead(t *testing.T) {
	s := openStore(t, StoreConfig{Limit: 2500})
	a, b := put(t, s, content(1, 1000)), put(t, s, content(2, 1000))
	ahead := time.Now().Add(1000 * time.Hour)
	for _, path := range []string{s.blobPath(a), s.torrentPath(a)} {
		if err := os.Chtimes(path, ahead, ahead); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, StoreConfig{Dir: s.dir, Limit: 2500})
	if due := s.due(time.Now().Add(-scrubTurn)); len(due) != 1 || due[0].digest != a {
		t.Errorf("%d blobs are due, want the one that was verified in the future", len(due))
	}
	blob, err := s.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	blob.Close()
	put(t, s, content(3, 1000))
	if _, ok := s.Stat(b); !ok {
		t.Error("a blob that was used last has made room for one that was used in the future")
	}
}
