package layers

import (
	"bytes"
	"errors"
	"strconv"
)

// maxDepth of lists and dictionaries in a torrent file; the deepest key in use
// (announce-list, BEP 12) needs 3. The library's decoder has no such bound: it
// recurses as deep as the input says, and a stack overflow cannot be recovered from.
const maxDepth = 16

var errBencode = errors.New("malformed bencode")

// bencode is what is left to read of a bencoded text (BEP 3). Strings and values that
// are taken from it are parts of it, so that nothing is allocated for what it claims.
type bencode []byte

// dict reads a dictionary and gives each key with its value, unread, to f.
func (b *bencode) dict(f func(key string, value bencode) error) error {
	if !b.next('d') {
		return errBencode
	}
	for !b.next('e') {
		key, err := b.str()
		if err != nil {
			return err
		}
		value, err := b.value(0)
		if err != nil {
			return err
		}
		if err := f(string(key), value); err != nil {
			return err
		}
	}
	return nil
}

// value takes one value of any kind, depth levels down.
func (b *bencode) value(depth int) (bencode, error) {
	start := *b
	var err error
	switch {
	case len(start) == 0 || depth > maxDepth:
		err = errBencode
	case start[0] == 'i':
		_, err = b.integer()
	case b.next('l'), b.next('d'):
		// A dictionary is skipped as the list of its keys and values.
		for err == nil && !b.next('e') {
			_, err = b.value(depth + 1)
		}
	default:
		_, err = b.str()
	}
	return start[:len(start)-len(*b)], err
}

// integer takes an integer that fits 64 bits.
func (b *bencode) integer() (int64, error) {
	end := bytes.IndexByte(*b, 'e')
	if !b.next('i') || end < 0 {
		return 0, errBencode
	}
	n, err := strconv.ParseInt(string((*b)[:end-1]), 10, 64)
	if err != nil {
		return 0, errBencode
	}
	*b = (*b)[end:]
	return n, nil
}

// str takes a string.
func (b *bencode) str() ([]byte, error) {
	colon := bytes.IndexByte((*b)[:min(len(*b), 20)], ':')
	if colon < 0 {
		return nil, errBencode
	}
	n, err := strconv.ParseUint(string((*b)[:colon]), 10, 63)
	rest := (*b)[colon+1:]
	if err != nil || n > uint64(len(rest)) {
		return nil, errBencode
	}
	*b = rest[n:]
	return rest[:n:n], nil
}

// next takes c if it comes next.
func (b *bencode) next(c byte) bool {
	if len(*b) == 0 || (*b)[0] != c {
		return false
	}
	*b = (*b)[1:]
	return true
}
