package proxy

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Who makes up names of registries does not make the metrics grow without end; those that
// were there before keep their own.
func TestRegistriesInMetricsAreBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	for i := range 2 * maxRegistries {
		m.pulled(fmt.Sprintf("r%d.example", i), "cache", time.Now())
		m.pulled("r0.example", "cache", time.Now())
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := make(map[string]float64)
	for _, family := range families {
		if family.GetName() != "murder_pulls_total" {
			continue
		}
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if label.GetName() == "registry" {
					counts[label.GetValue()] = metric.GetCounter().GetValue()
				}
			}
		}
	}
	if len(counts) != maxRegistries+1 || counts[otherRegistry] != maxRegistries || counts["r0.example"] != 2*maxRegistries+1 {
		t.Errorf("%d registries, %v of others, %v of the first", len(counts), counts[otherRegistry], counts["r0.example"])
	}
}
