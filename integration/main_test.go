package integration

import (
	"fmt"
	"os"
	"testing"
)

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

// runTests runs the tests in a room of their own, and cleans up after itself
// and after earlier runs that could not.
func runTests(m *testing.M) int {
	if err := sweepRoots(); err != nil {
		fmt.Fprintln(os.Stderr, "remove what an earlier run left:", err)
	}
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", rootPrefix, os.Getpid()))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	fixturesRoot = dir
	return m.Run()
}
