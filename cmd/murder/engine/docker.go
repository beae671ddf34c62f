package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// DockerConfig is dockerd's configuration file. A rootless dockerd reads
// ~/.config/docker/daemon.json instead.
const DockerConfig = "/etc/docker/daemon.json"

// mirrorsKey is the list of mirrors in daemon.json, for Docker Hub alone:
// https://github.com/moby/moby/issues/18818.
const mirrorsKey = "registry-mirrors"

// Docker points dockerd at a mirror: first of registry-mirrors in
// daemon.json.
type Docker struct {
	Root       string   // before all paths; "/" for this machine
	Mirror     *url.URL // from ParseMirror
	ConfigPath string   // of daemon.json
}

// Setup implements Engine.
func (d Docker) Setup() (*Plan, error) {
	if err := d.againstFlags(); err != nil {
		return nil, err
	}
	p := new(Plan)
	f, err := openFile(d.Root, d.ConfigPath)
	if err != nil {
		return nil, err
	}
	if err := p.setup(f, d.edit()); err != nil {
		return nil, err
	}
	if !p.Empty() {
		p.note("dockerd reads daemon.json when it is told to: `systemctl reload docker`, or SIGHUP to dockerd. No restart is needed, and containers go on running.")
	}
	p.note("Docker uses mirrors for Docker Hub only. Pull from any other registry by a name that begins with the mirror's: docker pull %s/ghcr.io/ORG/IMAGE:TAG.", d.name())
	if d.Mirror.Scheme == "http" && !loopback(d.Mirror.Hostname()) {
		p.note("For such names dockerd needs \"insecure-registries\": [%q] in daemon.json too, as the mirror is not on loopback and speaks plain HTTP.", d.Mirror.Host)
	}
	p.note("A rootless dockerd reads ~/.config/docker/daemon.json: give that as --config-path. podman and containerd have files of their own: `murder setup podman`, `murder setup containerd`.")
	return p, nil
}

// name is the mirror as images are named after it. dockerd speaks plain HTTP
// to it under either name; localhost is the one people know.
func (d Docker) name() string {
	if d.Mirror.Hostname() == "127.0.0.1" {
		return strings.Replace(d.Mirror.Host, "127.0.0.1", "localhost", 1)
	}
	return d.Mirror.Host
}

// Undo implements Engine.
func (d Docker) Undo() (*Plan, error) {
	p := new(Plan)
	f, err := openFile(d.Root, d.ConfigPath)
	if err != nil {
		return nil, err
	}
	if err := p.undo(f, d.edit()); err != nil {
		return nil, err
	}
	if !p.Empty() {
		p.note("dockerd reads daemon.json when it is told to: `systemctl reload docker`, or SIGHUP to dockerd.")
	}
	return p, nil
}

// againstFlags refuses a dockerd whose service sets --registry-mirror on its
// command line: with the key in daemon.json too it does not start any more.
func (d Docker) againstFlags() error {
	if d.ConfigPath != DockerConfig {
		return nil
	}
	for _, pattern := range []string{
		"/etc/default/docker", "/etc/sysconfig/docker", "/etc/systemd/system/docker.service", "/etc/systemd/system/docker.service.d/*.conf",
		"/lib/systemd/system/docker.service", "/usr/lib/systemd/system/docker.service",
	} {
		files, _ := filepath.Glob(filepath.Join(d.Root, pattern))
		for _, name := range files {
			if err := againstFlagIn(name); err != nil {
				return err
			}
		}
	}
	return nil
}

func againstFlagIn(name string) error {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "#") && strings.Contains(line, "--registry-mirror") {
			return fmt.Errorf("%s: %w: dockerd is started with --registry-mirror, and does not start with registry-mirrors in daemon.json too; move the flag's mirrors to daemon.json first", name, ErrConflict)
		}
	}
	return nil
}

// What a record's Was says of daemon.json.
const (
	wasListed  = "listed"  // the owner had our address in the list already, further down
	wasNoList  = "no list" // there was no registry-mirrors
	wasNothing = ""        // a list without us
)

func (d Docker) edit() edit {
	return edit{add: d.add, cut: cutMirror, blank: blankJSON}
}

func blankJSON(data []byte) bool {
	var doc map[string]json.RawMessage
	return len(bytes.TrimSpace(data)) == 0 || json.Unmarshal(data, &doc) == nil && len(doc) == 0
}

// add puts the mirror first in registry-mirrors. All else keeps its text.
func (d Docker) add(base []byte) ([]byte, record, error) {
	mirror := d.Mirror.String()
	rec := record{Mirror: mirror, Was: wasNothing}
	if len(bytes.TrimSpace(base)) == 0 {
		rec.Was = wasNoList
		return fmt.Appendf(nil, "{\n  %q: [%q]\n}\n", mirrorsKey, mirror), rec, nil
	}
	doc, err := parseDaemon(base)
	if err != nil {
		return nil, rec, err
	}
	if doc.list == nil {
		rec.Was = wasNoList
		return doc.addList(mirror), rec, nil
	}
	switch i := doc.index(mirror); {
	case i == 0:
		return base, rec, nil
	case i > 0:
		rec.Was = wasListed
		if doc, err = parseDaemon(doc.removeItem(i)); err != nil {
			return nil, rec, err
		}
	}
	return doc.addFirst(mirror), rec, nil
}

// cutMirror takes the mirror out of registry-mirrors, and the list too if it
// came with it and holds nothing else.
func cutMirror(data []byte, rec record) ([]byte, error) {
	if len(bytes.TrimSpace(data)) == 0 || rec.Was == wasListed {
		return data, nil
	}
	doc, err := parseDaemon(data)
	if err != nil {
		return nil, err
	}
	i := doc.index(rec.Mirror)
	switch {
	case i < 0:
		return data, nil
	case len(doc.items) == 1 && rec.Was == wasNoList:
		return doc.removeList(), nil
	default:
		return doc.removeItem(i), nil
	}
}

// span is where something stands in the text.
type span struct{ start, end int }

// daemon is a daemon.json taken apart as far as it takes to edit its text:
// decoding and encoding it again would change the order of its keys.
type daemon struct {
	text   []byte
	open   int      // after the object's brace
	values []span   // each value of the object
	keys   []int    // where each key starts
	list   *span    // the value of registry-mirrors
	at     int      // the list's place among values
	items  []span   // each string of the list
	urls   []string // what they say
}

// parseDaemon takes text apart; an error says where it is wrong.
func parseDaemon(text []byte) (*daemon, error) {
	doc := &daemon{text: text}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(text, &object); err != nil {
		return nil, jsonError(text, err)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if object == nil {
		return nil, errors.New("it is not a JSON object")
	}
	doc.open = int(dec.InputOffset())
	for dec.More() {
		doc.keys = append(doc.keys, doc.skip(int(dec.InputOffset())))
		key, err := dec.Token()
		if err != nil {
			return nil, err
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		end := int(dec.InputOffset())
		doc.values = append(doc.values, span{end - len(value), end})
		if key != mirrorsKey {
			continue
		}
		if doc.list != nil {
			return nil, fmt.Errorf("it has %s twice", mirrorsKey)
		}
		doc.list, doc.at = &span{end - len(value), end}, len(doc.values)-1
	}
	return doc, doc.readList()
}

// skip is the next offset at or after at that holds neither space nor comma.
func (d *daemon) skip(at int) int {
	for at < len(d.text) && strings.IndexByte(" \t\r\n,", d.text[at]) >= 0 {
		at++
	}
	return at
}

func (d *daemon) readList() error {
	if d.list == nil {
		return nil
	}
	value := d.text[d.list.start:d.list.end]
	if json.Unmarshal(value, &d.urls) != nil || value[0] != '[' {
		return fmt.Errorf("its %s is not a list of strings", mirrorsKey)
	}
	dec := json.NewDecoder(bytes.NewReader(value))
	dec.Token() // the bracket
	for dec.More() {
		var item json.RawMessage
		if err := dec.Decode(&item); err != nil {
			return err
		}
		end := d.list.start + int(dec.InputOffset())
		d.items = append(d.items, span{end - len(item), end})
	}
	return nil
}

// jsonError adds line, column and offset to an error of encoding/json.
func jsonError(text []byte, err error) error {
	offset := int64(-1)
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		offset = syntax.Offset
	}
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("it is not a JSON object but a %s", kind.Value)
	}
	if offset < 0 || offset > int64(len(text)) {
		return err
	}
	head := text[:offset]
	line := bytes.Count(head, []byte("\n")) + 1
	column := len(head) - bytes.LastIndexByte(head, '\n') - 1
	return fmt.Errorf("it is not valid JSON: line %d, column %d (byte %d): %w", line, column, offset, err)
}

// index is the mirror's place in the list, -1 if it has none. dockerd reads
// an address with and without a slash at its end as the same.
func (d *daemon) index(mirror string) int {
	return slices.IndexFunc(d.urls, func(u string) bool {
		return strings.TrimSuffix(u, "/") == mirror
	})
}

func (d *daemon) splice(start, end int, text string) []byte {
	return slices.Concat(d.text[:start], []byte(text), d.text[end:])
}

// addList adds registry-mirrors as the last key, set off as the first is.
func (d *daemon) addList(mirror string) []byte {
	pair := fmt.Sprintf("%q: [%q]", mirrorsKey, mirror)
	if len(d.values) == 0 {
		return d.splice(d.open, d.open+bytes.IndexByte(d.text[d.open:], '}'), "\n  "+pair+"\n")
	}
	space := string(d.text[d.open:d.keys[0]])
	if space == "" {
		space = " "
	}
	end := d.values[len(d.values)-1].end
	return d.splice(end, end, ","+space+pair)
}

// removeList is the reverse of addList.
func (d *daemon) removeList() []byte {
	switch {
	case d.at > 0:
		return d.splice(d.values[d.at-1].end, d.list.end, "")
	case len(d.values) > 1:
		return d.splice(d.keys[0], d.keys[1], "")
	default:
		return d.splice(d.open, d.open+bytes.LastIndexByte(d.text[d.open:], '}'), "")
	}
}

// addFirst adds the mirror before the list's items, set off as they are.
func (d *daemon) addFirst(mirror string) []byte {
	quoted := fmt.Sprintf("%q", mirror)
	start := d.list.start + 1
	if len(d.items) == 0 {
		return d.splice(start, start, quoted)
	}
	space := string(d.text[start:d.items[0].start])
	if !strings.Contains(space, "\n") {
		space = " "
	}
	return d.splice(d.items[0].start, d.items[0].start, quoted+","+space)
}

// removeItem is the reverse of addFirst for the item at i.
func (d *daemon) removeItem(i int) []byte {
	switch {
	case i+1 < len(d.items):
		return d.splice(d.items[i].start, d.items[i+1].start, "")
	case i > 0:
		return d.splice(d.items[i-1].end, d.items[i].end, "")
	default:
		return d.splice(d.items[i].start, d.items[i].end, "")
	}
}
