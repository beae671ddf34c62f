package artifact

import "testing"

func TestCheckLink(t *testing.T) {
	for _, test := range []struct {
		at, target string
		inside     bool
	}{
		{"a", "b", true},
		{"a", "b/c", true},
		{"a", ".", true},
		{"a", "b/", true},
		{"d/a", "..", true},
		{"d/a", "../", true},
		{"d/a", "../b", true},
		{"d/e/a", "../../b", true},
		{"a", "..b", true},
		{"a", "b/..c", true},
		{"a", "", false},
		{"a", "/", false},
		{"a", "//", false},
		{"a", "/b", false},
		{"a", "..", false},
		{"a", "../", false},
		{"a", "../b", false},
		{"d/a", "../..", false},
		{"d/a", "..//..//b", false},
		{"d/a", "..//b", false},
		{"d/a", "./../../b", false},
		{"d/a", "b/../../..", false}, // b may be a symlink
		{"d/a", "b/..", false},
		{"a", "b\x00", false},
		{"a", "\xff", false},
	} {
		if err := checkLink(test.at, test.target); (err == nil) != test.inside {
			t.Errorf("symlink at %q to %q: %v, want that it stays inside: %v", test.at, test.target, err, test.inside)
		}
	}
}
