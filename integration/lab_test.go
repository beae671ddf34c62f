package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestLab runs the fleet lab on a small fleet: each host gets the right bytes,
// over murder and over the library's client, and nothing of the lab is left on
// the machine.
func TestLab(t *testing.T) {
	needs(t, "docker-registry")
	needsShaping(t)
	root := newRoot(t)
	lab, out := filepath.Join(root, "lab"), filepath.Join(root, "out")
	run(t, processConfig{Args: []string{"go", "build", "-o", lab, "github.com/murderp2p/murder/integration/lab"}})
	linksBefore := links(t)
	pid := runLab(t, lab, "-murder", murderProgram(t), "-out", out, "-hosts", "3", "-size", "4MiB", "-rate", "100Mbit", "equal16")
	checkLabRuns(t, out, "floor", "direct", "library", "murder")

	for _, name := range links(t) {
		if !slices.Contains(linksBefore, name) {
			t.Errorf("left behind: network card %s", name)
		}
	}
	for _, dir := range []string{"/dev/shm", os.TempDir(), "/run/netns"} {
		if left, _ := filepath.Glob(filepath.Join(dir, fmt.Sprintf("murder-lab-%d-*", pid))); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
	if left := processesOf(t, fmt.Sprintf("murder-lab-%d-", pid)); len(left) > 0 {
		t.Errorf("still running: %q", left)
	}
}

// runLab runs the lab to its end and returns what its process id was.
func runLab(t *testing.T, args ...string) (pid int) {
	t.Helper()
	p := startProcess(t, processConfig{Args: args})
	<-p.exited
	if p.err != nil {
		t.Fatalf("%q: %v", args, p.err)
	}
	return p.PID()
}

// checkLabRuns reads the files that the lab wrote about the runs of each
// contender. The lab's clients have checked all digests: who has no error got
// what the registry has.
func checkLabRuns(t *testing.T, out string, contenders ...string) {
	t.Helper()
	for _, contender := range contenders {
		files, err := filepath.Glob(filepath.Join(out, "*-"+contender+".json"))
		if err != nil || len(files) != 1 {
			t.Fatalf("files of %s = %q, %v, want one", contender, files, err)
		}
		b, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		var r struct {
			Each []struct {
				End   float64
				Error string
			}
			Errors, Warnings []string
		}
		if err := json.Unmarshal(b, &r); err != nil {
			t.Fatal(err)
		}
		if len(r.Each) == 0 || len(r.Errors) > 0 {
			t.Errorf("%s: %d hosts, errors %q", contender, len(r.Each), r.Errors)
		}
		for i, h := range r.Each {
			if h.Error != "" || h.End == 0 {
				t.Errorf("%s: host %d ended after %v s: %q", contender, i, h.End, h.Error)
			}
		}
		if len(r.Warnings) > 0 {
			t.Logf("%s: warnings %q", contender, r.Warnings)
		}
	}
}

// links are the network cards of the test's own namespace.
func links(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// processesOf are the command lines that hold text.
func processesOf(t *testing.T, text string) (lines []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if line := strings.ReplaceAll(string(b), "\x00", " "); err == nil && strings.Contains(line, text) {
			lines = append(lines, line)
		}
	}
	return lines
}
