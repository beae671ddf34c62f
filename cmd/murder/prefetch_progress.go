package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/cwriter"
	"github.com/vbauerster/mpb/v8/decor"
)

// progress shows a prefetch while it runs. Its methods may be called from several goroutines; mirrors are named by their base URLs.
type progress interface {
	event(mirror string, e prefetchEvent)
	hostEnd(r hostResult)
	end() // after the last hostEnd; nothing is shown any more when it returns
}

// newProgress shows bars if w is a terminal, and a line per event otherwise.
func newProgress(w io.Writer, mirrors []string) progress {
	if f, ok := w.(*os.File); ok && cwriter.IsTerminal(int(f.Fd())) {
		return newBars(f, mirrors)
	}
	return &lines{w: w, told: make(map[string]time.Time)}
}

// lines is the progress for logs.
type lines struct {
	mu   sync.Mutex // guards what follows, and keeps lines whole
	w    io.Writer
	told map[string]time.Time // when progress was last told, by mirror and image
}

// progressEvery is how often a log shows how far a host has come with an image.
const progressEvery = 10 * time.Second

func (l *lines) event(mirror string, e prefetchEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := eventText(e)
	if e.Event == "progress" {
		key := mirror + " " + e.Image
		if l.told[key].IsZero() {
			l.told[key] = time.Now() // "resolved" has just been told
		}
		if time.Since(l.told[key]) < progressEvery {
			return
		}
		l.told[key] = time.Now()
	}
	if text != "" {
		fmt.Fprintf(l.w, "%s: %s: %s\n", hostOf(mirror), e.Image, text)
	}
}

func eventText(e prefetchEvent) string {
	switch e.Event {
	case "resolved":
		if e.Digest == "" { // a push has none yet
			return fmt.Sprintf("%s in %d blobs", bytesText(e.Bytes), e.Blobs)
		}
		return fmt.Sprintf("is %s, %s in %d blobs", e.Digest, bytesText(e.Bytes), e.Blobs)
	case "progress":
		return fmt.Sprintf("%s of %s", bytesText(e.BytesDone), bytesText(e.Bytes))
	case "blob":
		return fmt.Sprintf("%s here, %s: %s", e.Digest, bytesText(e.Bytes), e.From)
	case "done":
		return "ready"
	case "error":
		return "failed: " + e.Error
	default:
		return ""
	}
}

// String names the sources that gave something: "240 MiB from peers, 16 MiB from the seeder".
func (s sources) String() string {
	text := ""
	for _, part := range []struct {
		n    int64
		from string
	}{{s.Cache, "from the cache"}, {s.Peer, "from peers"}, {s.Seeder, "from the seeder"}, {s.Upstream, "from the registry"}} {
		if part.n == 0 {
			continue
		}
		if text != "" {
			text += ", "
		}
		text += bytesText(part.n) + " " + part.from
	}
	if text == "" {
		return "nothing was missing"
	}
	return text
}

func (l *lines) hostEnd(r hostResult) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.OK {
		fmt.Fprintf(l.w, "%s: has everything after %s\n", hostOf(r.Mirror), tookText(millis(r.TookMS)))
	}
}

func (l *lines) end() {}

// bars is the progress for people: a bar for each host, and below them one for all.
type bars struct {
	container *mpb.Progress
	hosts     map[string]*hostBar
	total     *mpb.Bar // nil with one host only
	crowded   bool     // there are more hosts than the terminal has lines

	mu       sync.Mutex // guards the hostBars and what follows
	finished int        // hosts that have ended
}

// hostBar is a host's bar and what it has been told.
type hostBar struct {
	bar    *mpb.Bar
	images map[string]*imageProgress
	sum    imageProgress // of images
	last   time.Time     // of the last event
}

type imageProgress struct{ done, bytes int64 }

// rateAge is over how many events rates are averaged: about ten seconds' worth.
const rateAge = 30

func newBars(f *os.File, mirrors []string) *bars {
	b := &bars{container: mpb.New(mpb.WithOutput(f), mpb.WithQueueLen(len(mirrors)+1)), hosts: make(map[string]*hostBar)}
	if _, lines, err := cwriter.GetSize(int(f.Fd())); err == nil {
		b.crowded = len(mirrors) >= lines
	}
	for i, m := range mirrors {
		bar := b.container.New(0, mpb.BarStyle().Rbound("|").Lbound("|"),
			mpb.BarPriority(i),
			mpb.PrependDecorators(
				decor.Name(hostOf(m), decor.WCSyncSpaceR),
				decor.CountersKibiByte("% .1f / % .1f", decor.WCSyncSpace),
			),
			mpb.AppendDecorators(
				decor.OnAbort(decor.OnComplete(decor.EwmaSpeed(decor.SizeB1024(0), "% .1f", rateAge, decor.WCSyncSpace), "ready"), "FAILED"),
				decor.OnAbort(decor.OnComplete(decor.EwmaETA(decor.ET_STYLE_GO, rateAge, decor.WCSyncSpace), ""), ""),
			),
		)
		b.hosts[m] = &hostBar{bar: bar, images: make(map[string]*imageProgress), last: time.Now()}
	}
	if len(mirrors) > 1 {
		b.total = b.container.New(int64(len(mirrors)), mpb.BarStyle().Rbound("|").Lbound("|"),
			mpb.BarPriority(math.MaxInt),
			mpb.PrependDecorators(decor.Name("hosts done", decor.WCSyncSpaceR), decor.CountersNoUnit("%d / %d", decor.WCSyncSpace)),
			mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_GO, decor.WCSyncSpace)),
		)
	}
	return b
}

func (b *bars) event(mirror string, e prefetchEvent) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.hosts[mirror]
	img := h.images[e.Image]
	if img == nil {
		img = &imageProgress{}
		h.images[e.Image] = img
	}
	switch e.Event {
	case "resolved":
		img.bytes = e.Bytes
	case "progress":
		img.done, img.bytes = e.BytesDone, e.Bytes
	case "done":
		img.done, img.bytes = e.Bytes, e.Bytes
	default:
		return
	}
	h.sum = imageProgress{}
	for _, i := range h.images {
		h.sum.done += i.done
		h.sum.bytes += i.bytes
	}
	h.bar.SetTotal(h.sum.bytes, false)
	h.bar.EwmaSetCurrent(h.sum.done, time.Since(h.last))
	h.last = time.Now()
}

// hostEnd ends the host's bar. In a crowd a host that is done goes up, where the terminal loses sight of it first.
func (b *bars) hostEnd(r hostResult) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.hosts[r.Mirror]
	if r.OK {
		b.finished++
		if b.crowded {
			h.bar.SetPriority(-b.finished)
		}
		h.bar.SetTotal(h.sum.bytes, true)
	} else {
		h.bar.Abort(false)
	}
	if b.total != nil {
		b.total.Increment()
	}
}

func (b *bars) end() { b.container.Wait() }
