package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/integration/netlab"
)

// murderBinary builds cmd/murder once, with the race detector if the tests
// have it.
var murderBinary = sync.OnceValues(func() (string, error) {
	binary := filepath.Join(fixturesRoot, "murder")
	args := []string{"build", "-buildvcs=false", "-o", binary}
	if raceDetector {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "github.com/murderp2p/murder/cmd/murder")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build murder: %w\n%s", err, out)
	}
	return binary, nil
})

// murderProgram is the path of the built binary.
func murderProgram(t testing.TB) string {
	t.Helper()
	needs(t)
	binary, err := murderBinary()
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// daemonConfig is the flags of a murder daemon that tests set.
type daemonConfig struct {
	Seeders  []string // URLs, for a mirror
	Default  string   // --default-registry
	Insecure []string // registries that speak HTTP
	DataDir  string   // a new one when empty
	DiskSize string   // not empty puts the data folder on a disk of its own; tmpfs's size=
	Listen   string   // 127.0.0.1:0 when empty
	Through  []string // a program and its arguments that starts the daemon
	Certs    *certs   // TLS between murders, when not nil
	Peers    string   // --peer-listen; likewise
	Flags    []string // any others
	Env      []string // added to the environment

	On *netlab.Machine // whose network it has; nil is the test's own
}

// daemon is a running `murder seeder` or `murder mirror`.
type daemon struct {
	*process
	Addr     string // host:port of the HTTP API
	PeerAddr string // host:port of BitTorrent
	DataDir  string
	scheme   string
	http     *http.Client
}

// URL is the daemon as --seeder and --mirror name it.
func (d *daemon) URL() string { return d.scheme + "://" + d.Addr }

// startSeeder starts `murder seeder`.
func startSeeder(t testing.TB, cfg daemonConfig) *daemon {
	t.Helper()
	return startDaemon(t, "seeder", cfg)
}

// startMirror starts `murder mirror`.
func startMirror(t testing.TB, cfg daemonConfig) *daemon {
	t.Helper()
	return startDaemon(t, "mirror", cfg)
}

// hostNames counts the mirrors that were given a name.
var hostNames atomic.Int64

func startDaemon(t testing.TB, role string, cfg daemonConfig) *daemon {
	t.Helper()
	if cfg.DataDir == "" {
		cfg.DataDir = filepath.Join(newRoot(t), role)
	}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Peers == "" {
		cfg.Peers = "127.0.0.1:0"
	}
	args := []string{murderProgram(t), role, "--listen", cfg.Listen, "--peer-listen", cfg.Peers,
		"--data-dir", cfg.DataDir, "--log-format", "json", "--log-level", "debug"}
	for _, url := range cfg.Seeders {
		args = append(args, "--seeder", url)
	}
	for _, registry := range cfg.Insecure {
		args = append(args, "--insecure-registry", registry)
	}
	if cfg.Default != "" {
		args = append(args, "--default-registry", cfg.Default)
	}
	if role == "mirror" && !slices.Contains(cfg.Flags, "--host-name") { // on one machine they would all go by its name
		args = append(args, "--host-name", fmt.Sprintf("host%d", hostNames.Add(1)))
	}
	scheme, transport := "http", transportOn(cfg.On)
	if cfg.Certs != nil {
		transport.TLSClientConfig = cfg.Certs.config(t)
		args = append(args, cfg.Certs.flags()...)
		if role == "seeder" {
			scheme = "https"
		}
	}
	args = append(args, cfg.Flags...)
	if cfg.DiskSize != "" {
		mount := `mkdir -p "$0" && mount -t tmpfs -o size=` + cfg.DiskSize + ` tmpfs "$0" && exec "$@"`
		args = append([]string{"sh", "-c", mount, cfg.DataDir}, args...)
	}
	args = append(cfg.Through, args...)
	p := startProcess(t, processConfig{Name: "murder " + role, Args: args, Env: cfg.Env, OwnMounts: cfg.DiskSize != "", On: cfg.On})
	var listening struct {
		Msg      string `json:"msg"`
		Addr     string `json:"addr"`
		PeerAddr string `json:"peer_addr"`
	}
	p.waitLine(t, "its address", func(line string) bool {
		return json.Unmarshal([]byte(line), &listening) == nil && listening.Msg == "listening"
	})
	return &daemon{process: p, Addr: listening.Addr, PeerAddr: listening.PeerAddr, DataDir: cfg.DataDir, scheme: scheme,
		http: &http.Client{Transport: transport}}
}

// Blob is the URL of a blob of an upstream's repository, as containerd asks.
func (d *daemon) Blob(registry, repo string, blob digest.Digest) string {
	return fmt.Sprintf("http://%s/v2/%s/blobs/%s?ns=%s", d.Addr, repo, blob, registry)
}

// Manifest is the URL of a manifest, by tag or digest.
func (d *daemon) Manifest(registry, repo, ref string) string {
	return fmt.Sprintf("http://%s/v2/%s/manifests/%s?ns=%s", d.Addr, repo, ref, registry)
}

// Metrics scrapes /metrics.
func (d *daemon) Metrics(t testing.TB) metrics {
	t.Helper()
	resp, err := d.http.Get(d.URL() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("GET /metrics = %d", resp.StatusCode)
	}
	m := metrics{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		series, value, ok := cutLast(lines.Text(), " ")
		if !ok || strings.HasPrefix(series, "#") {
			continue
		}
		number, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("metric %s has the value %q", series, value)
		}
		m[series] = number
	}
	if err := lines.Err(); err != nil {
		t.Fatalf("GET /metrics: %v", err)
	}
	return m
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// metrics is a scrape: series, labels included, to value.
type metrics map[string]float64

// Sum adds up the series of a name that have all the labels, each written as
// in the scrape: from="peer".
func (m metrics) Sum(name string, labels ...string) float64 {
	var sum float64
series:
	for series, value := range m {
		base, rest, _ := strings.Cut(series, "{")
		if base != name {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(rest, label) {
				continue series
			}
		}
		sum += value
	}
	return sum
}

// Series lists the non-zero series of a name, for the test's log.
func (m metrics) Series(name string) string {
	var found []string
	for series, value := range m {
		if strings.HasPrefix(series, name) && value != 0 {
			found = append(found, fmt.Sprintf("%s %g", series, value))
		}
	}
	return strings.Join(found, ", ")
}

// runMurder runs a murder command to its end and returns what it printed and
// its exit code.
func runMurder(t testing.TB, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), murderProgram(t), args...)
	cmd.Env = append(append(os.Environ(), promptExit), env...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if strings.Contains(errs.String(), dataRace) {
		t.Errorf("data race in murder %s:\n%s", args[0], errs.String())
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}
