package layers

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func pinOf(image string, blobs ...digest.Digest) Pin {
	return Pin{Image: image, Digest: blobs[0], Pinned: time.Unix(1e9, 0).UTC(), Blobs: blobs}
}

func mustPin(t testing.TB, s *Store, p Pin) {
	t.Helper()
	if err := s.PinImage(p); err != nil {
		t.Fatal(err)
	}
}

func mustUnpin(t testing.TB, s *Store, image string) {
	t.Helper()
	if err := s.UnpinImage(image); err != nil {
		t.Fatal(err)
	}
}

// here tells which of the blobs the store has.
func here(s *Store, blobs []digest.Digest) []bool {
	var is []bool
	for _, d := range blobs {
		_, ok := s.Stat(d)
		is = append(is, ok)
	}
	return is
}

// What is pinned outlives any number of other blobs, also over a restart and a crash; blobs
// that two images share stay until both are unpinned. Then they go like all others.
func TestPins(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, StoreConfig{Dir: dir, Limit: 5000})
	var d []digest.Digest
	for i := range 3 {
		d = append(d, put(t, s, content(uint64(i), 1000)))
	}
	mustPin(t, s, pinOf("a:1", d[0], d[1]))
	mustPin(t, s, pinOf("b:1", d[1], d[2]))
	seed := uint64(100)
	flood := func() {
		for range 8 {
			put(t, s, content(seed, 1000))
			seed++
		}
	}
	flood()
	if got := here(s, d); !slices.Equal(got, []bool{true, true, true}) {
		t.Errorf("of what is pinned are here %v", got)
	}
	if u := s.Usage(); u.Pinned != 3000 || u.Bytes != 5000 {
		t.Errorf("Usage = %+v", u)
	}

	// Nothing is written at the end, so this is what a crash leaves, too.
	pins := s.Pins()
	s.unlock()
	s = openStore(t, StoreConfig{Dir: dir, Limit: 5000})
	if got := s.Pins(); len(got) != 2 || got[0].Image != "a:1" || !got[0].Pinned.Equal(pins[0].Pinned) || !slices.Equal(got[1].Blobs, pins[1].Blobs) {
		t.Errorf("pins after a restart = %+v, before %+v", got, pins)
	}
	mustUnpin(t, s, "a:1")
	flood()
	if got := here(s, d); !slices.Equal(got, []bool{false, true, true}) {
		t.Errorf("after the first is unpinned are here %v", got)
	}
	mustUnpin(t, s, "b:1")
	flood()
	if got := here(s, d); slices.Contains(got, true) {
		t.Errorf("after both are unpinned are here %v", got)
	}
	wantErr(t, s.UnpinImage("b:1"), ErrNotPinned)
	s.Close()
	s = openStore(t, StoreConfig{Dir: dir, Limit: 5000})
	if got := s.Pins(); len(got) != 0 {
		t.Errorf("pins = %+v", got)
	}
}

// A pin of a name that stands for something else by now takes the old one's place only
// when the disk has it.
func TestPinAgain(t *testing.T) {
	s := openStore(t, StoreConfig{Limit: 3000})
	old, later := put(t, s, content(1, 1000)), put(t, s, content(2, 1000))
	mustPin(t, s, pinOf("a:1", old))
	gone := sha256Of(content(3, 1000))
	err := s.PinImage(pinOf("a:1", later, gone))
	if missing, ok := errors.AsType[*MissingError](err); !ok || !slices.Equal(missing.Blobs, []digest.Digest{gone}) || !strings.Contains(err.Error(), string(gone)) {
		t.Errorf("PinImage of what is not here = %v", err)
	}
	if err := os.Rename(s.partialDir(), s.partialDir()+"-away"); err != nil {
		t.Fatal(err)
	}
	if err := s.PinImage(pinOf("a:1", later)); err == nil {
		t.Error("PinImage that the disk does not take = nil")
	}
	if err := s.UnpinImage("a:1"); err == nil {
		t.Error("UnpinImage that the disk does not take = nil")
	}
	if err := os.Rename(s.partialDir()+"-away", s.partialDir()); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		put(t, s, content(uint64(10+i), 1000))
	}
	if got := here(s, []digest.Digest{old, later}); !slices.Equal(got, []bool{true, false}) {
		t.Errorf("after pins that failed are here %v", got)
	}
	later = put(t, s, content(2, 1000))
	mustPin(t, s, pinOf("a:1", later))
	for i := range 4 {
		put(t, s, content(uint64(20+i), 1000))
	}
	if got := here(s, []digest.Digest{old, later}); !slices.Equal(got, []bool{false, true}) {
		t.Errorf("after it was pinned again are here %v", got)
	}
}

// A blob that somebody has deleted is not pinned as if it were here; one that is lost
// later is pinned as soon as it comes in again.
func TestPinOfLostBlobs(t *testing.T) {
	s := openStore(t, StoreConfig{Limit: 3000})
	d := put(t, s, content(1, 1000))
	if err := os.Remove(s.blobPath(d)); err != nil {
		t.Fatal(err)
	}
	if _, ok := errors.AsType[*MissingError](s.PinImage(pinOf("a:1", d))); !ok {
		t.Error("a blob whose file is gone was pinned")
	}
	put(t, s, content(1, 1000))
	mustPin(t, s, pinOf("a:1", d))
	if err := s.Remove(d); err != nil {
		t.Fatal(err)
	}
	put(t, s, content(1, 1000))
	for i := range 5 {
		put(t, s, content(uint64(10+i), 1000))
	}
	if _, ok := s.Stat(d); !ok {
		t.Error("a pinned blob that was lost and came again has been evicted")
	}
}

// Pins that fill the cache let nothing else in, until one is taken away; what is unpinned
// goes by its last use.
func TestPinsFillTheCache(t *testing.T) {
	s := openStore(t, StoreConfig{Limit: 2000})
	a, b := put(t, s, content(1, 1000)), put(t, s, content(2, 1000))
	mustPin(t, s, pinOf("a:1", a))
	mustPin(t, s, pinOf("b:1", b))
	c := content(3, 1000)
	_, err := s.Partial(sha256Of(c), 1000, "registry.test")
	wantErr(t, err, ErrPinsFill)
	mustUnpin(t, s, "a:1")
	put(t, s, c)
	if got := here(s, []digest.Digest{a, b, sha256Of(c)}); !slices.Equal(got, []bool{false, true, true}) {
		t.Errorf("here are %v", got)
	}
	if u := s.Usage(); u.Bytes != 2000 || u.Pinned != 1000 {
		t.Errorf("Usage = %+v", u)
	}
}

// What is held while an image comes in is there when it is pinned.
func TestHold(t *testing.T) {
	s := openStore(t, StoreConfig{Limit: 3000})
	d := []digest.Digest{sha256Of(content(0, 1000)), sha256Of(content(1, 1000))}
	unhold := s.Hold(d)
	for i := range 6 {
		put(t, s, content(uint64(i), 1000))
	}
	mustPin(t, s, pinOf("a:1", d...))
	unhold()
	for i := range 6 {
		put(t, s, content(uint64(10+i), 1000))
	}
	if got := here(s, d); slices.Contains(got, false) {
		t.Errorf("of what was held and then pinned are here %v", got)
	}
}

// Pins that nobody can read cost no start, and stay where they can be looked at.
func TestMalformedPins(t *testing.T) {
	for _, text := range []string{"", "{", `{"pins":[{"image":"a:1","digest":"sha256:../x"}]}`, `{"pins":[{"image":""}]}`} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, pinsFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s := openStore(t, StoreConfig{Dir: dir})
		if got := s.Pins(); len(got) != 0 {
			t.Errorf("pins of %q = %v", text, got)
		}
		if b, err := os.ReadFile(filepath.Join(dir, pinsFile+".malformed")); err != nil || string(b) != text {
			t.Errorf("%q is not put aside: %q, %v", text, b, err)
		}
	}
}

func FuzzParsePins(f *testing.F) {
	f.Add([]byte(`{"pins":[{"image":"a:1","digest":"` + string(sha256Of(nil)) + `","pinned":"2026-01-02T03:04:05Z","blobs":["` + string(sha256Of(nil)) + `"]}]}`))
	f.Add([]byte(`{"pins":[{"image":"a:1","digest":"sha256:../../x","blobs":null}]}`))
	f.Add([]byte(`{"pins":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		pins, err := parsePins(b)
		if err != nil {
			return
		}
		for _, p := range pins {
			for _, d := range append([]digest.Digest{p.Digest}, p.Blobs...) {
				if checkDigest(d) != nil || p.Image == "" {
					t.Errorf("parsePins(%q) = %+v", b, p)
				}
			}
		}
	})
}

// However many blobs arrive at the same time, the limit is kept to within one of them.
func TestLimitWhileManyArrive(t *testing.T) {
	s := openStore(t, StoreConfig{Limit: 5000})
	old := put(t, s, content(99, 1000))
	var taken []*Partial
	refused := 0
	for i := range 10 {
		b := content(uint64(i), 2000)
		p, err := s.Partial(sha256Of(b), 2000, "registry.test")
		if errors.Is(err, ErrFull) {
			refused++
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Append(b[:1999]); err != nil {
			t.Fatal(err)
		}
		taken = append(taken, p)
	}
	if u := s.Usage(); u.Bytes+u.Arriving > 5000+2000 || len(taken) != 2 || refused != 8 {
		t.Errorf("%d taken, %d refused, Usage = %+v", len(taken), refused, u)
	}
	if _, ok := s.Stat(old); !ok {
		t.Error("an idle blob went for blobs that fit beside it")
	}
	for i, p := range taken {
		if err := p.Append(content(uint64(i), 2000)[1999:]); err != nil {
			t.Fatal(err)
		}
		await(t, p.atRest)
	}
	put(t, s, content(50, 9000)) // alone, any blob may
	put(t, s, content(51, 100))
	if u := s.Usage(); u.Bytes > 5000 {
		t.Errorf("Usage = %+v", u)
	}
}
