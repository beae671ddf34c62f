package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/murderp2p/murder/cmd/murder/otlp"
	"github.com/murderp2p/murder/layers/tracing"
)

// otlpFlag asks for traces. OpenTelemetry has a variable of its own for it.
func otlpFlag() cli.Flag {
	f := textOf("otlp-endpoint", "", "`URL` of an OpenTelemetry collector that is sent a trace of each blob, by OTLP over HTTP (default: none)", checkCollector)
	f.EnvVars = []string{"OTEL_EXPORTER_OTLP_ENDPOINT"}
	return f
}

func checkCollector(s string) error {
	if s != "" && checkHTTPURL(s) != nil {
		return errors.New("it is a URL such as http://collector.example:4318, without user and query")
	}
	return nil
}

// openTraces sends traces to the collector of otlpFlag, if there is one.
func (d *daemon) openTraces() error {
	endpoint := d.cli.String("otlp-endpoint")
	if endpoint == "" {
		return nil
	}
	exporter, err := otlp.Open(d.ctx, endpoint, "murder-"+d.role, buildVersion(), d.log)
	if err != nil {
		return fmt.Errorf("traces: %w", err)
	}
	d.traces = exporter
	return nil
}

func (d *daemon) tracer() tracing.Tracer { return tracing.Tracer{To: d.traces.Tracer()} }
