package registry

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestParseRange(t *testing.T) {
	for _, test := range []struct {
		header string
		size   int64
		off, n int64
		whole  bool
		bad    bool
	}{
		{"", 10, 0, 10, true, false},
		{"", 0, 0, 0, true, false},
		{"bytes=0-0", 10, 0, 1, false, false},
		{"bytes=0-9", 10, 0, 10, false, false},
		{"bytes=9-9", 10, 9, 1, false, false},
		{"bytes=2-5", 10, 2, 4, false, false},
		{"bytes=2-500", 10, 2, 8, false, false},
		{"bytes=2-99999999999999999999", 10, 2, 8, false, false}, // larger than an int64
		{"bytes=0-", 10, 0, 10, false, false},
		{"bytes=9-", 10, 9, 1, false, false},
		{"bytes= 2-5 ", 10, 2, 4, false, false},
		{"bytes=-1", 10, 9, 1, false, false},
		{"bytes=-10", 10, 0, 10, false, false},
		{"bytes=-11", 10, 0, 10, false, false},
		{"bytes=-99999999999999999999", 10, 0, 10, false, false},
		{"bytes=0-1,4-5", 10, 0, 10, true, false},
		{"bytes=0-1,", 10, 0, 10, true, false},
		{"chunks=0-1", 10, 0, 10, true, false},
		{"bytes", 10, 0, 10, true, false},

		{header: "bytes=10-", size: 10, bad: true},
		{header: "bytes=10-11", size: 10, bad: true},
		{header: "bytes=99999999999999999999-", size: 10, bad: true},
		{header: "bytes=5-4", size: 10, bad: true},
		{header: "bytes=0-", size: 0, bad: true},
		{header: "bytes=-0", size: 10, bad: true},
		{header: "bytes=-1", size: 0, bad: true},
		{header: "bytes=", size: 10, bad: true},
		{header: "bytes=-", size: 10, bad: true},
		{header: "bytes=5", size: 10, bad: true},
		{header: "bytes=a-b", size: 10, bad: true},
		{header: "bytes=+1-2", size: 10, bad: true},
		{header: "bytes=1-+2", size: 10, bad: true},
		{header: "bytes=--1", size: 10, bad: true},
		{header: "bytes=1 -2", size: 10, bad: true},
		{header: "bytes=0x1-2", size: 10, bad: true},
	} {
		off, n, whole, err := ParseRange(test.header, test.size)
		if test.bad {
			if status(err) != http.StatusRequestedRangeNotSatisfiable {
				t.Errorf("ParseRange(%q, %d) = %v, want 416", test.header, test.size, err)
			}
			continue
		}
		if off != test.off || n != test.n || whole != test.whole || err != nil {
			t.Errorf("ParseRange(%q, %d) = %d, %d, %v, %v, want %d, %d, %v", test.header, test.size, off, n, whole, err, test.off, test.n, test.whole)
		}
	}
}

func TestParseRangeTellsTheSize(t *testing.T) {
	_, _, _, err := ParseRange("bytes=10-", 10)
	if got := err.(*Error).Header.Get("Content-Range"); got != "bytes */10" {
		t.Errorf("Content-Range of the 416 = %q", got)
	}
}

func FuzzParseRange(f *testing.F) {
	for _, header := range []string{"", "bytes=0-0", "bytes=5-", "bytes=-5", "bytes=0-1,2-3", "bytes=9223372036854775807-", "bytes=-9223372036854775808", "bytes=\x00-", "bytes=٣-"} {
		f.Add(header, int64(10))
		f.Add(header, int64(0))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			t.Skip("sizes that are not known are not asked about")
		}
		off, n, whole, err := ParseRange(header, size)
		switch {
		case err != nil:
			if status(err) != http.StatusRequestedRangeNotSatisfiable {
				t.Errorf("error %v is no 416", err)
			}
		case whole:
			if off != 0 || n != size {
				t.Errorf("whole = %d, %d of %d", off, n, size)
			}
		case off < 0 || n < 1 || off+n > size || off+n < off:
			t.Errorf("section %d, %d lies outside of %d", off, n, size)
		}
	})
}

// FuzzContentRange reads what registries say of the section they send.
func FuzzContentRange(f *testing.F) {
	f.Add("bytes 10-99/100", int64(10), int64(90))
	f.Add("bytes 10-99/*", int64(10), int64(-1))
	f.Add("bytes 0-0/99999999999999999999", int64(0), int64(1))
	f.Add("bytes 1-2", int64(1), int64(2))
	f.Fuzz(func(t *testing.T, contentRange string, off, length int64) {
		resp := &http.Response{StatusCode: http.StatusPartialContent, ContentLength: length, Header: http.Header{"Content-Range": {contentRange}}}
		size, err := wholeSize(resp, off)
		if err == nil && !strings.HasPrefix(contentRange, fmt.Sprintf("bytes %d-", off)) {
			t.Errorf("%q is taken for a section from %d on", contentRange, off)
		}
		if err == nil && size <= off {
			t.Errorf("%q: byte %d of a blob of %d", contentRange, off, size)
		}
	})
}
