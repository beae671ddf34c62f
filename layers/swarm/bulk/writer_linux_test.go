package bulk

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"weak"

	"golang.org/x/sys/unix"
)

// packets returns how many packets with data have left conn.
func packets(t *testing.T, conn *net.TCPConn) int {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	if e := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return int(info.Data_segs_out)
}

// pace holds conn to a rate in bytes a second, as a link would, so that bytes wait.
func pace(t *testing.T, conn *net.TCPConn, rate int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, rate) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
}

// Chunks of a slow connection leave in packets of 32 KiB, even if many wait.
func TestSlowPacketsAreShort(t *testing.T) {
	near, far := pair(t)
	pace(t, near, 64<<20)
	w := newWriter(t, near)
	const chunks, size = 64, 13 + 64<<10
	read := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.Discard, far, chunks*size)
		read <- err
	}()
	for range chunks {
		w.flow = flow{} // slow, however fast they are read
		if n, err := w.Write(make([]byte, size)); n != size || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	if n := packets(t, near); n < 2*chunks {
		t.Errorf("%d chunks left in %d packets, want two each", chunks, n)
	}
}

// What is written arrives as it was, in order, by all ways and mixed.
func TestBytesArrive(t *testing.T) {
	near, far := pair(t)
	w := newWriter(t, near)
	blob := make([]byte, 3<<20)
	for i := range blob {
		blob[i] = byte(rand.Uint32())
	}
	path := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, blob, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make(chan []byte, 1)
	go func() {
		all, _ := io.ReadAll(far)
		got <- all
	}()
	var want []byte
	for _, n := range []int{1, 13, 16 << 10, 32 << 10, 64<<10 + 13, 160 << 10, 1 << 20} {
		for _, fast := range []bool{false, true} {
			head := []byte("head")
			off := rand.IntN(len(blob) - n)
			w.flow = flow{fast: fast}
			if written, err := w.Write(blob[off : off+n]); written != n || err != nil {
				t.Fatalf("Write of %d = %d, %v", n, written, err)
			}
			if err := w.WriteFile(head, f, int64(off), int64(n)); err != nil {
				t.Fatalf("WriteFile of %d = %v", n, err)
			}
			want = append(append(append(want, blob[off:off+n]...), head...), blob[off:off+n]...)
		}
	}
	near.CloseWrite()
	if !bytes.Equal(<-got, want) {
		t.Error("other bytes arrived")
	}
}

// Who does not read holds a writer up until the deadline of the connection, and what was
// sent is told.
func TestDeadline(t *testing.T) {
	near, far := pair(t)
	w := newWriter(t, near)
	const size = 64 << 20 // more than buffers take
	type result struct {
		n   int
		err error
	}
	written := make(chan result, 1)
	go func() {
		n, err := w.Write(make([]byte, size))
		written <- result{n, err}
	}()
	if _, err := far.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := near.SetWriteDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if got := <-written; !errors.Is(got.err, os.ErrDeadlineExceeded) || got.n <= 0 || got.n >= size {
		t.Errorf("Write = %d, %v, want a part and the deadline", got.n, got.err)
	}
}

// A connection that is idle holds on to nothing that it has sent: what it was sent from is
// used for others.
func TestNothingIsKept(t *testing.T) {
	near, far := pair(t)
	w := newWriter(t, near)
	go io.Copy(io.Discard, far)
	b := make([]byte, 64<<10, 80<<10)
	sent := weak.Make(&b[0])
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	b = nil
	runtime.GC()
	if sent.Value() != nil {
		t.Error("what was sent is kept")
	}
	runtime.KeepAlive(w)
}

func TestParts(t *testing.T) {
	for n, want := range map[int]int{1: 1, 13: 13, 16 << 10: 16 << 10, 13 + 32<<10: 13 + 32<<10, 13 + 64<<10: 7 + 32<<10, 128 << 10: 32 << 10} {
		if got := part(n); got != want {
			t.Errorf("part(%d) = %d, want %d", n, got, want)
		}
	}
}
