package registry

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
)

// ParseRange reads a Range header for content of size bytes and returns the
// section asked for. whole is true where all of it is to be sent with 200:
// no header, a unit other than bytes, or several ranges in one header, which
// a server may answer in full (RFC 9110, 14.2). A range that is malformed or
// lies past the end is an [*Error] of status 416.
func ParseRange(header string, size int64) (off, n int64, whole bool, err error) {
	spec, ok := strings.CutPrefix(header, "bytes=")
	if !ok || strings.Contains(spec, ",") {
		return 0, size, true, nil
	}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok {
		return 0, 0, false, badRange(header, size)
	}
	if first == "" {
		return suffix(header, last, size)
	}
	off, ok = parseOffset(first)
	if !ok || off >= size {
		return 0, 0, false, badRange(header, size)
	}
	if last == "" {
		return off, size - off, false, nil
	}
	end, ok := parseOffset(last)
	if !ok || end < off {
		return 0, 0, false, badRange(header, size)
	}
	return off, min(end, size-1) - off + 1, false, nil
}

// suffix is the form -N: the last N bytes, or all where there are fewer.
func suffix(header, last string, size int64) (off, n int64, whole bool, err error) {
	n, ok := parseOffset(last)
	if !ok || n == 0 || size == 0 {
		return 0, 0, false, badRange(header, size)
	}
	n = min(n, size)
	return size - n, n, false, nil
}

// parseOffset takes digits only: strconv would let a sign pass.
func parseOffset(s string) (int64, bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64) // the largest int64 where it is larger still
	return n, err == nil || errors.Is(err, strconv.ErrRange)
}

func badRange(header string, size int64) *Error {
	e := newError(http.StatusRequestedRangeNotSatisfiable, CodeRangeInvalid, "range %q of %d bytes", clip(header), size)
	e.Header = http.Header{"Content-Range": {"bytes */" + strconv.FormatInt(size, 10)}}
	return e
}
