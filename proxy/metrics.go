package proxy

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/layers/tracing"
	"github.com/murderp2p/murder/registry"
)

// Why a better way was left: constant phrases, for status, logs and the label
// of murder_fallbacks_total.
const (
	whySeederFailed = "seeder unreachable"
	whyNoSeeder     = "no seeder"
	whyStalled      = "swarm stalled"
	whySlow         = "too slow"
	whySmall        = "blob too small for a swarm"
	whyBrokeOff     = "answer broke off"
	whyWrong        = "blob came out wrong before"
	whyCannot       = "seeder could not"
	whyNoCache      = "cache unusable"
)

var whys = []string{whySeederFailed, whyNoSeeder, whyStalled, whySlow, whySmall, whyBrokeOff, whyWrong, whyCannot, whyNoCache}

// Why a blob could not be served: labels of murder_pull_errors_total.
const (
	reasonRefused     = "refused"
	reasonNotFound    = "not found"
	reasonUnavailable = "unavailable"
	reasonInternal    = "internal"
)

// Metrics are the events that a mirror counts.
type Metrics struct {
	pulls          *prometheus.CounterVec
	seconds        prometheus.Histogram
	errors         *prometheus.CounterVec
	fallbacks      *prometheus.CounterVec
	authorizations *prometheus.CounterVec

	mu         sync.Mutex // guards registries
	registries map[string]bool
}

const (
	// maxRegistries bounds the values of the label registry. Strangers name registries, and
	// one of them has as many names as its DNS likes.
	maxRegistries = 100
	// otherRegistry is what all of those are called that come later.
	otherRegistry = "other"
)

// NewMetrics registers them with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	auto := promauto.With(reg)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return auto.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &Metrics{
		registries: make(map[string]bool),
		pulls:      counter("murder_pulls_total", "Blobs served to clients, by registry and by where they came from.", "registry", "source"),
		errors:     counter("murder_pull_errors_total", "Blobs that could not be served, by reason.", "reason"),
		seconds: auto.NewHistogram(prometheus.HistogramOpts{
			Name: "murder_pull_seconds", Help: "Seconds from a client's request for a blob to its end.",
			Buckets: prometheus.ExponentialBuckets(0.01, 3, 10),
		}),
		fallbacks:      counter("murder_fallbacks_total", "Times that a better way was left for a worse one, by reason.", "reason"),
		authorizations: counter("murder_authorizations_total", "Questions to registries whether a caller may read, by result.", "result"),
	}
	// There from the start, or a rate over them would miss the first event.
	for _, why := range whys {
		m.fallbacks.WithLabelValues(why)
	}
	for _, reason := range []string{reasonRefused, reasonNotFound, reasonUnavailable, reasonInternal} {
		m.errors.WithLabelValues(reason)
	}
	for _, result := range registry.Answers {
		m.authorizations.WithLabelValues(result)
	}
	return m
}

// tally counts events by a constant phrase.
type tally struct {
	mu sync.Mutex // guards n
	n  map[string]int64
}

func (t *tally) add(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == nil {
		t.n = make(map[string]int64)
	}
	t.n[what]++
}

func (t *tally) all() map[string]int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.n)
}

func (m *Metrics) authorized(result string) { m.authorizations.WithLabelValues(result).Inc() }

func (m *Metrics) pulled(host, source string, begun time.Time) {
	m.pulls.WithLabelValues(m.registry(host), source).Inc()
	m.seconds.Observe(time.Since(begun).Seconds())
}

// registry is the label for a registry.
func (m *Metrics) registry(host string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.registries[host] && len(m.registries) == maxRegistries {
		return otherRegistry
	}
	m.registries[host] = true
	return host
}

func (m *Metrics) failed(err error) { m.errors.WithLabelValues(reasonOf(err)).Inc() }

func reasonOf(err error) string {
	if e, ok := errors.AsType[*registry.Error](err); ok {
		switch e.Status {
		case http.StatusUnauthorized, http.StatusForbidden:
			return reasonRefused
		case http.StatusNotFound:
			return reasonNotFound
		default:
			return reasonUnavailable
		}
	}
	if errors.Is(err, layers.ErrMismatch) {
		return "wrong bytes"
	}
	return reasonInternal
}

// outcome is how a download ended, for traces: a constant phrase.
func outcome(err error) string {
	_, uncached := errors.AsType[*registry.Uncached](err)
	switch {
	case err == nil:
		return tracing.Whole
	case uncached, layers.DiskFailed(err):
		return whyNoCache
	case errors.Is(err, layers.ErrWhole):
		return "here already"
	case errors.Is(err, context.Canceled):
		return "stopped"
	default:
		return reasonOf(err)
	}
}
