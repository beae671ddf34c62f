package main

import (
	"fmt"
	"io"
	"slices"
)

// row is a line of the summary: one group of hosts in the runs of one scenario
// by one contender.
type row struct {
	scenario, contender, group string
}

// printSummary writes a table of all runs in Markdown, as docs/BENCHMARKS.md
// has it. Of repeated runs it has the median of each figure.
func printSummary(w io.Writer, results []result) {
	fmt.Fprintln(w, "\n| scenario | by | hosts | runs | done, p50 | max | first byte, p50 / max | longest stall | copies: registry, seeder | CPU s a GiB: hosts, seeder | peak RSS: hosts, seeder | busy |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|---|---|---|---|")
	for _, key := range rowsOf(results) {
		printRow(w, key, results)
	}
}

// rowsOf are the rows that results give, in the order of the runs.
func rowsOf(results []result) (rows []row) {
	for _, r := range results {
		for _, g := range r.Groups {
			if key := (row{r.Scenario, r.Contender, g.Name}); !slices.Contains(rows, key) {
				rows = append(rows, key)
			}
		}
	}
	return rows
}

func printRow(w io.Writer, key row, results []result) {
	var runs []result
	var groups []group
	for _, r := range results {
		i := slices.IndexFunc(r.Groups, func(g group) bool { return g.Name == key.group })
		if r.Scenario == key.scenario && r.Contender == key.contender && i >= 0 {
			runs, groups = append(runs, r), append(groups, r.Groups[i])
		}
	}
	ofGroup := func(f func(g group) float64) float64 { return median(groups, f) }
	role := func(name string, f func(c roleCost) float64) float64 {
		return median(runs, func(r result) float64 {
			i := slices.IndexFunc(r.Roles, func(c roleCost) bool { return c.Role == name })
			if i < 0 {
				return 0
			}
			return f(r.Roles[i])
		})
	}
	perGiB := func(c roleCost) float64 { return c.PerGiB }
	peak := func(c roleCost) float64 { return float64(c.PeakRSS) / (1 << 20) }
	fmt.Fprintf(w, "| %s | %s | %d %s | %d | %.3f %s | %.3f | %.2f / %.2f s | %.2f s | %.2f, %.2f | %.2f, %.2f | %.0f, %.0f MiB | %.0f %%%s |\n",
		key.scenario, key.contender, groups[0].Hosts, key.group, len(runs),
		ofGroup(func(g group) float64 { return g.Completed.P50 }), groups[0].Unit,
		ofGroup(func(g group) float64 { return g.Completed.Max }),
		ofGroup(func(g group) float64 { return g.FirstByte.P50 }), ofGroup(func(g group) float64 { return g.FirstByte.Max }),
		ofGroup(func(g group) float64 { return g.Stall.Max }),
		median(runs, func(r result) float64 { return r.Copies[roleRegistry] }), median(runs, func(r result) float64 { return r.Copies[roleSeeder] }),
		role(roleHosts, perGiB), role(roleSeeder, perGiB), role(roleHosts, peak), role(roleSeeder, peak),
		100*median(runs, func(r result) float64 { return r.Machine }), cpuMark(runs))
}

// cpuMark marks rows of which a run was bound by the CPU.
func cpuMark(runs []result) string {
	if slices.ContainsFunc(runs, func(r result) bool { return r.CPUBound }) {
		return ", CPU-bound"
	}
	return ""
}

func median[T any](of []T, value func(T) float64) float64 {
	var values []float64
	for _, v := range of {
		values = append(values, value(v))
	}
	return spreadOf(values).P50
}
