package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/dustin/go-humanize"
)

// printResult writes a run as a few lines for people.
func printResult(w io.Writer, r result) {
	fmt.Fprintf(w, "\n%s, %s: %s\n", r.Scenario, r.Contender, r.Title)
	for _, g := range r.Groups {
		printGroup(w, g)
	}
	fmt.Fprintf(w, "  sent     copies: registry %.2f, seeder %.3f (at the card %.2f, %.3f)", r.Copies[roleRegistry], r.Copies[roleSeeder],
		r.CopiesCard[roleRegistry], r.CopiesCard[roleSeeder])
	if hosts := spreadOf(copiesOf(r.SentByHost, r.Size)); len(r.SentByHost) > 1 {
		fmt.Fprintf(w, "; each host p50 %.2f max %.2f", hosts.P50, hosts.Max)
	}
	if r.Crossed > 0 {
		fmt.Fprintf(w, "; into the far zone %.2f", float64(r.Crossed)/float64(r.Size))
	}
	fmt.Fprintf(w, "; %.1f %% sent again, dropped at cards %d, switch %d\n  cost    ", 100*r.Retransmits, r.Drops.Cards, r.Drops.Switch)
	for _, c := range r.Roles {
		fmt.Fprintf(w, " %s %.1f CPU s", c.Role, c.CPU)
		if c.PerGiB > 0 {
			fmt.Fprintf(w, " (%.2f a GiB)", c.PerGiB)
		}
		fmt.Fprintf(w, " %s,", humanize.IBytes(uint64(c.PeakRSS)))
	}
	fmt.Fprintf(w, " machine %.0f %% busy, %.0f %% by these\n", 100*r.Machine, 100*r.Lab)
	if r.CPUBound {
		fmt.Fprintln(w, "  CPU-BOUND: this says little about the network")
	}
	printSome(w, "warning", r.Warnings)
	printSome(w, "ERROR", r.Errors)
}

func printGroup(w io.Writer, g group) {
	fmt.Fprintf(w, "  %-8s %2d  done p50 %.3f p90 %.3f max %.3f %s", g.Name, g.Hosts, g.Completed.P50, g.Completed.P90, g.Completed.Max, g.Unit)
	if g.FirstByte.Max > 0 {
		fmt.Fprintf(w, " | first byte p50 %.2f max %.2f s | longest stall %.2f s | 10/50/75 %% at %.2f %.2f %.2f",
			g.FirstByte.P50, g.FirstByte.Max, g.Stall.Max, g.At[0].P50, g.At[1].P50, g.At[2].P50)
	}
	if g.PerGiB > 0 {
		fmt.Fprintf(w, " | %.2f CPU s a GiB", g.PerGiB)
	}
	fmt.Fprintln(w)
}

// printSome prints the first few lines of what may be many.
func printSome(w io.Writer, what string, lines []string) {
	const most = 3
	for _, line := range lines[:min(most, len(lines))] {
		fmt.Fprintf(w, "  %s: %s\n", what, strings.TrimSpace(line))
	}
	if more := len(lines) - most; more > 0 {
		fmt.Fprintf(w, "  and %d more\n", more)
	}
}

func copiesOf(sent []int64, size int64) (copies []float64) {
	for _, s := range sent {
		copies = append(copies, float64(s)/float64(size))
	}
	return copies
}

// writeResult writes a run into a file of its own.
func writeResult(dir string, r result) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	file := fmt.Sprintf("%s-%s-%s.json", r.Time.Format("20060102T150405"), r.Scenario, r.Contender)
	return os.WriteFile(filepath.Join(dir, file), append(b, '\n'), 0o644)
}
