package layers

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"
)

// restart ends s as a crash would, as far as files go, and opens it again.
func restart(t testing.TB, s *Store) *Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return openStore(t, StoreConfig{Dir: s.dir})
}

func TestResumeInOrder(t *testing.T) {
	b := content(1, 1<<20)
	for _, prefix := range []int{0, 1, 256 << 10, 300 << 10, 1<<20 - 1} {
		t.Run(fmt.Sprint(prefix), func(t *testing.T) {
			s := openStore(t, StoreConfig{})
			p := partial(t, s, sha256Of(b), len(b))
			if err := p.Append(b[:prefix]); err != nil {
				t.Fatal(err)
			}
			awaitHashed(t, p, int64(prefix))
			s = restart(t, s)
			if u := s.Usage(); prefix > 4096 && u.Arriving == 0 {
				t.Error("what arrived is not counted")
			}
			kept := int64(prefix) / minPieceLength * minPieceLength
			if begun := s.Begun(sha256Of(b), "registry.test"); begun != kept {
				t.Errorf("begun are %d bytes, want %d", begun, kept)
			}
			p = partial(t, s, sha256Of(b), len(b))
			reader := read(t.Context(), p, 0, p.Size())
			w := &web{b: b}
			if err := w.fill(t, p); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(w.from, []int64{kept}) {
				t.Errorf("the web was asked from %d, want %d", w.from, kept)
			}
			if r := end(t, reader); r.err != nil || !bytes.Equal(r.got, b) {
				t.Errorf("read %d bytes, %v", len(r.got), r.err)
			}
			await(t, p.Done())
			if u := s.Usage(); u.Arriving != 0 || u.Bytes != 1<<20 {
				t.Errorf("usage is %+v", u)
			}
		})
	}
}

// What began in order goes on by pieces after the restart: SetTorrent judges bytes
// that have not been hashed.
func TestResumeInOrderThenByPieces(t *testing.T) {
	b := content(1, 2<<20)
	m := metainfoOf(t, b)
	s := openStore(t, StoreConfig{})
	p := partial(t, s, m.Digest(), len(b))
	if err := p.Append(b[:1<<20+5]); err != nil {
		t.Fatal(err)
	}
	awaitHashed(t, p, 1<<20+5)
	s = restart(t, s)
	p = partial(t, s, m.Digest(), len(b))
	if err := p.SetTorrent(m.Torrent()); err != nil {
		t.Fatal(err)
	}
	await(t, p.Checked())
	if have, _ := p.Pieces(); have != 64 {
		t.Errorf("%d pieces are here, want 64", have)
	}
	writePieces(t, p, m, b)
	await(t, p.Done())
	wantBlob(t, s, m.Digest(), b)
}

func TestResumeByPieces(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 12*pl+100)
	m := metainfoOf(t, b)
	s := openStore(t, StoreConfig{})
	p := partial(t, s, m.Digest(), len(b))
	if err := p.SetTorrent(m.Torrent()); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 1, 5, 6, 12} {
		if err := p.WritePiece(i, pieceOf(m, b, i)); err != nil {
			t.Fatal(err)
		}
	}
	// Chunks of a piece that was never whole.
	if _, err := p.WriteAt(b[9*pl:9*pl+pl/2], 9*pl); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// The crash has eaten a part of piece 6.
	damage(t, s.partialPath(m.Digest()), 6*pl+100)
	s = openStore(t, StoreConfig{Dir: s.dir})
	p = partial(t, s, m.Digest(), len(b))
	if p.Metainfo() == nil || p.Metainfo().InfoHash() != m.InfoHash() {
		t.Fatal("metainfo is lost")
	}
	reader := read(t.Context(), p, 0, p.Size())
	await(t, p.Checked())
	for i := range m.Pieces() {
		if got, want := p.PieceHave(i), i == 0 || i == 1 || i == 5 || i == 12; got != want {
			t.Errorf("PieceHave(%d) = %v", i, got)
		}
	}
	if p.Received() != 3*pl+100 || p.Prefix() != 2*pl || s.Usage().Arriving != 3*pl+100 {
		t.Errorf("received %d, prefix %d, usage %+v", p.Received(), p.Prefix(), s.Usage())
	}
	writePieces(t, p, m, b)
	if r := end(t, reader); r.err != nil || !bytes.Equal(r.got, b) {
		t.Errorf("read %d bytes, %v", len(r.got), r.err)
	}
	await(t, p.Done())
	wantBlob(t, s, m.Digest(), b)
}

// A crash has damaged what came in order: the damaged piece is fetched again, and nobody
// gets to see it.
func TestResumeOfDamagedPrefix(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 1<<20)
	for _, torrent := range []bool{false, true} {
		t.Run(fmt.Sprint(torrent), func(t *testing.T) {
			s := openStore(t, StoreConfig{})
			p := partial(t, s, sha256Of(b), len(b))
			if err := p.Append(b[:1<<19]); err != nil {
				t.Fatal(err)
			}
			awaitHashed(t, p, 1<<19)
			s.Close()
			damage(t, s.partialPath(sha256Of(b)), pl+1000)
			s = openStore(t, StoreConfig{Dir: s.dir})
			p = partial(t, s, sha256Of(b), len(b))
			reader := read(t.Context(), p, 0, p.Size())
			if torrent {
				mustSet(t, p, metainfoOf(t, b).Torrent())
			}
			w := &web{b: b}
			if err := w.fill(t, p); err != nil {
				t.Fatal(err)
			}
			if r := end(t, reader); r.err != nil || !bytes.Equal(r.got, b) {
				t.Errorf("read %d bytes, %v", len(r.got), r.err)
			}
			if w.from[0] != pl {
				t.Errorf("the web was asked from %d", w.from)
			}
			await(t, p.Done())
			wantBlob(t, s, sha256Of(b), b)
		})
	}
}

// A seeder is still fetching the blob when this host ends, or is killed: what had come by
// then is not fetched again, whichever way the rest comes.
func TestResumeFromColdSwarm(t *testing.T) {
	const pl = minPieceLength
	b := content(1, 800*pl)
	for _, end := range []string{"closed", "killed"} {
		for _, way := range []string{"web", "growing", "named"} {
			t.Run(end+" "+way, func(t *testing.T) {
				tr, m := newTorrent(t, b)
				s := openStore(t, StoreConfig{})
				p := partial(t, s, m.Digest(), len(b))
				mustSet(t, p, tr)
				mustAdd(t, tr, hashesOf(m, 0, 400))
				for i := range 400 {
					if i%10 != 3 { // pieces come in any order
						mustWrite(t, p, m, b, i)
					}
				}
				noted := s.partialPath(m.Digest()) + hashesSuffix
				for stop := time.Now().Add(timeout); len(hashesAt(noted)) == 0; runtime.Gosched() {
					if time.Now().After(stop) {
						t.Fatal("no hashes are noted")
					}
				}
				if end == "closed" {
					s = restart(t, s)
				} else {
					s = crash(t, s)
				}
				p = partial(t, s, m.Digest(), len(b))
				w := &web{b: b}
				switch way {
				case "growing":
					again, _ := newTorrent(t, b)
					mustSet(t, p, again)
					mustAdd(t, again, hashesOf(m, 0, 80))
					if !p.Unjudged(200) {
						t.Error("a piece whose hash is to come is given up")
					}
					mustAdd(t, again, hashesOf(m, 80, 800))
				case "named":
					named := NamedTorrent(m.Digest(), m.Size(), m.InfoHash())
					mustSet(t, p, named)
					if err := named.SetInfo(m.InfoBytes()); err != nil {
						t.Fatal(err)
					}
				}
				for way != "web" && p.Unjudged(399) {
					await(t, p.Progress())
				}
				if err := w.fill(t, p); err != nil {
					t.Fatal(err)
				}
				// Holes of one piece are fetched as one with what lies between them, see gapMerge;
				// written is only what was missing.
				if w.from[0] != 3*pl {
					t.Errorf("the web was asked from %d", w.from[0])
				}
				wantWhole(t, s, p, b)
			})
		}
	}
}

func hashesAt(path string) []byte {
	_, hashes := readNoted(path)
	return hashes
}

func damage(t testing.TB, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0]++
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// Whatever lies under partial/, the blob becomes right, or is found wrong. The file is
// the blob's first bytes with others over them; given as a whole it would be too large
// for the fuzzer to get anywhere. beside is what its pieces are judged by: nothing,
// metainfo, hashes or all of these.
func FuzzResume(f *testing.F) {
	const size = 128<<10 + 100
	b := content(1, size)
	m := metainfoOf(f, b)
	f.Add(uint32(0), []byte(nil), uint32(0), []byte(nil), uint8(0))
	f.Add(uint32(1000), []byte(nil), uint32(0), []byte(nil), uint8(0))
	f.Add(uint32(size), []byte(nil), uint32(0), []byte(nil), uint8(0))
	f.Add(uint32(size), []byte{1, 2}, uint32(7), []byte(nil), uint8(0))
	f.Add(uint32(size), []byte{1}, uint32(size), []byte(nil), uint8(0))
	f.Add(uint32(128<<10), []byte(nil), uint32(0), m.Bytes(), uint8(1))
	f.Add(uint32(size), []byte(nil), uint32(0), m.Bytes(), uint8(1))
	f.Add(uint32(size), []byte{1, 2}, uint32(128<<10+5), m.Bytes(), uint8(1))
	f.Add(uint32(0), []byte{1}, uint32(120<<10), m.Bytes(), uint8(1))
	f.Add(uint32(size), []byte(nil), uint32(0), []byte("d4:infodee"), uint8(1))
	f.Add(uint32(size), []byte(nil), uint32(0), metainfoOf(f, b[1:]).Bytes(), uint8(1))
	f.Add(uint32(size), []byte(nil), uint32(0), newMetainfo(m.Digest(), size, make([]byte, 60)).Bytes(), uint8(1))
	hashes := append(binary.BigEndian.AppendUint64(nil, size), m.hashes...)
	f.Add(uint32(size), []byte(nil), uint32(0), hashes, uint8(2))
	f.Add(uint32(size), []byte{1, 2}, uint32(7), hashes, uint8(2))
	f.Add(uint32(100<<10), []byte{1, 2}, uint32(110<<10), hashes[:8+20+7], uint8(2))
	f.Add(uint32(size), []byte(nil), uint32(0), append(binary.BigEndian.AppendUint64(nil, size+1), m.hashes...), uint8(2))
	f.Add(uint32(size), []byte(nil), uint32(0), append(binary.BigEndian.AppendUint64(nil, 1<<63), m.hashes...), uint8(2))
	f.Add(uint32(size), []byte(nil), uint32(0), append(slices.Clone(hashes), 1, 2, 3), uint8(3))
	s, err := OpenStore(StoreConfig{Dir: ramDir(f), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	f.Fuzz(func(t *testing.T, good uint32, over []byte, at uint32, torrent []byte, beside uint8) {
		file := make([]byte, max(int(good%(size+1)), int(at%(size+10))+len(over)))
		copy(file, b[:good%(size+1)])
		copy(file[at%(size+10):], over)
		lies := map[string][]byte{"": file, originSuffix: []byte("registry.test")}
		for bit, suffix := range []string{torrentSuffix, hashesSuffix} {
			if beside>>bit&1 != 0 {
				lies[suffix] = torrent
			}
		}
		for suffix, content := range lies {
			if err := os.WriteFile(s.partialPath(m.Digest())+suffix, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.loadPartials(); err != nil { // as a start does; a whole one for each input would be most of the work
			t.Fatal(err)
		}
		p := partial(t, s, m.Digest(), size)
		reader := read(t.Context(), p, 0, size)
		if has := p.Metainfo(); has != nil {
			for i := range has.Pieces() {
				if err := p.WritePiece(i, pieceOf(has, b, i)); err != nil {
					p.Fail(err) // the metainfo is well-formed, and of other bytes
				}
			}
		} else if err := (&web{b: b}).fill(t, p); err != nil {
			wantErr(t, err, ErrMismatch) // hashes of other bytes, that were here
			p.Fail(err)
		}
		r := end(t, reader)
		if r.err == nil && !bytes.Equal(r.got, b) {
			t.Error("wrong bytes ended cleanly")
		}
		await(t, p.Done())
		await(t, p.atRest)
		if p.Err() == nil {
			wantBlob(t, s, m.Digest(), b)
		} else {
			wantErr(t, p.Err(), ErrMismatch)
			put(t, s, b)
		}
		if err := s.Remove(m.Digest()); err != nil {
			t.Fatal(err)
		}
		if left := files(t, s.partialDir()); len(left) > 0 || s.Usage().Arriving != 0 {
			t.Errorf("%v are left, and %d bytes counted", left, s.Usage().Arriving)
		}
	})
}

// ramDir is a folder where fsync costs nothing, if this machine has one.
func ramDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "murder-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Bytes of a body on their way to a whole, hashed, named blob.
func BenchmarkAppend(b *testing.B) {
	const size = 256 << 20
	blob := content(1, size)
	d := sha256Of(blob)
	s := openStore(b, StoreConfig{})
	b.SetBytes(size)
	for b.Loop() {
		p := partial(b, s, d, size)
		for off := 0; off < size; off += 128 << 10 {
			if err := p.Append(blob[off : off+128<<10]); err != nil {
				b.Fatal(err)
			}
		}
		<-p.Done()
		if err := p.Err(); err != nil {
			b.Fatal(err)
		}
		if err := s.Remove(d); err != nil {
			b.Fatal(err)
		}
	}
}

// What is half done is not verified, and may be private: who comes by another registry
// gets none of it.
func TestRestOfAnotherOrigin(t *testing.T) {
	b := content(1, 1<<20)
	d := sha256Of(b)
	for name, again := range map[string]func(s *Store, p *Partial) *Store{
		"failed":  func(s *Store, p *Partial) *Store { p.Fail(os.ErrDeadlineExceeded); <-p.atRest; return s },
		"restart": func(s *Store, _ *Partial) *Store { return restart(t, s) },
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, StoreConfig{})
			p := partial(t, s, d, len(b))
			if err := p.Append(b[:1000]); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Partial(d, int64(len(b)), "evil.test"); !errors.Is(err, ErrSize) {
				t.Errorf("another origin while it arrives: %v, want %v", err, ErrSize)
			}
			s = again(s, p)
			p, err := s.Partial(d, int64(len(b)), "evil.test")
			if err != nil {
				t.Fatal(err)
			}
			if p.Received() != 0 || p.Prefix() != 0 {
				t.Errorf("another origin goes on with %d bytes", p.Received())
			}
			p.Fail(os.ErrDeadlineExceeded)
			<-p.atRest
		})
	}
}
