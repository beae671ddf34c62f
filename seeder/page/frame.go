package page

import (
	"reflect"
	"strconv"
)

// History is how many seconds of the rates a viewer is shown.
const History = 180

// rates are the latest bytes a second, the oldest first.
type rates struct{ fleet, registry []int64 }

func (r *rates) add(fleet, registry int64) {
	r.fleet, r.registry = append(r.fleet, fleet), append(r.registry, registry)
	if len(r.fleet) > History {
		r.fleet, r.registry = r.fleet[1:], r.registry[1:]
	}
}

// table keeps the rows of one type that an audience was sent last.
type table[T any] struct {
	name string
	cols []column
	key  func(*T) any
	rows []T
	at   map[any]int // in rows
}

func newTable[T any](name string, key func(*T) any) *table[T] {
	return &table[T]{name: name, cols: columns[T](), key: key}
}

// turn appends what has changed to dst, if anything has, and keeps rows. It takes rows
// over.
func (t *table[T]) turn(dst []byte, e encoder, rows []T) []byte {
	start := len(dst)
	dst = append(strconv.AppendQuote(append(dst, ','), t.name), `:{"set":[`...)
	empty := len(dst)
	at := make(map[any]int, len(rows))
	var none T
	for i := range rows {
		key := t.key(&rows[i])
		at[key] = i
		was, before := &none, len(dst)
		old, known := t.at[key]
		if known {
			was = &t.rows[old]
		}
		if before > empty {
			dst = append(dst, ',')
		}
		var changed bool
		if dst, changed = e.row(dst, t.cols, reflect.ValueOf(&rows[i]).Elem(), reflect.ValueOf(was).Elem(), 1); !changed && known {
			dst = dst[:before]
		}
	}
	set := len(dst) > empty
	dst, gone := t.gone(append(dst, ']'), at)
	t.rows, t.at = rows, at
	if !set && !gone {
		return dst[:start]
	}
	return append(dst, '}')
}

// gone appends the rows that are not among those at.
func (t *table[T]) gone(dst []byte, at map[any]int) (_ []byte, any bool) {
	for key := range t.at {
		if _, ok := at[key]; ok {
			continue
		}
		if !any {
			dst = append(dst, `,"gone":[`...)
		} else {
			dst = append(dst, ',')
		}
		any = true
		switch key := key.(type) {
		case int:
			dst = strconv.AppendInt(dst, int64(key), 10)
		case string:
			dst = appendText(dst, key)
		}
	}
	if any {
		dst = append(dst, ']')
	}
	return dst, any
}

// whole appends all rows.
func (t *table[T]) whole(dst []byte, e encoder) []byte {
	fresh := &table[T]{name: t.name, cols: t.cols, key: t.key}
	return fresh.turn(dst, e, t.rows)
}

// frames turns the states of one View after another into events for one audience.
type frames struct {
	encoder
	seq       int64
	now       Now
	nowCols   []column
	swarms    *table[Swarm]
	hosts     *table[Host]
	jobs      *table[Job]
	fallbacks *table[Fallback]
	size      int // of the last, to begin with
}

func newFrames(names bool) *frames {
	return &frames{
		encoder:   encoder{names: names},
		nowCols:   columns[Now](),
		swarms:    newTable("swarms", func(s *Swarm) any { return s.ID }),
		hosts:     newTable("hosts", func(h *Host) any { return h.ID }),
		jobs:      newTable("jobs", func(j *Job) any { return j.ID }),
		fallbacks: newTable("fallbacks", func(f *Fallback) any { return f.Reason }),
	}
}

// turn takes v over, and returns the event that leads to it from the one before.
func (f *frames) turn(v View) []byte {
	f.seq++
	dst := append(make([]byte, 0, f.size+f.size/4+256), "event: delta\ndata: {\"seq\":"...)
	dst = strconv.AppendInt(dst, f.seq, 10)
	before := len(dst)
	dst = append(dst, `,"now":`...)
	var changed bool
	if dst, changed = f.row(dst, f.nowCols, reflect.ValueOf(v.Now), reflect.ValueOf(f.now), 0); !changed {
		dst = dst[:before]
	}
	f.now = v.Now
	dst = f.swarms.turn(dst, f.encoder, v.Swarms)
	dst = f.hosts.turn(dst, f.encoder, v.Hosts)
	dst = f.jobs.turn(dst, f.encoder, v.Jobs)
	dst = f.fallbacks.turn(dst, f.encoder, v.Fallbacks)
	f.size = len(dst)
	return append(dst, "}\n\n"...)
}

// whole returns the event that is the last View.
func (f *frames) whole(r rates) []byte {
	dst := append([]byte(nil), "event: view\ndata: {\"seq\":"...)
	dst = strconv.AppendInt(dst, f.seq, 10)
	dst = append(dst, `,"names":`...)
	dst = strconv.AppendBool(dst, f.names)
	dst = append(dst, `,"history":{"fleet":`...)
	dst = appendInts(dst, r.fleet)
	dst = append(dst, `,"registry":`...)
	dst = appendInts(dst, r.registry)
	dst = append(dst, `},"now":`...)
	dst, _ = f.row(dst, f.nowCols, reflect.ValueOf(f.now), reflect.ValueOf(Now{}), len(f.nowCols))
	dst = f.swarms.whole(dst, f.encoder)
	dst = f.hosts.whole(dst, f.encoder)
	dst = f.jobs.whole(dst, f.encoder)
	dst = f.fallbacks.whole(dst, f.encoder)
	return append(dst, "}\n\n"...)
}

func appendInts(dst []byte, of []int64) []byte {
	dst = append(dst, '[')
	for i, n := range of {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = strconv.AppendInt(dst, n, 10)
	}
	return append(dst, ']')
}
