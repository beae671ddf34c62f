package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDemo runs `murder demo` as in the README, smaller, and looks for what it
// leaves: no file, no process.
func TestDemo(t *testing.T) {
	tmp := newRoot(t)
	done := logTime(t, "the demo")
	stdout, stderr, code := runMurder(t, []string{"TMPDIR=" + tmp}, "demo", "--hosts", "3", "--image-size", "16MiB")
	done()
	if code != 0 {
		t.Fatalf("demo exits %d\n%s%s", code, stdout, stderr)
	}
	t.Log("\n" + stdout)
	for _, word := range []string{"registry", "seeder", "peers", "saved"} {
		if !strings.Contains(strings.ToLower(stdout), word) {
			t.Errorf("the table does not say %q:\n%s", word, stdout)
		}
	}
	checkNothingLeft(t, tmp)
}

// TestDemoIsInterrupted presses Ctrl-C as soon as the demo has begun to make
// files, and again later on.
func TestDemoIsInterrupted(t *testing.T) {
	for name, after := range map[string]string{"at once": "*", "when daemons run": "*/*"} {
		t.Run(name, func(t *testing.T) {
			tmp := newRoot(t)
			p := startProcess(t, processConfig{Args: []string{murderProgram(t), "demo", "--hosts", "3", "--image-size", "512MiB"}, Env: []string{"TMPDIR=" + tmp}})
			p.waitUntil(t, "its first files", func() error {
				found, err := filepath.Glob(filepath.Join(tmp, after))
				if err == nil && len(found) < 1+strings.Count(after, "/") {
					err = errNotYet
				}
				return err
			})
			p.Signal(t, syscall.SIGINT)
			select {
			case <-p.exited:
			case <-time.After(readyWithin):
				t.Fatal("the demo does not end on SIGINT")
			}
			checkNothingLeft(t, tmp)
		})
	}
}

// checkNothingLeft fails the test if the folder has anything in it, or a
// program runs whose environment or command line knows the folder.
func checkNothingLeft(t *testing.T, tmp string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(tmp, "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left in the temporary folder: %q, %v", left, err)
	}
	programs, err := programsKnowing(tmp)
	if err != nil || len(programs) > 0 {
		t.Errorf("left running: %q, %v", programs, err)
	}
}

func programsKnowing(word string) ([]string, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, dir := range dirs {
		environ, envErr := os.ReadFile(filepath.Join(dir, "environ"))
		cmdline, cmdErr := os.ReadFile(filepath.Join(dir, "cmdline"))
		if envErr != nil || cmdErr != nil { // another user's, or gone
			continue
		}
		if strings.Contains(string(environ)+string(cmdline), word) {
			found = append(found, fmt.Sprintf("%s: %s", filepath.Base(dir), strings.ReplaceAll(string(cmdline), "\x00", " ")))
		}
	}
	return found, nil
}
