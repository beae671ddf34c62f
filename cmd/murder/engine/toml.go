package engine

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Our part of a TOML file stands between two comment lines, so that people
// see whose it is and cutBlock finds it after they edited the rest.
const (
	blockBegin = "# murder setup: begin"
	blockEnd   = "# murder setup: end"
)

// block wraps lines of TOML, each ended by a newline, as our part of a file.
func block(body string) string {
	return blockBegin + " (`murder setup --undo` takes this part out)\n" + body + blockEnd + "\n"
}

// cutBlock returns data without our part. It is no error if there is none.
func cutBlock(data []byte) ([]byte, error) {
	var kept []byte
	inside := false
	for line := range bytes.Lines(data) {
		trimmed := strings.TrimSpace(string(line))
		switch {
		case strings.HasPrefix(trimmed, blockBegin):
			inside = true
		case inside && trimmed == blockEnd:
			inside = false
		case !inside:
			kept = append(kept, line...)
		}
	}
	if inside {
		return nil, fmt.Errorf("the line %q is missing, so it cannot be told where murder's part ends", blockEnd)
	}
	return kept, nil
}

func blankTOML(data []byte) bool { return len(bytes.TrimSpace(data)) == 0 }

// insert puts text into data at offset at, on a line of its own.
func insert(data []byte, at int, text string) []byte {
	if at > 0 && data[at-1] != '\n' {
		text = "\n" + text
	}
	return slices.Concat(data[:at], []byte(text), data[at:])
}

// decodeTOML decodes a whole document.
func decodeTOML(data []byte) (map[string]any, error) {
	doc := map[string]any{}
	return doc, unmarshalTOML(data, &doc)
}

// unmarshalTOML is toml.Unmarshal with line and column in its errors.
func unmarshalTOML(data []byte, v any) error {
	err := toml.Unmarshal(data, v)
	if at, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, column := at.Position()
		return fmt.Errorf("line %d, column %d: %w", line, column, err)
	}
	return err
}

// lookup follows path through tables. It returns nil where the path ends
// early.
func lookup(doc map[string]any, path ...string) any {
	var v any = doc
	for _, key := range path {
		table, _ := v.(map[string]any)
		if v = table[key]; v == nil {
			return nil
		}
	}
	return v
}

// sameBut reports whether two documents say the same apart from what stands
// at path. Tables that hold nothing else than that count as not there.
func sameBut(a, b []byte, path ...string) bool {
	x, errX := decodeTOML(a)
	y, errY := decodeTOML(b)
	if errX != nil || errY != nil {
		return false
	}
	drop(x, path)
	drop(y, path)
	return reflect.DeepEqual(x, y)
}

func drop(table map[string]any, path []string) {
	if len(path) == 1 {
		delete(table, path[0])
		return
	}
	if inner, ok := table[path[0]].(map[string]any); ok {
		drop(inner, path[1:])
		if len(inner) == 0 {
			delete(table, path[0])
		}
	}
}

// header is one [table] or [[table]] line of a document.
type header struct {
	path       []string
	start, end int // of the whole line, its newline included
}

// headers lists the table headers of a document that decodes, in order.
func headers(data []byte) []header {
	var list []header
	expressions(data, func(n *unstable.Node) {
		if n.Kind == unstable.KeyValue {
			return
		}
		at := int(n.Child().Raw.Offset) // TOML keeps a header on one line
		list = append(list, header{
			path:  keys(n),
			start: bytes.LastIndexByte(data[:at], '\n') + 1,
			end:   lineEnd(data, at),
		})
	})
	return list
}

// lineEnd is the offset after the newline that ends the line at is on.
func lineEnd(data []byte, at int) int {
	if n := bytes.IndexByte(data[at:], '\n'); n >= 0 {
		return at + n + 1
	}
	return len(data)
}

// literal finds where the value of the key at path is written, whatever the
// mix of table header and dotted key it is under.
func literal(data []byte, path ...string) (start, end int, ok bool) {
	var table []string
	expressions(data, func(n *unstable.Node) {
		if n.Kind != unstable.KeyValue {
			table = keys(n)
			return
		}
		if raw := n.Value().Raw; raw.Length > 0 && slices.Equal(slices.Concat(table, keys(n)), path) {
			start, end, ok = int(raw.Offset), int(raw.Offset+raw.Length), true
		}
	})
	return start, end, ok
}

// paths lists the whole path of each header and each key of a document, in
// order.
func paths(data []byte) [][]string {
	var table []string
	var list [][]string
	expressions(data, func(n *unstable.Node) {
		if n.Kind == unstable.KeyValue {
			list = append(list, slices.Concat(table, keys(n)))
			return
		}
		table = keys(n)
		list = append(list, table)
	})
	return list
}

// keys is the dotted key of a header or of a key and its value.
func keys(n *unstable.Node) []string {
	var list []string
	for it := n.Key(); it.Next(); {
		list = append(list, string(it.Node().Data))
	}
	return list
}

// expressions visits the headers and keys of a document that decodes.
func expressions(data []byte, visit func(*unstable.Node)) {
	var p unstable.Parser
	p.Reset(data)
	for p.NextExpression() {
		switch n := p.Expression(); n.Kind {
		case unstable.Table, unstable.ArrayTable, unstable.KeyValue:
			visit(n)
		}
	}
}
