package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/murderp2p/murder/cmd/murder/gate"
)

// watchers is how many connections there may be at --metrics-listen: of a few Prometheus and probes.
const watchers = 256

// openWatch listens at --metrics-listen, which is for those who watch a mirror whose API is on loopback.
func (d *daemon) openWatch() (err error) {
	if addr := d.cli.String("metrics-listen"); addr != "" {
		if d.watch, err = gate.Listen(addr); err != nil {
			return fmt.Errorf("listen for metrics: %w", err)
		}
	}
	return nil
}

// watched adds to mux what anybody may ask.
func (d *daemon) watched(mux *http.ServeMux) {
	for _, path := range []string{"GET /livez", "GET /readyz", "GET /healthz"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.metrics, promhttp.HandlerOpts{}))
}

// serveWatch answers at --metrics-listen until ctx ends.
func (d *daemon) serveWatch(ctx context.Context) error {
	if d.watch == nil {
		return nil
	}
	mux := http.NewServeMux()
	d.watched(mux)
	connections := &gate.Connections{Max: watchers, Log: d.log}
	server := &http.Server{
		Handler: mux, MaxHeaderBytes: maxHeader,
		ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
	}
	connections.Bound(server)
	defer context.AfterFunc(ctx, func() { server.Close() })()
	d.log.Info("metrics are answered apart", "addr", d.watch.Addr().String())
	if err := server.Serve(d.watch); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}
