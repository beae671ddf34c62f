package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"murder": main})
}

// TestScripts runs murder as people type it; each script in testdata is a story.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                "testdata",
		RequireUniqueNames: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exit":  exitStatus,
			"await": await,
			"clean": clean,
		},
	})
}

// exitStatus is the script command `exit CODE COMMAND...`: the command must end with that exit code, and say so on one line when it is 2.
func exitStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE COMMAND...")
	}
	got := "0"
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		got = err.Error()[len("exit status "):]
	}
	if got != args[0] {
		ts.Fatalf("exit code is %s, want %s", got, args[0])
	}
	stderr := ts.ReadFile("stderr")
	if got == "2" && (len(stderr) == 0 || bytes.Count([]byte(stderr), []byte("\n")) != 1) {
		ts.Fatalf("stderr is not one line:\n%s", stderr)
	}
}

// await is the script command `await PATTERN`: it waits until a file of that name is there.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await PATTERN")
	}
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if files, _ := filepath.Glob(ts.MkAbs(args[0])); len(files) > 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			ts.Fatalf("%s has not come", args[0])
		}
	}
}

// clean is the script command `clean DIR`: the folder must be empty, and no process may have it on its command line.
func clean(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: clean DIR")
	}
	dir := ts.MkAbs(args[0])
	if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
		ts.Fatalf("%s has %v left in it, %v", dir, files, err)
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline") // elsewhere than on Linux there is none
	for _, p := range processes {
		if b, _ := os.ReadFile(p); bytes.Contains(b, []byte(dir)) {
			ts.Fatalf("still there: %s", bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
		}
	}
}

// runMurder runs murder within the test's process.
func runMurder(t *testing.T, ctx context.Context, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	err = run(ctx, append([]string{"murder"}, args...), nil, &out, &errOut)
	return out.String(), errOut.String(), err
}

// What a stranger has written tells the reader's terminal nothing.
func TestErrorsAreOneLineOfText(t *testing.T) {
	err := errors.New("a\r\nb\x1b[31m\u009b31m\u202ec é http://user:secret@reg.test/x")
	if got, want := oneLine(err), "a; b [31m 31m c é http://...@reg.test/x"; got != want {
		t.Errorf("oneLine = %q, want %q", got, want)
	}
}
