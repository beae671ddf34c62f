package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// FuzzConfig reads configuration files: what is wrong with one is said on one line that names the file, with exit code 2.
func FuzzConfig(f *testing.F) {
	f.Add([]byte("seeder: [http://a:7070, https://b]\ncache-size: 80%\nupload-limit: 500Mbit\n"))
	f.Add([]byte("# only\n---\n"))
	f.Add([]byte("zone: &z a\nlog-level: *z\n"))
	f.Add([]byte("a: &a [*a, *a]\nb: {c: d}\n"))
	f.Add([]byte("cache-size: 1\ncache-size: 2\n"))
	f.Add([]byte("- x\n"))
	f.Add([]byte("seeder: null\nconfig: x\nhelp: true\n\xff"))
	file := filepath.Join(f.TempDir(), "murder.yaml")
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		probe := &cli.Command{Name: "probe", Flags: mirrorFlags(), Action: func(*cli.Context) error { return nil }}
		app := newApp([]*cli.Command{probe}, strings.NewReader(""), io.Discard, io.Discard)
		err := app.RunContext(t.Context(), []string{"murder", "probe", "--config", file})
		var usage *usageError
		if err == nil {
			return
		}
		if line := oneLine(err); !errors.As(err, &usage) || exitCode(err) != exitUsage || strings.ContainsAny(line, "\r\n") {
			t.Errorf("%q: %v", content, err)
		}
	})
}
