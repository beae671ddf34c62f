package layers

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
)

// Many read random sections while pieces arrive in random order, by chunks and whole,
// several times and with lies among them.
func TestReadersOfRandomSections(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 6<<20+333)
	m := metainfoOf(t, b)
	p := partial(t, s, m.Digest(), len(b))
	// Some of it came in order before.
	if err := p.Append(b[:1<<20+99]); err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	for range 24 {
		off := rand.Int64N(p.Size() + 1)
		n := rand.Int64N(p.Size() - off + 1)
		readers.Go(func() {
			r := p.NewReader(t.Context(), off, n)
			defer r.Close()
			var got bytes.Buffer
			var err error
			if n%2 == 0 {
				_, err = r.(io.WriterTo).WriteTo(&got)
			} else {
				_, err = got.ReadFrom(struct{ io.Reader }{r})
			}
			if err != nil || !bytes.Equal(got.Bytes(), b[off:off+n]) {
				t.Errorf("section of %d bytes at %d: %d bytes, %v", n, off, got.Len(), err)
			}
		})
	}
	if err := p.SetTorrent(m.Torrent()); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() {
			for _, i := range rand.Perm(m.Pieces()) {
				from, to := pieceSpan(m.Size(), i)
				var err error
				if w == 0 && i != p.tailPiece() {
					// Only one of them may be a swarm, and its lies are found out.
					_, err = p.WriteAt(make([]byte, to-from), from)
				}
				if err == nil {
					err = p.WritePiece(i, b[from:to])
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	readers.Wait()
	await(t, p.Done())
	wantBlob(t, s, m.Digest(), b)
}

// tailPiece is the piece that was begun by Append, or -1.
func (p *Partial) tailPiece() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tail == nil {
		return -1
	}
	return p.tail.piece
}

// The last byte of a section stays here until it is known that all of it is right.
func TestLastByteIsHeldBack(t *testing.T) {
	const pl = minPieceLength
	s := openStore(t, StoreConfig{})
	b := content(1, 3*pl)
	m := metainfoOf(t, b)
	allowed := func(p *Partial, off, n int64) int64 {
		t.Helper()
		r := p.NewReader(t.Context(), off, n).(*reader)
		defer r.Close()
		got, _, err := r.ready(1 << 30)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	check := func(p *Partial, off, n, want int64) {
		t.Helper()
		if got := allowed(p, off, n); got != want {
			t.Errorf("%d bytes of section of %d at %d may go, want %d", got, n, off, want)
		}
	}
	p := partial(t, s, m.Digest(), len(b))
	if err := p.Append(b[:pl+100]); err != nil {
		t.Fatal(err)
	}
	check(p, 0, 3*pl, pl+100)
	check(p, 0, pl+100, pl+99)
	check(p, 0, 100, 99)
	check(p, 5, 1, 0)
	check(p, pl+100, 1, 0)
	seen := p.NewReader(t.Context(), pl-50, 100).(*reader)
	defer seen.Close()
	if _, err := io.ReadFull(seen, make([]byte, 99)); err != nil {
		t.Fatal(err)
	}

	if err := p.SetTorrent(m.Torrent()); err != nil {
		t.Fatal(err)
	}
	await(t, p.Checked())
	check(p, 0, 3*pl, pl)
	check(p, 0, 100, 100)
	check(p, 0, pl, pl)
	check(p, pl, 50, 0)
	checkSeen := func(want int64) {
		t.Helper()
		if n, _, err := seen.ready(10); n != want || err != nil {
			t.Errorf("%d bytes may go at the end of what was read unverified, %v, want %d", n, err, want)
		}
	}
	checkSeen(0)
	// Piece 1 is found right before piece 0 has been looked at, though it was read.
	p.mu.Lock()
	p.have.clear(0)
	p.mu.Unlock()
	if err := p.WritePiece(1, b[pl:2*pl]); err != nil {
		t.Fatal(err)
	}
	checkSeen(0)
	p.mu.Lock()
	p.have.set(0)
	p.mu.Unlock()
	checkSeen(1)
	if err := p.WritePiece(2, b[2*pl:]); err != nil {
		t.Fatal(err)
	}
	await(t, p.Verified())
	check(p, 0, 3*pl, 3*pl)
}

// The last byte of the blob waits for the whole digest, also when its piece is right.
func TestLastByteOfBlobWaitsForDigest(t *testing.T) {
	const pl = minPieceLength
	s := openStore(t, StoreConfig{})
	b := content(1, 2*pl)
	m := metainfoOf(t, b)
	p := partial(t, s, m.Digest(), len(b))
	if err := p.SetTorrent(m.Torrent()); err != nil {
		t.Fatal(err)
	}
	if err := p.WritePiece(1, b[pl:]); err != nil {
		t.Fatal(err)
	}
	r := p.NewReader(t.Context(), 2*pl-10, 10)
	defer r.Close()
	if n, err := r.Read(make([]byte, 100)); n != 9 || err != nil {
		t.Errorf("Read = %d, %v, want 9 bytes", n, err)
	}
	if n, _, err := r.(*reader).ready(10); n != 0 || err != nil {
		t.Errorf("last byte may go: %d, %v", n, err)
	}
	if err := p.WritePiece(0, b[:pl]); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, b[2*pl-1:]) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

func TestReaderEnds(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 1000)
	p := partial(t, s, sha256Of(b), len(b))
	if err := p.Append(b[:10]); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	waiting := read(ctx, p, 0, 1000)
	for {
		changed := p.WantedChanged()
		if w := p.Wanted(); len(w) == 1 && w[0] == 10 {
			break
		}
		await(t, changed)
	}
	cancel()
	r := end(t, waiting)
	wantErr(t, r.err, context.Canceled)
	if !bytes.Equal(r.got, b[:10]) {
		t.Errorf("got %d bytes before", len(r.got))
	}
	if len(p.Wanted()) > 0 {
		t.Error("still wanted after the reader's end")
	}
	for _, section := range [][2]int64{{-1, 1}, {0, -1}, {0, 1001}, {1001, 0}, {1, 1 << 62}} {
		if r := end(t, read(t.Context(), p, section[0], section[1])); r.err == nil {
			t.Errorf("section %v is read", section)
		}
	}
	closed := p.NewReader(t.Context(), 0, 10)
	for range 2 {
		if err := closed.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := closed.Read(b); err == nil {
		t.Error("read after Close")
	}
}

// A reader may come, or first read, after the blob has got its name, and holds it.
func TestReaderOfWholeBlob(t *testing.T) {
	b := content(1, 100<<10)
	s := openStore(t, StoreConfig{Limit: 150 << 10})
	p := partial(t, s, sha256Of(b), len(b))
	early := p.NewReader(t.Context(), 0, p.Size())
	if err := p.Append(b); err != nil {
		t.Fatal(err)
	}
	await(t, p.Done())
	<-p.atRest
	put(t, s, content(2, 100<<10))
	put(t, s, content(3, 100<<10))
	late := p.NewReader(t.Context(), 0, p.Size())
	for _, r := range []io.ReadCloser{early, late} {
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, b) {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
	}
	early.Close()
	put(t, s, content(4, 100<<10))
	if _, ok := s.Stat(sha256Of(b)); !ok {
		t.Error("evicted below a reader")
	}
	late.Close()
	put(t, s, content(5, 100<<10))
	put(t, s, content(6, 100<<10))
	if _, ok := s.Stat(sha256Of(b)); ok {
		t.Error("not evicted when nobody reads it")
	}
	if _, err := io.ReadAll(p.NewReader(t.Context(), 0, p.Size())); err == nil {
		t.Error("evicted blob is read")
	}
}

// A TCP connection takes what arrives by sendfile, a piece at a time.
func TestReaderToConnection(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 6<<20)
	m := metainfoOf(t, b)
	p := partial(t, s, m.Digest(), len(b))
	if err := p.SetTorrent(m.Torrent()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var serving sync.WaitGroup
	defer serving.Wait()
	serving.Go(func() {
		conn, err := l.Accept()
		if err == nil {
			r := p.NewReader(t.Context(), 5, p.Size()-5)
			_, err = io.Copy(conn, r)
			r.Close()
			conn.Close()
		}
		if err != nil {
			t.Error(err)
		}
	})
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	received := make(chan result, 1)
	serving.Go(func() {
		got, err := io.ReadAll(conn)
		received <- result{got, err}
	})
	writePieces(t, p, m, b)
	if r := end(t, received); r.err != nil || !bytes.Equal(r.got, b[5:]) {
		t.Errorf("received %d bytes, %v", len(r.got), r.err)
	}
	await(t, p.Done())
}

// The file vanishes below a reader: no clean end.
func TestReaderOfTruncatedFile(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 2<<20)
	p := partial(t, s, sha256Of(b), len(b))
	if err := p.Append(b[:1<<20]); err != nil {
		t.Fatal(err)
	}
	awaitHashed(t, p, 1<<20)
	if err := os.Truncate(s.partialPath(p.Digest()), 1000); err != nil {
		t.Fatal(err)
	}
	if r := end(t, read(t.Context(), p, 0, 1<<20)); r.err == nil || len(r.got) > 1000 {
		t.Errorf("read %d bytes, %v", len(r.got), r.err)
	}
}
