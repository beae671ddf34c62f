// Package otlp sends the spans of a daemon to an OpenTelemetry collector, by OTLP over
// HTTP. No pull waits for that: spans stand in a queue of bounded length, and those that
// find it full, or that the collector does not take, are dropped.
package otlp

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

const (
	// queue is how many spans may wait, of 2 or 3 KiB each.
	queue = 2048
	// batch is how many go out at once, after every at the latest.
	batch = 512
	every = 2 * time.Second
	// exportTime bounds an attempt to send a batch, with what is tried again within it.
	exportTime = 10 * time.Second
	// closeTime bounds the sending of what is left when a daemon ends.
	closeTime = time.Second
	// longest bounds what a span holds that strangers may have said, in bytes.
	longest = 1024
)

// Exporter sends spans. A nil Exporter sends none.
type Exporter struct {
	provider *sdktrace.TracerProvider
	log      *slog.Logger
}

// Open returns what sends the spans of a daemon, known as service, to the collector at
// endpoint: the URL below which it has /v1/traces, as OTEL_EXPORTER_OTLP_ENDPOINT has it. The
// other variables of OpenTelemetry hold too, such as OTEL_EXPORTER_OTLP_HEADERS and
// OTEL_TRACES_SAMPLER. Whether there is a collector shows when spans are sent.
func Open(ctx context.Context, endpoint, service, version string, log *slog.Logger) (*Exporter, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(u.JoinPath("v1/traces").String()),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: time.Second, MaxInterval: 4 * time.Second, MaxElapsedTime: exportTime}))
	if err != nil {
		return nil, err
	}
	about, err := resource.New(ctx, resource.WithAttributes(
		attribute.String("service.name", service), attribute.String("service.version", version),
	), resource.WithHost(), resource.WithFromEnv())
	if err != nil { // of what can be had it is made all the same
		log.Warn("traces do not say all about this host", "err", short(err))
	}
	// What the library has to say besides is of no use to an operator.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Debug("traces", "err", short(err)) }))
	limits := sdktrace.NewSpanLimits()
	limits.AttributeValueLengthLimit = longest
	return &Exporter{log: log, provider: sdktrace.NewTracerProvider(
		sdktrace.WithResource(about), sdktrace.WithRawSpanLimits(limits),
		sdktrace.WithBatcher(&reported{SpanExporter: exporter, endpoint: u.Redacted(), log: log},
			sdktrace.WithMaxQueueSize(queue), sdktrace.WithMaxExportBatchSize(batch),
			sdktrace.WithBatchTimeout(every), sdktrace.WithExportTimeout(exportTime)),
	)}, nil
}

// Tracer begins spans that are sent; nil of a nil Exporter.
func (e *Exporter) Tracer() trace.Tracer {
	if e == nil {
		return nil
	}
	return e.provider.Tracer("github.com/murderp2p/murder")
}

// Close sends what is left, if that is soon done. It may be called twice.
func (e *Exporter) Close() {
	if e == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	if err := e.provider.Shutdown(ctx); err != nil {
		e.log.Debug("traces", "err", short(err))
	}
}

// reported says once that the collector is away, and once that it is back.
type reported struct {
	sdktrace.SpanExporter
	endpoint string
	log      *slog.Logger
	away     bool // spans are sent by one goroutine at a time
}

// ExportSpans implements [sdktrace.SpanExporter].
func (r *reported) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := r.SpanExporter.ExportSpans(ctx, spans)
	switch {
	case err != nil && !r.away:
		r.log.Warn("collector does not take traces, they are dropped until it does", "endpoint", r.endpoint, "err", short(err))
	case err == nil && r.away:
		r.log.Info("collector takes traces again", "endpoint", r.endpoint)
	}
	r.away = err != nil
	return nil
}

// short is the text of an error, which may hold what a server has answered.
func short(err error) string { return fmt.Sprintf("%.300s", err) }
