package layers

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"
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
			s = restart(t, s)
			if u := s.Usage(); prefix > 4096 && u.Arriving == 0 {
				t.Error("what arrived is not counted")
			}
			p = partial(t, s, sha256Of(b), len(b))
			if p.Prefix() != int64(prefix) || s.Usage().Arriving != int64(prefix) {
				t.Errorf("prefix is %d, usage %+v, want %d", p.Prefix(), s.Usage(), prefix)
			}
			reader := read(t.Context(), p, 0, p.Size())
			if err := p.Append(b[prefix:]); err != nil {
				t.Fatal(err)
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
	s = restart(t, s)
	p = partial(t, s, m.Digest(), len(b))
	if err := p.SetTorrent(m.Torrent()); err != nil {
		t.Fatal(err)
	}
	await(t, p.Checked())
	if have, _ := p.Pieces(); have != 16 {
		t.Errorf("%d pieces are here, want 16", have)
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

// A crash has damaged what came in order: the digest tells, and the next try is clean.
func TestResumeOfDamagedPrefix(t *testing.T) {
	b := content(1, 1<<20)
	s := openStore(t, StoreConfig{})
	p := partial(t, s, sha256Of(b), len(b))
	if err := p.Append(b[:1<<19]); err != nil {
		t.Fatal(err)
	}
	s.Close()
	damage(t, s.partialPath(sha256Of(b)), 1000)
	s = openStore(t, StoreConfig{Dir: s.dir})
	p = partial(t, s, sha256Of(b), len(b))
	reader := read(t.Context(), p, 0, p.Size())
	if err := p.Append(b[1<<19:]); err != nil {
		t.Fatal(err)
	}
	wantErr(t, end(t, reader).err, ErrMismatch)
	await(t, p.Done())
	wantErr(t, p.Err(), ErrMismatch)
	put(t, s, b)
	wantBlob(t, s, sha256Of(b), b)
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
// for the fuzzer to get anywhere.
func FuzzResume(f *testing.F) {
	const size = 256<<10 + 100
	b := content(1, size)
	m := metainfoOf(f, b)
	f.Add(uint32(0), []byte(nil), uint32(0), []byte(nil), false)
	f.Add(uint32(1000), []byte(nil), uint32(0), []byte(nil), false)
	f.Add(uint32(size), []byte(nil), uint32(0), []byte(nil), false)
	f.Add(uint32(size), []byte{1, 2}, uint32(7), []byte(nil), false)
	f.Add(uint32(size), []byte{1}, uint32(size), []byte(nil), false)
	f.Add(uint32(256<<10), []byte(nil), uint32(0), m.Bytes(), true)
	f.Add(uint32(size), []byte(nil), uint32(0), m.Bytes(), true)
	f.Add(uint32(size), []byte{1, 2}, uint32(256<<10+5), m.Bytes(), true)
	f.Add(uint32(0), []byte{1}, uint32(300<<10), m.Bytes(), true)
	f.Add(uint32(size), []byte(nil), uint32(0), []byte("d4:infodee"), true)
	f.Add(uint32(size), []byte(nil), uint32(0), metainfoOf(f, b[1:]).Bytes(), true)
	f.Add(uint32(size), []byte(nil), uint32(0), newMetainfo(m.Digest(), size, make([]byte, 40)).Bytes(), true)
	log := slog.New(slog.DiscardHandler)
	f.Fuzz(func(t *testing.T, good uint32, over []byte, at uint32, torrent []byte, hasTorrent bool) {
		file := make([]byte, max(int(good%(size+1)), int(at%(size+10))+len(over)))
		copy(file, b[:good%(size+1)])
		copy(file[at%(size+10):], over)
		dir := t.TempDir()
		s, err := OpenStore(StoreConfig{Dir: dir, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		path := s.partialPath(m.Digest())
		if err := os.WriteFile(path, file, 0o644); err != nil {
			t.Fatal(err)
		}
		if hasTorrent {
			if err := os.WriteFile(path+torrentSuffix, torrent, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if s, err = OpenStore(StoreConfig{Dir: dir, Log: log}); err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		p := partial(t, s, m.Digest(), size)
		reader := read(t.Context(), p, 0, size)
		if has := p.Metainfo(); has != nil {
			for i := range has.Pieces() {
				if err := p.WritePiece(i, pieceOf(has, b, i)); err != nil {
					p.Fail(err) // the metainfo is well-formed, and of other bytes
				}
			}
		} else if err := p.Append(b[p.Prefix():]); err != nil {
			wantErr(t, err, ErrMismatch) // all was here, and wrong
		}
		r := end(t, reader)
		if r.err == nil && !bytes.Equal(r.got, b) {
			t.Error("wrong bytes ended cleanly")
		}
		await(t, p.Done())
		if p.Err() == nil {
			wantBlob(t, s, m.Digest(), b)
		} else {
			wantErr(t, p.Err(), ErrMismatch)
			put(t, s, b)
		}
	})
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
