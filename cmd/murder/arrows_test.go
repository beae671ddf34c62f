package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/murderp2p/murder/"

// mayImport are the arrows between the rooms, as docs/ARCHITECTURE.md draws
// them. An inner room counts as its outer one.
var mayImport = map[string][]string{
	"cmd":         {"proxy", "seeder", "layers", "registry", "artifact"},
	"proxy":       {"layers", "registry"},
	"seeder":      {"layers", "registry"},
	"layers":      {},
	"registry":    {},
	"artifact":    {},
	"integration": {"cmd", "proxy", "seeder", "layers", "registry", "artifact"},
}

// torrentRooms are where the BitTorrent library's types may be known.
var torrentRooms = []string{"layers", "seeder/tracker", "integration"}

func TestArrows(t *testing.T) {
	for pkg, imports := range listImports(t) {
		from := room(pkg)
		allowed, known := mayImport[from]
		if !known {
			t.Errorf("%s is in no room of the house", pkg)
			continue
		}
		for _, to := range imports {
			inner, ours := strings.CutPrefix(to, module)
			if ours && room(inner) != from && !slices.Contains(allowed, room(inner)) {
				t.Errorf("%s imports %s: the arrows run the other way", pkg, inner)
			}
			if inner == "registry/registrytest" {
				t.Errorf("%s imports %s, which is for tests", pkg, inner)
			}
			if strings.HasPrefix(to, "github.com/anacrolix/") && !within(pkg, torrentRooms) {
				t.Errorf("%s imports %s, which stays inside %v", pkg, to, torrentRooms)
			}
		}
	}
}

// listImports returns what each package of the module imports, its tests left
// aside, by path inside the module.
func listImports(t *testing.T) map[string][]string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "../../...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	imports := make(map[string][]string)
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		imports[strings.TrimPrefix(fields[0], module)] = fields[1:]
	}
	if len(imports) < 6 {
		t.Fatalf("go list found %d packages, want the whole house", len(imports))
	}
	return imports
}

func room(pkg string) string {
	first, _, _ := strings.Cut(pkg, "/")
	return first
}

func within(pkg string, rooms []string) bool {
	return slices.ContainsFunc(rooms, func(r string) bool { return pkg == r || strings.HasPrefix(pkg, r+"/") })
}
