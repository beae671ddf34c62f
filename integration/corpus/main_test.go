package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Of what reaches the same the smallest is kept, of what reaches nothing new nothing, and
// what is there already stays.
func TestKeep(t *testing.T) {
	dir, found := t.TempDir(), t.TempDir()
	write := func(path, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir, "go.mod"), "module corpus.test\n")
	write(filepath.Join(dir, "parse.go"), `package parse

func parse(s string) int {
	if s == "" || s[0] != 'a' {
		return 0
	}
	if len(s) > 1 && s[1] == 'b' {
		return 2
	}
	return 1
}
`)
	write(filepath.Join(dir, "parse_test.go"), `package parse

import "testing"

func FuzzParse(f *testing.F) {
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		if parse(s) < 0 || s == "crash" {
			t.Error(s)
		}
	})
}
`)
	for name, text := range map[string]string{"nothing": "x", "long": "ab-long", "short": "ab", "crash": "crash"} {
		write(filepath.Join(found, "corpus.test", "FuzzParse", name), fmt.Sprintf("go test fuzz v1\nstring(%q)\n", text))
	}
	kept := filepath.Join(dir, "testdata", "fuzz", "FuzzParse")
	write(filepath.Join(kept, "mine"), "go test fuzz v1\nstring(\"a\")\n")

	p := pkg{Dir: dir, ImportPath: "corpus.test"}
	p.Module.Path = p.ImportPath
	for range 2 { // the second time there is nothing to add
		if err := p.keep(found); err != nil {
			t.Fatal(err)
		}
		inputs, err := inputsIn(kept)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, in := range inputs {
			names = append(names, in.name)
		}
		if slices.Sort(names); !slices.Equal(names, []string{"mine", "short"}) {
			t.Errorf("%v are kept, want mine and short", names)
		}
	}
}
