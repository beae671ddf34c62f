package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/urfave/cli/v2"

	"github.com/murderp2p/murder/cmd/murder/gate"
	"github.com/murderp2p/murder/cmd/murder/mtls"
	"github.com/murderp2p/murder/registry"
)

// guardFlags are the flags that say whom a daemon lets in and where it goes. maxConnections is a default.
func guardFlags(maxConnections string) []cli.Flag {
	return []cli.Flag{
		listOf("allow-registry", "`HOST[:PORT]` of a registry that may be asked, * standing for any characters (repeatable; default: any)", checkRegistryPattern),
		textOf("api-token-file", "", "`FILE` with the token that callers of /v1/* on this daemon must show (default: none, and only this host is answered)", nil),
		countOf("max-connections", maxConnections, 1, 1<<20, "`NUMBER` of HTTP connections at the same time"),
	}
}

// allowHostFlag is the mirror's alone: a seeder goes by whatever names its network has for it.
func allowHostFlag() cli.Flag {
	return listOf("allow-host", "`NAME` by which the mirror may be asked, * standing for any characters (repeatable; IP addresses, this host's name and names without a dot always may)", checkRegistryPattern)
}

func checkRegistryPattern(s string) error {
	_, err := registry.ParsePattern(s)
	return err
}

// parsePatterns brings patterns of registries into the form in which they are compared.
func parsePatterns(names []string) ([]string, error) {
	patterns := make([]string, 0, len(names))
	for _, name := range names {
		pattern, err := registry.ParsePattern(name)
		if err != nil {
			return nil, err
		}
		patterns = append(patterns, pattern)
	}
	return patterns, nil
}

// upstreams is how a daemon asks registries, by what the operator allows.
func (d *daemon) upstreams() (registry.ClientConfig, error) {
	allow, err := parsePatterns(listFlag(d.cli, "allow-registry"))
	if err != nil {
		return registry.ClientConfig{}, err
	}
	near := slices.Clone(allow)
	if d.cli.IsSet("default-registry") {
		byDefault, err := registry.ParseHost(d.cli.String("default-registry"))
		if err != nil {
			return registry.ClientConfig{}, err
		}
		near = append(near, byDefault)
	}
	watches, err := d.watches()
	if err != nil {
		return registry.ClientConfig{}, err
	}
	for _, watch := range watches {
		near = append(near, watch.Repo.Host)
	}
	if len(allow) > 0 { // who names a registry for another purpose means it to be asked
		allow = slices.Concat(near, d.insecure)
	}
	return registry.ClientConfig{Insecure: d.insecure, Allow: allow, Near: near}, nil
}

// openGate makes what stands before the daemon's API, but for the API.
func (d *daemon) openGate() (*gate.Gate, error) {
	g := &gate.Gate{Own: ownAPI[d.role], Log: d.log}
	if d.role == "mirror" {
		names, err := parsePatterns(listFlag(d.cli, "allow-host"))
		if err != nil {
			return nil, err
		}
		g.Names = append(names, ownNames(d.cli.String("listen"))...)
	}
	if d.role == "seeder" && d.tls != nil {
		g.Identified = mtls.Identified
	}
	var err error
	if g.Events, err = eventsToken(d.cli); err != nil {
		return nil, err
	}
	file := d.cli.String("api-token-file")
	if file == "" {
		return g, nil
	}
	if g.Token, err = gate.OpenToken(file); err != nil {
		return nil, fmt.Errorf("--api-token-file: %w", err)
	}
	return g, nil
}

// ownAPI tells what of a daemon's API is its operator's. Of a mirror it is all but pulls. A seeder answers its mirrors, and
// whoever else the registry admits, besides.
var ownAPI = map[string]func(path string) bool{
	"mirror": func(path string) bool { return !registry.IsPull(path) },
	"seeder": func(path string) bool {
		return slices.ContainsFunc([]string{"/v1/status", "/v1/prefetch", "/v1/hosts", "/v1/limits"}, func(own string) bool {
			return path == own || strings.HasPrefix(path, own+"/")
		})
	},
}

// ownNames are the names of this host, and the one that it listens on.
func ownNames(listen string) []string {
	var names []string
	if host, _, err := net.SplitHostPort(listen); err == nil && host != "" {
		names = append(names, strings.ToLower(host))
	}
	if name, err := os.Hostname(); err == nil {
		names = append(names, strings.ToLower(name))
	}
	return names
}

// plentyOfFiles is a number of open files that bounds nothing.
const plentyOfFiles = 1 << 30

// connectionsFor shares out what files a process may have open: up to a quarter of them goes to peers who call, as much is left for the cache
// and for what we ask of others, as a pull needs both, and the rest is for HTTP.
func connectionsFor(files, most int) (overHTTP, peers int) {
	const manyPeers, manyOfOurs = 8192, 2048
	peers = max(1, min(manyPeers, files/4))
	return max(1, min(most, files-peers-min(manyOfOurs, files/4))), peers
}

// limit bounds the connections of the daemon's server, which has its handler.
func (d *daemon) limit(server *http.Server) {
	files, most := openFiles(), flagValue[int](d.cli, "max-connections")
	bound, _ := connectionsFor(files, most)
	if bound < most {
		d.log.Info("few files may be open here, so that there are fewer connections than --max-connections", "files", files, "connections", bound)
	}
	connections := &gate.Connections{Max: bound, Log: d.log}
	connections.Bound(server)
	d.metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "murder_http_connections", Help: "HTTP connections open; of more than --max-connections the quiet ones are closed first.",
	}, func() float64 { return float64(connections.Open()) }))
}

// apiTokenFlag is for commands that ask daemons.
func apiTokenFlag() cli.Flag {
	return textOf("api-token-file", "", "`FILE` with the token of the daemons that have an --api-token-file", nil)
}

// apiToken is the token in the file of apiTokenFlag, or "" without.
func apiToken(c *cli.Context) (string, error) {
	file := c.String("api-token-file")
	if file == "" {
		return "", nil
	}
	token, err := gate.ReadToken(file)
	if err != nil {
		return "", usagef(c, "--api-token-file: %v", err)
	}
	return token, nil
}
