package seeder

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/murderp2p/murder/registry"
)

// Metrics are the events that a seeder counts.
type Metrics struct {
	authorizations *prometheus.CounterVec
}

// NewMetrics registers them with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	auto := promauto.With(reg)
	m := &Metrics{
		authorizations: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "murder_authorizations_total", Help: "Questions to registries whether a caller may read, by result.",
		}, []string{"result"}),
	}
	for _, result := range registry.Answers { // there from the start, for rates
		m.authorizations.WithLabelValues(result)
	}
	return m
}

func (m *Metrics) authorized(result string) { m.authorizations.WithLabelValues(result).Inc() }
