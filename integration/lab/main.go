// Lab measures murder on a fleet of its own: network namespaces on a switch,
// each with a cable of limited rate, in them a real docker-registry, a
// `murder seeder`, and a `murder mirror` for each host, from which a client
// pulls and checks what it gets. It needs root, iproute2 and docker-registry.
//
//	lab [flags] [scenario...]
//
// Without a scenario it runs them all. Each run prints a few lines and writes
// all figures into a JSON file. docs/BENCHMARKS.md says what they mean.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/murderp2p/murder/integration/netlab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop() // a second Ctrl-C ends the lab at once
	}()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

// options are the flags. Zero sizes leave them to the scenario.
type options struct {
	size, rate     int64
	hosts, repeat  int
	compare        bool
	noLibrary      bool
	noDirect, keep bool
	timeline       bool
	tls            bool
	murder, out    string
	profile        string // folder, or "" for none
	logLevel       string
	names          []string // of scenarios
}

func (o options) sizeOr(n int64) int64 { return or(o.size, n) }
func (o options) rateOr(n int64) int64 { return or(o.rate, n) }
func (o options) hostsOr(n int) int    { return or(o.hosts, n) }

func or[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

func parseOptions(args []string) (o options, err error) {
	flags := flag.NewFlagSet("lab", flag.ContinueOnError)
	flags.Func("size", "bytes of the blob, as 64MiB (default: the scenario's, mostly 128MiB)", sizeInto(&o.size))
	flags.Func("rate", "of a host's link, as 25Mbit a second (default: the scenario's, mostly 50Mbit)", rateInto(&o.rate))
	flags.IntVar(&o.hosts, "hosts", 0, "number of hosts (default: the scenario's)")
	flags.IntVar(&o.repeat, "repeat", 1, "how often each scenario runs")
	flags.BoolVar(&o.compare, "compare", false, "compare in each scenario where that can be done, not only with equal links")
	flags.BoolVar(&o.noLibrary, "no-library", false, "leave out the swarm on the library's own client")
	flags.BoolVar(&o.noDirect, "no-direct", false, "leave out the pulls straight from the registry")
	flags.BoolVar(&o.keep, "keep", false, "keep data and logs of the runs")
	flags.BoolVar(&o.timeline, "timeline", false, "print how busy the cables were, second by second")
	flags.BoolVar(&o.tls, "tls", false, "mutual TLS between mirrors and seeders, with certificates of murder certs")
	flags.StringVar(&o.murder, "murder", "bin/murder", "murder's binary")
	flags.StringVar(&o.out, "out", "bin/lab", "folder of the JSON files")
	flags.StringVar(&o.profile, "profile", "", "folder for profiles of daemons that were built with the tag labprofile")
	flags.StringVar(&o.logLevel, "log-level", "warn", "of the daemons; warnings are printed")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	o.names = flags.Args()
	if len(o.names) == 0 {
		for _, s := range scenarios {
			o.names = append(o.names, s.name)
		}
	}
	for _, name := range o.names {
		if _, ok := findScenario(name); !ok {
			return o, fmt.Errorf("there is no scenario %q", name)
		}
	}
	return o, nil
}

func sizeInto(to *int64) func(string) error {
	return func(s string) error {
		n, err := humanize.ParseBytes(s)
		*to = int64(n)
		return err
	}
}

func rateInto(to *int64) func(string) error {
	return func(s string) error {
		text, ok := strings.CutSuffix(s, "bit")
		if !ok {
			return errors.New("a rate is written as 50Mbit")
		}
		n, err := humanize.ParseBytes(text)
		*to = int64(n)
		return err
	}
}

// lab is what all runs share.
type lab struct {
	options
	dir     string // for data; removed at the end
	storage string // the registry's folder
	library string // the binary of the program in lab/library; built when it is wanted
	version string
	certs   certs // with -tls
	cores   int
	images  map[string]image // in storage, by tag
	results []result         // of the runs so far
}

func run(ctx context.Context, args []string) (err error) {
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	l, err := openLab(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	defer func() { printSummary(os.Stdout, l.results) }()
	fmt.Printf("%s on %d cores, data in %s\n", l.version, l.cores, l.dir)
	var errs []error
	for _, name := range o.names {
		s, _ := findScenario(name)
		for range o.repeat {
			if err := l.runScenario(ctx, s); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
			if ctx.Err() != nil {
				return errors.Join(errs...)
			}
		}
	}
	return errors.Join(errs...)
}

// dirPrefix begins the name of the lab's folder; its process id follows.
const dirPrefix = "murder-lab-"

func openLab(ctx context.Context, o options) (*lab, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("needs root, for network namespaces")
	}
	for _, program := range []string{"ip", "tc", "docker-registry"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, err
		}
	}
	if err := sweep(); err != nil {
		return nil, fmt.Errorf("remove what an earlier run left: %w", err)
	}
	l := &lab{options: o, cores: runtime.NumCPU(), images: map[string]image{}}
	var err error
	if l.murder, err = filepath.Abs(o.murder); err != nil {
		return nil, err
	}
	version, err := exec.CommandContext(ctx, l.murder, "version").Output()
	if err != nil {
		return nil, fmt.Errorf("%s version: %w (`make build` makes it)", l.murder, err)
	}
	l.version = strings.TrimSpace(string(version))
	if l.dir, err = os.MkdirTemp(dataRoot(), fmt.Sprintf("%s%d-", dirPrefix, os.Getpid())); err != nil {
		return nil, err
	}
	l.storage = filepath.Join(l.dir, "registry")
	if l.tls {
		l.version += ", with TLS"
		if err := l.makeCerts(ctx); err != nil {
			return nil, errors.Join(err, l.close())
		}
	}
	return l, nil
}

func (l *lab) close() error {
	if l.keep {
		fmt.Println("kept", l.dir)
		return nil
	}
	return os.RemoveAll(l.dir)
}

// shm is memory that looks like a disk, where there is enough: a disk under
// 16 mirrors would be measured instead of the network.
const shm = "/dev/shm"

// enough is what shm must have free, in bytes: 32 hosts with 128 MiB each,
// and as much again for the programs.
const enough = 10 << 30

// dataRoot is the folder below which the lab keeps its data.
func dataRoot() string {
	var info unix.Statfs_t
	if err := unix.Statfs(shm, &info); err == nil && int64(info.Bavail)*info.Bsize >= enough {
		return shm
	}
	return os.TempDir()
}

// sweep removes the folders of labs that no longer run.
func sweep() error {
	var errs []error
	for _, root := range []string{shm, os.TempDir()} {
		dirs, err := filepath.Glob(filepath.Join(root, dirPrefix+"*"))
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
			if pid, err := strconv.Atoi(owner); err == nil && syscall.Kill(pid, 0) != nil {
				errs = append(errs, os.RemoveAll(dir))
			}
		}
	}
	return errors.Join(errs...)
}

// image returns the image with layers of these sizes, which is in the
// registry on m from then on, and in those that later runs start.
func (l *lab) image(ctx context.Context, m *netlab.Machine, sizes []int64) (image, error) {
	tag := strings.Trim(strings.ReplaceAll(fmt.Sprint(sizes), " ", "-"), "[]")
	if pushed, ok := l.images[tag]; ok {
		return pushed, nil
	}
	pushed, err := pushImage(ctx, m, tag, slices.Clone(sizes))
	if err == nil {
		l.images[tag] = pushed
	}
	return pushed, err
}
