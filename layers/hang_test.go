package layers

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// hang has the disk of s hang until the function that it returns is called.
func hang(t *testing.T, s *Store) (over func()) {
	t.Helper()
	_, begins, _ := s.patience.state()
	over = s.patience.call()
	await(t, begins)
	return over
}

// While the disk hangs what is arriving fails, so that its clients go past the cache, and nothing
// more is asked of the disk; when it has answered, all is as before.
func TestDiskHangs(t *testing.T) {
	b := content(20, 1<<20)
	d := sha256Of(b)
	s := openStore(t, StoreConfig{hangsAfter: 50 * time.Millisecond})
	whole := put(t, s, content(21, 1000))
	p := partial(t, s, d, len(b))
	got := read(t.Context(), p, 0, p.Size())
	if err := p.Append(b[:1000]); err != nil {
		t.Fatal(err)
	}
	over := hang(t, s)
	if r := end(t, got); !DiskFailed(r.err) || !bytes.HasPrefix(b, r.got) {
		t.Errorf("a client has %d bytes and %v, want the disk to be blamed", len(r.got), r.err)
	}
	if _, err := s.Partial(sha256Of(b[1:]), 1000, "registry.test"); !DiskFailed(err) {
		t.Errorf("a blob is taken by a disk that hangs: %v", err)
	}
	if _, err := s.Open(whole); !DiskFailed(err) || errors.Is(err, ErrNotFound) {
		t.Errorf("a blob is read from a disk that hangs: %v", err)
	}
	if n := s.Usage().Failures; n == 0 {
		t.Error("no failure of the disk is counted")
	}
	over()
	eventually(t, "the disk is well", func() bool { hangs, _, _ := s.patience.state(); return !hangs })
	if _, err := s.Open(whole); err != nil {
		t.Error(err)
	}
	p = partial(t, s, d, len(b))
	if err := p.Append(b); err != nil {
		t.Fatal(err)
	}
	await(t, p.Done())
	if err := p.Err(); err != nil {
		t.Error(err)
	}
}

// What opens only when the disk has stopped hanging waits for nobody, and nobody for it.
func TestDiskHangsAsABlobIsBegun(t *testing.T) {
	s := openStore(t, StoreConfig{hangsAfter: 50 * time.Millisecond})
	d := sha256Of(content(22, 1000))
	s.names.Lock() // held by who has asked the disk for a name
	if _, err := s.Partial(d, 1000, "registry.test"); !DiskFailed(err) {
		t.Errorf("a blob is begun on a disk that hangs: %v", err)
	}
	s.names.Unlock()
	eventually(t, "the disk is well", func() bool { hangs, _, _ := s.patience.state(); return !hangs })
	eventually(t, "what was begun ends", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.partials) == 0
	})
}

// A client who comes when all is here, and the disk is still busy with the blob's fsync, is
// served at once.
func TestClientComesDuringFsync(t *testing.T) {
	b := content(23, 100_000)
	s := openStore(t, StoreConfig{})
	p := partial(t, s, sha256Of(b), len(b))
	if err := p.Append(b[:10]); err != nil {
		t.Fatal(err)
	}
	s.names.Lock() // so that the blob cannot be given its name
	err := p.Append(b[10:])
	if err != nil {
		t.Fatal(err)
	}
	await(t, p.Verified())
	eventually(t, "nobody enters", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.shut })
	r := end(t, read(t.Context(), p, 0, p.Size()))
	s.names.Unlock()
	if r.err != nil || !bytes.Equal(r.got, b) {
		t.Errorf("read %d bytes, %v", len(r.got), r.err)
	}
	await(t, p.Done())
	// And one who comes when it has its name is not told that the file is gone.
	got, err := io.ReadAll(p.NewReader(t.Context(), 0, p.Size()))
	if err != nil || !bytes.Equal(got, b) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if _, err := os.Stat(s.partialPath(p.Digest())); !os.IsNotExist(err) {
		t.Errorf("the arriving blob's file: %v", err)
	}
}

// Who closes a blob while the store is above its limit, and the disk does not let go of what would
// make room, does not wait for that: behind it the rest of an answer may still have to be sent.
func TestCloseWaitsForNoEviction(t *testing.T) {
	s := openStore(t, StoreConfig{hangsAfter: 50 * time.Millisecond})
	blob, err := s.Open(put(t, s, content(24, 1000)))
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, content(25, 1000))
	_, begins, _ := s.patience.state()
	s.names.Lock() // held by who has asked the disk for a name
	s.mu.Lock()
	s.limit = 1500
	s.mu.Unlock()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		blob.Close()
	}()
	await(t, closed)
	await(t, begins) // and that the names are held for long is noticed, with nothing else under way
	s.names.Unlock()
	eventually(t, "room is made when the disk has answered", func() bool { return s.Usage().Bytes <= 1500 })
}
