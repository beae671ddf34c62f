package engine

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// What setup makes of an owner's daemon.json, and that taking the mirror out
// again by text gives back what was there, to the byte.
func TestDaemonJSON(t *testing.T) {
	d := Docker{Mirror: mirror(t, "http://m:1")}
	for _, tc := range []struct{ what, in, want string }{
		{"empty object", `{}`, "{\n  \"registry-mirrors\": [\"http://m:1\"]\n}"},
		{"other keys", "{\n  \"b\": 1,\n  \"a\": 1.50\n}\n", "{\n  \"b\": 1,\n  \"a\": 1.50,\n  \"registry-mirrors\": [\"http://m:1\"]\n}\n"},
		{"one line", `{"a": [{}]}`, `{"a": [{}], "registry-mirrors": ["http://m:1"]}`},
		{"empty list", `{"registry-mirrors": [ ]}`, `{"registry-mirrors": ["http://m:1" ]}`},
		{"a mirror", `{"registry-mirrors":["https://a"], "z": 0}`, `{"registry-mirrors":["http://m:1", "https://a"], "z": 0}`},
		{"mirrors on lines", "{\"registry-mirrors\": [\n\t\"https://a\",\n\t\"https://b\"\n]}", "{\"registry-mirrors\": [\n\t\"http://m:1\",\n\t\"https://a\",\n\t\"https://b\"\n]}"},
		{"key with escapes", "{\"registry-mirror\\u0073\": [\"https://a\"]}", "{\"registry-mirror\\u0073\": [\"http://m:1\", \"https://a\"]}"},
		{"first already", `{"registry-mirrors":["http://m:1/", "https://a"]}`, `{"registry-mirrors":["http://m:1/", "https://a"]}`},
		{"listed last", `{"registry-mirrors":["https://a", "http://m:1/"]}`, `{"registry-mirrors":["http://m:1", "https://a"]}`},
	} {
		got, rec, err := d.add([]byte(tc.in))
		if err != nil || string(got) != tc.want {
			t.Errorf("%s: add = %s, %v, want %s", tc.what, got, err, tc.want)
			continue
		}
		if tc.what == "first already" || tc.what == "listed last" {
			continue
		}
		back, err := cutMirror(got, rec)
		want := tc.in
		if tc.what == "empty object" {
			want = "{}"
		}
		if err != nil || string(back) != want {
			t.Errorf("%s: cut = %s, %v, want %s", tc.what, back, err, want)
		}
	}
}

// With no record of it, or with the mirror gone from the list, cutMirror
// leaves all as it is.
func TestCutMirrorElsewhere(t *testing.T) {
	for _, tc := range []struct {
		in, want string
		rec      record
	}{
		{`{"registry-mirrors":["https://a"]}`, `{"registry-mirrors":["https://a"]}`, record{Mirror: "http://m:1", Was: wasNoList}},
		{`{"a":1}`, `{"a":1}`, record{Mirror: "http://m:1", Was: wasNoList}},
		{`{"registry-mirrors":["https://a","http://m:1/"]}`, `{"registry-mirrors":["https://a"]}`, record{Mirror: "http://m:1", Was: wasNoList}},
		{`{"registry-mirrors":["http://m:1"]}`, `{"registry-mirrors":[]}`, record{Mirror: "http://m:1"}},
		{`{"registry-mirrors":["http://m:1"],"a":1}`, `{"a":1}`, record{Mirror: "http://m:1", Was: wasNoList}},
		{`{"registry-mirrors":["http://m:1"]}`, `{"registry-mirrors":["http://m:1"]}`, record{Mirror: "http://m:1", Was: wasListed}},
		{``, ``, record{Mirror: "http://m:1"}},
	} {
		got, err := cutMirror([]byte(tc.in), tc.rec)
		if err != nil || string(got) != tc.want {
			t.Errorf("cutMirror(%s, %+v) = %s, %v, want %s", tc.in, tc.rec, got, err, tc.want)
		}
	}
}

// Whatever is added to and cut from a daemon.json, all else in it decodes as
// before.
func FuzzDaemonJSON(f *testing.F) {
	for _, s := range []string{`{}`, ` {"a" : [1 , {}] , "registry-mirrors" : [ "x" , "http://m:1" ] } `, `{"registry-mirrors":null}`, `{"":"}","registry-mirrors":[]}`, `[`, ``, `null`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		d := Docker{Mirror: mirror(t, "http://m:1")}
		got, rec, err := d.add([]byte(in))
		if err != nil || strings.TrimSpace(in) == "" {
			return
		}
		before, after := decode(t, in), decode(t, string(got))
		list, _ := after[mirrorsKey].([]any)
		if len(list) == 0 || strings.TrimSuffix(list[0].(string), "/") != "http://m:1" {
			t.Fatalf("add(%q) = %s: the mirror is not first", in, got)
		}
		back, err := cutMirror(got, rec)
		if err != nil {
			t.Fatalf("cut after add(%q): %v", in, err)
		}
		decode(t, string(back))
		delete(before, mirrorsKey)
		delete(after, mirrorsKey)
		if !reflect.DeepEqual(before, after) {
			t.Fatalf("add(%q) = %s: other keys differ", in, got)
		}
	})
}

func decode(t *testing.T, s string) map[string]any {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal([]byte(s), &doc); err != nil {
		t.Fatalf("decode %q: %v", s, err)
	}
	return doc
}

// dockerd does not start with the flag and the key both.
func TestDockerStartedWithFlag(t *testing.T) {
	const unit = "etc/systemd/system/docker.service.d/mirror.conf"
	root := tree{unit: "[Service]\n# --registry-mirror\nExecStart=/usr/bin/dockerd --registry-mirror=https://a\n"}.lay(t)
	_, err := engines(t, root)["docker"].Setup()
	if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), unit) {
		t.Errorf("Setup = %v, want a conflict that names the unit", err)
	}
	write(t, root, unit, "[Service]\n# --registry-mirror\n")
	run(t, engines(t, root)["docker"].Setup)
}

func TestDockerSays(t *testing.T) {
	for url, want := range map[string]string{
		"http://127.0.0.1:7080": "docker pull localhost:7080/ghcr.io/ORG/IMAGE:TAG",
		"http://10.0.0.1:7080":  `"insecure-registries": ["10.0.0.1:7080"]`,
	} {
		said := run(t, Docker{Root: t.TempDir(), Mirror: mirror(t, url), ConfigPath: DockerConfig}.Setup)
		if !strings.Contains(said, want) {
			t.Errorf("setup with %s said\n%s\nwant in it %s", url, said, want)
		}
	}
}
