// Murder distributes container image layers between the hosts that pull them.
//
// An engine (containerd, Docker, podman, CRI-O) pulls from the mirror on its own host; the mirror takes the layers from the swarm of
// all mirrors that pull or have pulled them; a seeder beside the registry fetches each layer once, seeds it and tracks the swarms.
//
// # Commands
//
//	murder seeder     the origin's daemon, beside the registry
//	murder mirror     the daemon on every host: a pull-only registry, a cache and a BitTorrent peer
//	murder prefetch   warms this host, the named hosts or the fleet, ahead of a rollout
//	murder pin        keeps images in this host's cache, however long nobody pulls them
//	murder unpin      lets them go again
//	murder limits     shows or changes the limits of a daemon that runs
//	murder fetch      brings the files of an OCI artifact into a folder, over the swarm
//	murder push       sends a folder to a registry as an OCI artifact, for `murder fetch`
//	murder status     what is here and in flight; for an image, where each layer's bytes came from and why
//	murder setup      points containerd, Docker or podman at the mirror
//	murder doctor     checks mirror, seeder, registry, engine and disk, and says what to mend
//	murder certs      makes a CA and host certificates for TLS between mirrors and seeders
//	murder demo       a registry, a seeder and a fleet of mirrors on loopback, and an image pulled through them
//	murder version    what this binary was built from
//
// `murder COMMAND --help` lists the flags of a command.
//
// # Configuration
//
// Every flag has an environment variable, MURDER_ and its name in capitals with underscores: --cache-size is MURDER_CACHE_SIZE; in a
// variable a repeatable flag is a comma-separated list. `--config FILE` reads the same names from a YAML file, in which a repeatable flag
// is a YAML list:
//
//	listen: 127.0.0.1:7080
//	cache-size: 80%
//	seeder:
//	  - http://registry.example:7070
//
// A flag beats its variable, which beats the file, which beats the default. A file belongs to one command: a key that is no flag of that
// command is refused.
//
// Sizes are written 64MiB or 100GiB, rates 500Mbit or 60MiB (a second), durations 30s or 5m. 0 means no limit where a flag limits.
//
// # Ports and endpoints
//
// The seeder listens on :7070 for HTTP and :7071 for BitTorrent, the mirror on 127.0.0.1:7080 and :7081. Both serve over HTTP:
//
//	/v2/                                  the OCI distribution API, pulling only
//	/livez, /readyz, /healthz, /metrics   health, and figures for Prometheus
//	/v1/status                            what `murder status` prints
//	/v1/limits                            what `murder limits` shows (GET) and changes (PATCH)
//
// The seeder besides serves /v1/torrents/DIGEST (metainfo), /announce and /scrape (the tracker), and the fleet's /v1/fleet (to which mirrors
// hold a link), /v1/hosts and /v1/prefetch (GET, POST, DELETE); the mirror POST /v1/prefetch, /v1/pins
// (GET, POST, DELETE) and /v1/check (how seeders and registries answer it now). Any address may have port 0: the daemon then takes a free port and logs it, in a line with the message "listening" and the keys addr and peer_addr.
//
// With --tls-cert, --tls-key and --tls-ca the seeder speaks HTTPS and answers only who shows a certificate of that CA, but for health
// and metrics; BitTorrent on both is inside mutual TLS. The mirror's own HTTP, for the engines of its host, stays as it is;
// on the same port it takes HTTPS from who shows a certificate.
//
// # Logs, results, exit codes
//
// Logs and progress go to stderr (--log-format text or json, --log-level), results to stdout (--output json where a person reads a table).
// The exit code is 0 for success, 1 when the work failed and 2 when the command line, the environment or the file of --config is wrong;
// then one line on stderr names what is wrong and what would be right. It is 3 when `murder prefetch --fleet` has not brought enough hosts
// to be ready in its time, though none has failed that would have been needed. The first SIGINT or SIGTERM stops in good order, a second at once.
// SIGHUP has a daemon read upload-limit, download-limit and cache-size from the file of --config again, and never ends it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"unicode"

	"github.com/urfave/cli/v2"
)

// The exit codes that scripts rely on.
const (
	exitFailure = 1 // the work failed
	exitUsage   = 2 // the command line, the environment or the config file is wrong
	exitLate    = 3 // the time was over before the work was done
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal finds the default action again and kills
	err := run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "murder: "+oneLine(err))
		os.Exit(exitCode(err))
	}
}

// run is the program: it does what args (with the program's name first) ask for until it is done or ctx ends. Results go to stdout, logs
// and progress to stderr. The caller prints the error; [exitCode] tells the exit code that belongs to it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	app := newApp(commands(), stdin, stdout, stderr)
	args, err := arrange(app, args)
	if err != nil {
		return err
	}
	return app.RunContext(ctx, args)
}

// newApp is the command line interface with the given commands.
func newApp(commands []*cli.Command, stdin io.Reader, stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:      "murder",
		Usage:     "peer-to-peer distribution of container image layers",
		Version:   buildVersion(),
		Commands:  commands,
		Reader:    stdin,
		Writer:    stdout,
		ErrWriter: stderr,
		Action:    rootAction,
		// The library would print the error and exit; only main does that.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   usageErrorOf,
	}
	for _, cmd := range app.Commands {
		configurable(cmd)
		sealed(cmd)
	}
	app.Setup()
	return app
}

// commands are the subcommands in the order in which help lists them.
func commands() []*cli.Command {
	return []*cli.Command{
		seederCommand(),
		mirrorCommand(),
		prefetchCommand(),
		pinCommand(),
		unpinCommand(),
		fetchCommand(),
		pushCommand(),
		statusCommand(),
		limitsCommand(),
		setupCommand(),
		doctorCommand(),
		certsCommand(),
		demoCommand(),
		versionCommand(),
	}
}

// rootAction runs for a command line without a command; [arrange] has refused unknown ones.
func rootAction(c *cli.Context) error {
	return cli.ShowAppHelp(c)
}

// sealed makes the library report usage errors of cmd as ours, refuses arguments where cmd takes none, and keeps "help" free to be an
// argument (an image may be called so). Subcommands too.
func sealed(cmd *cli.Command) {
	cmd.HideHelpCommand = true
	cmd.OnUsageError = usageErrorOf
	before := cmd.Before
	cmd.Before = func(c *cli.Context) error {
		if cmd.ArgsUsage == "" && len(cmd.Subcommands) == 0 && c.NArg() > 0 {
			return usagef(c, "takes no arguments, but was given %q", c.Args().First())
		}
		if before == nil {
			return nil
		}
		return before(c)
	}
	for _, sub := range cmd.Subcommands {
		sealed(sub)
	}
}

// exitCode is the process's exit code for what run returned.
func exitCode(err error) int {
	var (
		usage *usageError
		late  *lateError
		coder cli.ExitCoder // the library's own complaints, such as help for a command that is none
	)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage), errors.As(err, &coder):
		return exitUsage
	case errors.As(err, &late):
		return exitLate
	default:
		return exitFailure
	}
}

// oneLine is err's text on one line, for people who grep logs, without the user and password of URLs that they may have typed, and without
// what a registry or a host could tell their terminal by it.
func oneLine(err error) string {
	lines := strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' })
	text := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.Join(lines, "; "))
	return userinfo.ReplaceAllString(text, "://...@")
}

var userinfo = regexp.MustCompile(`://[^/\s]*@`)
