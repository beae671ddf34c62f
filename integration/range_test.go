package integration

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"sync"
	"testing"

	digest "github.com/opencontainers/go-digest"
)

// rangeCase is a Range header and the bytes it stands for, of a blob of n
// bytes; want is nil where no byte is in range.
type rangeCase struct {
	header     string
	start, end int64 // [start,end)
	status     int
}

func rangeCases(n int64) []rangeCase {
	return []rangeCase{
		{"bytes=0-0", 0, 1, 206},
		{"bytes=0-1023", 0, 1024, 206},
		{"bytes=1000-99999", 1000, 100000, 206},
		{fmt.Sprintf("bytes=%d-", n-7), n - 7, n, 206},
		{"bytes=5-", 5, n, 206},
		{"bytes=-9", n - 9, n, 206},
		{fmt.Sprintf("bytes=-%d", n+100), 0, n, 206}, // more than there is: all of it (RFC 9110, 14.1.2)
		{fmt.Sprintf("bytes=%d-%d", n-3, n+100), n - 3, n, 206},
		{fmt.Sprintf("bytes=%d-", n), 0, 0, 416},
		{fmt.Sprintf("bytes=%d-%d", n+1, n+2), 0, 0, 416},
		{"bytes=-0", 0, 0, 416},
	}
}

// checkRange asks for one range and checks every header that a client that
// resumes goes by.
func checkRange(t *testing.T, url string, blob []byte, c rangeCase) {
	t.Helper()
	a := get(t, url, "Range: "+c.header)
	if a.Status != c.status || a.Err != nil {
		t.Errorf("Range %s = %d, %v, want %d", c.header, a.Status, a.Err, c.status)
		return
	}
	if c.status == http.StatusRequestedRangeNotSatisfiable {
		if got, want := a.Header.Get("Content-Range"), fmt.Sprintf("bytes */%d", len(blob)); got != want {
			t.Errorf("Range %s: Content-Range = %q, want %q", c.header, got, want)
		}
		return
	}
	if got, want := a.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", c.start, c.end-1, len(blob)); got != want {
		t.Errorf("Range %s: Content-Range = %q, want %q", c.header, got, want)
	}
	if got, want := a.Header.Get("Content-Length"), fmt.Sprint(c.end-c.start); got != want {
		t.Errorf("Range %s: Content-Length = %s, want %s", c.header, got, want)
	}
	if !bytes.Equal(a.Body, blob[c.start:c.end]) {
		t.Errorf("Range %s: %d bytes that are not the blob's [%d,%d)", c.header, len(a.Body), c.start, c.end)
	}
}

// rangeFleet has an image of one 4 MiB layer.
func rangeFleet(t *testing.T, mirrors int) (f *fleet, blob digest.Digest, content []byte) {
	t.Helper()
	needs(t, "docker-registry")
	image, err := makeImage(newRoot(t), "ranges", 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	f = startFleet(t, fleetConfig{Mirrors: mirrors})
	push(t, f.Registry.Addr, "ranges/app:v1", image, nil)
	blob = layerBlobs(t, image)[0].Digest
	content = getBlob(t, "http://"+f.Registry.Addr+"/v2/ranges/app/blobs/"+blob.String())
	f.Registry.Forget()
	return f, blob, content
}

func TestRangesOfWholeBlob(t *testing.T) {
	f, blob, content := rangeFleet(t, 1)
	for role, d := range map[string]*daemon{"mirror": f.Mirrors[0], "seeder": f.Seeder} {
		t.Run(role, func(t *testing.T) {
			url := d.Blob(f.Registry.Addr, "ranges/app", blob)
			if got := getBlob(t, url); !bytes.Equal(got, content) {
				t.Fatalf("the whole blob has %d bytes that differ", len(got))
			}
			for _, c := range rangeCases(int64(len(content))) {
				checkRange(t, url, content, c)
			}
			checkMultiRange(t, url, content)
			checkBlobHeaders(t, url, blob, len(content))
			for _, ignored := range []string{"bytes=5-2", "bytes=a-b", "lines=0-5", "bytes=", "bytes=--5"} {
				// A malformed Range is as none, or refused (RFC 9110, 14.2).
				a := get(t, url, "Range: "+ignored)
				if whole := a.Status == 200 && bytes.Equal(a.Body, content); !whole && a.Status != 416 && a.Status != 400 {
					t.Errorf("Range %q = %d with %d bytes", ignored, a.Status, len(a.Body))
				}
			}
		})
	}
	f.checkEachBlobOnce(t, blobInfo{blob, int64(len(content))})
}

// checkMultiRange asks for two ranges: multipart/byteranges with both, or the
// whole blob, which RFC 9110 allows too.
func checkMultiRange(t *testing.T, url string, content []byte) {
	t.Helper()
	a := get(t, url, "Range: bytes=10-19,-5")
	if a.Status == http.StatusOK && bytes.Equal(a.Body, content) {
		return
	}
	kind, params, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
	if a.Status != http.StatusPartialContent || err != nil || kind != "multipart/byteranges" {
		t.Errorf("two ranges = %d %s, %v", a.Status, kind, err)
		return
	}
	parts := multipart.NewReader(bytes.NewReader(a.Body), params["boundary"])
	for _, want := range [][]byte{content[10:20], content[len(content)-5:]} {
		part, err := parts.NextPart()
		if err != nil {
			t.Errorf("two ranges: %v", err)
			return
		}
		if got, err := io.ReadAll(part); err != nil || !bytes.Equal(got, want) {
			t.Errorf("part %s = %d bytes, %v", part.Header.Get("Content-Range"), len(got), err)
		}
	}
}

// checkBlobHeaders checks HEAD, and If-Range by the ETag.
func checkBlobHeaders(t *testing.T, url string, blob digest.Digest, size int) {
	t.Helper()
	a := ask(t, http.MethodHead, url)
	if a.Status != http.StatusOK || a.Header.Get("Content-Length") != fmt.Sprint(size) || a.Header.Get("Docker-Content-Digest") != blob.String() {
		t.Errorf("HEAD = %d, Content-Length %s, Docker-Content-Digest %s", a.Status, a.Header.Get("Content-Length"), a.Header.Get("Docker-Content-Digest"))
	}
	if a.Header.Get("Accept-Ranges") != "bytes" {
		t.Errorf("HEAD: Accept-Ranges = %q, want bytes", a.Header.Get("Accept-Ranges"))
	}
	etag := a.Header.Get("ETag")
	if etag == "" {
		t.Error("HEAD: no ETag")
	}
	if a := get(t, url, "Range: bytes=0-9", "If-Range: "+etag); a.Status != http.StatusPartialContent {
		t.Errorf("If-Range with the ETag = %d, want 206", a.Status)
	}
	if a := get(t, url, "Range: bytes=0-9", `If-Range: "other"`); a.Status != http.StatusOK {
		t.Errorf("If-Range with another ETag = %d, want 200", a.Status)
	}
	if a := get(t, url, "If-None-Match: "+etag); a.Status != http.StatusNotModified {
		t.Errorf("If-None-Match with the ETag = %d, want 304", a.Status)
	}
}

// TestRangesOfArrivingBlob asks for ranges while the registry has sent only
// half of the blob: each is exact. (That the ranges are asked for before the
// rest has come is likely, not certain; both are right.)
func TestRangesOfArrivingBlob(t *testing.T) {
	for _, role := range []string{"mirror", "seeder", "mirror behind a seeder"} {
		t.Run(role, func(t *testing.T) {
			f, blob, content := rangeFleet(t, 1)
			d := map[string]*daemon{"seeder": f.Seeder, "mirror behind a seeder": f.Mirrors[0]}[role]
			if d == nil {
				d = startMirror(t, daemonConfig{Insecure: []string{f.Registry.Addr}})
			}
			url := d.Blob(f.Registry.Addr, "ranges/app", blob)
			half := int64(len(content) / 2)
			held := f.Registry.Hold(blob, half)

			body, err := openBlob(t, url)
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			held.wait(t)
			first := make([]byte, onePiece)
			if _, err := io.ReadFull(body, first); err != nil || !bytes.Equal(first, content[:onePiece]) {
				t.Fatalf("the first bytes of an arriving blob: %v", err)
			}
			for _, c := range rangeCases(int64(len(content))) {
				if c.status == http.StatusRequestedRangeNotSatisfiable { // known without the bytes
					checkRange(t, url, content, c)
				}
			}
			// The last byte of a range waits until the bytes are verified, which
			// may be when all have come.
			var ranges sync.WaitGroup
			for _, c := range append(rangeCases(int64(len(content))), rangeCase{fmt.Sprintf("bytes=100-%d", onePiece-1), 100, onePiece, 206}) {
				ranges.Go(func() { checkRange(t, url, content, c) })
			}
			held.Release()
			rest, err := io.ReadAll(body)
			if err != nil || !bytes.Equal(rest, content[onePiece:]) {
				t.Errorf("the rest of an arriving blob: %d bytes, %v", len(rest), err)
			}
			ranges.Wait()
		})
	}
}
