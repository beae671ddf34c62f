package main

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documents are what strangers read, by name.
func documents(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(files) < 5 {
		t.Fatalf("documents: %v, %v", files, err)
	}
	docs := map[string]string{}
	for _, f := range append(files, "../../README.md") {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		docs[filepath.Base(f)] = string(b)
	}
	return docs
}

var (
	murderLine   = regexp.MustCompile(`(?m)^(?: {4})?(murder [a-z].*)$`)
	inlineMurder = regexp.MustCompile("`(murder [a-z][^`]*)`")
)

// TestDocumentedCommands: each command line of the documents is one that murder takes, flags and their values included. (That they
// also do what the documents say is the job of integration.)
func TestDocumentedCommands(t *testing.T) {
	seen := 0
	for name, doc := range documents(t) {
		for _, match := range append(murderLine.FindAllStringSubmatch(doc, -1), inlineMurder.FindAllStringSubmatch(doc, -1)...) {
			line, _, _ := strings.Cut(match[1], " #")
			line, _, _ = strings.Cut(strings.ReplaceAll(line, `\|`, "|"), " |")
			seen++
			app := newApp(commands(), nil, io.Discard, io.Discard)
			if _, err := arrange(app, strings.Fields(strings.ReplaceAll(line, "'", ""))); err != nil {
				t.Errorf("%s: %s: %v", name, line, err)
			}
		}
	}
	if seen < 30 {
		t.Errorf("only %d command lines were found", seen)
	}
}

// TestLinks: each link between the documents leads to a file, and to a heading of it.
func TestLinks(t *testing.T) {
	docs := documents(t)
	link := regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`)
	for name, doc := range docs {
		folder := "../../docs"
		if name == "README.md" {
			folder = "../.."
		}
		for _, m := range link.FindAllStringSubmatch(doc, -1) {
			target := name
			if m[1] != "" {
				target = filepath.Base(m[1])
				if _, err := os.Stat(filepath.Join(folder, m[1])); err != nil {
					t.Errorf("%s links to %s: %v", name, m[1], err)
				}
			}
			if m[2] != "" && !hasHeading(docs[target], m[2]) {
				t.Errorf("%s links to %s#%s, which has no such heading", name, target, m[2])
			}
		}
	}
}

// hasHeading compares as GitHub makes anchors.
func hasHeading(doc, anchor string) bool {
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(doc, -1) {
		if strings.NewReplacer(" ", "-", ",", "").Replace(strings.ToLower(m[1])) == anchor {
			return true
		}
	}
	return false
}

// TestTroubleshootingQuotesTheLog: the messages that people look up are those that the code logs.
func TestTroubleshootingQuotesTheLog(t *testing.T) {
	doc := documents(t)["TROUBLESHOOTING.md"]
	_, lines, _ := strings.Cut(doc, "\n## Log lines\n")
	lines, _, _ = strings.Cut(lines, "\n## ")
	quoted := regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(lines, -1)
	if len(quoted) < 25 {
		t.Fatalf("only %d messages are quoted", len(quoted))
	}
	logged := loggedMessages(t)
	for _, q := range quoted {
		if !logged[q[1]] {
			t.Errorf("nothing logs %q", q[1])
		}
	}
}

var logCall = regexp.MustCompile(`[lL]og\.(?:Debug|Info|Warn|Error)\("([^"]+)"`)

// loggedMessages are those that the code logs.
func loggedMessages(t *testing.T) map[string]bool {
	t.Helper()
	messages := map[string]bool{}
	for _, room := range []string{"artifact", "cmd", "layers", "proxy", "registry", "seeder"} {
		err := filepath.WalkDir("../../"+room, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			b, err := os.ReadFile(path)
			for _, m := range logCall.FindAllStringSubmatch(string(b), -1) {
				messages[m[1]] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return messages
}
