package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/murderp2p/murder/cmd/murder/gate"
)

// pprofFlag asks for profiles, which tell what is in a daemon's memory: for whoever is on its host alone.
func pprofFlag() cli.Flag {
	return textOf("pprof", "", "`HOST:PORT`, on loopback, of profiles for `go tool pprof` at /debug/pprof/ (default: none)", checkLoopback)
}

func checkLoopback(s string) error {
	if s == "" {
		return nil
	}
	if err := checkHostPort(s); err != nil {
		return err
	}
	host, _, _ := net.SplitHostPort(s)
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return errors.New("profiles are for this host alone: it is an address such as 127.0.0.1:6060")
	}
	return nil
}

// profiles is the server of --pprof, which listens apart from all else.
type profiles struct {
	listener net.Listener
	server   *http.Server
}

// openProfiles listens at addr; nil where that is "".
func openProfiles(addr string, log *slog.Logger) (*profiles, error) {
	if addr == "" {
		return nil, nil
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for profiles: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	own := func(string) bool { return true }
	server := &http.Server{
		// Names keeps pages out that a name of their own has led to this port.
		Handler:           &gate.Gate{Next: mux, Own: own, Names: []string{"localhost"}, Log: log},
		ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	log.Info("profiles", "addr", listener.Addr().String())
	return &profiles{listener, server}, nil
}

// run serves until ctx ends.
func (p *profiles) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { p.server.Close() })
	defer stop()
	if err := p.server.Serve(p.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve profiles: %w", err)
	}
	return nil
}
