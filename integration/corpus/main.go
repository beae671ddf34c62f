// Corpus keeps in a package's testdata/fuzz, which every `go test` runs, the few inputs of
// all that fuzzing has found on this machine which reach most:
//
//	corpus [PACKAGE...]
//
// Go leaves what it finds in its build cache only. What lies in testdata/fuzz already
// stays, so a bug's input that somebody has put there is never lost; remove files to have
// them chosen anew.
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// What is kept for a target, so that unit tests stay fast and the repository small.
const (
	maxInputs = 24
	maxBytes  = 64 << 10
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "corpus:", err)
		os.Exit(1)
	}
}

// pkg is what `go list` says of a package.
type pkg struct {
	Dir, ImportPath string
	Module          struct{ Path string }
	Deps            []string
}

func run(patterns []string) error {
	out, err := command("", "go", append([]string{"list", "-json=Dir,ImportPath,Module,Deps"}, patterns...)...)
	if err != nil {
		return err
	}
	cache, err := command("", "go", "env", "GOCACHE")
	if err != nil {
		return err
	}
	for list := json.NewDecoder(strings.NewReader(out)); list.More(); {
		var p pkg
		if err := list.Decode(&p); err != nil {
			return err
		}
		if err := p.keep(filepath.Join(strings.TrimSpace(cache), "fuzz")); err != nil {
			return fmt.Errorf("%s: %w", p.ImportPath, err)
		}
	}
	return nil
}

// keep chooses inputs for all fuzz targets of p of those that lie below found.
func (p pkg) keep(found string) error {
	listed, err := command(p.Dir, "go", "test", "-list", "^Fuzz")
	if err != nil {
		return err
	}
	var targets []string
	for line := range strings.Lines(listed) {
		if name := strings.TrimSpace(line); strings.HasPrefix(name, "Fuzz") {
			targets = append(targets, name)
		}
	}
	if len(targets) == 0 {
		return nil
	}
	work, err := os.MkdirTemp("", "murder-corpus-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	binary := filepath.Join(work, "test")
	if _, err := command(p.Dir, "go", "test", "-c", "-o", binary, "-covermode=count", "-coverpkg="+p.own()); err != nil {
		return err
	}
	for _, name := range targets {
		t := target{name: name, binary: binary, work: filepath.Join(work, name), kept: filepath.Join(p.Dir, "testdata", "fuzz", name)}
		if err := t.choose(filepath.Join(found, p.ImportPath, name)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// own lists p and the packages of its module that it imports.
func (p pkg) own() string {
	own := []string{p.ImportPath}
	for _, dep := range p.Deps {
		if strings.HasPrefix(dep, p.Module.Path+"/") {
			own = append(own, dep)
		}
	}
	return strings.Join(own, ",")
}

// target is a fuzz target, in a test binary that counts how often each block runs.
type target struct {
	name, binary string
	work         string // folder that the binary runs in, with a testdata of its own
	kept         string // folder of the repository
	seeds        counts // of the inputs that the target itself adds, which come with each run
}

// counts is how often each block has run.
type counts map[string]uint64

// input is a file of a corpus.
type input struct {
	name    string
	content []byte
	reach   reach
}

// reach is what an input, or several, have run: each block, and each block as often as that,
// to a power of two.
type reach map[string]bool

// choose adds to what is kept, the smallest first, whatever of found reaches what nothing
// before it has: blocks that nothing has run, and as long as there is room for more,
// blocks that nothing has run about as often.
func (t target) choose(found string) error {
	kept, err := inputsIn(t.kept)
	if err != nil {
		return err
	}
	candidates, err := inputsIn(found)
	if err != nil {
		return err
	}
	if t.seeds, err = t.run(nil); err != nil {
		return err
	}
	reached, room := t.seeds.reach(nil), maxBytes
	for _, in := range kept {
		n, err := t.run([]input{in})
		if err != nil {
			return err
		}
		reached.add(n.reach(t.seeds))
		room -= len(in.content)
	}
	var failed int
	candidates = slices.DeleteFunc(candidates, func(in input) bool {
		return slices.ContainsFunc(kept, func(has input) bool { return has.name == in.name })
	})
	for i := range candidates {
		n, err := t.run(candidates[i : i+1])
		if err != nil {
			failed++ // of an older form of the target, or a bug; fuzzing says which
			continue
		}
		candidates[i].reach = n.reach(t.seeds)
	}
	var added []input
	for _, exactly := range []bool{false, true} {
		for _, in := range candidates {
			if len(kept)+len(added) < maxInputs && len(in.content) <= room && in.reach.beyond(reached, exactly) {
				added = append(added, in)
				room -= len(in.content)
				reached.add(in.reach)
			}
		}
	}
	for _, in := range added {
		if err := errors.Join(os.MkdirAll(t.kept, 0o755), os.WriteFile(filepath.Join(t.kept, in.name), in.content, 0o644)); err != nil {
			return err
		}
	}
	fmt.Printf("%s: %d kept and %d added of %d found, %d KiB; %d cannot be run\n",
		t.name, len(kept), len(added), len(candidates), (maxBytes-room)>>10, failed)
	return nil
}

// inputsIn returns the files in dir, which need not exist, the smallest first.
func inputsIn(dir string) ([]input, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var list []input
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		list = append(list, input{name: e.Name(), content: content})
	}
	slices.SortStableFunc(list, func(a, b input) int { return cmp.Compare(len(a.content), len(b.content)) })
	return list, nil
}

// run runs inputs, and what the target itself adds.
func (t target) run(inputs []input) (counts, error) {
	corpus := filepath.Join(t.work, "testdata", "fuzz", t.name)
	if err := errors.Join(os.RemoveAll(t.work), os.MkdirAll(corpus, 0o755)); err != nil {
		return nil, err
	}
	for _, in := range inputs {
		if err := os.WriteFile(filepath.Join(corpus, in.name), in.content, 0o644); err != nil {
			return nil, err
		}
	}
	if _, err := command(t.work, t.binary, "-test.run=^"+t.name+"$", "-test.coverprofile=profile"); err != nil {
		return nil, err
	}
	profile, err := os.ReadFile(filepath.Join(t.work, "profile"))
	if err != nil {
		return nil, err
	}
	return parseProfile(string(profile)), nil
}

// parseProfile reads a coverage profile: after a line with its mode, one for each block, which
// ends in how often it was run.
func parseProfile(profile string) counts {
	c := counts{}
	for line := range strings.Lines(profile) {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			continue
		}
		if n, err := strconv.ParseUint(fields[2], 10, 64); err == nil {
			c[fields[0]] += n
		}
	}
	return c
}

// reach returns what was reached, without what is in besides.
func (c counts) reach(besides counts) reach {
	r := reach{}
	for block, n := range c {
		if n > besides[block] {
			r[block] = true
			r[fmt.Sprint(block, "*", bits.Len64(n-besides[block]))] = true
		}
	}
	return r
}

// beyond tells whether r reaches a block that other does not; exactly counts also how often.
func (r reach) beyond(other reach, exactly bool) bool {
	for what := range r {
		if !other[what] && (exactly || !strings.Contains(what, "*")) {
			return true
		}
	}
	return false
}

func (r reach) add(other reach) {
	for what := range other {
		r[what] = true
	}
}

// command runs a program in dir and returns what it prints.
func command(dir, program string, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return "", fmt.Errorf("%s %s: %w\n%s%s", program, strings.Join(args, " "), err, out, exit.Stderr)
	}
	return string(out), err
}
