package main

import (
	"io"
	"log/slog"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
)

// daemonArgs runs check with the flags of a daemon set by args, as `murder mirror` and `murder seeder` get them.
func daemonArgs(t *testing.T, flags []cli.Flag, args []string, check func(*cli.Context)) error {
	t.Helper()
	probe := &cli.Command{Name: "probe", Flags: flags, Action: func(c *cli.Context) error { check(c); return nil }}
	app := newApp([]*cli.Command{probe}, strings.NewReader(""), io.Discard, io.Discard)
	args, err := arrange(app, append([]string{"murder", "probe"}, args...))
	if err != nil {
		return err
	}
	return app.RunContext(t.Context(), args)
}

// Every default is a value that its flag accepts.
func TestDefaults(t *testing.T) {
	commands := append(commands(), &cli.Command{Flags: mirrorFlags()}, &cli.Command{Flags: seederFlags()})
	for _, cmd := range commands {
		for _, f := range cmd.Flags {
			g, ok := f.(*cli.GenericFlag)
			if !ok || g.Value.String() == "" {
				continue
			}
			if err := g.Value.Set(g.Value.String()); err != nil {
				t.Errorf("%s --%s: default %q: %v", cmd.Name, g.Name, g.Value, err)
			}
		}
	}
}

func TestDaemonFlags(t *testing.T) {
	t.Setenv("MURDER_ZONE", "b")
	t.Setenv("MURDER_SEEDER", "http://a:7070, https://b")
	t.Setenv("MURDER_UPLOAD_LIMIT", "1Gbit")
	args := []string{
		"--cache-size", "64MiB", "--upload-limit=500Mbit", "--download-limit", "60MiB/s", "--insecure-registry", "r:5000",
		"--insecure-registry", "[::1]:5000", "--advertise", "10.0.0.7:7081", "--log-level", "warn", "--auth-ttl", "90s",
	}
	err := daemonArgs(t, mirrorFlags(), args, func(c *cli.Context) {
		limit, err := cacheLimitFlag(c)
		if err != nil || limit != 64<<20 {
			t.Errorf("cacheLimitFlag() = %d, %v; want 64 MiB", limit, err)
		}
		for _, test := range []struct {
			name      string
			got, want any
		}{
			{"upload-limit", rateFlag(c, "upload-limit"), int64(500e6 / 8)},
			{"download-limit", rateFlag(c, "download-limit"), int64(60 << 20)},
			{"insecure-registry", strings.Join(listFlag(c, "insecure-registry"), " "), "r:5000 [::1]:5000"},
			{"seeder", strings.Join(listFlag(c, "seeder"), " "), "http://a:7070 https://b"},
			{"zone", c.String("zone"), "b"},
			{"advertise", c.String("advertise"), "10.0.0.7:7081"},
			{"auth-ttl", c.Duration("auth-ttl"), 90 * time.Second},
			{"auth-grace", c.Duration("auth-grace"), time.Hour},
			{"listen", c.String("listen"), "127.0.0.1:7080"},
			{"warn", newLogger(c).Enabled(c.Context, slog.LevelWarn), true},
			{"info", newLogger(c).Enabled(c.Context, slog.LevelInfo), false},
		} {
			if test.got != test.want {
				t.Errorf("%s = %v, want %v", test.name, test.got, test.want)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Values that the daemons' flags refuse: the error names the flag and is a usage error.
func TestDaemonFlagsRefuse(t *testing.T) {
	for _, test := range []struct{ flag, value string }{
		{"listen", "7080"}, {"listen", "host:http"}, {"listen", ":70800"}, {"peer-listen", ""},
		{"advertise", "host"}, {"advertise", "0.0.0.0"}, {"advertise", "10.0.0.7:0"},
		{"data-dir", ""},
		{"cache-size", "120%"}, {"cache-size", "0%"}, {"cache-size", "12 parsecs"}, {"cache-size", "-1"}, {"cache-size", "MiB"}, {"min-free", "-5%"},
		{"upload-limit", "fast"}, {"upload-limit", "500M"}, {"upload-limit", "1e99"}, {"download-limit", "0.001"},
		{"zone", "a b"}, {"zone", strings.Repeat("z", 65)},
		{"insecure-registry", "http://r:5000"}, {"insecure-registry", "r:5000/x"},
		{"seeder", "seeder:7070"}, {"seeder", "http://"}, {"seeder", "http://u:p@h"}, {"seeder", "http://h?x=y"},
		{"default-registry", ""}, {"default-registry", "docker.io/library"},
		{"log-level", "loud"}, {"log-format", "xml"},
		{"auth-ttl", "5"}, {"auth-grace", "-1h"},
	} {
		err := daemonArgs(t, mirrorFlags(), []string{"--" + test.flag, test.value}, func(*cli.Context) {})
		if exitCode(err) != exitUsage || !strings.Contains(err.Error(), "--"+test.flag) {
			t.Errorf("--%s %q: error %v, want a usage error that names the flag", test.flag, test.value, err)
		}
	}
}

func TestQuantities(t *testing.T) {
	for _, test := range []struct {
		parse func(string) (int64, error)
		text  string
		want  int64 // -1: an error
	}{
		{parseSize, "0", 0}, {parseSize, "1", 1}, {parseSize, "64MiB", 64 << 20}, {parseSize, "1.5 GiB", 3 << 29},
		{parseSize, "100gb", 100e9}, {parseSize, "8TiB", 8 << 40}, {parseSize, " 7 ", 7},
		{parseSize, "", -1}, {parseSize, "64M", -1}, {parseSize, "1/2", -1}, {parseSize, "9999999TiB", -1}, {parseSize, "NaN", -1},
		{parseSize, "Inf", -1}, {parseSize, "0x10", -1}, {parseSize, "1.2.3", -1}, {parseSize, "+5", -1}, {parseSize, "500Mbit", -1},
		{parseRate, "500Mbit", 62500000}, {parseRate, "8bit/s", 1}, {parseRate, "1Gbit", 125e6}, {parseRate, "60MiB/s", 60 << 20},
		{parseRate, "0", 0}, {parseRate, "4bit", -1}, {parseRate, "80%", -1},
	} {
		got, err := test.parse(test.text)
		if err != nil {
			got = -1
		}
		if got != test.want {
			t.Errorf("parse(%q) = %d, %v; want %d", test.text, got, err, test.want)
		}
	}
}

func TestCacheSizeOfDisk(t *testing.T) {
	dir := t.TempDir()
	total, free, err := diskSpace(dir)
	if err != nil || total <= 0 || free > total {
		t.Fatalf("diskSpace() = %d, %d, %v", total, free, err)
	}
	size, err := parseCacheSize("50%")
	if err != nil {
		t.Fatal(err)
	}
	got, err := size.limit(dir + "/not/yet/there")
	if err != nil || math.Abs(float64(got)-float64(total)/2) > 1 {
		t.Errorf("limit() = %d, %v; want half of %d", got, err, total)
	}
	// /proc does not tell how large it is.
	for text, dir := range map[string]string{"0.00000000000001%": dir, "80%": "/proc"} {
		size, err := parseCacheSize(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := size.limit(dir); err != nil || got != 1 {
			t.Errorf("%s of %s = %d, %v; want a byte, since 0 is no limit", text, dir, got, err)
		}
	}
}

// Flags may stand after arguments, and "--" ends them.
func TestArrange(t *testing.T) {
	app := newApp([]*cli.Command{{
		Name: "c", ArgsUsage: "ARG...", Flags: []cli.Flag{textOf("s", "", "", nil), &cli.BoolFlag{Name: "b"}},
		Subcommands: nil,
	}}, nil, io.Discard, io.Discard)
	for _, test := range []struct{ in, want string }{
		{"c", "c"},
		{"c x y", "c -- x y"},
		{"c x --s v y -b", "c --s v -b -- x y"},
		{"c --s=v x", "c --s=v -- x"},
		{"c x -- --s v", "c -- x --s v"},
		{"c --s -- x", "c --s -- -- x"},
		{"c - x", "c -- - x"},
		{"c --help", "c --help"},
	} {
		got, err := arrange(app, strings.Fields("murder "+test.in))
		if text := strings.Join(got, " "); err != nil || text != "murder "+test.want {
			t.Errorf("arrange(%s) = %s, %v; want %s", test.in, text, err, test.want)
		}
	}
}

func TestMirrorURL(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"10.0.0.1:7080", "http://10.0.0.1:7080"}, {"host", "http://host:7080"}, {"[::1]:80", "http://[::1]:80"}, {"[::1]", "http://[::1]:7080"},
		{"http://host/", "http://host"}, {"https://host:1", "https://host:1"},
		{"", ""}, {"ftp://host", ""}, {"http://", ""}, {"host:port", ""}, {"http://h?x", ""}, {"a b", ""},
	} {
		got, err := mirrorURL(test.in)
		if err != nil {
			got = ""
		}
		if got != test.want {
			t.Errorf("mirrorURL(%q) = %q, %v; want %q", test.in, got, err, test.want)
		}
	}
}

// Who advertises an address of its own host must listen on it.
func TestAdvertiseThatNobodyListensOn(t *testing.T) {
	own := func(ip netip.Addr) bool { return ip.IsLoopback() || ip.String() == "10.0.0.7" }
	for _, test := range []struct {
		listen, advertise string
		want              bool
	}{
		{"127.0.0.1:7081", "127.0.0.2", true},
		{"127.0.0.1:7081", "127.0.0.2:7081", true},
		{"127.0.0.1:7081", "10.0.0.7", true},
		{"[::1]:7081", "127.0.0.1", true},
		{"127.0.0.2:7081", "127.0.0.2", false},
		{"[::]:7081", "127.0.0.2", false},
		{"0.0.0.0:7081", "10.0.0.7", false},
		{"127.0.0.1:7081", "", false},
		{"127.0.0.1:7081", "127.0.0.2:9000", false}, // perhaps somebody forwards it
		{"10.0.0.7:7081", "192.0.2.1", false},       // and that
	} {
		if got := unreachable(netip.MustParseAddrPort(test.listen), parseAdvertise(test.advertise), own); got != test.want {
			t.Errorf("unreachable(%s, %s) = %v, want %v", test.listen, test.advertise, got, test.want)
		}
	}
}
