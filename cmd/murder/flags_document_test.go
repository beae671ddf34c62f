package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

var update = flag.Bool("update", false, "write docs/FLAGS.md anew")

// TestFlagsDocument: docs/FLAGS.md has each flag of each command, as the program has it.
func TestFlagsDocument(t *testing.T) {
	const path = "../../docs/FLAGS.md"
	want := flagsDocument()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	has, wanted := strings.Split(string(b), "\n"), strings.Split(want, "\n")
	for i := range max(len(has), len(wanted)) {
		switch {
		case i >= len(has):
			t.Fatalf("%s ends before %q", path, wanted[i])
		case i >= len(wanted) || has[i] != wanted[i]:
			t.Fatalf("%s:%d is not what the program has: %q; `go test ./cmd/murder -run TestFlagsDocument -update` writes it anew", path, i+1, has[i])
		}
	}
}

func flagsDocument() string {
	var b strings.Builder
	b.WriteString(`# Flags

All flags of all commands; each command's ` + "`--help`" + ` says the same. A flag is also an environment variable, ` + "`MURDER_`" + ` and its name in capitals
(` + "`MURDER_CACHE_SIZE`" + `), and a key of the YAML file that ` + "`--config FILE`" + ` names, which every command takes (` + "`cache-size: 100GiB`" + `; a list for what is
repeatable). The flag beats the variable, which beats the file. This page is made from the program, and a test compares them.
`)
	app := newApp(commands(), nil, io.Discard, io.Discard)
	for _, cmd := range app.Commands {
		if cmd.Name != "help" {
			documentCommand(&b, "murder", cmd)
		}
	}
	return b.String()
}

func documentCommand(b *strings.Builder, parent string, cmd *cli.Command) {
	name := parent + " " + cmd.Name
	fmt.Fprintf(b, "\n## %s\n\n%s\n", strings.TrimSpace(name+" "+cmd.ArgsUsage), cmd.Usage)
	var rows []string
	for _, f := range cmd.Flags {
		if name := f.Names()[0]; name != "help" && name != "config" {
			rows = append(rows, flagRow(f.(cli.DocGenerationFlag)))
		}
	}
	if len(rows) > 0 {
		fmt.Fprintf(b, "\n| flag | default | |\n|---|---|---|\n%s\n", strings.Join(rows, "\n"))
	}
	for _, sub := range cmd.Subcommands {
		documentCommand(b, name, sub)
	}
}

// placeholder is what stands for a flag's value in its usage.
var placeholder = regexp.MustCompile("`([^`]+)`")

func flagRow(f cli.DocGenerationFlag) string {
	names, usage, value := f.(cli.Flag).Names(), f.GetUsage(), ""
	if m := placeholder.FindStringSubmatchIndex(usage); m != nil && f.TakesValue() { // the first; others are code
		value = " " + usage[m[2]:m[3]]
		usage = usage[:m[0]] + usage[m[2]:m[3]] + usage[m[1]:]
	}
	var spelled []string
	for _, n := range names {
		spelled = append(spelled, "`"+strings.Repeat("-", min(len(n), 2))+n+value+"`")
	}
	if env := f.GetEnvVars(); !slices.Equal(env, []string{envName(names[0])}) {
		usage += " (`" + strings.Join(env, "`, `") + "`)"
	}
	byDefault := ""
	if text := f.GetDefaultText(); f.TakesValue() && text != "" && text != `""` {
		byDefault = "`" + strings.Trim(text, `"`) + "`"
	}
	escape := strings.NewReplacer("|", `\|`, "\n", " ", "*", `\*`).Replace
	return fmt.Sprintf("| %s | %s | %s |", escape(strings.Join(spelled, ", ")), byDefault, escape(usage))
}
