// Package otlptest is an OpenTelemetry collector for tests, which keeps all it is sent.
package otlptest

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	"go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Collector answers at URL until its test ends.
type Collector struct {
	URL string

	t  testing.TB
	mu sync.Mutex // guards all below
	// before is called with each request, and decides whether it is answered well.
	before func() bool
	spans  []Span
	raw    bytes.Buffer
}

// Span is one that has been sent.
type Span struct {
	Service            string // service.name
	Name               string
	Trace, ID, Parent  string // in hex
	Failed             bool
	Attributes         map[string]any // string or int64
	Events             []Event
	DroppedEvents      uint32
	StartedAt, EndedAt uint64 // Unix nanoseconds
}

// Event is one of a Span.
type Event struct {
	Name       string
	Attributes map[string]any
}

// Start starts a Collector. before, if not nil, is called with each request, and answers
// whether the spans in it are taken.
func Start(t testing.TB, before func() bool) *Collector {
	t.Helper()
	c := &Collector{t: t, before: before}
	server := httptest.NewServer(http.HandlerFunc(c.serve))
	t.Cleanup(server.Close)
	c.URL = server.URL
	return c
}

func (c *Collector) serve(w http.ResponseWriter, r *http.Request) {
	if c.before != nil && !c.before() {
		http.Error(w, "not now", http.StatusBadRequest)
		return
	}
	spans, body, err := read(r)
	if err != nil {
		c.t.Errorf("collector: %s %s: %v", r.Method, r.URL, err)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	c.spans = append(c.spans, spans...)
	c.raw.Write(body)
	c.mu.Unlock()
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func read(r *http.Request) (spans []Span, raw []byte, err error) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		if body, err = gzip.NewReader(body); err != nil {
			return nil, nil, err
		}
	}
	if raw, err = io.ReadAll(body); err != nil {
		return nil, nil, err
	}
	var req collector.ExportTraceServiceRequest
	if err := proto.Unmarshal(raw, &req); err != nil {
		return nil, nil, err
	}
	for _, resource := range req.ResourceSpans {
		service, _ := attributesOf(resource.Resource.Attributes)["service.name"].(string)
		for _, scope := range resource.ScopeSpans {
			for _, s := range scope.Spans {
				spans = append(spans, spanOf(service, s))
			}
		}
	}
	return spans, raw, nil
}

func spanOf(service string, s *v1.Span) Span {
	span := Span{
		Service: service, Name: s.Name,
		Trace: hex.EncodeToString(s.TraceId), ID: hex.EncodeToString(s.SpanId), Parent: hex.EncodeToString(s.ParentSpanId),
		Failed: s.Status.GetCode() == v1.Status_STATUS_CODE_ERROR, Attributes: attributesOf(s.Attributes),
		DroppedEvents: s.DroppedEventsCount, StartedAt: s.StartTimeUnixNano, EndedAt: s.EndTimeUnixNano,
	}
	for _, e := range s.Events {
		span.Events = append(span.Events, Event{e.Name, attributesOf(e.Attributes)})
	}
	return span
}

func attributesOf(list []*common.KeyValue) map[string]any {
	attributes := make(map[string]any)
	for _, a := range list {
		switch v := a.Value.Value.(type) {
		case *common.AnyValue_StringValue:
			attributes[a.Key] = v.StringValue
		case *common.AnyValue_IntValue:
			attributes[a.Key] = v.IntValue
		}
	}
	return attributes
}

// Spans returns what has come of spans of a name, in the order in which they came; "" is any.
func (c *Collector) Spans(name string) (spans []Span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if name == "" || s.Name == name {
			spans = append(spans, s)
		}
	}
	return spans
}

// Raw returns all that has come.
func (c *Collector) Raw() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.raw.Bytes())
}
