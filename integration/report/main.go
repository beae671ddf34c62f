// Report prints `go test -json` as go test prints it without -json, and says
// before each package's line how many of its tests were skipped, and why.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	if err := report(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

// event is one line of test2json (`go doc test2json`).
type event struct {
	Action     string
	Package    string
	Test       string
	Elapsed    float64 // seconds
	Output     string
	ImportPath string // of a build's output
}

// slow is how long a test takes, in seconds, to be named even when it passes.
const slow = 2

// result is what is known of one package so far.
type result struct {
	output map[string]string   // of tests under way, by name
	skips  map[string][]string // tests by reason
}

// report reads events until the end of in. The verdict is go test's own exit
// code, which a pipeline's pipefail keeps.
func report(in io.Reader, out io.Writer) error {
	packages := map[string]*result{}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				e = event{Action: "output", Output: string(line)} // a toolchain's word in between
			}
			if packages[e.Package] == nil {
				packages[e.Package] = &result{output: map[string]string{}, skips: map[string][]string{}}
			}
			packages[e.Package].take(e, out)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *result) take(e event, out io.Writer) {
	switch {
	case e.Test == "":
		r.takePackage(e, out)
	case e.Action == "output":
		r.output[e.Test] += e.Output
	case e.Action == "skip":
		reason := reasonOf(r.output[e.Test])
		r.skips[reason] = append(r.skips[reason], e.Test)
		delete(r.output, e.Test)
	case e.Action == "fail":
		fmt.Fprint(out, r.output[e.Test])
		delete(r.output, e.Test)
	case e.Action == "pass":
		if e.Elapsed >= slow && !strings.Contains(e.Test, "/") {
			fmt.Fprintf(out, "--- PASS: %s (%.2fs)\n", e.Test, e.Elapsed)
		}
		delete(r.output, e.Test)
	}
}

// takePackage prints what belongs to the package as a whole.
func (r *result) takePackage(e event, out io.Writer) {
	switch {
	case e.Action == "fail":
		for _, name := range sortedKeys(r.output) { // cut short by a panic or the time limit
			fmt.Fprint(out, r.output[name])
		}
	case e.Output == "" || e.Output == "PASS\n":
	case strings.HasPrefix(e.Output, "ok ") || strings.HasPrefix(e.Output, "FAIL\t"):
		r.printSkips(out)
		fmt.Fprint(out, e.Output)
	default:
		fmt.Fprint(out, e.Output)
	}
}

func (r *result) printSkips(out io.Writer) {
	for _, reason := range sortedKeys(r.skips) {
		names := r.skips[reason]
		fmt.Fprintf(out, "%d skipped: %s: %s\n", len(names), reason, strings.Join(names, ", "))
	}
}

// reasonOf is what a test said when it was skipped: the line before the
// verdict, without the file and line number.
func reasonOf(output string) string {
	reason := "no reason given"
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if _, said, ok := strings.Cut(line, ".go:"); ok {
			if _, text, ok := strings.Cut(said, ": "); ok {
				reason = text
			}
		}
	}
	return reason
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
