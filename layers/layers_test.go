package layers

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// timeout is when a test that waits gives up.
const timeout = 30 * time.Second

// content returns size bytes that follow from seed.
func content(seed uint64, size int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	b := make([]byte, size)
	rand.NewChaCha8(key).Read(b)
	return b
}

func sha256Of(b []byte) digest.Digest { return digest.SHA256.FromBytes(b) }

func openStore(t testing.TB, cfg StoreConfig) *Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	s, err := OpenStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func partial(t testing.TB, s *Store, d digest.Digest, size int) *Partial {
	t.Helper()
	p, err := s.Partial(d, int64(size), "registry.test")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// put stores a blob.
func put(t testing.TB, s *Store, b []byte) digest.Digest {
	t.Helper()
	d := sha256Of(b)
	p := partial(t, s, d, len(b))
	if err := p.Append(b); err != nil {
		t.Fatal(err)
	}
	await(t, p.Done())
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	<-p.atRest // its pin is gone
	return d
}

func await(t testing.TB, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(timeout):
		t.Fatal("waited too long")
	}
}

// awaitHashed waits until the follower has hashed n bytes.
func awaitHashed(t testing.TB, p *Partial, n int64) {
	t.Helper()
	for stop := time.Now().Add(timeout); time.Now().Before(stop); {
		p.mu.Lock()
		hashed := p.hashed
		p.mu.Unlock()
		if hashed >= n {
			return
		}
		runtime.Gosched()
	}
	t.Fatalf("follower has not come to byte %d", n)
}

// metainfoOf makes the metainfo of b the plain way.
func metainfoOf(t testing.TB, b []byte) *Metainfo {
	t.Helper()
	m, err := makeMetainfo(sha256Of(b), int64(len(b)), bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func pieceOf(m *Metainfo, b []byte, i int) []byte {
	from, to := pieceSpan(m.Size(), i)
	return b[from:to]
}

// writePieces writes the pieces of b that are not here, in random order.
func writePieces(t testing.TB, p *Partial, m *Metainfo, b []byte) {
	t.Helper()
	for _, i := range rand.Perm(m.Pieces()) {
		if err := p.WritePiece(i, pieceOf(m, b, i)); err != nil {
			t.Fatal(err)
		}
	}
}

func wantBlob(t testing.TB, s *Store, d digest.Digest, want []byte) {
	t.Helper()
	b, err := s.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	got, err := io.ReadAll(b.File())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("blob %s has other bytes than were put", d)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, want %v", err, want)
	}
}

// files lists what lies under dir, with slashes.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			list = append(list, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// result is how a reader ended.
type result struct {
	got []byte
	err error // nil for a clean end
}

// read reads a section to its end in the background.
func read(ctx context.Context, p *Partial, off, n int64) <-chan result {
	r := p.NewReader(ctx, off, n)
	ch := make(chan result, 1)
	go func() {
		defer r.Close()
		got, err := io.ReadAll(r)
		ch <- result{got, err}
	}()
	return ch
}

func end(t testing.TB, ch <-chan result) result {
	t.Helper()
	select {
	case r := <-ch:
		return r
	case <-time.After(timeout):
		t.Fatal("reader does not end")
		return result{}
	}
}

func sums(b []byte, size int64) []byte {
	var list []byte
	for i := range pieceCount(size) {
		from, to := pieceSpan(size, i)
		sum := sha1.Sum(b[from:to])
		list = append(list, sum[:]...)
	}
	return list
}
