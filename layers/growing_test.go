package layers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// web serves a blob from any byte on, and remembers which bytes were taken.
type web struct {
	b     []byte
	from  []int64 // where answers began
	taken int64
}

func (w *web) open(_ context.Context, off int64) (io.ReadCloser, error) {
	w.from = append(w.from, off)
	return io.NopCloser(bytes.NewReader(w.b[off:])), nil
}

func (w *web) received(n int) { w.taken += int64(n) }

func (w *web) fill(t testing.TB, p *Partial) error {
	t.Helper()
	return Fill(t.Context(), p, w.open, nil, w.received)
}

func mustSet(t testing.TB, p *Partial, tr *Torrent) {
	t.Helper()
	if err := p.SetTorrent(tr); err != nil {
		t.Fatal(err)
	}
}

func mustWrite(t testing.TB, p *Partial, m *Metainfo, b []byte, pieces ...int) {
	t.Helper()
	for _, i := range pieces {
		if err := p.WritePiece(i, pieceOf(m, b, i)); err != nil {
			t.Fatal(err)
		}
	}
}

// wantWhole waits for the blob and compares it and its metainfo.
func wantWhole(t testing.TB, s *Store, p *Partial, b []byte) {
	t.Helper()
	await(t, p.Done())
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, s, p.Digest(), b)
	if m := p.Metainfo(); m == nil || !bytes.Equal(m.Bytes(), metainfoOf(t, b).Bytes()) {
		t.Error("metainfo is wrong")
	}
	<-p.atRest
	if list := files(t, s.partialDir()); len(list) > 0 {
		t.Errorf("left behind: %v", list)
	}
	if u := s.Usage(); u.Arriving != 0 {
		t.Errorf("%d bytes are still counted as arriving", u.Arriving)
	}
}

// Pieces come in any order while their hashes become known in the blob's; none counts
// before its hash is known.
func TestGrowingTorrent(t *testing.T) {
	const pl = minPieceLength
	s := openStore(t, StoreConfig{})
	b := content(1, 10*pl+7)
	tr, m := newTorrent(t, b)
	p := partial(t, s, m.Digest(), len(b))
	mustSet(t, p, tr)
	if p.Torrent() != tr || p.Metainfo() != nil {
		t.Error("it does not go by the torrent it was given")
	}
	await(t, p.Checked())
	reader := read(t.Context(), p, 0, p.Size())
	known := 0
	for _, i := range rand.Perm(m.Pieces()) {
		from, _ := pieceSpan(m.Size(), i)
		if _, err := p.WriteAt(pieceOf(m, b, i), from); err != nil {
			t.Fatal(err)
		}
		if i >= known {
			wantErr(t, p.PieceDone(i, sumPiece(pieceOf(m, b, i))), ErrHashUnknown)
			wantErr(t, p.WritePiece(i, pieceOf(m, b, i)), ErrHashUnknown)
			if p.PieceHave(i) {
				t.Errorf("piece %d is here, though nobody can tell", i)
			}
			mustAdd(t, tr, hashesOf(m, known, i+1))
			known = i + 1
		}
		if err := p.PieceDone(i, sumPiece(pieceOf(m, b, i))); err != nil || !p.PieceHave(i) {
			t.Errorf("PieceDone(%d) = %v", i, err)
		}
	}
	if r := end(t, reader); r.err != nil || !bytes.Equal(r.got, b) {
		t.Errorf("read %d bytes, %v", len(r.got), r.err)
	}
	wantWhole(t, s, p, b)
	if len(p.sums) > 0 {
		t.Error("the follower made hashes that the torrent has")
	}
}

// The end of a range is held back until somebody has seen the whole digest.
func TestRangeWaitsForCompleteTorrent(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 5*pl)
	tr, m := newTorrent(t, b)
	p := partial(t, openStore(t, StoreConfig{}), m.Digest(), len(b))
	mustSet(t, p, tr)
	mustAdd(t, tr, hashesOf(m, 0, 4))
	mustWrite(t, p, m, b, 0, 1, 2)
	r := p.NewReader(t.Context(), 0, 2*pl)
	defer r.Close()
	got := make([]byte, 2*pl)
	for n := 0; n < 2*pl-1; {
		some, err := r.Read(got[n:])
		if n += some; err != nil || n == 2*pl {
			t.Fatalf("read %d bytes, %v", n, err)
		}
	}
	rest := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(r, got[2*pl-1:])
		rest <- err
	}()
	for changed := p.WantedChanged(); len(p.Wanted()) == 0; changed = p.WantedChanged() {
		await(t, changed) // until it waits
	}
	mustAdd(t, tr, hashesOf(m, 4, 5))
	select {
	case err := <-rest:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(timeout):
		t.Fatal("the range does not end")
	}
	if !bytes.Equal(got, b[:2*pl]) {
		t.Error("other bytes were read")
	}
}

// What came in order is judged as the hashes become known, those from before a restart
// as well, and is not thrown away meanwhile.
func TestGrowingTorrentJudgesWhatWasAppended(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 10*pl)
	bad := bytes.Clone(b)
	bad[2*pl+5] ^= 1
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprint(restarted), func(t *testing.T) {
			tr, m := newTorrent(t, b)
			s := openStore(t, StoreConfig{})
			p := partial(t, s, m.Digest(), len(b))
			if err := p.Append(bad[:5*pl+100]); err != nil {
				t.Fatal(err)
			}
			awaitHashed(t, p, 5*pl+100)
			if restarted {
				s = restart(t, s)
				p = partial(t, s, m.Digest(), len(b))
			}
			misled := p.NewReader(t.Context(), 0, p.Size())
			defer misled.Close()
			if _, err := io.ReadFull(misled, make([]byte, 3*pl)); err != nil {
				t.Fatal(err)
			}
			other := read(t.Context(), p, 3*pl, p.Size()-3*pl)
			mustSet(t, p, tr)
			await(t, p.Checked())
			if have, total := p.Pieces(); have != 0 || total != 10 {
				t.Errorf("%d of %d pieces are here, want 0 of 10", have, total)
			}
			if off, n, ok := p.Gap(0); off != 5*pl || n != 5*pl || !ok {
				t.Errorf("Gap = %d, %d, %v: want only what is not on disk", off, n, ok)
			}
			mustAdd(t, tr, hashesOf(m, 0, 7))
			for moved := p.Progress(); ; moved = p.Progress() {
				if have, _ := p.Pieces(); have == 4 {
					break
				}
				await(t, moved)
			}
			if p.PieceHave(2) {
				t.Error("a wrong piece is taken for right")
			}
			if _, err := io.ReadAll(misled); !errors.Is(err, ErrMismatch) {
				t.Errorf("who read wrong bytes ends with %v", err)
			}
			mustAdd(t, tr, hashesOf(m, 7, 10))
			mustWrite(t, p, m, b, 9, 8, 2, 7, 6, 5)
			if r := end(t, other); r.err != nil || !bytes.Equal(r.got, b[3*pl:]) {
				t.Errorf("read %d bytes, %v", len(r.got), r.err)
			}
			wantWhole(t, s, p, b)
		})
	}
}

// The swarm may write over what has not been judged yet: the same bytes, then nobody
// notices, or others, then who was given the old ones ends.
func TestGrowingTorrentWritesOverWhatWasAppended(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 4*pl)
	for _, wrong := range []bool{false, true} {
		tr, m := newTorrent(t, b)
		s := openStore(t, StoreConfig{})
		p := partial(t, s, m.Digest(), len(b))
		first := bytes.Clone(b[:2*pl])
		if wrong {
			first[pl+5] ^= 1
		}
		if err := p.Append(first); err != nil {
			t.Fatal(err)
		}
		r := p.NewReader(t.Context(), 0, p.Size())
		defer r.Close()
		if _, err := io.ReadFull(r, make([]byte, 2*pl)); err != nil {
			t.Fatal(err)
		}
		mustSet(t, p, tr)
		if _, err := p.WriteAt(b[pl:2*pl], pl); err != nil {
			t.Fatal(err)
		}
		mustAdd(t, tr, hashesOf(m, 0, 4))
		if err := p.PieceDone(1, sumPiece(b[pl:2*pl])); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, p, m, b, 0, 2, 3)
		rest, err := io.ReadAll(r)
		if wrong && !errors.Is(err, ErrMismatch) || !wrong && (err != nil || !bytes.Equal(rest, b[2*pl:])) {
			t.Errorf("wrong is %v: read %d bytes more, %v", wrong, len(rest), err)
		}
		wantWhole(t, s, p, b)
	}
}

// The seeder dies while the torrent grows. What is here stays, the rest comes from the
// web, and readers go on.
func TestTorrentFails(t *testing.T) {
	const pl = 64 << 10 // so many pieces in a row are some
	const some = pl / minPieceLength
	b := content(1, 100*pl+7)
	m := metainfoOf(t, b)
	span := func(from, to int) (pieces []int) {
		for i := from * some; i < to*some; i++ {
			pieces = append(pieces, i)
		}
		return pieces
	}
	for _, test := range []struct {
		name     string
		appended int64 // bytes, before there was a torrent
		known    int   // in those
		pieces   []int
		alive    bool    // the torrent has not failed; it just does not grow
		from     []int64 // where the web is asked
		taken    int64
	}{
		{"at once", 0, 0, nil, false, []int64{0}, 100*pl + 7},
		{"after bytes in order", 10*pl + 9, 0, nil, false, []int64{10*pl + 9}, 90*pl - 2},
		{"which are all but one", 100*pl + 6, 0, nil, false, []int64{100*pl + 6}, 1},
		{"with islands", 0, 84, append(span(0, 3), span(20, 84)...), false, []int64{3 * pl, 84 * pl}, 33*pl + 7},
		{"with a small island", 0, 84, span(40, 84), false, []int64{0}, 100*pl + 7},
		{"with an island behind bytes in order", 5*pl + 8, 84, span(20, 84), false, []int64{5 * pl, 84 * pl}, 31*pl + 7},
		{"but is only silent", 0, 84, span(20, 84), true, []int64{0, 84 * pl}, 36*pl + 7},
		{"silent from the start", 3*pl + 1, 0, nil, true, []int64{3*pl + 1}, 97*pl + 6},
		{"one short", 0, 100, span(0, 100), false, []int64{100 * pl}, 7},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := openStore(t, StoreConfig{})
			p := partial(t, s, m.Digest(), len(b))
			if err := p.Append(b[:test.appended]); err != nil {
				t.Fatal(err)
			}
			whole, tail := read(t.Context(), p, 0, p.Size()), read(t.Context(), p, 99*pl, pl+7)
			tr := NewTorrent(m.Digest(), m.Size(), InfoHash{1})
			mustSet(t, p, tr)
			mustAdd(t, tr, hashesOf(m, 0, test.known*some))
			mustWrite(t, p, m, b, test.pieces...)
			awaitHashed(t, p, p.Prefix())
			if !test.alive {
				tr.Fail(errGone)
			}
			w := &web{b: b}
			if err := w.fill(t, p); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(w.from, test.from) || w.taken != test.taken {
				t.Errorf("the web was asked from %v and gave %d bytes, want %v and %d", w.from, w.taken, test.from, test.taken)
			}
			for _, r := range []struct {
				ch   <-chan result
				want []byte
			}{{whole, b}, {tail, b[99*pl:]}} {
				if got := end(t, r.ch); got.err != nil || !bytes.Equal(got.got, r.want) {
					t.Errorf("read %d bytes, %v", len(got.got), got.err)
				}
			}
			wantWhole(t, s, p, b)
		})
	}
}

// Without the torrent nothing is verified but by the digest: the last byte waits for
// it, and wrong bytes end in an error.
func TestTorrentFailsAndTheRestIsWrong(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 10*pl)
	tr, m := newTorrent(t, b)
	s := openStore(t, StoreConfig{})
	p := partial(t, s, m.Digest(), len(b))
	mustSet(t, p, tr)
	mustAdd(t, tr, hashesOf(m, 0, 5))
	mustWrite(t, p, m, b, 0, 1, 3)
	tr.Fail(errGone)
	bad := bytes.Clone(b)
	bad[7*pl] ^= 1
	whole, section := read(t.Context(), p, 0, p.Size()), read(t.Context(), p, 6*pl, 2*pl)
	w := &web{b: bad}
	if err := w.fill(t, p); err != nil && !errors.Is(err, ErrMismatch) {
		t.Fatal(err)
	}
	await(t, p.Done())
	wantErr(t, p.Err(), ErrMismatch)
	for _, ch := range []<-chan result{whole, section} {
		wantErr(t, end(t, ch).err, ErrMismatch)
	}
	<-p.atRest
	if list := files(t, s.partialDir()); len(list) > 0 {
		t.Errorf("left behind: %v", list)
	}
}

// Who is writing to a piece is done before anything is appended over it, and who comes
// later is turned away.
func TestTorrentIsLeftBetweenWrites(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 3*pl)
	tr, m := newTorrent(t, b)
	p := partial(t, openStore(t, StoreConfig{}), m.Digest(), len(b))
	mustSet(t, p, tr)
	mustAdd(t, tr, hashesOf(m, 0, 2))
	p.mu.Lock()
	p.join(1) // as who writes to it
	p.mu.Unlock()
	trusted, written := make(chan error, 1), make(chan error, 1)
	go func() { trusted <- p.trust(tr) }()
	turning := func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.turning && p.torrent == tr
	}
	for stop := time.Now().Add(timeout); !turning(); runtime.Gosched() {
		if time.Now().After(stop) {
			t.Fatal("it does not wait for who writes")
		}
	}
	go func() { written <- p.WritePiece(0, pieceOf(m, b, 0)) }()
	p.mu.Lock()
	p.leave(1)
	p.mu.Unlock()
	if err := <-trusted; err != nil {
		t.Fatal(err)
	}
	if err := <-written; err == nil || p.PieceHave(0) || p.Prefix() != 0 {
		t.Errorf("WritePiece = %v, with a prefix of %d", err, p.Prefix())
	}
	if _, err := p.WriteAt(b[:10], 0); err == nil {
		t.Error("pieces are written to, though there is no torrent")
	}
}

// Nothing is missing, but nobody can tell whether it is right: the digest can.
func TestTorrentFailsWithEverythingHere(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 3*pl)
	tr, m := newTorrent(t, b)
	s := openStore(t, StoreConfig{})
	a, err := s.openArrival(m.Digest(), m.Size(), "registry.test")
	if err != nil {
		t.Fatal(err)
	}
	p := newPartial(s, a) // without a follower as yet
	if err := p.Append(b); err != nil {
		t.Fatal(err)
	}
	mustSet(t, p, tr)
	mustAdd(t, tr, hashesOf(m, 0, 2))
	tr.Fail(errGone)
	if err := (&web{}).fill(t, p); err != nil {
		t.Fatal(err)
	}
	if p.Torrent() != nil || p.Prefix() != m.Size() {
		t.Errorf("it goes by %v, with a prefix of %d", p.Torrent(), p.Prefix())
	}
	p.start()
	wantWhole(t, s, p, b)
}

// What contradicts the hashes that are known is found at once, not at the end.
func TestFillChecksKnownPieces(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 10*pl)
	tr, m := newTorrent(t, b)
	p := partial(t, openStore(t, StoreConfig{}), m.Digest(), len(b))
	mustSet(t, p, tr)
	mustAdd(t, tr, hashesOf(m, 0, 5))
	bad := bytes.Clone(b)
	bad[2*pl] ^= 1
	wantErr(t, (&web{b: bad}).fill(t, p), ErrMismatch)
	if have, _ := p.Pieces(); have != 2 || p.Err() != nil {
		t.Errorf("%d pieces are here, want the 2 before; %v", have, p.Err())
	}
}

// The bytes go on by the next torrent where the last one has left them.
func TestNextTorrent(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 20*pl)
	for _, failed := range []bool{true, false} {
		for _, complete := range []bool{true, false} {
			t.Run(fmt.Sprint(failed, complete), func(t *testing.T) {
				s := openStore(t, StoreConfig{})
				tr, m := newTorrent(t, b)
				p := partial(t, s, m.Digest(), len(b))
				reader := read(t.Context(), p, 0, p.Size())
				mustSet(t, p, tr)
				mustAdd(t, tr, hashesOf(m, 0, 10))
				mustWrite(t, p, m, b, 0, 1, 2, 8)
				if failed {
					tr.Fail(errGone)
					wantErr(t, p.Append(b[3*pl:3*pl+1]), ErrPieces)
					if err := p.trust(tr); err != nil {
						t.Fatal(err)
					}
					if err := p.Append(b[3*pl : 5*pl+100]); err != nil {
						t.Fatal(err)
					}
				}
				next, _ := newTorrent(t, b)
				if complete {
					next = m.Torrent()
				}
				mustSet(t, p, next)
				if p.Torrent() != next {
					t.Fatal("the torrent was not replaced")
				}
				mustAdd(t, next, hashesOf(m, next.Known(), 20))
				await(t, p.Checked())
				want := 4
				if failed {
					want = 6
				}
				for moved := p.Progress(); ; moved = p.Progress() {
					if have, _ := p.Pieces(); have == want {
						break
					}
					await(t, moved)
				}
				if err := (&web{b: b}).fill(t, p); err != nil {
					t.Fatal(err)
				}
				if r := end(t, reader); r.err != nil || !bytes.Equal(r.got, b) {
					t.Errorf("read %d bytes, %v", len(r.got), r.err)
				}
				wantWhole(t, s, p, b)
			})
		}
	}
}

// The next torrent contradicts the last one. Who was given a piece that only the last
// one held to be right may not end well.
func TestNextTorrentDisagrees(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 20*pl)
	bad := bytes.Clone(b)
	bad[2*pl] ^= 1
	m := metainfoOf(t, b)
	lie := newMetainfo(m.Digest(), m.Size(), sums(bad, m.Size()))
	s := openStore(t, StoreConfig{})
	p := partial(t, s, m.Digest(), len(b))
	last := NewTorrent(m.Digest(), m.Size(), InfoHash{1})
	mustSet(t, p, last)
	mustAdd(t, last, hashesOf(lie, 0, 10))
	mustWrite(t, p, lie, bad, 0, 1, 2, 3)
	misled := p.NewReader(t.Context(), 0, p.Size())
	defer misled.Close()
	if _, err := io.ReadFull(misled, make([]byte, 3*pl)); err != nil {
		t.Fatal(err)
	}
	behind := read(t.Context(), p, 3*pl, p.Size()-3*pl)
	awaitHashed(t, p, 4*pl)
	last.Fail(errGone)
	mustSet(t, p, m.Torrent())
	mustWrite(t, p, m, b, 2)
	writePieces(t, p, m, b)
	if _, err := io.ReadAll(misled); !errors.Is(err, ErrMismatch) {
		t.Errorf("who read wrong bytes ends with %v", err)
	}
	if r := end(t, behind); r.err != nil || !bytes.Equal(r.got, b[3*pl:]) {
		t.Errorf("who did not ends with %d bytes, %v", len(r.got), r.err)
	}
	wantWhole(t, s, p, b)
}

// crash opens a copy of what s has on disk at this moment.
func crash(t testing.TB, s *Store) *Store {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	return openStore(t, StoreConfig{Dir: dir})
}

// After a crash a file of pieces is never taken for the first bytes of the blob; once
// the metainfo is complete, its pieces are known again.
func TestCrashWithGrowingTorrent(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 20*pl)
	tr, m := newTorrent(t, b)
	s := openStore(t, StoreConfig{})
	p := partial(t, s, m.Digest(), len(b))
	resumed := func(when string) {
		t.Helper()
		s := crash(t, s)
		p := partial(t, s, m.Digest(), len(b))
		if err := (&web{b: b}).fill(t, p); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		wantWhole(t, s, p, b)
	}
	mustSet(t, p, tr)
	mustAdd(t, tr, hashesOf(m, 0, 10))
	if _, err := p.WriteAt(b[15*pl:16*pl], 15*pl); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, p, m, b, 0, 9)
	resumed("growing")
	if err := p.trust(tr); err != nil {
		t.Fatal(err)
	}
	if err := p.Append(b[pl : 2*pl+5]); err != nil {
		t.Fatal(err)
	}
	resumed("in order again")

	next, _ := newTorrent(t, b)
	mustSet(t, p, next)
	resumed("growing again")
	mustAdd(t, next, hashesOf(m, 0, 20))
	saved := s.partialPath(m.Digest()) + torrentSuffix
	for stop := time.Now().Add(timeout); readMetainfo(saved, m.Digest(), m.Size()) == nil; runtime.Gosched() {
		if time.Now().After(stop) {
			t.Fatal("the complete metainfo is not saved")
		}
	}
	s = crash(t, s)
	p = partial(t, s, m.Digest(), len(b))
	await(t, p.Checked())
	if have, _ := p.Pieces(); have != 4 { // one was written, but nobody said that it is done
		t.Errorf("%d pieces are here, want 4", have)
	}
	writePieces(t, p, m, b)
	wantWhole(t, s, p, b)
}

// A Partial that fails while its torrent grows leaves what it has to the next.
func TestFailWithGrowingTorrent(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 20*pl)
	for _, way := range []string{"torrent", "web"} {
		tr, m := newTorrent(t, b)
		s := openStore(t, StoreConfig{})
		p := partial(t, s, m.Digest(), len(b))
		mustSet(t, p, tr)
		mustAdd(t, tr, hashesOf(m, 0, 10))
		mustWrite(t, p, m, b, 0, 9)
		p.Fail(errGone)
		p = partial(t, s, m.Digest(), len(b))
		w := &web{b: b}
		if way == "torrent" {
			mustSet(t, p, m.Torrent())
			await(t, p.Checked())
		}
		if err := w.fill(t, p); err != nil {
			t.Fatal(err)
		}
		if w.from[0] != pl {
			t.Errorf("%s: the web was asked from %v", way, w.from)
		}
		wantWhole(t, s, p, b)
	}
}

// Torrents come and go, a swarm writes what it likes and the web fills what is missing:
// who reads gets the right bytes.
func TestGrowingTorrentStress(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 40*pl+333)
	for range 8 {
		s := openStore(t, StoreConfig{})
		m := metainfoOf(t, b)
		p := partial(t, s, m.Digest(), len(b))
		var readers, swarm sync.WaitGroup
		for range 8 {
			off := rand.Int64N(p.Size() + 1)
			n := rand.Int64N(p.Size() - off + 1)
			readers.Go(func() {
				r := p.NewReader(t.Context(), off, n)
				defer r.Close()
				got, err := io.ReadAll(r)
				if err != nil || !bytes.Equal(got, b[off:off+n]) {
					t.Errorf("section of %d bytes at %d: %d bytes, %v", n, off, len(got), err)
				}
			})
		}
		for range 5 {
			tr := NewTorrent(m.Digest(), m.Size(), InfoHash{1})
			err := p.SetTorrent(tr)
			if p.Err() == nil && err != nil && p.Torrent() == nil {
				t.Fatal(err)
			}
			upTo := rand.IntN(m.Pieces())
			for range 2 {
				swarm.Go(func() {
					for _, i := range rand.Perm(m.Pieces())[:10] {
						from, _ := pieceSpan(m.Size(), i)
						if _, err := p.WriteAt(pieceOf(m, b, i), from); err == nil {
							p.PieceDone(i, sumPiece(pieceOf(m, b, i)))
						}
					}
				})
			}
			for tr.Known() < upTo {
				mustAdd(t, tr, hashesOf(m, tr.Known(), tr.Known()+1))
			}
			tr.Fail(errGone)
			if rand.IntN(2) == 0 {
				if err := p.trust(tr); err != nil {
					t.Fatal(err)
				}
				at := p.Prefix()
				if err := p.Append(b[at:min(p.Size(), at+rand.Int64N(5*pl))]); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := (&web{b: b}).fill(t, p); err != nil {
			t.Fatal(err)
		}
		swarm.Wait()
		readers.Wait()
		wantWhole(t, s, p, b)
	}
}

// The seeder's torrent grows as it hashes, and holds the last hash back until the blob
// is known to be right.
func TestHashes(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 5*pl+7)
	s := openStore(t, StoreConfig{})
	m := metainfoOf(t, b)
	p := partial(t, s, m.Digest(), len(b))
	grown := func(tr *Torrent, n int) {
		t.Helper()
		for changed := tr.Changed(); tr.Known() < n; changed = tr.Changed() {
			await(t, changed)
		}
	}
	if err := p.Append(b[:pl+1]); err != nil {
		t.Fatal(err)
	}
	tr := p.Hashes(InfoHash{1})
	if draft, ok := tr.Draft(); !ok || draft != (InfoHash{1}) || p.Hashes(InfoHash{2}) != tr || p.Torrent() != nil {
		t.Error("there are several torrents")
	}
	grown(tr, 1)
	if err := p.Append(b[pl+1 : 4*pl+1]); err != nil {
		t.Fatal(err)
	}
	grown(tr, 4)
	p.Fail(errGone)
	wantErr(t, tr.Err(), errGone)

	p = partial(t, s, m.Digest(), len(b)) // the next goes on where it was
	tr = p.Hashes(InfoHash{1})
	if tr.Known() != 4 || tr.Err() != nil {
		t.Errorf("%d hashes are known, %v", tr.Known(), tr.Err())
	}
	if err := p.Append(b[4*pl+1:]); err != nil {
		t.Fatal(err)
	}
	grown(tr, 6)
	await(t, p.Verified())
	if got := tr.Metainfo(); got == nil || !bytes.Equal(got.Bytes(), m.Bytes()) {
		t.Error("other metainfo")
	}
	wantWhole(t, s, p, b)
	if again := p.Hashes(InfoHash{}); again.Metainfo() == nil {
		t.Error("a whole blob's torrent is not complete")
	}
}

// It is no matter how the pieces come: those before the first hole are told of.
func TestHashesOfPieces(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 5*pl)
	s := openStore(t, StoreConfig{})
	m := metainfoOf(t, b)
	p := partial(t, s, m.Digest(), len(b))
	mustSet(t, p, m.Torrent())
	tr := p.Hashes(InfoHash{1})
	for _, step := range []struct{ piece, known int }{{1, 0}, {0, 2}, {4, 2}, {2, 3}} {
		if mustWrite(t, p, m, b, step.piece); tr.Known() != step.known || tr.Metainfo() != nil {
			t.Errorf("%d hashes are known after piece %d, want %d", tr.Known(), step.piece, step.known)
		}
	}
	mustWrite(t, p, m, b, 3)
	wantWhole(t, s, p, b)
	if got := tr.Metainfo(); got == nil || got.InfoHash() != m.InfoHash() {
		t.Error("other metainfo")
	}
}

// A blob of one piece has no hash to tell of before it is whole, an empty one none at all.
func TestHashesOfSmallBlobs(t *testing.T) {
	for _, size := range []int{0, 1, minPieceLength} {
		b := content(1, size)
		s := openStore(t, StoreConfig{})
		p := partial(t, s, sha256Of(b), size)
		tr := p.Hashes(InfoHash{1})
		if err := p.Append(b); err != nil {
			t.Fatal(err)
		}
		wantWhole(t, s, p, b)
		if got := tr.Metainfo(); got == nil || got.InfoHash() != metainfoOf(t, b).InfoHash() {
			t.Errorf("%d bytes: other metainfo", size)
		}
	}
}

func TestHashesOfWrongBlob(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 5*pl)
	s := openStore(t, StoreConfig{})
	p := partial(t, s, sha256Of(b), len(b))
	tr := p.Hashes(InfoHash{1})
	if err := p.Append(content(2, 5*pl)); err != nil {
		t.Fatal(err)
	}
	await(t, p.Done())
	wantErr(t, tr.Err(), ErrMismatch)
	if tr.Known() > 4 || tr.Metainfo() != nil {
		t.Error("the metainfo of wrong bytes is complete")
	}
	wantErr(t, p.Hashes(InfoHash{}).Err(), ErrMismatch)
	<-p.atRest
	late := partial(t, s, sha256Of(b), len(b))
	late.Fail(errGone)
	wantErr(t, late.Hashes(InfoHash{}).Err(), errGone)
}

// The file that OpenFile returns outlives the arrival, and the blob.
func TestOpenFile(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 5*pl)
	s := openStore(t, StoreConfig{})
	p := partial(t, s, sha256Of(b), len(b))
	arriving, err := p.OpenFile()
	if err != nil {
		t.Fatal(err)
	}
	defer arriving.Close()
	if err := p.Append(b); err != nil {
		t.Fatal(err)
	}
	await(t, p.Done())
	whole, err := p.OpenFile()
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Close()
	<-p.atRest
	if pins := s.blobs[p.Digest()].pins; pins > 0 {
		t.Errorf("%d pins keep the blob from being evicted", pins)
	}
	if err := s.Remove(p.Digest()); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{arriving, whole} {
		got := make([]byte, len(b))
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, b) {
			t.Errorf("ReadAt: %v", err)
		}
		if _, err := f.WriteAt(got, 0); err == nil {
			t.Error("it can be written to")
		}
	}
	if _, err := p.OpenFile(); !errors.Is(err, ErrNotFound) {
		t.Errorf("OpenFile of a blob that is gone: %v", err)
	}
	failed := partial(t, s, sha256Of(b), len(b))
	failed.Fail(errGone)
	if _, err := failed.OpenFile(); !errors.Is(err, errGone) {
		t.Errorf("OpenFile of a blob that failed: %v", err)
	}
}

// listener is a Swarm that only notes what it is told.
type listener struct {
	Swarm
	arriving, whole, dropped []digest.Digest
}

func (l *listener) Share(_ context.Context, m *Metainfo, b *Blob, _ []string) error {
	l.whole = append(l.whole, m.Digest())
	return b.Close()
}

func (l *listener) ShareArriving(_ context.Context, t *Torrent, _ *Partial, _ []string) error {
	l.arriving = append(l.arriving, t.Digest())
	return nil
}

func (l *listener) Drop(d digest.Digest) { l.dropped = append(l.dropped, d) }

// A blob that is offered while it arrives goes by both its names, until it fails or is
// dropped, and is not offered a second time when it is whole.
func TestSharedArriving(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 5*pl)
	s := openStore(t, StoreConfig{})
	m := metainfoOf(t, b)
	swarm := &listener{}
	shared := NewShared(s, swarm, nil, s.log)
	draft := InfoHash{1}
	has := func(when string, wantDraft, wantFinal bool) {
		t.Helper()
		if shared.Has(draft) != wantDraft || shared.Has(m.InfoHash()) != wantFinal {
			t.Errorf("%s: it has the draft name: %v, the final one: %v", when, shared.Has(draft), shared.Has(m.InfoHash()))
		}
	}
	has("before", false, false)
	p := partial(t, s, m.Digest(), len(b))
	offer := func(p *Partial) {
		if err := shared.Arriving(t.Context(), p.Hashes(draft), p); err != nil {
			t.Fatal(err)
		}
	}
	offer(p)
	has("arriving", true, false)
	p.Fail(errGone)
	has("failed", false, false)
	p = partial(t, s, m.Digest(), len(b))
	offer(p)
	if err := p.Append(b); err != nil {
		t.Fatal(err)
	}
	await(t, p.Done())
	has("whole", true, true)
	if got, err := shared.Share(t.Context(), m.Digest()); err != nil || got.InfoHash() != m.InfoHash() || len(swarm.whole) > 0 || len(swarm.arriving) != 2 {
		t.Errorf("Share = %v; the swarm was told of %v and %v", err, swarm.arriving, swarm.whole)
	}
	shared.Drop(m.Digest())
	has("dropped", false, false)
	if _, err := shared.Share(t.Context(), m.Digest()); err != nil || len(swarm.whole) != 1 || len(swarm.dropped) != 1 {
		t.Errorf("Share = %v; the swarm was told of %v", err, swarm.whole)
	}
	has("shared again", false, true)
	shared.Joined(m.Torrent())
	has("joined", false, true)
}
