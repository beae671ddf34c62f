package seeder

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/murderp2p/murder/registry"
)

// Metrics are the events that a seeder counts.
type Metrics struct {
	authorizations *prometheus.CounterVec
	events         *prometheus.CounterVec
	warmings       *prometheus.CounterVec
}

// NewMetrics registers them with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	auto := promauto.With(reg)
	m := &Metrics{
		authorizations: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "murder_authorizations_total", Help: "Questions to registries whether a caller may read, by result.",
		}, []string{"result"}),
		events: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "murder_events_total", Help: "Events that registries told of, by result; of a refused message only one is counted.",
		}, []string{"result"}),
		warmings: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "murder_warmed_total", Help: "Pushed images and blobs that were to be fetched before they are pulled, by result.",
		}, []string{"result"}),
	}
	for _, result := range []string{"accepted", "ignored", "refused"} {
		m.events.WithLabelValues(result)
	}
	for _, result := range []string{"ready", "refused", "failed"} {
		m.warmings.WithLabelValues(result)
	}
	for _, result := range registry.Answers { // there from the start, for rates
		m.authorizations.WithLabelValues(result)
	}
	return m
}

func (m *Metrics) authorized(result string) { m.authorizations.WithLabelValues(result).Inc() }

func (m *Metrics) event(result string, n int) { m.events.WithLabelValues(result).Add(float64(n)) }

func (m *Metrics) warmed(result string) { m.warmings.WithLabelValues(result).Inc() }
