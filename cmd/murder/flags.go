package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

// mirrorFlags are the flags of `murder mirror`.
func mirrorFlags() []cli.Flag {
	return append([]cli.Flag{
		listOf("seeder", "`URL` of a seeder, as http://HOST:7070 (repeatable), or of several: a HOST with several addresses, or srv+http://NAME for SRV records _murder._tcp.NAME; names are looked up again and again", checkSeeder),
		textOf("host-name", "", "`NAME` by which the fleet knows this host (default: the system's)", checkHostName),
		listOf("label", "`KEY=VALUE` that orders to the fleet may ask for (repeatable)", checkLabel),
		typed("load-into", "", "`ENGINE` that takes images when an order says --load: docker, containerd (by its ctr) or cri (any of Kubernetes, which pulls them through this mirror), or one with its socket as cri=/run/crio/crio.sock", parseLoader),
		allowHostFlag(),
		textOf("engine-store", "", "`DIR` of containerd's content store, as /var/lib/containerd/io.containerd.content.v1.content: layers that are there are shared from there, and the cache keeps no copy", nil),
	}, daemonFlags(daemonDefaults{
		listen:      "127.0.0.1:7080",
		peerListen:  ":7081",
		dataDir:     "/var/lib/murder/mirror",
		connections: "4096",
		cacheSize:   "20%", // the host's disk is there for the engine and its containers in the first place
	})...)
}

// seederFlags are the flags of `murder seeder`.
func seederFlags() []cli.Flag {
	return append(append(daemonFlags(daemonDefaults{
		listen:      ":7070",
		peerListen:  ":7071",
		dataDir:     "/var/lib/murder/seeder",
		cacheSize:   "80%",
		connections: "65536", // each mirror keeps one or two
	}),
		textOf("registry-storage", "", "`DIR` in which a CNCF registry on this host keeps its blobs (its filesystem.rootdirectory): they are shared from there, and the cache keeps no copy", nil),
		durationOf("tag-ttl", "2s", "`DURATION` for which the registry's answer about a tag is given to all who ask"),
	), pushFlags()...)
}

// daemonDefaults are the defaults in which the two daemons differ.
type daemonDefaults struct {
	listen, peerListen, dataDir, cacheSize, connections string
}

// daemonFlags are the flags that both daemons have.
func daemonFlags(d daemonDefaults) []cli.Flag {
	return append([]cli.Flag{
		textOf("listen", d.listen, "`HOST:PORT` of the HTTP API; port 0 takes a free one", checkHostPort),
		textOf("metrics-listen", "", "`HOST:PORT` at which /metrics and health are answered as well, by plain HTTP and nothing else", checkHostPortOrNone),
		textOf("peer-listen", d.peerListen, "`HOST:PORT` of BitTorrent over TCP; port 0 takes a free one", checkHostPort),
		textOf("advertise", "", "`IP` or IP:PORT that peers are told (default: that of the route to the seeder)", checkAdvertise),
		textOf("data-dir", d.dataDir, "`DIR` of the cache, an OCI image layout", checkNotEmpty),
		typed("cache-size", d.cacheSize, "`SIZE` of the cache: 100GiB, a share of its disk such as 80%, or 0 for no limit", parseCacheSize),
		typed("min-free", "5%", "`SIZE` of the disk that is left free, whoever fills it: 20GiB, a share of the disk such as 5%, or 0", parseMinFree),
		typed("scrub-rate", "16MiB", "`RATE` at which cached blobs are read again, each once a week, to find what the disk has spoilt; 0 for never", parseRate),
		typed("upload-limit", "0", "`RATE` at which peers are served: 500Mbit or 60MiB, a second; 0 for no limit", parseRate),
		typed("download-limit", "0", "`RATE` at which the swarm is drawn on: 500Mbit or 60MiB, a second; 0 for no limit", parseRate),
		textOf("zone", "", "`NAME` of the rack or zone this host is in; peers of the same are preferred", checkZone),
		textOf("default-registry", "docker.io", "`REGISTRY` to which names without one belong", checkRegistry),
		listOf("insecure-registry", "`HOST:PORT` of a registry that speaks plain HTTP (repeatable)", checkRegistry),
		durationOf("auth-ttl", "5m", "`DURATION` for which the registry's leave to read a repository is remembered for a caller"),
		durationOf("auth-grace", "1h", "`DURATION` for which such leave holds while the registry is down"),
	}, slices.Concat(tlsFlags(), guardFlags(d.connections), []cli.Flag{otlpFlag(), pprofFlag()}, logFlags())...)
}

func logFlags() []cli.Flag {
	return []cli.Flag{
		oneOf("log-format", "`FORMAT` of the log on stderr", "text", "json"),
		typed("log-level", "info", "least `LEVEL` that is logged: debug, info, warn or error", parseLevel),
	}
}

// outputFlag chooses between a table and JSON on stdout; see [wantsJSON].
func outputFlag() cli.Flag {
	return oneOf("output", "`FORMAT` of the result on stdout", "text", "json")
}

func wantsJSON(c *cli.Context) bool { return c.String("output") == "json" }

// newLogger logs to stderr as --log-format and --log-level ask.
func newLogger(c *cli.Context) *slog.Logger {
	opts := &slog.HandlerOptions{Level: flagValue[slog.Level](c, "log-level")}
	if c.String("log-format") == "json" {
		return slog.New(slog.NewJSONHandler(c.App.ErrWriter, opts))
	}
	return slog.New(slog.NewTextHandler(c.App.ErrWriter, opts))
}

// sizeFlag is the value of a size flag, in bytes.
func sizeFlag(c *cli.Context, name string) int64 { return flagValue[int64](c, name) }

// rateFlag is the value of a rate flag, in bytes a second; 0 is no limit.
func rateFlag(c *cli.Context, name string) int64 { return flagValue[int64](c, name) }

// cacheLimitFlag is --cache-size in bytes for a cache in --data-dir; 0 is no limit. An error means that the size of the disk is unknown.
func cacheLimitFlag(c *cli.Context) (int64, error) {
	return flagValue[cacheSize](c, "cache-size").limit(c.String("data-dir"))
}

// minFreeFlag is --min-free in bytes, of the disk of --data-dir. An error means that the size of the disk is unknown.
func minFreeFlag(c *cli.Context) (int64, error) {
	return flagValue[cacheSize](c, "min-free").limit(c.String("data-dir"))
}

// listFlag is the value of a repeatable flag, without the empty items that an empty environment variable leaves.
func listFlag(c *cli.Context, name string) []string {
	return slices.DeleteFunc(slices.Clone(c.StringSlice(name)), func(s string) bool { return s == "" })
}

// typedValue is a flag's value that is read by parse; what the user wrote stays its text.
type typedValue[T any] struct {
	parse func(string) (T, error)
	text  string
	value T
}

func (v *typedValue[T]) String() string {
	if v == nil {
		return ""
	}
	return v.text
}

// Set is called with what the user wrote; its error says what would be right.
func (v *typedValue[T]) Set(text string) error {
	value, err := v.parse(text)
	if err != nil {
		return err
	}
	v.text, v.value = text, value
	return nil
}

// typed is a flag with a value of type T, which [flagValue] returns; c.String returns its text. An empty def is T's zero value.
func typed[T any](name, def, usage string, parse func(string) (T, error)) *cli.GenericFlag {
	v := &typedValue[T]{parse: parse, text: def}
	if def != "" {
		v.value, _ = parse(def) // defaults are right: TestDefaults
	}
	return &cli.GenericFlag{Name: name, Usage: usage, Value: v}
}

// flagValue is the value of a flag made by [typed], or T's zero value when the command has no such flag.
func flagValue[T any](c *cli.Context, name string) T {
	if v, ok := c.Generic(name).(*typedValue[T]); ok {
		return v.value
	}
	var zero T
	return zero
}

// textOf is a string flag whose value must please check, if there is one. c.String returns it.
func textOf(name, def, usage string, check func(string) error) *cli.GenericFlag {
	return typed(name, def, usage, func(s string) (string, error) {
		if check == nil {
			return s, nil
		}
		return s, check(s)
	})
}

// oneOf is a flag with one of values; the first is the default. c.String returns it.
func oneOf(name, usage string, values ...string) *cli.GenericFlag {
	usage += ": " + strings.Join(values, " or ")
	return textOf(name, values[0], usage, func(s string) error {
		if slices.Contains(values, s) {
			return nil
		}
		return fmt.Errorf("it is one of %s", strings.Join(values, ", "))
	})
}

// durationOf is a flag with a duration that is not negative. c.Duration returns it.
func durationOf(name, def, usage string) *cli.GenericFlag {
	return typed(name, def, usage, func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 {
			return 0, errors.New("a duration is written as 500ms, 30s, 5m or 1h30m")
		}
		return d, nil
	})
}

// countOf is a flag with a number from least to most. c.Int returns it.
func countOf(name, def string, least, most int, usage string) *cli.GenericFlag {
	return typed(name, def, usage, func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < least || n > most {
			return 0, fmt.Errorf("it is a number from %d to %d", least, most)
		}
		return n, nil
	})
}

// listOf is a repeatable flag whose items must please check; [listFlag] returns them.
func listOf(name, usage string, check func(string) error) *cli.StringSliceFlag {
	return &cli.StringSliceFlag{Name: name, Usage: usage, Action: func(c *cli.Context, items []string) error {
		for _, item := range items {
			if item == "" {
				continue
			}
			if err := check(item); err != nil {
				return usagef(c, "invalid value %q for --%s: %v", item, name, err)
			}
		}
		return nil
	}}
}

func checkNotEmpty(s string) error {
	if s == "" {
		return errors.New("it must not be empty")
	}
	return nil
}

// checkHostPort wants an address to listen on: HOST:PORT, :PORT or [IPv6]:PORT.
func checkHostPort(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return errors.New("an address is written as HOST:PORT or :PORT, with a port from 0 to 65535")
	}
	return nil
}

func checkHostPortOrNone(s string) error {
	if s == "" {
		return nil
	}
	return checkHostPort(s)
}

// checkAdvertise wants what peers can dial without asking a name server: an IP address, with a port if it differs from --peer-listen's.
func checkAdvertise(s string) error {
	if s == "" {
		return nil
	}
	if ip, err := netip.ParseAddr(s); err == nil && !ip.IsUnspecified() {
		return nil
	}
	if ap, err := netip.ParseAddrPort(s); err == nil && !ap.Addr().IsUnspecified() && ap.Port() != 0 {
		return nil
	}
	return errors.New("it is an IP address that peers can reach, as 10.0.0.7 or 10.0.0.7:7081")
}

// checkZone keeps zones to what needs no escaping in a URL or in the version string of BitTorrent's handshake.
func checkZone(s string) error {
	for _, r := range s {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_", r) {
			return errors.New("a zone is made of letters, digits, '.', '-' and '_'")
		}
	}
	if len(s) > 64 {
		return errors.New("a zone has at most 64 characters")
	}
	return nil
}

// checkRegistry wants the name of a registry as in an image's name: HOST or HOST:PORT.
func checkRegistry(s string) error {
	u, err := url.Parse("//" + s)
	if err != nil || s == "" || u.Host != s || u.Hostname() == "" || strings.HasSuffix(s, ":") {
		return errors.New("a registry is written as HOST or HOST:PORT, without http://")
	}
	return nil
}

// checkHTTPURL wants the address of a daemon.
func checkHTTPURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "", u.User != nil, u.RawQuery != "", u.Fragment != "":
		return errors.New("it is a URL such as http://registry.example:7070")
	default:
		return nil
	}
}

func parseLevel(s string) (slog.Level, error) {
	var l slog.Level
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, s) {
		return 0, errors.New("it is one of debug, info, warn, error")
	}
	return l, l.UnmarshalText([]byte(s))
}
