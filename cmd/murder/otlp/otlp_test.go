package otlp

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/murderp2p/murder/cmd/murder/otlp/otlptest"
)

// logged is a log that can be read while it is written.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logged) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

func open(t *testing.T, endpoint string, log *logged) *Exporter {
	t.Helper()
	e, err := Open(t.Context(), endpoint, "murder-test", "1.0", slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

func (e *Exporter) span(t *testing.T, name string) {
	_, s := e.Tracer().Start(t.Context(), name)
	s.End()
}

func TestCollectorGetsSpans(t *testing.T) {
	c := otlptest.Start(t, nil)
	e := open(t, c.URL+"/", &logged{})
	e.span(t, "a")
	e.Close()
	e.Close()
	if spans := c.Spans("a"); len(spans) != 1 || spans[0].Service != "murder-test" {
		t.Errorf("the collector has %+v", spans)
	}
}

// An absent collector is told of once, and so is its return; what was dropped meanwhile stays so.
func TestCollectorAway(t *testing.T) {
	var here atomic.Bool
	c := otlptest.Start(t, here.Load)
	log := &logged{}
	e := open(t, c.URL, log)
	for _, name := range []string{"lost", "lost", "found", "found"} {
		here.Store(name == "found")
		e.span(t, name)
		if err := e.provider.ForceFlush(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if n := log.count("collector does not take traces"); n != 1 {
		t.Errorf("%d lines say that the collector is away, want 1", n)
	}
	if n := log.count("takes traces again"); n != 1 {
		t.Errorf("%d lines say that it is back, want 1", n)
	}
	if len(c.Spans("lost")) != 0 || len(c.Spans("found")) != 2 {
		t.Errorf("the collector has %d spans of its absence and %d of after", len(c.Spans("lost")), len(c.Spans("found")))
	}
}

// Behind a collector that hangs spans are dropped, and not kept.
func TestSpansAreBounded(t *testing.T) {
	hangs := make(chan struct{})
	c := otlptest.Start(t, func() bool { <-hangs; return true })
	e := open(t, c.URL, &logged{})
	const many = 4 * queue
	for i := range many { // each returns at once, or the test would hang here
		e.span(t, fmt.Sprint(i))
	}
	close(hangs)
	if err := e.provider.ForceFlush(t.Context()); err != nil {
		t.Error(err)
	}
	if n := len(c.Spans("")); n == 0 || n > queue+2*batch {
		t.Errorf("%d spans of %d were kept, want at most the queue of %d and what was being sent", n, many, queue)
	}
}

func TestNoExporter(t *testing.T) {
	var none *Exporter
	if none.Tracer() != nil {
		t.Error("a tracer without a collector")
	}
	none.Close()
}
