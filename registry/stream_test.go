package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
)

func TestStream(t *testing.T) {
	for _, size := range []int{0, 1, 100, 32<<10 - 1, 32 << 10, 32<<10 + 1, 64 << 10, 200_000} {
		blob, d := content(size)
		for _, section := range [][2]int{{0, size}, {0, 0}, {0, size / 2}, {size / 3, size / 3}, {size / 2, size - size/2}, {size, 0}} {
			off, n := section[0], section[1]
			s := NewStream(io.NopCloser(bytes.NewReader(blob)), int64(size), d)
			got, err := io.ReadAll(s.Section(t.Context(), int64(off), int64(n)))
			if err != nil || !bytes.Equal(got, blob[off:off+n]) {
				t.Errorf("Section(%d, %d) of %d = %d bytes, %v", off, n, size, len(got), err)
			}
			if err := s.Close(); err != nil || s.Size() != int64(size) {
				t.Errorf("Close = %v, Size = %d", err, s.Size())
			}
		}
	}
}

func TestStreamOfUnknownSize(t *testing.T) {
	checkGoroutines(t)
	blob, d := content(100_000)
	s := NewStream(oneByte(blob), -1, d)
	defer s.Close()
	if got, err := io.ReadAll(s.Section(t.Context(), 0, -1)); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("Section = %d bytes, %v", len(got), err)
	}
}

// Whatever is wrong with a blob, no reader gets all of what it asked for.
func TestStreamOfWrongBytes(t *testing.T) {
	checkGoroutines(t)
	blob, d := content(100_000)
	wrong := bytes.Clone(blob)
	wrong[99_999]++
	for name, body := range map[string]io.Reader{
		"wrong byte": bytes.NewReader(wrong),
		"short":      bytes.NewReader(blob[:99_999]),
		"empty":      bytes.NewReader(nil),
		"long":       io.MultiReader(bytes.NewReader(blob), bytes.NewReader([]byte{0})),
		"broken":     io.MultiReader(bytes.NewReader(blob[:50_000]), iotest.ErrReader(errIdle)),
		"broken end": io.MultiReader(bytes.NewReader(blob), iotest.ErrReader(errIdle)),
	} {
		for _, section := range [][2]int64{{0, 100_000}, {0, -1}, {0, 1}, {10, 20}, {99_999, 1}, {60_000, 10}} {
			seeker, ok := body.(io.Seeker)
			if !ok && section[1] != 100_000 {
				continue
			}
			if ok {
				seeker.Seek(0, io.SeekStart)
			}
			s := NewStream(io.NopCloser(body), 100_000, d)
			got, err := io.ReadAll(s.Section(t.Context(), section[0], section[1]))
			if err == nil || section[1] >= 0 && int64(len(got)) >= section[1] {
				t.Errorf("%s: Section(%v) = %d bytes, %v, want an error before the last byte", name, section, len(got), err)
			}
			s.Close()
		}
	}
}

// The last bytes wait for the end of the blob, and for its digest.
func TestStreamWithholdsTheLastBytes(t *testing.T) {
	checkGoroutines(t)
	blob, d := content(200_000)
	for _, n := range []int64{-1, 150_000, 200_000} {
		body, upstream := io.Pipe()
		s := NewStream(body, 200_000, d)
		section := s.Section(t.Context(), 0, n)
		held := make(chan []byte)
		go func() {
			got, _ := io.ReadAll(section)
			held <- got
		}()
		upstream.Write(blob[:199_999])
		// Nothing more comes until the last byte: what has been read by the
		// time that this one is refused is all that was let out.
		upstream.CloseWithError(errIdle)
		got := <-held
		if limit := max(n, 0); len(got) == 0 || n >= 0 && int64(len(got)) >= limit || len(got) >= 199_999 || !bytes.Equal(got, blob[:len(got)]) {
			t.Errorf("%d bytes of %d came out before the blob was verified", len(got), n)
		}
		s.Close()
	}
	if digest.FromBytes(blob) != d {
		t.Error("the test's blob is wrong")
	}
}

// A reader that leaves ends the goroutine behind it, wherever that waits.
func TestStreamThatIsAbandoned(t *testing.T) {
	blob, d := content(200_000)
	for name, read := range map[string]int{"at once": 0, "in the middle": 50_000} {
		t.Run("waiting for the reader "+name, func(t *testing.T) {
			checkGoroutines(t)
			body := &closable{Reader: bytes.NewReader(blob)}
			s := NewStream(body, 200_000, d)
			io.ReadFull(s.Section(t.Context(), 0, 200_000), make([]byte, read))
			s.Close()
			if !body.closed.Load() {
				t.Error("the upstream's body is still open")
			}
		})
	}
	t.Run("waiting for the upstream", func(t *testing.T) {
		checkGoroutines(t)
		body, upstream := io.Pipe()
		s := NewStream(body, 200_000, d)
		section := s.Section(t.Context(), 0, 200_000)
		go upstream.Write(blob[:100_000])
		io.ReadFull(section, make([]byte, 10_000))
		s.Close()
		if _, err := upstream.Write(blob); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("the upstream's body is still open: %v", err)
		}
	})
	t.Run("before a section", func(t *testing.T) {
		checkGoroutines(t)
		body := oneByte(blob)
		if err := NewStream(body, 200_000, d).Close(); err != nil || !body.closed.Load() {
			t.Errorf("Close = %v, the upstream's body closed: %v", err, body.closed.Load())
		}
	})
}

// brittle is an upstream whose answers break off.
type brittle struct {
	Upstream
	blob   []byte
	breaks []int64 // after so many bytes, the next answers
	asked  []int64 // from which byte on
}

func (u *brittle) GetBlob(_ context.Context, _ Repository, _ digest.Digest, off int64, _ string) (io.ReadCloser, int64, error) {
	u.asked = append(u.asked, off)
	rest := u.blob[off:]
	if len(u.breaks) == 0 {
		return io.NopCloser(bytes.NewReader(rest)), int64(len(u.blob)), nil
	}
	n := u.breaks[0]
	u.breaks = u.breaks[1:]
	return io.NopCloser(io.MultiReader(bytes.NewReader(rest[:n]), iotest.ErrReader(errIdle))), int64(len(u.blob)), nil
}

// What is passed on goes on at the same byte when the answer breaks off, as long as
// that helps.
func TestPassThroughGoesOn(t *testing.T) {
	checkGoroutines(t)
	blob, d := content(200_000)
	for name, test := range map[string]struct {
		breaks, asked []int64
		ok            bool
	}{
		"once":         {[]int64{50_000}, []int64{0, 50_000}, true},
		"often":        {[]int64{50_000, 1, 0, 0, 99_999}, []int64{0, 50_000, 50_001, 50_001, 50_001, 150_000}, true},
		"at the end":   {[]int64{200_000}, []int64{0}, true},
		"without help": {[]int64{50_000, 0, 0, 0, 0}, []int64{0, 50_000, 50_000, 50_000}, false},
	} {
		t.Run(name, func(t *testing.T) {
			up := &brittle{blob: blob, breaks: test.breaks}
			u, ok := errors.AsType[*Uncached](PassThrough(t.Context(), up, Request{Digest: d}, ErrTooMany))
			if !ok {
				t.Fatal("PassThrough gave no stream")
			}
			defer u.Stream.Close()
			got, err := io.ReadAll(u.Stream.Section(t.Context(), 0, -1))
			if (err == nil) != test.ok || test.ok && !bytes.Equal(got, blob) {
				t.Errorf("the stream brought %d bytes, %v", len(got), err)
			}
			if !slices.Equal(up.asked, test.asked) {
				t.Errorf("asked from %d, want %d", up.asked, test.asked)
			}
		})
	}
}
