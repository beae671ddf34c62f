package layers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestBlobs(t *testing.T) {
	s := openStore(t, StoreConfig{})
	a, b := content(1, 1000), content(2, 2000)
	put(t, s, a)
	put(t, s, b)
	if size, ok := s.Stat(sha256Of(a)); size != 1000 || !ok {
		t.Errorf("Stat = %d, %v", size, ok)
	}
	if _, ok := s.Stat("../../etc/passwd"); ok {
		t.Error("Stat of nonsense")
	}
	for _, d := range []digest.Digest{sha256Of(nil), "../../etc/passwd", ""} {
		_, err := s.Open(d)
		wantErr(t, err, ErrNotFound)
		wantErr(t, s.Remove(d), ErrNotFound)
		_, err = s.Metainfo(d)
		wantErr(t, err, ErrNotFound)
	}
	wantBlob(t, s, sha256Of(a), a)
	if list := s.Blobs(); len(list) != 2 || list[0].Digest != sha256Of(a) || list[1].Size != 2000 {
		t.Errorf("Blobs = %v", list)
	}
	open, err := s.Open(sha256Of(a))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(sha256Of(a)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1000)
	if _, err := open.ReadAt(got, 0); err != nil || !bytes.Equal(got, a) {
		t.Errorf("removed blob that is open: %v", err)
	}
	for range 2 {
		if err := open.Close(); err != nil {
			t.Error(err)
		}
	}
	if u := s.Usage(); u != (Usage{Bytes: 2000, Blobs: 1}) {
		t.Errorf("Usage = %+v", u)
	}
	want := []string{"blobs/sha256/" + sha256Of(b).Encoded(), "index.json", "oci-layout", "torrents/" + fileName(sha256Of(b)) + torrentSuffix}
	if list := files(t, s.dir); !slices.Equal(list, want) {
		t.Errorf("files are %v, want %v", list, want)
	}
	put(t, s, a)
	wantBlob(t, s, sha256Of(a), a)
}

// Somebody removes a blob's file by hand.
func TestBlobVanishes(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 1000)
	d := put(t, s, b)
	if err := os.Remove(s.blobPath(d)); err != nil {
		t.Fatal(err)
	}
	_, err := s.Open(d)
	wantErr(t, err, ErrNotFound)
	put(t, s, b)
	wantBlob(t, s, d, b)
}

// evictees collects what a store tells of.
type evictees chan digest.Digest

func (e evictees) next(t testing.TB) digest.Digest {
	t.Helper()
	select {
	case d := <-e:
		return d
	case <-time.After(timeout):
		t.Fatal("no eviction")
		return ""
	}
}

func TestEviction(t *testing.T) {
	told := make(evictees, 100)
	s := openStore(t, StoreConfig{Limit: 3000, OnEvict: func(d digest.Digest) { told <- d }})
	var d [10]digest.Digest
	for i := range 3 {
		d[i] = put(t, s, content(uint64(i), 1000))
	}
	if u := s.Usage(); u.Evictions != 0 || u.Bytes != 3000 || u.Limit != 3000 {
		t.Errorf("Usage = %+v", u)
	}
	// 0 is used, so 1 goes first; 2 is open, so it stays and 0 goes next.
	b, err := s.Open(d[0])
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	d[3] = put(t, s, content(3, 1000))
	if got := told.next(t); got != d[1] {
		t.Errorf("evicted %s, want 1", got)
	}
	held, err := s.Open(d[2])
	if err != nil {
		t.Fatal(err)
	}
	d[4] = put(t, s, content(4, 1000))
	d[5] = put(t, s, content(5, 1000))
	if got := [2]digest.Digest{told.next(t), told.next(t)}; got != [2]digest.Digest{d[0], d[3]} {
		t.Errorf("evicted %s, want 0 and 3", got)
	}
	// Unpinned, it goes though it is open; its bytes stay readable.
	held.Unpin()
	d[6] = put(t, s, content(6, 1000))
	d[7] = put(t, s, content(7, 1000))
	d[8] = put(t, s, content(8, 1000))
	if got := [3]digest.Digest{told.next(t), told.next(t), told.next(t)}; got != [3]digest.Digest{d[4], d[5], d[2]} {
		t.Errorf("evicted %s, want 4, 5 and 2", got)
	}
	got := make([]byte, 1000)
	if _, err := held.ReadAt(got, 0); err != nil || !bytes.Equal(got, content(2, 1000)) {
		t.Errorf("evicted blob that is open: %v", err)
	}
	held.Touch()
	held.Close()
	if u := s.Usage(); u != (Usage{Bytes: 3000, Limit: 3000, Blobs: 3, Evictions: 6}) {
		t.Errorf("Usage = %+v", u)
	}
	if list, err := os.ReadDir(filepath.Join(s.dir, "torrents")); err != nil || len(list) != 3 {
		t.Errorf("%d torrents are left, %v", len(list), err)
	}
}

// Pins can hold the store above its limit; when they go it comes back to it.
func TestEvictionWhenClosed(t *testing.T) {
	s := openStore(t, StoreConfig{Limit: 2000})
	var open []*Blob
	for i := range 5 {
		b, err := s.Open(put(t, s, content(uint64(i), 1000)))
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, b)
	}
	if u := s.Usage(); u.Blobs != 5 {
		t.Errorf("Usage = %+v", u)
	}
	for _, b := range open {
		b.Close()
	}
	if u := s.Usage(); u.Bytes != 2000 {
		t.Errorf("Usage = %+v", u)
	}
}

// A blob larger than the limit is kept until the next is used.
func TestBlobAboveLimit(t *testing.T) {
	s := openStore(t, StoreConfig{Limit: 1000})
	d := put(t, s, content(1, 5000))
	wantBlob(t, s, d, content(1, 5000))
	put(t, s, content(2, 10))
	if u := s.Usage(); u.Bytes != 10 || u.Evictions != 1 {
		t.Errorf("Usage = %+v", u)
	}
}

// What arrives counts: room is made as it comes in, not when it is whole.
func TestEvictionForWhatArrives(t *testing.T) {
	s := openStore(t, StoreConfig{Limit: 4000})
	for i := range 4 {
		put(t, s, content(uint64(i), 1000))
	}
	b := content(9, 2500)
	p := partial(t, s, sha256Of(b), len(b))
	for i, want := range []int64{3000, 2000} {
		if err := p.Append(b[i*1000 : (i+1)*1000]); err != nil {
			t.Fatal(err)
		}
		if u := s.Usage(); u.Bytes != want || u.Arriving != int64(i+1)*1000 {
			t.Errorf("Usage = %+v", u)
		}
	}
	// Given up, it may go itself, when all blobs used before have gone.
	p.Fail(os.ErrDeadlineExceeded)
	<-p.atRest
	for i, want := range []Usage{
		{Bytes: 1900, Arriving: 2000, Blobs: 2, Evictions: 3},
		{Bytes: 1800, Arriving: 2000, Blobs: 2, Evictions: 4},
		{Bytes: 2700, Arriving: 0, Blobs: 3, Evictions: 4},
	} {
		put(t, s, content(uint64(10+i), 900))
		want.Limit = 4000
		if u := s.Usage(); u != want {
			t.Errorf("Usage = %+v, want %+v", u, want)
		}
	}
	if list := files(t, s.partialDir()); len(list) > 0 {
		t.Errorf("left behind: %v", list)
	}
}

func TestOrderOfEvictionOutlivesRestart(t *testing.T) {
	s := openStore(t, StoreConfig{})
	var d [4]digest.Digest
	for i := range d {
		d[i] = put(t, s, content(uint64(i), 1000))
	}
	s.Close()
	now := time.Now()
	for i, minutes := range []int{10, 30, 20, 40} {
		used := now.Add(-time.Duration(minutes) * time.Minute)
		if err := os.Chtimes(s.blobPath(d[i]), used, used); err != nil {
			t.Fatal(err)
		}
	}
	s = openStore(t, StoreConfig{Dir: s.dir})
	if b, err := s.Open(d[3]); err != nil { // from the oldest to the newest
		t.Fatal(err)
	} else {
		b.Close()
	}
	s.Close()
	s = openStore(t, StoreConfig{Dir: s.dir, Limit: 2500})
	var left []digest.Digest
	for _, b := range s.Blobs() {
		left = append(left, b.Digest)
	}
	if !slices.Equal(left, []digest.Digest{d[3], d[0]}) {
		t.Errorf("left are %v, want 3 and 0", left)
	}
}

func TestOpenStoreTidiesUp(t *testing.T) {
	s := openStore(t, StoreConfig{})
	a, b, whole := content(1, 1000), content(2, 1000), content(3, 1000)
	for _, c := range [][]byte{a, b} {
		if err := partial(t, s, sha256Of(c), 1000).Append(c[:500]); err != nil {
			t.Fatal(err)
		}
	}
	put(t, s, whole)
	s.Close()
	old := time.Now().Add(-25 * time.Hour)
	if err := os.Chtimes(s.partialPath(sha256Of(a)), old, old); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"partial/" + tempPrefix + "123",
		"partial/" + fileName(sha256Of(nil)) + torrentSuffix,
		"partial/" + fileName(sha256Of(nil)) + originSuffix,
		"partial/" + fileName(sha256Of(whole)),
		"torrents/" + fileName(sha256Of(nil)) + torrentSuffix,
		"partial/notes", "blobs/sha256/notes", "torrents/notes",
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	openStore(t, StoreConfig{Dir: s.dir})
	want := []string{
		"blobs/sha256/" + sha256Of(whole).Encoded(), "blobs/sha256/notes",
		"index.json", "oci-layout",
		"partial/notes", "partial/" + fileName(sha256Of(b)), "partial/" + fileName(sha256Of(b)) + originSuffix,
		"torrents/notes", "torrents/" + fileName(sha256Of(whole)) + torrentSuffix,
	}
	slices.Sort(want)
	list := files(t, s.dir)
	slices.Sort(list)
	if !slices.Equal(list, want) {
		t.Errorf("files are\n%s, want\n%s", strings.Join(list, "\n"), strings.Join(want, "\n"))
	}
}

func TestCloseFailsWhatArrives(t *testing.T) {
	s := openStore(t, StoreConfig{})
	b := content(1, 1000)
	p := partial(t, s, sha256Of(b), len(b))
	reader := read(t.Context(), p, 0, 1000)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, p.Err(), ErrClosed)
	wantErr(t, end(t, reader).err, ErrClosed)
	_, err := s.Partial(sha256Of(b), 1000, "registry.test")
	wantErr(t, err, ErrClosed)
}

func manifest(t testing.TB, layers ...[]byte) (ocispec.Descriptor, []byte) {
	t.Helper()
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    descriptor(ocispec.MediaTypeImageConfig, config),
		Layers:    []ocispec.Descriptor{},
	}
	for _, l := range layers {
		m.Layers = append(m.Layers, descriptor(ocispec.MediaTypeImageLayer, l))
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return descriptor(ocispec.MediaTypeImageManifest, b), b
}

func descriptor(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: sha256Of(b), Size: int64(len(b))}
}

// indexOf reads index.json as others would: digest to refs.
func indexOf(t testing.TB, s *Store) map[digest.Digest][]string {
	t.Helper()
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(s.dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		t.Fatal(err)
	}
	refs := make(map[digest.Digest][]string)
	for _, desc := range index.Manifests {
		if _, ok := s.Stat(desc.Digest); !ok {
			t.Errorf("index names %s, which is not there", desc.Digest)
		}
		refs[desc.Digest] = append(refs[desc.Digest], desc.Annotations[ocispec.AnnotationRefName])
	}
	return refs
}

func TestManifests(t *testing.T) {
	s := openStore(t, StoreConfig{})
	descA, a := manifest(t, content(1, 10))
	descB, b := manifest(t, content(2, 10))
	for _, put := range []struct {
		desc    ocispec.Descriptor
		content []byte
		ref     string
	}{
		{descA, a, "r/x:1"}, {descA, a, ""}, {descA, a, "r/x:latest"}, {descB, b, ""}, {descB, b, "r/x:latest"}, {descA, a, "r/x:1"},
	} {
		if err := s.PutManifest(put.desc, put.content, put.ref); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, s.PutManifest(descA, b, ""), ErrMismatch)
	wantErr(t, s.PutManifest(ocispec.Descriptor{Digest: descA.Digest, Size: 1}, a, ""), ErrMismatch)
	if err := s.PutManifest(ocispec.Descriptor{Digest: "sha256:../x"}, nil, ""); err == nil {
		t.Error("nonsense is stored")
	}

	check := func(s *Store) {
		t.Helper()
		refs := indexOf(t, s)
		if len(refs) != 2 || !slices.Equal(refs[descA.Digest], []string{"r/x:1"}) || !slices.Equal(refs[descB.Digest], []string{"r/x:latest"}) {
			t.Errorf("refs are %v", refs)
		}
		desc, got, err := s.Manifest(descB.Digest)
		if err != nil || desc.MediaType != descB.MediaType || desc.Size != descB.Size || !bytes.Equal(got, b) {
			t.Errorf("Manifest = %v, %d bytes, %v", desc, len(got), err)
		}
	}
	check(s)
	s.Close()
	s = openStore(t, StoreConfig{Dir: s.dir})
	check(s)
	_, _, err := s.Manifest(put(t, s, content(3, 10)))
	wantErr(t, err, ErrNotFound)

	if err := s.Remove(descB.Digest); err != nil {
		t.Fatal(err)
	}
	_, _, err = s.Manifest(descB.Digest)
	wantErr(t, err, ErrNotFound)
	if refs := indexOf(t, s); len(refs) != 1 {
		t.Errorf("refs are %v", refs)
	}
	if err := os.WriteFile(s.blobPath(descA.Digest), a[1:], 0o644); err != nil {
		t.Fatal(err)
	}
	_, _, err = s.Manifest(descA.Digest)
	wantErr(t, err, ErrNotFound)
	if err := s.PutManifest(descA, a, ""); err != nil {
		t.Fatal(err)
	}
	if _, got, err := s.Manifest(descA.Digest); err != nil || !bytes.Equal(got, a) {
		t.Errorf("Manifest = %d bytes, %v", len(got), err)
	}
}

func TestEvictedManifestLeavesIndex(t *testing.T) {
	s := openStore(t, StoreConfig{Limit: 5000})
	desc, m := manifest(t, content(1, 10))
	if err := s.PutManifest(desc, m, "x:1"); err != nil {
		t.Fatal(err)
	}
	put(t, s, content(2, 2500))
	if refs := indexOf(t, s); len(refs) != 1 {
		t.Errorf("refs are %v", refs)
	}
	put(t, s, content(3, 2500))
	if refs := indexOf(t, s); len(refs) != 0 {
		t.Errorf("refs are %v", refs)
	}
}

func TestManyManifestsAtOnce(t *testing.T) {
	s := openStore(t, StoreConfig{})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 50 {
				desc, m := manifest(t, content(uint64(i), 10))
				if err := s.PutManifest(desc, m, fmt.Sprintf("r/%d:%d", w, i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s.Close()
	s = openStore(t, StoreConfig{Dir: s.dir})
	refs := indexOf(t, s)
	for d, names := range refs {
		if len(names) != 8 {
			t.Errorf("%s has refs %v", d, names)
		}
	}
	if len(refs) != 50 {
		t.Errorf("%d manifests", len(refs))
	}
}

func TestMalformedIndex(t *testing.T) {
	s := openStore(t, StoreConfig{})
	d := put(t, s, content(1, 10))
	s.Close()
	path := filepath.Join(s.dir, "index.json")
	for _, in := range []string{"", "{", "[]", `{"manifests":[{"digest":"sha256:../x"},{"digest":7}]}`, `{"manifests":[{"digest":"` + string(sha256Of(nil)) + `"}]}`} {
		if err := os.WriteFile(path, []byte(in), 0o644); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, StoreConfig{Dir: s.dir})
		wantBlob(t, s, d, content(1, 10))
		if refs := indexOf(t, s); len(refs) != 0 {
			t.Errorf("index %q: refs are %v", in, refs)
		}
		s.Close()
	}
	if err := os.WriteFile(filepath.Join(s.dir, "oci-layout"), []byte(`{"imageLayoutVersion":"2.0.0"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(StoreConfig{Dir: s.dir}); err == nil {
		t.Error("layout of another version is opened")
	}
}

// What others make of the directory: crane's own package reads and validates it.
func TestStoreIsAnImageLayout(t *testing.T) {
	s := openStore(t, StoreConfig{})
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	desc, m := manifest(t)
	put(t, s, config)
	if err := s.PutManifest(desc, m, "docker.io/library/x:1"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	index, err := layout.ImageIndexFromPath(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	list, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Manifests) != 1 || list.Manifests[0].Digest.String() != string(desc.Digest) {
		t.Errorf("manifests are %v", list.Manifests)
	}
}

// 50,000 blobs are listed, not read.
func BenchmarkOpenStore(b *testing.B) {
	s := openStore(b, StoreConfig{})
	s.Close()
	for i := range 50000 {
		d := sha256Of(fmt.Append(nil, i))
		if err := os.WriteFile(s.blobPath(d), nil, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		s, err := OpenStore(StoreConfig{Dir: s.dir})
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}

func TestTwoStoresOnOneFolder(t *testing.T) {
	dir := t.TempDir()
	first, err := OpenStore(StoreConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(StoreConfig{Dir: dir}); !errors.Is(err, errLocked) {
		t.Errorf("second OpenStore = %v, want %v", err, errLocked)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := OpenStore(StoreConfig{Dir: dir})
	if err != nil {
		t.Fatalf("OpenStore after Close = %v", err)
	}
	again.Close()
}

// Blobs of a byte each are bounded, too, and so is what breaks off.
func TestFilesAreBounded(t *testing.T) {
	s := openStore(t, StoreConfig{})
	s.mu.Lock()
	s.maxBlobs, s.maxRests = 5, 3
	s.mu.Unlock()
	var last []digest.Digest
	for i := range 20 {
		last = append(last, put(t, s, content(uint64(i), 10)))
	}
	for i := range 10 {
		p := partial(t, s, sha256Of(content(uint64(100+i), 10)), 10)
		p.Fail(os.ErrDeadlineExceeded)
		await(t, p.atRest)
	}
	if u := s.Usage(); u.Blobs != 5 || u.Evictions != 15 {
		t.Errorf("usage is %+v", u)
	}
	for _, d := range last[15:] {
		if _, ok := s.Stat(d); !ok {
			t.Errorf("%s has gone, which was used late", d)
		}
	}
	left, err := filepath.Glob(filepath.Join(s.partialDir(), "*"+originSuffix))
	if err != nil || len(left) != 3 {
		t.Errorf("%d broken off blobs are left (%v)", len(left), err)
	}
}

// A registry may say of any number of tags that they are one manifest.
func TestNamesAreBounded(t *testing.T) {
	x := &index{changed: make(chan struct{}, 1), manifests: make(map[digest.Digest]ocispec.Descriptor), refs: make(map[string]digest.Digest)}
	d, other := sha256Of([]byte("a")), sha256Of([]byte("b"))
	for i := range maxRefs + 100 {
		x.put(ocispec.Descriptor{Digest: d}, fmt.Sprint(i))
		x.name(d, fmt.Sprint(-i))
	}
	if len(x.refs) > maxRefs {
		t.Errorf("%d names are remembered", len(x.refs))
	}
	x.put(ocispec.Descriptor{Digest: other}, "1")
	if got, ok := x.named("1"); !ok || got != other {
		t.Errorf("a name that is known stands for %s, %v", got, ok)
	}
}
