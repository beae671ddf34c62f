package page

import (
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// column is a field of a row as it is sent.
type column struct {
	key   []byte // "name":
	open  bool   // for everybody
	round bool
}

// columns of the type T, the ID's first.
func columns[T any]() []column {
	t := reflect.TypeFor[T]()
	cols := make([]column, t.NumField())
	for i := range cols {
		f := t.Field(i)
		rule := f.Tag.Get("page")
		cols[i] = column{key: strconv.AppendQuote(nil, f.Tag.Get("json")), open: rule != "", round: rule == "round"}
		cols[i].key = append(cols[i].key, ':')
	}
	return cols
}

// encoder writes rows for one audience.
type encoder struct {
	names bool // also what is not for everybody
}

// row appends what differs between two states of a row, as a JSON object, and tells
// whether anything does. The first keyed fields are there in any case.
func (e encoder) row(dst []byte, cols []column, is, was reflect.Value, keyed int) (_ []byte, changed bool) {
	dst = append(dst, '{')
	empty := len(dst)
	for i, c := range cols {
		if !e.names && !c.open {
			continue
		}
		differs := !e.same(c, is.Field(i), was.Field(i))
		changed = changed || differs
		if !differs && i >= keyed {
			continue
		}
		if len(dst) > empty {
			dst = append(dst, ',')
		}
		dst = e.value(append(dst, c.key...), c, is.Field(i))
	}
	return append(dst, '}'), changed
}

// same tells whether a field is sent alike in two states.
func (e encoder) same(c column, a, b reflect.Value) bool {
	if c.round && !e.names {
		return rounded(a.Int()) == rounded(b.Int())
	}
	return a.Equal(b)
}

func (e encoder) value(dst []byte, c column, v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.Int, reflect.Int64:
		n := v.Int()
		if c.round && !e.names {
			n = rounded(n)
		}
		return strconv.AppendInt(dst, n, 10)
	case reflect.String:
		return appendText(dst, v.String())
	case reflect.Array:
		dst = append(dst, '[')
		for i := range v.Len() {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = strconv.AppendInt(dst, v.Index(i).Int(), 10)
		}
		return append(dst, ']')
	default: // time.Time is the only other type in a View
		return strconv.AppendInt(dst, v.Interface().(time.Time).Unix(), 10)
	}
}

// rounded is a number of bytes in whole MiB, but nothing only if it is.
func rounded(n int64) int64 {
	const mib = 1 << 20
	return (n + mib/2 - 1) / mib * mib
}

// maxText bounds a name, in characters.
const maxText = 128

// maxMarks is how many marks may stand above and below one character, as some scripts need; more
// of them grow over the lines around it, and could hide what is written there.
const maxMarks = 2

// appendText appends a name as a JSON string. Names are made by strangers: what is no
// character to be seen, or would turn the text around it about, is replaced.
func appendText(dst []byte, s string) []byte {
	if len(s) > maxText*utf8.UTFMax {
		s = s[:maxText*utf8.UTFMax]
	}
	n, marks := 0, 0
	s = strings.Map(func(r rune) rune {
		if !unicode.Is(unicode.M, r) {
			marks = 0
		} else if marks++; marks > maxMarks {
			return -1
		}
		if n++; n > maxText {
			return -1
		}
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
	b, _ := json.Marshal(s) // a string always can be
	return append(dst, b...)
}
