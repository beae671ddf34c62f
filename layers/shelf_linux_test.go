package layers

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"
)

// shelfWith is a registry's folder that has the blobs, under their digests.
func shelfWith(t testing.TB, blobs ...[]byte) *Shelf {
	t.Helper()
	sh := RegistryShelf(t.TempDir())
	if err := os.MkdirAll(filepath.Join(sh.dir, sh.base), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		shelve(t, sh, sha256Of(b), b)
	}
	return sh
}

// shelve puts a blob on the shelf as its owner does, and returns its file.
func shelve(t testing.TB, sh *Shelf, d digest.Digest, b []byte) string {
	t.Helper()
	path := filepath.Join(sh.dir, sh.base, sh.path(d))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".part", b, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".part", path); err != nil {
		t.Fatal(err)
	}
	return path
}

// fromShelf begins the blob as one that arrives.
func fromShelf(t testing.TB, s *Store, d digest.Digest) *Partial {
	t.Helper()
	held := s.OnShelf(d)
	if held == nil {
		t.Fatalf("%s is not on the shelf", d)
	}
	p, err := held.Partial("registry.test")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// takeIn has all of a blob of the shelf verified.
func takeIn(t testing.TB, s *Store, d digest.Digest) {
	t.Helper()
	p := fromShelf(t, s, d)
	await(t, p.Done())
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	<-p.atRest
}

// snapshot is all that can be seen of a folder from outside.
func snapshot(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		b.WriteString(path + " " + fi.Mode().String() + " " + changedAt(fi).String() + " " + fi.ModTime().String() + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A blob on the shelf is read, hashed and shared where it lies: the store keeps its metainfo
// and nothing else, and nothing changes on the shelf. After a restart it need not be hashed
// as a whole again.
func TestShelfIsSharedFromWhereItLies(t *testing.T) {
	blob := content(1, 5*minPieceLength+77)
	d := sha256Of(blob)
	sh := shelfWith(t, blob)
	before := snapshot(t, sh.dir)
	s := openStore(t, StoreConfig{Shelf: sh, Limit: 1})

	p := fromShelf(t, s, d)
	grows := p.Hashes(InfoHash{1})
	r := p.NewReader(t.Context(), 0, p.Size())
	got, err := io.ReadAll(r)
	r.Close()
	if err != nil || !bytes.Equal(got, blob) {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
	await(t, p.Done())
	<-p.atRest
	if m := grows.Metainfo(); m == nil || m.InfoHash() != metainfoOf(t, blob).InfoHash() {
		t.Error("its torrent is not that of its bytes")
	}
	if u := s.Usage(); u.Bytes != 0 || u.Arriving != 0 || u.Shelved != int64(len(blob)) {
		t.Errorf("usage %+v, want all of it on the shelf", u)
	}
	for _, through := range []bool{true, false} {
		if got, err := serve(t, s, d, 100, 3*minPieceLength, through); err != nil || !bytes.Equal(got, blob[100:100+3*minPieceLength]) {
			t.Errorf("served %d bytes, %v", len(got), err)
		}
	}
	for _, f := range files(t, s.dir) {
		if strings.HasPrefix(f, "blobs/") || strings.HasPrefix(f, "partial/") {
			t.Errorf("the store has %s", f)
		}
	}
	if s.OnShelf(d) == nil {
		t.Error("it is not on the shelf any more")
	}
	s.Close()

	s = openStore(t, StoreConfig{Dir: s.dir, Shelf: sh})
	if got, err := serve(t, s, d, 0, int64(len(blob)), true); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("after a restart: %d bytes, %v", len(got), err)
	}
	if after := snapshot(t, sh.dir); after != before {
		t.Errorf("the shelf has changed:\n%s\nwas\n%s", after, before)
	}
}

// What lies under a digest on the shelf and has other bytes is given to nobody, and then
// not looked for again, so that the blob is fetched.
func TestShelfWithWrongBytes(t *testing.T) {
	blob := content(2, 3*minPieceLength)
	d := sha256Of(blob)
	wrong := bytes.Clone(blob)
	wrong[minPieceLength+5]++
	sh := shelfWith(t)
	shelve(t, sh, d, wrong)
	s := openStore(t, StoreConfig{Shelf: sh})
	p := fromShelf(t, s, d)
	r := p.NewReader(t.Context(), 0, p.Size())
	defer r.Close()
	got, err := io.ReadAll(r)
	wantErr(t, err, ErrMismatch)
	if len(got) == len(blob) {
		t.Error("all bytes were given out")
	}
	<-p.atRest
	if _, ok := s.Stat(d); ok || s.OnShelf(d) != nil {
		t.Error("it is still on offer")
	}
	put(t, s, blob) // from elsewhere
	wantBlob(t, s, d, blob)
}

// harms are what may happen to a file on the shelf while it is served. bytes of it change
// when rewrites.
var harms = map[string]struct {
	do       func(t *testing.T, path string, blob []byte)
	rewrites bool
}{
	"overwritten": {func(t *testing.T, path string, blob []byte) { rewrite(t, path, blob) }, true},
	"overwritten, times set back": {func(t *testing.T, path string, blob []byte) {
		fi, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		rewrite(t, path, blob)
		if err := os.Chtimes(path, fi.ModTime(), fi.ModTime()); err != nil {
			t.Fatal(err)
		}
	}, true},
	"truncated": {func(t *testing.T, path string, _ []byte) {
		if err := os.Truncate(path, 2*minPieceLength+1); err != nil {
			t.Fatal(err)
		}
	}, true},
	"deleted": {func(t *testing.T, path string, _ []byte) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}, false},
	"swapped by a symlink": {func(t *testing.T, path string, blob []byte) {
		elsewhere := filepath.Join(t.TempDir(), "blob")
		if err := errors.Join(os.WriteFile(elsewhere, bytes.Repeat([]byte{1}, len(blob)), 0o644), os.Remove(path), os.Symlink(elsewhere, path)); err != nil {
			t.Fatal(err)
		}
	}, false},
	"swapped by a pipe": {func(t *testing.T, path string, _ []byte) {
		if err := errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o644)); err != nil {
			t.Fatal(err)
		}
	}, false},
}

// rewrite changes all of a file in place.
func rewrite(t *testing.T, path string, blob []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, len(blob)), 0); err != nil {
		t.Fatal(err)
	}
}

// A file of the shelf comes to harm in the middle of an answer, whole blob or one that is
// just being hashed: the client gets right bytes, and either all of them or an error. After
// that the blob is not on offer.
func TestShelfComesToHarm(t *testing.T) {
	blob := content(3, 40*minPieceLength)
	d := sha256Of(blob)
	const head = minPieceLength + 3
	for name, harm := range harms {
		for _, whole := range []bool{true, false} {
			for _, through := range []bool{true, false} {
				sh := shelfWith(t, blob)
				path := filepath.Join(sh.dir, sh.base, sh.path(d))
				s := openStore(t, StoreConfig{Shelf: sh})
				var c *Content
				if whole {
					takeIn(t, s, d)
					b, err := s.Open(d)
					if err != nil {
						t.Fatal(err)
					}
					c = b.Content()
				} else {
					c = fromShelf(t, s, d).Content()
				}
				section := c.Section(t.Context(), 0, int64(len(blob)))
				got := make([]byte, head)
				if _, err := io.ReadFull(section, got); err != nil {
					t.Fatal(err)
				}
				harm.do(t, path, blob)
				var rest bytes.Buffer
				if through {
					section = struct{ io.Reader }{section}
					if b, err := s.Open(d); err == nil { // somebody else notices first, if there is something to notice
						b.Close()
					}
				}
				_, err := io.Copy(&rest, section)
				c.Close()
				got = append(got, rest.Bytes()...)
				if !bytes.HasPrefix(blob, got) {
					t.Errorf("%s, whole %v: a wrong byte was given out", name, whole)
				}
				if err == nil && len(got) < len(blob) {
					t.Errorf("%s, whole %v: ended cleanly after %d bytes", name, whole, len(got))
				}
				if whole && harm.rewrites == (err == nil) {
					t.Errorf("%s: the answer ended with %v", name, err)
				}
				if b, err := s.Open(d); err == nil && whole {
					_, err = io.ReadAll(b.Content().Section(t.Context(), 0, b.Size()))
					if err == nil {
						t.Errorf("%s: still on offer", name)
					}
				}
			}
		}
	}
}

// tripwire calls trip once some bytes have been copied to it.
type tripwire struct {
	io.Writer
	after int
	trip  func()
}

func (w *tripwire) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	if w.after -= n; w.after <= 0 && w.trip != nil {
		w.trip()
		w.trip = nil
	}
	return n, err
}

// A file that is mended in the middle of an answer is as bad as one that is spoilt: the
// client had the wrong bytes before, and the hash is over the right ones.
func TestShelfMendedWhileServed(t *testing.T) {
	blob := content(4, 64*minPieceLength)
	d := sha256Of(blob)
	wrong := bytes.Clone(blob)
	wrong[0]++
	sh := shelfWith(t)
	path := shelve(t, sh, d, wrong)
	s := openStore(t, StoreConfig{Shelf: sh})
	p := fromShelf(t, s, d)
	c := p.Content()
	defer c.Close()
	var got bytes.Buffer
	_, err := io.Copy(&tripwire{&got, 1, func() {
		if err := os.WriteFile(path, blob, 0o644); err != nil {
			t.Fatal(err)
		}
	}}, c.Section(t.Context(), 0, p.Size()))
	if err == nil {
		t.Errorf("%d bytes, and no error", got.Len())
	}
}

// What is no plain file within the folder is not there.
func TestShelfLeadsNowhereElse(t *testing.T) {
	blob := content(5, 1000)
	d := sha256Of(blob)
	outside := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(outside, blob, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, place := range map[string]func(path string) error{
		"symlink to a file": func(path string) error { return os.Symlink(outside, path) },
		"symlink to a folder": func(path string) error {
			return errors.Join(os.Remove(filepath.Dir(path)), os.Symlink(filepath.Dir(outside), filepath.Dir(path)))
		},
		"folder": func(path string) error { return os.Mkdir(path, 0o755) },
		"pipe":   func(path string) error { return syscall.Mkfifo(path, 0o644) },
	} {
		sh := shelfWith(t)
		path := filepath.Join(sh.dir, sh.base, sh.path(d))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := place(path); err != nil {
			t.Fatal(err)
		}
		if openStore(t, StoreConfig{Shelf: sh}).OnShelf(d) != nil {
			t.Errorf("%s: taken for a blob", name)
		}
	}
	if openStore(t, StoreConfig{Shelf: shelfWith(t)}).OnShelf("sha256:../../../etc/passwd") != nil {
		t.Error("a path was taken for a digest")
	}
}

// look looks at the shelf once, as if nobody had asked for anything for long.
func look(t testing.TB, s *Store) {
	t.Helper()
	s.forgetGone()
	s.retireIdle(t.Context(), 0, nil)
}

// The engine has got a blob too: the store's copy goes, what is read is the engine's, and
// whoever shares the blob is told to open it anew.
func TestCopyOfWhatIsOnTheShelfGoes(t *testing.T) {
	blob := content(6, 3*minPieceLength)
	sh := EngineShelf(t.TempDir())
	told := make(chan digest.Digest, 1)
	s := openStore(t, StoreConfig{Shelf: sh, OnEvict: func(d digest.Digest) { told <- d }})
	d := put(t, s, blob)
	look(t, s)
	if u := s.Usage(); u.Bytes != int64(len(blob)) {
		t.Fatalf("usage %+v before the engine has it", u)
	}
	path := shelve(t, sh, d, blob)
	look(t, s)
	if got := <-told; got != d {
		t.Fatalf("told of %s", got)
	}
	if u := s.Usage(); u.Bytes != 0 || u.Shelved != int64(len(blob)) || u.Evictions != 0 {
		t.Errorf("usage %+v", u)
	}
	if _, err := os.Lstat(s.blobPath(d)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the copy is still there: %v", err)
	}
	if got, err := serve(t, s, d, 0, int64(len(blob)), false); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("served %d bytes, %v", len(got), err)
	}

	// The engine collects its garbage.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	look(t, s)
	if got := <-told; got != d {
		t.Fatalf("told of %s", got)
	}
	if _, ok := s.Stat(d); ok {
		t.Error("it still counts as here")
	}
	put(t, s, blob)
	wantBlob(t, s, d, blob)
}

// The store keeps its copy of what is not right on the shelf, in use, pinned, or a manifest.
func TestCopyStays(t *testing.T) {
	blob := content(7, 2*minPieceLength)
	d := sha256Of(blob)
	open := func(busy bool) (*Store, *Shelf) {
		sh := EngineShelf(t.TempDir())
		s := openStore(t, StoreConfig{Shelf: sh, Busy: func(digest.Digest) bool { return busy }})
		put(t, s, blob)
		return s, sh
	}
	stays := func(s *Store, why string) {
		t.Helper()
		look(t, s)
		if _, err := os.Lstat(s.blobPath(d)); err != nil {
			t.Errorf("%s: the copy is gone", why)
		}
	}

	s, sh := open(false)
	wrong := bytes.Clone(blob)
	wrong[7]++
	shelve(t, sh, d, wrong)
	stays(s, "wrong on the shelf")

	s, sh = open(true)
	shelve(t, sh, d, blob)
	stays(s, "being sent to others")

	s, sh = open(false)
	shelve(t, sh, d, blob)
	b, err := s.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	stays(s, "open")
	b.Close()

	s, sh = open(false)
	shelve(t, sh, d, blob)
	if err := s.PinImage(Pin{Image: "reg.test/app:v1", Digest: d, Blobs: []digest.Digest{d}}); err != nil {
		t.Fatal(err)
	}
	stays(s, "pinned")

	s, sh = open(false)
	shelve(t, sh, d, blob)
	if err := s.PutManifest(descriptor("application/vnd.oci.image.manifest.v1+json", blob), blob, "reg.test/app:v1"); err != nil {
		t.Fatal(err)
	}
	stays(s, "a manifest")
}

// A shelf that is the store's own folder, by whatever name, costs no blob.
func TestShelfIsTheStoreItself(t *testing.T) {
	blob := content(12, 1000)
	dir, name := t.TempDir(), filepath.Join(t.TempDir(), "engine")
	if err := os.Symlink(dir, name); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, StoreConfig{Dir: dir, Shelf: EngineShelf(name)})
	d := put(t, s, blob)
	look(t, s)
	wantBlob(t, s, d, blob)
}

// A pin keeps what the shelf's owner may remove: it is copied.
func TestPinCopiesFromShelf(t *testing.T) {
	blob := content(8, 20*minPieceLength+1)
	d := sha256Of(blob)
	sh := shelfWith(t, blob)
	s := openStore(t, StoreConfig{Shelf: sh})
	takeIn(t, s, d)
	if err := s.PinImage(Pin{Image: "reg.test/app:v1", Digest: d, Blobs: []digest.Digest{d}}); err != nil {
		t.Fatal(err)
	}
	if u := s.Usage(); u.Bytes != int64(len(blob)) || u.Pinned != u.Bytes || u.Shelved != 0 {
		t.Errorf("usage %+v", u)
	}
	if err := os.RemoveAll(filepath.Join(sh.dir, sh.base)); err != nil {
		t.Fatal(err)
	}
	look(t, s)
	wantBlob(t, s, d, blob)
}

// A shelf that cannot be used is no trouble but a word in the log and in the usage, and is
// used when it can.
func TestShelfIsNotThereYet(t *testing.T) {
	blob := content(9, 1000)
	sh := EngineShelf(filepath.Join(t.TempDir(), "later"))
	s := openStore(t, StoreConfig{Shelf: sh})
	if s.Usage().ShelfFailure == nil {
		t.Error("a folder that is not there counts as usable")
	}
	d := put(t, s, blob)
	shelve(t, sh, d, blob)
	look(t, s)
	if err := s.Usage().ShelfFailure; err != nil {
		t.Errorf("still not usable: %v", err)
	}
	if u := s.Usage(); u.Shelved != 1000 {
		t.Errorf("usage %+v", u)
	}
	if _, err := os.Lstat(filepath.Join(sh.dir, sh.base, sh.path(d))); err != nil {
		t.Error(err)
	}
}

// A change within one tick of the kernel's clock does not show in a file's times, so a file
// is waited for until it would.
func TestShelfWaitsForFreshFiles(t *testing.T) {
	blob := content(10, 1000)
	sh := shelfWith(t)
	shelve(t, sh, sha256Of(blob), blob)
	f, fi, err := sh.open(sha256Of(blob))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if age := time.Since(changedAt(fi)); age < clockTick {
		t.Errorf("opened %v after its last change", age)
	}
}

// Scrubbing finds what has rotted on the shelf, too.
func TestShelfIsScrubbed(t *testing.T) {
	blob := content(11, 3*minPieceLength)
	d := sha256Of(blob)
	sh := shelfWith(t, blob)
	s := openStore(t, StoreConfig{Shelf: sh})
	takeIn(t, s, d)
	rewrite(t, filepath.Join(sh.dir, sh.base, sh.path(d)), blob)
	for _, e := range s.due(time.Now().Add(time.Hour)) {
		if err := s.rehash(context.Background(), e, rate.NewLimiter(rate.Inf, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := s.Stat(d); ok || s.OnShelf(d) != nil {
		t.Error("still on offer")
	}
}

// What lies in the place of saved metainfo, or of a blob, and can be neither, holds nobody up.
func TestRubbishInPlaceOfFiles(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, StoreConfig{Dir: dir})
	b := content(31, 3<<20)
	d := put(t, s, b)
	s.Close()
	torrent := s.torrentPath(d)
	for what, spoil := range map[string]func() error{
		"a pipe":    func() error { return syscall.Mkfifo(torrent, 0o600) },
		"a folder":  func() error { return os.Mkdir(torrent, 0o700) },
		"too large": func() error { return errors.Join(os.WriteFile(torrent, nil, 0o600), os.Truncate(torrent, 1<<40)) },
	} {
		if err := errors.Join(os.RemoveAll(torrent), spoil()); err != nil {
			t.Fatal(err)
		}
		s := openStore(t, StoreConfig{Dir: dir})
		if m, err := s.Metainfo(d); err != nil || m.Size() != int64(len(b)) {
			t.Errorf("with %s: %v", what, err)
		}
		s.Close()
	}
	s = openStore(t, StoreConfig{Dir: dir})
	other := sha256Of(content(32, 3<<20))
	p, err := s.Partial(other, 3<<20, "reg.example")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Append(content(32, 3<<20)[:2<<20]); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := os.Truncate(s.partialPath(other)+originSuffix, 1<<40); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, StoreConfig{Dir: dir})
	if p, err := s.Partial(other, 3<<20, "reg.example"); err != nil || p.Received() != 0 {
		t.Errorf("a blob begun by nobody knows whom is gone on with: %v", err)
	}
	s.Close()
	if err := os.Truncate(s.blobPath(d), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(t, StoreConfig{Dir: dir}).Open(d); !errors.Is(err, ErrNotFound) {
		t.Errorf("an emptied blob: %v", err)
	}
}
