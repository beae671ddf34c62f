package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
)

var errDisk = errors.New("disk failed")

// failingBlob is a blob in a cache that gives no byte from fails on, and may have given
// others than it tells of again.
type failingBlob struct {
	blob  []byte
	fails int64
	err   error // nil = it ends there
	again []byte
}

func (b *failingBlob) Size() int64  { return int64(len(b.blob)) }
func (b *failingBlob) Close() error { return nil }

func (b *failingBlob) Section(_ context.Context, off, n int64) io.Reader {
	given := bytes.NewReader(b.blob[off:max(off, min(off+n, b.fails))])
	if off+n <= b.fails {
		return given
	}
	return io.MultiReader(given, errReader{b.err})
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) {
	if r.err == nil {
		return 0, io.EOF
	}
	return 0, r.err
}

func (b *failingBlob) ReadAt(p []byte, off int64) (int, error) {
	if b.again == nil {
		return 0, errDisk
	}
	return bytes.NewReader(b.again).ReadAt(p, off)
}

// carriedSection reads a section of a blob of which the cache gives only some bytes, in
// the two ways in which a section is read, and returns what the upstream was asked for.
func carriedSection(t *testing.T, cache *failingBlob, upstream, want []byte, off, n int64) (got []byte, asked []int64, err error) {
	t.Helper()
	for range 2 {
		asked = nil
		c := &Carried{
			Readable: cache, Digest: digest.FromBytes(want), Lost: func(err error) bool { return errors.Is(err, errDisk) },
			From: func(_ context.Context, off int64) (io.ReadCloser, int64, error) {
				asked = append(asked, off)
				return io.NopCloser(bytes.NewReader(upstream[off:])), int64(len(upstream)), nil
			},
		}
		section := c.Section(t.Context(), off, n)
		before, beforeErr := got, err
		if got == nil && err == nil {
			got, err = io.ReadAll(struct{ io.Reader }{section})
		} else {
			var buf bytes.Buffer
			_, err = io.Copy(&buf, section)
			if got = buf.Bytes(); !bytes.Equal(got, before) || (err == nil) != (beforeErr == nil) {
				t.Errorf("read: %d bytes, %v; copied: %d bytes, %v", len(before), beforeErr, len(got), err)
			}
		}
		if c.Over() != (len(asked) > 0) && err == nil {
			t.Errorf("Over = %v, upstream asked from %v", c.Over(), asked)
		}
		c.Close()
	}
	return got, asked, err
}

// When the cache fails the client is given the rest, from the byte where it stands.
func TestCarried(t *testing.T) {
	checkGoroutines(t)
	blob, _ := content(200_000)
	for _, end := range []error{errDisk, nil} {
		for _, fails := range []int64{0, 1, 100_000, 199_999, 200_000} {
			for _, section := range [][2]int64{{0, 200_000}, {50_000, 100_000}, {150_000, 50_000}, {0, 10}} {
				off, n := section[0], section[1]
				got, asked, err := carriedSection(t, &failingBlob{blob, fails, end, blob}, blob, blob, off, n)
				if err != nil || !bytes.Equal(got, blob[off:off+n]) {
					t.Errorf("Section(%d, %d) of a cache that fails at %d = %d bytes, %v", off, n, fails, len(got), err)
				}
				var want []int64
				if off+n > fails {
					if off > 0 {
						want = append(want, 0)
					}
					want = append(want, max(off, fails))
				}
				if fmt.Sprint(asked) != fmt.Sprint(want) {
					t.Errorf("Section(%d, %d) of a cache that fails at %d: the upstream was asked from %v, want %v", off, n, fails, asked, want)
				}
			}
		}
	}
}

// Nobody gets all of a section when a byte of it, or of what the digest goes by, is not
// known to be right.
func TestCarriedOfWrongBytes(t *testing.T) {
	checkGoroutines(t)
	blob, _ := content(200_000)
	wrong := func(at int) []byte {
		b := bytes.Clone(blob)
		b[at] ^= 1
		return b
	}
	for name, test := range map[string]struct {
		cache    *failingBlob
		upstream []byte
	}{
		"given":                {&failingBlob{wrong(10), 100_000, errDisk, wrong(10)}, blob},
		"not read again":       {&failingBlob{blob, 100_000, errDisk, nil}, blob},
		"upstream's":           {&failingBlob{blob, 100_000, errDisk, blob}, wrong(199_999)},
		"upstream too short":   {&failingBlob{blob, 100_000, errDisk, blob}, blob[:150_000]},
		"upstream too long":    {&failingBlob{blob, 100_000, errDisk, blob}, append(bytes.Clone(blob), 0)},
		"not the disk's fault": {&failingBlob{blob, 100_000, io.ErrUnexpectedEOF, blob}, blob},
	} {
		got, _, err := carriedSection(t, test.cache, test.upstream, blob, 0, 200_000)
		if err == nil || len(got) == 200_000 {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}
