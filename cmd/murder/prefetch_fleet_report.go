package main

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/cwriter"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/murderp2p/murder/seeder/fleet"
)

// fleetResult is what became of an order, and the document of --output json.
type fleetResult struct {
	OK     bool       `json:"ok"`
	Error  string     `json:"error,omitempty"` // why not
	TookMS int64      `json:"took_ms"`
	Needed int        `json:"needed"`        // hosts that had to be ready
	Job    *fleet.Job `json:"job,omitempty"` // nil: the order was not taken
}

func (r *fleetResult) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, r)
	}
	j := r.Job
	for _, img := range j.Images {
		fmt.Fprintf(w, "%s is %s\n", img.Ref, img.Digest)
	}
	fmt.Fprintf(w, "%s, after %s%s\n", hostsText(j), tookText(millis(r.TookMS)), broughtText(j))
	if rest := j.Hosts - j.Ready - j.Failed; r.OK && rest > 0 && j.State == fleet.Running {
		fmt.Fprintf(w, "%d go on until %s\n", rest, j.Expires.Local().Format(time.TimeOnly))
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, list := range [][]fleet.Target{j.Failures, j.Missing, j.Slowest} {
		for _, host := range list {
			fmt.Fprintf(t, "  %s\t%s\t%s of %s\t%s\n", host.Host, stateText(host), bytesText(host.BytesDone), bytesText(host.Bytes), host.Error)
		}
	}
	return t.Flush()
}

// broughtText says where what the hosts have came from; nothing where they have nothing.
func broughtText(j *fleet.Job) string {
	if sources(j.From) == (sources{}) && j.Ready == 0 {
		return ""
	}
	return ": " + sources(j.From).String()
}

func stateText(t fleet.Target) string {
	switch {
	case t.State == fleet.Failed:
		return "FAILED"
	case t.Away:
		return "away"
	default:
		return string(t.State)
	}
}

// hostsText counts a job's hosts: "14 of 16 hosts ready, 1 failed, 1 away".
func hostsText(j *fleet.Job) string {
	text := fmt.Sprintf("%d of %d hosts ready", j.Ready, j.Hosts)
	if j.Failed > 0 {
		text += fmt.Sprintf(", %d failed", j.Failed)
	}
	if j.Away > 0 {
		text += fmt.Sprintf(", %d away", j.Away)
	}
	return text
}

// slowestText names the host that has most to do: "slowest web-3 41%".
func slowestText(j *fleet.Job) string {
	if len(j.Slowest) == 0 {
		return ""
	}
	slow := j.Slowest[0]
	percent := int64(0)
	if slow.Bytes > 0 {
		percent = slow.BytesDone * 100 / slow.Bytes
	}
	return fmt.Sprintf("slowest %s %d%%", slow.Host, percent)
}

// fleetProgress shows a job while it goes on: one bar for the fleet on a terminal, else a line now and then.
type fleetProgress struct {
	w    io.Writer
	bars *mpb.Progress // nil without a terminal
	bar  *mpb.Bar
	job  atomic.Pointer[fleet.Job] // that the bar is of
	at   time.Time                 // of what was last shown
	told string                    // by lines
}

func newFleetProgress(w io.Writer) *fleetProgress {
	p := &fleetProgress{w: w, at: time.Now()}
	if f, ok := w.(*os.File); ok && cwriter.IsTerminal(int(f.Fd())) {
		p.bars = mpb.New(mpb.WithOutput(f))
	}
	return p
}

func (p *fleetProgress) show(j *fleet.Job) {
	if p.bars == nil {
		p.line(j)
		return
	}
	p.job.Store(j)
	if p.bar == nil {
		p.bar = p.newBar()
	}
	p.bar.SetTotal(max(j.Bytes, 1), false)
	p.bar.EwmaSetCurrent(j.BytesDone, time.Since(p.at))
	p.at = time.Now()
}

func (p *fleetProgress) newBar() *mpb.Bar {
	of := func(text func(*fleet.Job) string) decor.Decorator {
		return decor.Any(func(decor.Statistics) string { return text(p.job.Load()) }, decor.WCSyncSpaceR)
	}
	return p.bars.New(1, mpb.BarStyle().Rbound("|").Lbound("|"),
		mpb.PrependDecorators(of(hostsText), decor.CountersKibiByte("% .1f / % .1f", decor.WCSyncSpace)),
		mpb.AppendDecorators(decor.EwmaSpeed(decor.SizeB1024(0), "% .1f", rateAge, decor.WCSyncSpace), of(slowestText)),
	)
}

// end is called when the job is over; nothing is shown any more when it returns.
func (p *fleetProgress) end() {
	if p.bar != nil {
		p.bar.Abort(false)
		p.bars.Wait()
	}
}

// line tells of a change in the count of hosts at once, and of bytes each progressEvery.
func (p *fleetProgress) line(j *fleet.Job) {
	text := hostsText(j)
	if text == p.told && time.Since(p.at) < progressEvery {
		return
	}
	p.told, p.at = text, time.Now()
	if slow := slowestText(j); slow != "" {
		text += "; " + slow
	}
	fmt.Fprintf(p.w, "%s: %s of %s\n", text, bytesText(j.BytesDone), bytesText(j.Bytes))
}
