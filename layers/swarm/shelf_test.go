package swarm

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
)

// A blob that lies in another program's folder is seeded from there, while it is being
// hashed and after, and no changed byte of it reaches a peer.
func TestSharesFromShelf(t *testing.T) {
	tr := newTracker(t)
	blob, _ := testBlob(9<<20+77, 60)
	d := digest.FromBytes(blob)
	dir := t.TempDir()
	path := filepath.Join(dir, "blobs", "sha256", d.Encoded())
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, blob, 0o644); err != nil {
		t.Fatal(err)
	}
	store, err := layers.OpenStore(layers.StoreConfig{Dir: t.TempDir(), Shelf: layers.EngineShelf(dir), Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	seeder := newHost(t, Config{Seeder: true})
	held := store.OnShelf(d)
	if held == nil {
		t.Fatal("not on the shelf")
	}
	p, err := held.Partial("registry.test")
	if err != nil {
		t.Fatal(err)
	}
	growing := p.Hashes(layers.InfoHash{9})
	if err := seeder.ShareArriving(t.Context(), growing, p, []string{tr.url}); err != nil {
		t.Fatal(err)
	}
	first := newHost(t, Config{})
	arriving, err := first.store.Partial(d, int64(len(blob)), "registry.test")
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Fetch(t.Context(), mirrorOf(t.Context(), growing), arriving, []string{tr.url}); err != nil {
		t.Fatal(err)
	}
	mustEqual(t, "while it is hashed", first.read(t, arriving), blob)
	closeInTime(t, first.Client) // so that the next has it from the seeder

	wait(t, "blob verified", p.Done())
	seeder.Drop(d)
	m, err := store.Metainfo(d)
	if err != nil {
		t.Fatal(err)
	}
	share := func() {
		t.Helper()
		b, err := store.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		if err := seeder.Share(t.Context(), m, b, []string{tr.url}); err != nil {
			t.Fatal(err)
		}
	}
	share()
	mustEqual(t, "when it is whole", newHost(t, Config{}).fetch(t, m, tr.url), blob)

	// Now every other piece of it changes.
	spoilt := bytes.Clone(blob)
	for off := int64(0); off < int64(len(spoilt)); off += 2 * m.PieceLength() {
		spoilt[off]++
	}
	if err := os.WriteFile(path, spoilt, 0o644); err != nil {
		t.Fatal(err)
	}
	b, err := store.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	from := b.Copied()
	if from == nil {
		t.Fatal("it would be sent without being looked at")
	}
	for i := range m.Pieces() {
		got := make([]byte, m.PieceSize(i))
		n, err := from.ReadAt(got, int64(i)*m.PieceLength())
		if err == nil && !bytes.Equal(got[:n], blob[int64(i)*m.PieceLength():][:n]) {
			t.Errorf("piece %d is given out changed", i)
		}
	}
}
