package main

import (
	"bytes"
	"context"
	"testing"

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
			"exit": exitStatus,
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

// runMurder runs murder within the test's process.
func runMurder(t *testing.T, ctx context.Context, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	err = run(ctx, append([]string{"murder"}, args...), nil, &out, &errOut)
	return out.String(), errOut.String(), err
}
