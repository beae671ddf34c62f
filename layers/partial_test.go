package layers

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestPartialIsShared(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 1<<20)
	d := sha256Of(b)
	var got [20]*Partial
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() { got[i], _ = s.Partial(d, int64(len(b)), "registry.test") })
	}
	wg.Wait()
	for _, p := range got {
		if p == nil || p != got[0] {
			t.Fatalf("Partial = %p, want %p for all", p, got[0])
		}
	}
	_, err := s.Partial(d, int64(len(b))+1, "registry.test")
	wantErr(t, err, ErrSize)
	if err := got[0].Append(b); err != nil {
		t.Fatal(err)
	}
	await(t, got[0].Done())
	_, err = s.Partial(d, int64(len(b)), "registry.test")
	wantErr(t, err, ErrWhole)
	wantBlob(t, s, d, b)
}

func TestPartialRefusesWhatIsNoDigest(t *testing.T) {
	s := openStore(t, StoreConfig{})
	for _, d := range []digest.Digest{"", "sha256:../../x", "md5:0a", "sha256"} {
		if _, err := s.Partial(d, 1, "registry.test"); err == nil {
			t.Errorf("Partial(%q) succeeded", d)
		}
	}
	if _, err := s.Partial(sha256Of(nil), -1, "registry.test"); err == nil {
		t.Error("negative size succeeded")
	}
}

func TestEmptyBlob(t *testing.T) {
	s := openStore(t, StoreConfig{})
	p := partial(t, s, sha256Of(nil), 0)
	if r := end(t, read(t.Context(), p, 0, 0)); r.err != nil || len(r.got) > 0 {
		t.Errorf("read %d bytes, %v", len(r.got), r.err)
	}
	await(t, p.Verified())
	await(t, p.Done())
	if _, _, ok := p.Gap(0); ok || p.Err() != nil {
		t.Errorf("gap %v, error %v", ok, p.Err())
	}
	wantBlob(t, s, sha256Of(nil), nil)
}

func TestSha512(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 300<<10)
	d := digest.SHA512.FromBytes(b)
	p := partial(t, s, d, len(b))
	if err := p.Append(b); err != nil {
		t.Fatal(err)
	}
	await(t, p.Done())
	wantBlob(t, s, d, b)
	if m, err := s.Metainfo(d); err != nil || m.Digest() != d {
		t.Errorf("Metainfo = %v, %v", m, err)
	}
	s.Close()
	wantBlob(t, openStore(t, StoreConfig{Dir: s.dir}), d, b)
}

func TestAppendTooMuch(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 1000)
	p := partial(t, s, sha256Of(b), len(b))
	if err := p.Append(b[:600]); err != nil {
		t.Fatal(err)
	}
	wantErr(t, p.Append(b[:401]), ErrMismatch)
	if p.Prefix() != 600 || p.Received() != 600 {
		t.Errorf("prefix %d, received %d, want 600", p.Prefix(), p.Received())
	}
	if err := p.Append(b[600:]); err != nil {
		t.Fatal(err)
	}
	await(t, p.Done())
	wantErr(t, p.Append(b[:1]), ErrMismatch)
}

func TestWrongDigest(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 1<<20)
	d := sha256Of(b)
	p := partial(t, s, d, len(b))
	sections := [][2]int64{{0, 1 << 20}, {0, 1}, {100, 1000}, {1 << 19, 1 << 19}, {1<<20 - 1, 1}}
	var readers []<-chan result
	for _, sec := range sections {
		readers = append(readers, read(t.Context(), p, sec[0], sec[1]))
	}
	bad := bytes.Clone(b)
	bad[77] ^= 1
	if err := p.Append(bad); err != nil {
		t.Fatal(err)
	}
	await(t, p.Done())
	wantErr(t, p.Err(), ErrMismatch)
	for i, r := range readers {
		r := end(t, r)
		wantErr(t, r.err, ErrMismatch)
		if int64(len(r.got)) >= sections[i][1] {
			t.Errorf("section %v was given out to its end", sections[i])
		}
	}
	<-p.atRest
	if list := files(t, s.partialDir()); len(list) > 0 {
		t.Errorf("left behind: %v", list)
	}
	if u := s.Usage(); u.Arriving != 0 || u.Blobs != 0 {
		t.Errorf("usage is %+v", u)
	}
	put(t, s, b)
	wantBlob(t, s, d, b)
}

// Pieces that agree with metainfo which does not agree with the digest.
func TestWrongMetainfo(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 600<<10)
	bad := bytes.Clone(b)
	bad[300<<10] ^= 1
	m := newMetainfo(sha256Of(b), int64(len(b)), sums(bad, int64(len(b))))
	p := partial(t, s, sha256Of(b), len(b))
	if err := p.SetTorrent(m.Torrent()); err != nil {
		t.Fatal(err)
	}
	whole, end3 := read(t.Context(), p, 0, 600<<10), read(t.Context(), p, 599<<10, 1<<10)
	writePieces(t, p, m, bad)
	await(t, p.Done())
	wantErr(t, p.Err(), ErrMismatch)
	wantErr(t, end(t, whole).err, ErrMismatch)
	wantErr(t, end(t, end3).err, ErrMismatch)
	<-p.atRest
	if list := files(t, s.partialDir()); len(list) > 0 {
		t.Errorf("left behind: %v", list)
	}
}

func TestSetTorrentOfAnother(t *testing.T) {
	s := openStore(t, StoreConfig{})
	const size = 9*minPieceLength + minPieceLength/2
	b := content(1, size)
	p := partial(t, s, sha256Of(b), len(b))
	wantErr(t, p.SetTorrent(metainfoOf(t, content(2, size)).Torrent()), ErrMismatch)
	m := metainfoOf(t, b)
	for range 2 {
		if err := p.SetTorrent(m.Torrent()); err != nil {
			t.Fatal(err)
		}
	}
	other := newMetainfo(p.Digest(), p.Size(), sums(content(2, size), size))
	wantErr(t, p.SetTorrent(other.Torrent()), ErrMismatch)
	wantErr(t, p.Append(b[:1]), ErrPieces)
	wantErr(t, p.WritePiece(0, b[1:minPieceLength+1]), ErrMismatch)
	wantErr(t, p.WritePiece(9, b[9*minPieceLength:size-1]), ErrMismatch)
	wantErr(t, p.PieceDone(0, sumPiece(b[1:minPieceLength+1])), ErrMismatch)
	for _, i := range []int{-1, 10} {
		if p.WritePiece(i, nil) == nil || p.PieceDone(i, PieceSum{}) == nil || p.PieceHave(i) {
			t.Errorf("there is a piece %d", i)
		}
	}
	writePieces(t, p, m, b)
	await(t, p.Done())
	if err := p.SetTorrent(m.Torrent()); err != nil {
		t.Errorf("SetTorrent after the end: %v", err)
	}
	if err := p.WritePiece(0, pieceOf(m, b, 0)); err != nil {
		t.Errorf("WritePiece after the end: %v", err)
	}
	if _, err := p.WriteAt(make([]byte, size/2), 0); err != nil {
		t.Errorf("WriteAt after the end: %v", err)
	}
	wantBlob(t, s, p.Digest(), b)
	got := make([]byte, 100)
	if _, err := p.ReadAt(got, 1000); err != nil || !bytes.Equal(got, b[1000:1100]) {
		t.Errorf("ReadAt after the end: %v", err)
	}
}

func TestGap(t *testing.T) {
	const mib = 1 << 20
	const pl = 2 * minPieceLength // of a blob of that size
	s := openStore(t, StoreConfig{})
	b := content(1, 20*mib+1)
	m := metainfoOf(t, b)
	p := partial(t, s, m.Digest(), len(b))
	type gap struct {
		off, n int64
		ok     bool
	}
	check := func(from int64, want gap) {
		t.Helper()
		off, n, ok := p.Gap(from)
		if got := (gap{off, n, ok}); got.ok != want.ok || got.ok && got != want {
			t.Errorf("Gap(%d) = %v, want %v", from, got, want)
		}
	}
	have := func(from, to int64) {
		for i := from / pl; i < to/pl; i++ {
			if err := p.WritePiece(int(i), pieceOf(m, b, int(i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	check(0, gap{0, 20*mib + 1, true})
	if err := p.Append(b[:100]); err != nil {
		t.Fatal(err)
	}
	check(0, gap{100, 20*mib - 99, true})
	check(200, gap{200, 20*mib - 199, true})
	if err := p.SetTorrent(m.Torrent()); err != nil {
		t.Fatal(err)
	}
	await(t, p.Checked())
	check(0, gap{0, 20*mib + 1, true})
	check(pl+5, gap{pl, 20*mib + 1 - pl, true})
	have(2*mib, 6*mib-pl) // less than 4 MiB: not worth another request
	check(0, gap{0, 20*mib + 1, true})
	have(6*mib-pl, 6*mib)
	check(0, gap{0, 2 * mib, true})
	check(2*mib, gap{6 * mib, 14*mib + 1, true})
	have(10*mib, 20*mib)
	check(6*mib, gap{6 * mib, 4 * mib, true})
	check(10*mib, gap{20 * mib, 1, true})
	check(20*mib+1, gap{})
	check(1<<60, gap{})
	have(0, 10*mib)
	check(0, gap{20 * mib, 1, true})
	if err := p.WritePiece(20*mib/pl, b[20*mib:]); err != nil {
		t.Fatal(err)
	}
	check(0, gap{})
	check(-5, gap{})
}

// An HTTP body breaks off and the swarm takes over, or the other way round: who reads
// does not notice.
func TestSwitchToPieces(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 3<<20)
	m := metainfoOf(t, b)
	p := partial(t, s, m.Digest(), len(b))
	r := p.NewReader(t.Context(), 0, p.Size())
	defer r.Close()
	if err := p.Append(b[:1<<20+1000]); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1<<20+1000)
	if _, err := io.ReadFull(r, got); err != nil {
		t.Fatal(err)
	}
	if err := p.SetTorrent(m.Torrent()); err != nil {
		t.Fatal(err)
	}
	await(t, p.Checked())
	if have, total := p.Pieces(); have != 64 || total != 192 || p.Received() != 1<<20 {
		t.Errorf("%d pieces of %d, %d bytes are here, want 64 of 192, 1 MiB", have, total, p.Received())
	}
	writePieces(t, p, m, b)
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(append(got, rest...), b) {
		t.Errorf("read %d bytes, %v", len(got)+len(rest), err)
	}
	await(t, p.Done())
	wantBlob(t, s, m.Digest(), b)
}

// What was appended is wrong at one byte. Readers that have got it end in an error, and
// only they; the pieces mend the blob.
func TestSwitchToPiecesAfterWrongBytes(t *testing.T) {
	const pl = minPieceLength
	for _, test := range []struct {
		name   string
		at     int64 // where the wrong byte is
		hashed bool  // when metainfo comes, the follower has seen it
		chunks bool  // pieces come by WriteAt
	}{
		{"hashed piece", pl + 5, true, false},
		{"piece that may not be hashed yet", pl + 5, false, false},
		{"that too, by chunks", pl + 5, false, true},
		{"tail", 3*pl + 5, true, false},
		{"tail by chunks", 3*pl + 5, true, true},
		{"tail that may not be hashed yet", 3*pl + 5, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := openStore(t, StoreConfig{})
			b := content(1, 5*pl)
			m := metainfoOf(t, b)
			p := partial(t, s, m.Digest(), len(b))
			bad := bytes.Clone(b[:3*pl+100])
			bad[test.at] ^= 1
			if err := p.Append(bad); err != nil {
				t.Fatal(err)
			}
			misled := p.NewReader(t.Context(), 10, p.Size()-10)
			defer misled.Close()
			first := p.NewReader(t.Context(), 0, pl)
			defer first.Close()
			last := p.NewReader(t.Context(), 4*pl, pl)
			defer last.Close()
			begun := make([]byte, test.at-10+1)
			if _, err := io.ReadFull(misled, begun); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(first, make([]byte, pl-1)); err != nil {
				t.Fatal(err)
			}
			if test.hashed {
				awaitHashed(t, p, 3*pl+100)
			}
			if err := p.SetTorrent(m.Torrent()); err != nil {
				t.Fatal(err)
			}
			if test.chunks {
				writeChunks(t, p, m, b, true)
			} else {
				writePieces(t, p, m, b)
			}
			_, err := io.Copy(io.Discard, misled)
			wantErr(t, err, ErrMismatch)
			if got, err := io.ReadAll(first); err != nil || !bytes.Equal(got, b[pl-1:pl]) {
				t.Errorf("reader before the wrong byte ends with %d bytes, %v", len(got), err)
			}
			if got, err := io.ReadAll(last); err != nil || !bytes.Equal(got, b[4*pl:]) {
				t.Errorf("reader behind the wrong byte ends with %d bytes, %v", len(got), err)
			}
			await(t, p.Done())
			if p.Err() != nil {
				t.Fatal(p.Err())
			}
			wantBlob(t, s, m.Digest(), b)
		})
	}
}

// The follower is about to read when metainfo comes: it must not hash what may be
// overwritten from then on.
func TestMetainfoOvertakesFollower(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 600<<10)
	m := metainfoOf(t, b)
	a, err := s.openArrival(m.Digest(), m.Size(), "registry.test")
	if err != nil {
		t.Fatal(err)
	}
	p := newPartial(s, a) // the test is its follower
	defer a.file.Close()
	defer p.work.Wait()
	if err := p.Append(b[:minPieceLength+100]); err != nil {
		t.Fatal(err)
	}
	next, _, err := p.next()
	if err != nil || next.n != minPieceLength+100 {
		t.Fatalf("next is %v, %v", next, err)
	}
	if err := p.SetTorrent(m.Torrent()); err != nil {
		t.Fatal(err)
	}
	if err := p.feed(next); err != nil || p.hashed != 0 || p.fed != 0 {
		t.Errorf("hashed %d bytes that are not verified, %v", p.hashed, err)
	}
	await(t, p.Checked())
	if next, _, err = p.next(); err != nil || next.n != minPieceLength {
		t.Errorf("next is %v, %v, want the first piece", next, err)
	}
}

// writeChunks brings the blob as a swarm does: chunks, with garbage where a peer lies,
// then a hash of what lies there.
func writeChunks(t testing.TB, p *Partial, m *Metainfo, b []byte, lies bool) {
	t.Helper()
	for i := range m.Pieces() {
		if p.PieceHave(i) {
			continue
		}
		from, to := pieceSpan(m.Size(), i)
		if lies {
			if _, err := p.WriteAt(make([]byte, to-from), from); err != nil {
				t.Fatal(err)
			}
		}
		for chunk := range slices.Chunk(b[from:to], 16<<10) {
			if _, err := p.WriteAt(chunk, from); err != nil {
				t.Fatal(err)
			}
			from += int64(len(chunk))
		}
		if err := p.PieceDone(i, sumPiece(pieceOf(m, b, i))); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFailAndGoOn(t *testing.T) {
	const pl = minPieceLength
	down := errors.New("upstream is down")
	b := content(1, 4*pl+100)
	m := metainfoOf(t, b)
	for name, pieces := range map[string]bool{"in order": false, "by pieces": true} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, StoreConfig{})
			p := partial(t, s, m.Digest(), len(b))
			if err := p.Append(b[:2*pl]); err != nil {
				t.Fatal(err)
			}
			if pieces {
				if err := p.SetTorrent(m.Torrent()); err != nil {
					t.Fatal(err)
				}
				if err := p.WritePiece(3, pieceOf(m, b, 3)); err != nil {
					t.Fatal(err)
				}
				await(t, p.Checked()) // what the follower had not hashed yet
			}
			reader := read(t.Context(), p, 0, p.Size())
			awaitHashed(t, p, 2*pl)
			p.Fail(down)
			p.Fail(errors.New("again"))
			await(t, p.Done())
			wantErr(t, p.Err(), down)
			wantErr(t, end(t, reader).err, down)
			wantErr(t, p.Append(b[:1]), down)

			next := partial(t, s, m.Digest(), len(b))
			if next == p {
				t.Fatal("Partial is the failed one")
			}
			received := next.Received()
			if next.Prefix() != 2*pl || next.Received() != p.Received() || next.hashed != 2*pl {
				t.Errorf("goes on with prefix %d, %d bytes, %d hashed", next.Prefix(), next.Received(), next.hashed)
			}
			reader = read(t.Context(), next, 0, next.Size())
			if pieces {
				writePieces(t, next, m, b)
			} else if err := next.Append(b[2*pl:]); err != nil {
				t.Fatal(err)
			}
			if r := end(t, reader); r.err != nil || !bytes.Equal(r.got, b) {
				t.Errorf("read %d bytes, %v", len(r.got), r.err)
			}
			await(t, next.Done())
			wantBlob(t, s, m.Digest(), b)
			if p.Received() != received || p.PieceHave(4) {
				t.Error("the failed one has changed")
			}
			<-next.atRest
			if list := files(t, s.partialDir()); len(list) > 0 {
				t.Errorf("left behind: %v", list)
			}
		})
	}
}

// Who writes when a Partial fails is waited for, or the next would have the file with
// bytes of the last still to come.
func TestNextWaitsForWriters(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 1000)
	p := partial(t, s, sha256Of(b), len(b))
	p.mu.Lock()
	err := p.enter()
	p.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	p.Fail(io.ErrUnexpectedEOF)
	var writing atomic.Bool
	writing.Store(true)
	next := make(chan bool)
	go func() {
		s.Partial(sha256Of(b), 1000, "registry.test")
		next <- writing.Load()
	}()
	for range 10000 { // long enough for it to go wrong, most times
		runtime.Gosched()
	}
	writing.Store(false)
	p.work.Done()
	if <-next {
		t.Error("the next began while the last was writing")
	}
}

func TestOtherSizeAfterFailure(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 1000)
	p := partial(t, s, sha256Of(b), 2000) // what a registry said wrongly
	if err := p.Append(b); err != nil {
		t.Fatal(err)
	}
	p.Fail(io.ErrUnexpectedEOF)
	p = partial(t, s, sha256Of(b), 1000)
	if p.Prefix() != 0 {
		t.Errorf("prefix is %d", p.Prefix())
	}
	if err := p.Append(b); err != nil {
		t.Fatal(err)
	}
	await(t, p.Done())
	wantBlob(t, s, sha256Of(b), b)
}

func TestProgressAndWanted(t *testing.T) {
	const pl = minPieceLength
	s := openStore(t, StoreConfig{})
	b := content(1, 4*pl)
	m := metainfoOf(t, b)
	p := partial(t, s, m.Digest(), len(b))
	if err := p.SetTorrent(m.Torrent()); err != nil {
		t.Fatal(err)
	}
	await(t, p.Checked())
	var readers []<-chan result
	for _, off := range []int64{3 * pl, pl + 7, pl + 7} {
		readers = append(readers, read(t.Context(), p, off, 10))
	}
	for want := []int64{pl + 7, 3 * pl}; ; {
		changed := p.WantedChanged()
		if slices.Equal(p.Wanted(), want) {
			break
		}
		await(t, changed)
	}
	progress := p.Progress()
	if _, err := p.WriteAt(b[pl:pl+16<<10], pl); err != nil {
		t.Fatal(err)
	}
	await(t, progress)
	progress = p.Progress()
	writePieces(t, p, m, b)
	await(t, progress)
	for _, r := range readers {
		if r := end(t, r); r.err != nil {
			t.Error(r.err)
		}
	}
	if w := p.Wanted(); len(w) > 0 {
		t.Errorf("wanted are %v", w)
	}
}

func TestFullDisk(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip(err)
	}
	s := openStore(t, StoreConfig{})
	b := content(1, 1000)
	d := sha256Of(b)
	s.Close()
	if err := os.Symlink("/dev/full", s.partialPath(d)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.partialPath(d)+originSuffix, []byte("registry.test"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.partialPath(d)+hashesSuffix, append(binary.BigEndian.AppendUint64(nil, 1000), make([]byte, 20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, StoreConfig{Dir: s.dir})
	p := partial(t, s, d, len(b))
	if err := p.trust(p.Torrent()); err != nil {
		t.Fatal(err)
	}
	wantErr(t, p.Append(b), syscall.ENOSPC)
	if p.Err() != nil || p.Prefix() != 0 {
		t.Errorf("error %v, prefix %d", p.Err(), p.Prefix())
	}
	p.Fail(syscall.ENOSPC)
	<-p.atRest
	put(t, s, b) // what did not fit has made room
	wantBlob(t, s, d, b)
}

// A disk that takes a file and no more: neither metainfo nor the blob's own name.
func TestDiskFailsAtTheEnd(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 300<<10)
	d := sha256Of(b)
	p := partial(t, s, d, len(b))
	torrents := s.dir + "/torrents"
	if err := os.Remove(torrents); err != nil {
		t.Fatal(err)
	}
	reader := p.NewReader(t.Context(), 0, p.Size())
	defer reader.Close()
	if err := p.Append(b[:1000]); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1000)
	if _, err := io.ReadFull(reader, got); err != nil {
		t.Fatal(err)
	}
	if err := p.Append(b[1000:]); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(reader)
	if got = append(got, rest...); err != nil || !bytes.Equal(got, b) {
		t.Errorf("verified bytes were withheld: %d bytes, %v", len(got), err)
	}
	await(t, p.Done())
	wantErr(t, p.Err(), os.ErrNotExist)
	if err := os.Mkdir(torrents, 0o755); err != nil {
		t.Fatal(err)
	}
	p = partial(t, s, d, len(b))
	await(t, p.Done())
	if p.Err() != nil {
		t.Fatal(p.Err())
	}
	wantBlob(t, s, d, b)
}

func TestNoPartialDirectory(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 1000)
	if err := os.Remove(s.partialDir()); err != nil {
		t.Fatal(err)
	}
	_, err := s.Partial(sha256Of(b), 1000, "registry.test")
	wantErr(t, err, os.ErrNotExist)
	if err := os.Mkdir(s.partialDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, s, b)
}

// Nothing that a Partial opens outlives it, whichever way it ends.
func TestNothingLeaks(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("counts /proc/self/fd")
	}
	s := openStore(t, StoreConfig{})
	b := content(1, 600<<10)
	m := metainfoOf(t, b)
	count := func() (fds, goroutines int) {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list), runtime.NumGoroutine()
	}
	fds, goroutines := count()
	for i := range 50 {
		p := partial(t, s, m.Digest(), len(b))
		r := read(t.Context(), p, 0, 1<<10)
		switch i % 3 {
		case 0:
			if err := p.Append(b[p.Prefix():]); err != nil {
				t.Fatal(err)
			}
			await(t, p.Done())
		case 1:
			if err := p.SetTorrent(m.Torrent()); err != nil {
				t.Fatal(err)
			}
			if err := p.WritePiece(0, pieceOf(m, b, 0)); err != nil {
				t.Fatal(err)
			}
			p.Fail(io.ErrUnexpectedEOF)
		case 2:
			p.Fail(ErrMismatch)
		}
		end(t, r)
		<-p.atRest
		if i%3 == 0 {
			if err := s.Remove(m.Digest()); err != nil {
				t.Fatal(err)
			}
		}
	}
	fdsNow, goroutinesNow := count()
	if fdsNow > fds || goroutinesNow > goroutines+2 { // +2: a timer's and a reader's last breath
		t.Errorf("%d files and %d goroutines, before %d and %d", fdsNow, goroutinesNow, fds, goroutines)
	}
}
