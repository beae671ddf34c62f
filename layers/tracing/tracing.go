// Package tracing makes a span of each blob on its way to this host, in the terms of
// OpenTelemetry: which ways it took and why, and how many bytes came from where. The
// W3C's traceparent leads from a mirror to its seeder, so that one trace shows both.
//
// A span may hold a digest and a repository, which no metric does. It never holds the
// text of an error, in which a registry or its storage may have put a credential: only
// phrases of murder's own.
package tracing

import (
	"context"
	"net/http"

	"github.com/opencontainers/go-digest"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/murderp2p/murder/layers"
)

// Names of spans.
const (
	Pull  = "pull blob"  // by a mirror
	Fetch = "fetch blob" // by a seeder, from the registry
)

// Whole is the outcome of a blob that came as it should.
const Whole = "whole"

// Tracer begins spans. The zero Tracer begins such as tell nobody.
type Tracer struct{ To trace.Tracer }

// Asked returns r with the trace in its context that its caller says it is part of.
func (t Tracer) Asked(r *http.Request) *http.Request {
	if t.To == nil {
		return r
	}
	return r.WithContext(propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header)))
}

// Begin begins the span of a blob within the trace of asker, the context of who asked for
// it first. The context that it returns is ctx with the span in it; see [Of] and [Tell].
func (t Tracer) Begin(ctx, asker context.Context, name string, d digest.Digest, registry, repository string) context.Context {
	if t.To == nil {
		return ctx
	}
	within := trace.ContextWithSpanContext(ctx, trace.SpanContextFromContext(asker))
	ctx, _ = t.To.Start(within, name, trace.WithAttributes(
		attribute.String("murder.digest", string(d)),
		attribute.String("murder.registry", registry),
		attribute.String("murder.repository", repository),
	))
	return ctx
}

// Tell tells whom a request goes to of the trace that its context is in.
func Tell(r *http.Request) {
	propagation.TraceContext{}.Inject(r.Context(), propagation.HeaderCarrier(r.Header))
}

// Span is that of one blob.
type Span struct{ to trace.Span }

// Of returns the span in a context; one that tells nobody if there is none.
func Of(ctx context.Context) Span { return Span{trace.SpanFromContext(ctx)} }

// Way notes the way that the blob takes from now on, and why not a better one.
func (s Span) Way(way, why string) {
	s.to.AddEvent("way taken", trace.WithAttributes(words("murder.way", way, "murder.why", why)...))
}

// Left notes that a way was left with so many bytes of the blob here, and why.
func (s Span) Left(way, why string, here int64) {
	s.to.AddEvent("way left", trace.WithAttributes(
		append(words("murder.way", way, "murder.why", why), attribute.Int64("murder.bytes", here))...))
}

// Refuse ends the span of a blob that was not begun.
func (s Span) Refuse(outcome string) {
	s.to.SetAttributes(attribute.String("murder.outcome", outcome))
	s.to.End()
}

// Cached ends the span of a blob of size bytes that was here already.
func (s Span) Cached(size int64) {
	s.to.SetAttributes(attribute.String("murder.outcome", Whole), attribute.Int64("murder.size", size),
		attribute.String("murder.source", string(layers.FromCache)))
	s.to.End()
}

// End ends the span of a blob with what is known of it. Any outcome but Whole is a failure.
func (s Span) End(r layers.Record, outcome string) {
	if !s.to.IsRecording() {
		return
	}
	s.to.SetAttributes(words("murder.outcome", outcome, "murder.way", r.Way, "murder.why", r.Why)...)
	s.to.SetAttributes(attribute.Int64("murder.size", r.Size))
	for _, from := range []layers.Source{layers.FromPeer, layers.FromSeeder, layers.FromUpstream} {
		s.to.SetAttributes(attribute.Int64("murder.bytes."+string(from), r.From[from]))
	}
	if outcome != Whole {
		s.to.SetStatus(codes.Error, outcome)
	}
	s.to.End()
}

// words are attributes of pairs of a name and a phrase, without those that are "".
func words(pairs ...string) (attributes []attribute.KeyValue) {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			attributes = append(attributes, attribute.String(pairs[i], pairs[i+1]))
		}
	}
	return attributes
}
