package layers

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"io"
	"strings"
	"testing"
)

var errGone = errors.New("the seeder is gone")

// newTorrent returns a torrent of b's that knows no hash, and b's metainfo.
func newTorrent(t testing.TB, b []byte) (*Torrent, *Metainfo) {
	t.Helper()
	m := metainfoOf(t, b)
	return NewTorrent(m.Digest(), m.Size(), InfoHash{1}), m
}

// hashesOf returns those of the pieces [from, to).
func hashesOf(m *Metainfo, from, to int) []byte {
	return m.hashes[from*sha1.Size : to*sha1.Size]
}

func mustAdd(t testing.TB, tr *Torrent, hashes []byte) {
	t.Helper()
	if err := tr.Add(hashes); err != nil {
		t.Fatal(err)
	}
}

// Hash by hash, a torrent becomes what the metainfo of the whole blob is.
func TestTorrentGrows(t *testing.T) {
	tr, m := newTorrent(t, content(1, 2<<20+1))
	n := m.Pieces()
	if tr.Pieces() != n || tr.PieceLength() != m.PieceLength() || tr.PieceSize(n-1) != 1 || tr.Size() != m.Size() || tr.Digest() != m.Digest() {
		t.Error("the torrent is cut otherwise than the metainfo")
	}
	if ih, ok := tr.Draft(); !ok || ih != (InfoHash{1}) {
		t.Errorf("Draft = %v, %v", ih, ok)
	}
	for i := range n {
		if _, known := tr.Piece(i); known || tr.Known() != i || tr.Metainfo() != nil {
			t.Fatalf("%d hashes known, want %d", tr.Known(), i)
		}
		changed := tr.Changed()
		mustAdd(t, tr, hashesOf(m, i, i+1))
		await(t, changed)
		if sum, known := tr.Piece(i); !known || sum != m.Piece(i) {
			t.Errorf("Piece(%d) = %x, %v", i, sum, known)
		}
	}
	if got := tr.Metainfo(); got == nil || !bytes.Equal(got.Bytes(), m.Bytes()) || got.InfoHash() != m.InfoHash() {
		t.Error("complete, it has other metainfo")
	}
	if tr.Fail(errGone); tr.Err() != nil {
		t.Error("it failed after it was complete")
	}
}

func TestTorrentRefuses(t *testing.T) {
	tr, m := newTorrent(t, content(1, 2<<20))
	n := m.Pieces()
	mustAdd(t, tr, hashesOf(m, 0, 1))
	for _, hashes := range [][]byte{make([]byte, 19), hashesOf(m, 0, n), make([]byte, (n+1)*sha1.Size)} {
		if err := tr.Add(hashes); err == nil || tr.Known() != 1 {
			t.Errorf("Add(%d bytes) = %v, %d hashes known", len(hashes), err, tr.Known())
		}
	}
	for _, i := range []int{-1, 1, n} {
		if _, known := tr.Piece(i); known {
			t.Errorf("piece %d is known", i)
		}
	}
	changed := tr.Changed()
	tr.Fail(errGone)
	tr.Fail(io.EOF)
	await(t, changed)
	wantErr(t, tr.Err(), errGone)
	wantErr(t, tr.Add(hashesOf(m, 1, n)), errGone)
	if tr.Metainfo() != nil {
		t.Error("it was completed after it failed")
	}
}

func TestTorrentThatIsComplete(t *testing.T) {
	m := metainfoOf(t, content(1, 2<<20))
	tr := m.Torrent()
	if _, ok := tr.Draft(); ok || tr.Metainfo() != m || tr.Known() != m.Pieces() || tr.Add(nil) != nil {
		t.Error("a metainfo's torrent is not complete")
	}
	if empty, m := newTorrent(t, nil); empty.Metainfo() == nil || empty.Metainfo().InfoHash() != m.InfoHash() {
		t.Error("the empty blob's torrent waits for hashes")
	}
}

// flushed is a torrent file on its way: what was not flushed does not get through.
type flushed struct {
	buf bytes.Buffer
	*io.PipeWriter
}

func (f *flushed) Write(b []byte) (int, error) { return f.buf.Write(b) }

func (f *flushed) Flush() { f.buf.WriteTo(f.PipeWriter) }

// stream writes from to a reader of the torrent that it returns.
func stream(t *testing.T, from *Torrent) (to *Torrent, file *bytes.Buffer, read <-chan error) {
	t.Helper()
	to, file = NewTorrent(from.Digest(), from.Size(), InfoHash{1}), new(bytes.Buffer)
	r, w := io.Pipe()
	errs := make(chan error, 1)
	go func() {
		f := &flushed{PipeWriter: w}
		err := from.WriteTo(t.Context(), f)
		f.Flush()
		w.CloseWithError(err)
	}()
	go func() { errs <- ReadTorrent(to, io.TeeReader(r, file)) }()
	return to, file, errs
}

// Who reads the file of a torrent knows each hash soon after its writer does, and in the
// end has the very file that would have been made of the whole blob.
func TestTorrentFileAsItGrows(t *testing.T) {
	from, m := newTorrent(t, content(1, 2<<20+1))
	to, file, read := stream(t, from)
	for n, all := 0, m.Pieces(); n < all; {
		next := min(n+all/3, all)
		mustAdd(t, from, hashesOf(m, n, next))
		for changed := to.Changed(); to.Known() < next; changed = to.Changed() {
			await(t, changed)
		}
		n = next
	}
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	if to.Metainfo() == nil || to.Metainfo().InfoHash() != m.InfoHash() || !bytes.Equal(file.Bytes(), m.Bytes()) {
		t.Error("what was read is another torrent")
	}
	if parsed, err := ParseMetainfo(file.Bytes()); err != nil || parsed.InfoHash() != m.InfoHash() {
		t.Errorf("ParseMetainfo = %v, %v", parsed, err)
	}
}

func TestTorrentFileOfWhole(t *testing.T) {
	for _, size := range []int{0, 1, 600 << 10} {
		from := metainfoOf(t, content(1, size)).Torrent()
		to, file, read := stream(t, from)
		if err := <-read; err != nil || to.Metainfo() == nil || !bytes.Equal(file.Bytes(), from.Metainfo().Bytes()) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// A torrent that fails does not look like one that is whole.
func TestTorrentFileEndsWithTheTorrent(t *testing.T) {
	from, m := newTorrent(t, content(1, 2<<20))
	to, _, read := stream(t, from)
	mustAdd(t, from, hashesOf(m, 0, m.Pieces()-1))
	from.Fail(errGone)
	wantErr(t, <-read, errGone)
	wantErr(t, to.Err(), errGone)
	if to.Metainfo() != nil {
		t.Error("a torrent that failed is complete")
	}
	ctx, cancel := context.WithCancel(t.Context())
	from, _ = newTorrent(t, content(1, 2<<20))
	done := make(chan error, 1)
	go func() { done <- from.WriteTo(ctx, io.Discard) }()
	cancel()
	wantErr(t, <-done, context.Canceled)
}

func TestReadTorrentRefuses(t *testing.T) {
	b := content(1, 600<<10)
	m := metainfoOf(t, b)
	good := string(m.Bytes())
	replace := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	for _, in := range []string{
		"", good[:10], good[:len(good)-30], good[:len(good)-1], good + "e",
		"d8:announce17:http://t/announce" + good[1:],
		replace("7:privatei1e", "7:privatei0e"),
		replace("6:lengthi614400e", "6:lengthi614401e"),
		replace("6:lengthi", "6:lengthi0"),
		replace("71:sha256-", "71:sha512-"),
		string(metainfoOf(t, content(2, 600<<10)).Bytes()),
	} {
		if in == good {
			t.Fatal("nothing was replaced")
		}
		tr := NewTorrent(m.Digest(), m.Size(), InfoHash{})
		err := ReadTorrent(tr, strings.NewReader(in))
		if err == nil || tr.Err() != err || tr.Metainfo() != nil {
			t.Errorf("ReadTorrent(%.80q) = %v, torrent has %v", in, err, tr.Err())
		}
	}
	for _, size := range []int64{1 << 62, 1<<63 - 1, maxMetainfo * maxPieceLength} {
		tr := NewTorrent(m.Digest(), size, InfoHash{})
		if err := ReadTorrent(tr, unreadable{t}); err == nil {
			t.Errorf("a torrent of %d bytes was read", size)
		}
	}
}

// unreadable is not to be read.
type unreadable struct{ t *testing.T }

func (r unreadable) Read([]byte) (int, error) {
	r.t.Error("it was read, as long as it may be")
	return 0, io.EOF
}

func FuzzReadTorrent(f *testing.F) {
	m := metainfoOf(f, content(1, 600<<10))
	f.Add(m.Bytes(), 1)
	f.Add(m.Bytes()[:len(m.Bytes())-1], 7)
	f.Add(append(bytes.Clone(m.Bytes()), 'e'), 100)
	f.Add([]byte("d4:infod6:lengthi614400e4:name"), 3)
	f.Fuzz(func(t *testing.T, b []byte, step int) {
		tr := NewTorrent(m.Digest(), m.Size(), InfoHash{})
		err := ReadTorrent(tr, &steps{b: b, step: max(1, step)})
		if whole := tr.Metainfo(); (whole == nil) != (err != nil) {
			t.Fatalf("ReadTorrent = %v, complete is %v", err, whole != nil)
		} else if err == nil && !bytes.Equal(whole.Bytes(), b) {
			t.Error("what was taken is not what is written for it")
		}
		if head := torrentHead(m.Digest(), m.Size()); tr.Known() > 0 && !bytes.HasPrefix(b, append(head, tr.known()...)) {
			t.Error("hashes are known that were not read")
		}
	})
}

// steps reads a few bytes at a time.
type steps struct {
	b    []byte
	step int
}

func (s *steps) Read(b []byte) (int, error) {
	n := copy(b[:min(len(b), s.step)], s.b)
	s.b = s.b[n:]
	if n == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return n, nil
}
