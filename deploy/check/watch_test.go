package check

import (
	"encoding/json"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

// dashboard is what of a Grafana dashboard the tests look at.
type dashboard struct {
	Panels []struct {
		ID      int
		Title   string
		Targets []struct{ Expr string }
	}
	Templating struct {
		List []struct{ Name, Definition string }
	}
}

var promql = parser.NewParser(parser.Options{})

// source is murder's code, its tests left aside.
func source(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, room := range []string{"artifact", "cmd", "layers", "proxy", "registry", "seeder"} {
		err := filepath.WalkDir(filepath.Join("../..", room), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			b, err := os.ReadFile(path)
			all.Write(b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all.String()
}

// exported are the names of the metrics that the code exports.
func exported(t *testing.T) (names []string, code string) {
	t.Helper()
	code = source(t)
	for _, m := range regexp.MustCompile(`"(murder_[a-z_]+)"`).FindAllStringSubmatch(code, -1) {
		names = append(names, m[1])
	}
	if len(names) < 15 {
		t.Fatalf("found only the metrics %v", names)
	}
	// Of Prometheus itself, and of its collectors for a process.
	return append(names, "up", "process_resident_memory_bytes", "process_cpu_seconds_total"), code
}

// checkExpr parses a PromQL expression and looks for each of its metrics, and the values that it compares labels with, in the code.
func checkExpr(t *testing.T, where, expr string) (used []string) {
	t.Helper()
	names, code := exported(t)
	for variable, value := range map[string]string{"$__rate_interval": "5m", "$__range": "6h", "$instance": ".*"} {
		expr = strings.ReplaceAll(expr, variable, value)
	}
	parsed, err := promql.ParseExpr(expr)
	if err != nil {
		t.Errorf("%s: %s: %v", where, expr, err)
		return nil
	}
	for _, selector := range parser.ExtractSelectors(parsed) {
		for _, m := range selector {
			switch {
			case m.Name == model.MetricNameLabel:
				name := strings.TrimSuffix(m.Value, "_bucket")
				if !slices.Contains(names, name) {
					t.Errorf("%s: no daemon exports %s", where, m.Value)
				}
				used = append(used, name)
			case m.Name == "job":
				if !slices.Contains([]string{"murder-mirror", "murder-seeder", "murder-.*"}, m.Value) {
					t.Errorf("%s: job is %q", where, m.Value)
				}
			case m.Name == "instance":
			case !strings.Contains(code, `"`+m.Name+`"`):
				t.Errorf("%s: no metric has the label %s", where, m.Name)
			default:
				for value := range strings.SplitSeq(m.Value, "|") {
					if !strings.Contains(code, `"`+value+`"`) {
						t.Errorf("%s: no %s is %q", where, m.Name, value)
					}
				}
			}
		}
	}
	return used
}

func TestDashboard(t *testing.T) {
	b, err := os.ReadFile("../grafana/murder.json")
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	var shown []string
	ids := map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("panel %q has the id of another", p.Title)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			shown = append(shown, checkExpr(t, p.Title, target.Expr)...)
		}
	}
	names, _ := exported(t)
	for _, name := range names {
		if !slices.Contains(shown, name) {
			t.Errorf("%s is on no panel", name)
		}
	}
}

func TestAlerts(t *testing.T) {
	groups, errs := rulefmt.ParseFile("../prometheus/murder.rules.yaml", false, model.UTF8Validation, promql, slog.Default())
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	operations, err := os.ReadFile("../../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	code := source(t)
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			checkExpr(t, rule.Alert, rule.Expr)
			if !strings.Contains(string(operations), "`"+rule.Alert+"`") {
				t.Errorf("docs/OPERATIONS.md says nothing of %s", rule.Alert)
			}
			for _, quoted := range regexp.MustCompile(`log line "([^"]+)"`).FindAllStringSubmatch(rule.Annotations["description"], -1) {
				if !strings.Contains(code, `"`+quoted[1]+`"`) {
					t.Errorf("%s: nothing logs %q", rule.Alert, quoted[1])
				}
			}
		}
	}
}
