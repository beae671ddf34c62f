package main

import (
	"fmt"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/murderp2p/murder/cmd/murder/engine"
)

// setupCommand is `murder setup`: it points an engine at the mirror by that engine's own configuration files, or takes that back.
func setupCommand() *cli.Command {
	return &cli.Command{
		Name:  "setup",
		Usage: "point containerd, Docker or podman at the mirror",
		Description: `Edits the engine's own configuration files and nothing else: what is in them stays, a file that is changed is kept
beside as FILE.murder-backup, and FILE.murder-setup says what was done. --dry-run shows the change as a diff. Running it twice
changes nothing. --undo puts every file back as it was; out of one that was edited since, it takes murder's part only.`,
		Subcommands: []*cli.Command{
			setupContainerdCommand(),
			setupDockerCommand(),
			setupPodmanCommand(),
			setupDataCommand(),
		},
	}
}

func setupContainerdCommand() *cli.Command {
	return &cli.Command{
		Name:  "containerd",
		Usage: "hosts.toml under certs.d, and config_path in config.toml",
		Description: `For containerd's CRI plugin (Kubernetes), nerdctl, and ctr with --hosts-dir. A registry without a folder of its own under
certs.d takes that of _default. If the mirror does not answer, containerd goes to the registry itself.`,
		Flags: append(setupFlags(),
			listOf("registry", "`HOST` of a registry that the mirror is for (repeatable; default: _default, which is every one without a folder)", checkSetupRegistry),
			textOf("config-path", engine.ContainerdConfig, "`FILE`, containerd's config.toml; empty leaves it alone", nil),
			textOf("certs-dir", "", "`DIR` of the hosts.toml files (default: what config.toml names, else "+engine.ContainerdCerts+")", nil),
		),
		Action: setupAction(func(c *cli.Context) (engine.Engine, error) {
			mirror, err := engine.ParseMirror(c.String("mirror"))
			return engine.Containerd{
				Root: c.String("root"), Mirror: mirror, Registries: setupRegistries(c),
				ConfigPath: c.String("config-path"), CertsDir: c.String("certs-dir"),
			}, err
		}),
	}
}

func setupDockerCommand() *cli.Command {
	return &cli.Command{
		Name:  "docker",
		Usage: "registry-mirrors in daemon.json",
		Description: `Docker uses mirrors for Docker Hub only. From any other registry pull through the mirror by name:
docker pull localhost:7080/ghcr.io/ORG/IMAGE:TAG.`,
		Flags: append(setupFlags(),
			listOf("registry", "`HOST` of a registry; Docker knows mirrors of docker.io alone", checkDockerRegistry),
			textOf("config-path", engine.DockerConfig, "`FILE`, dockerd's daemon.json", checkNotEmpty),
		),
		Action: setupAction(func(c *cli.Context) (engine.Engine, error) {
			mirror, err := engine.ParseMirror(c.String("mirror"))
			return engine.Docker{Root: c.String("root"), Mirror: mirror, ConfigPath: c.String("config-path")}, err
		}),
	}
}

func setupPodmanCommand() *cli.Command {
	return &cli.Command{
		Name:  "podman",
		Usage: "a file in registries.conf.d, for podman, CRI-O, buildah and skopeo",
		Flags: append(setupFlags(),
			listOf("registry", "`HOST` of a registry that the mirror is for (repeatable; default: docker.io and other large public ones)", checkPodmanRegistry),
			textOf("config-dir", engine.PodmanConfDir, "`DIR`, registries.conf.d", checkNotEmpty),
		),
		Action: setupAction(func(c *cli.Context) (engine.Engine, error) {
			mirror, err := engine.ParseMirror(c.String("mirror"))
			return engine.Podman{Root: c.String("root"), Mirror: mirror, Registries: setupRegistries(c), ConfDir: c.String("config-dir")}, err
		}),
	}
}

// setupFlags are the flags of every engine.
func setupFlags() []cli.Flag {
	return []cli.Flag{
		textOf("mirror", engine.DefaultMirror, "`URL` of the mirror, as the engine reaches it", checkSetupMirror),
		&cli.BoolFlag{Name: "undo", Usage: "put the files back as they were before setup"},
		&cli.BoolFlag{Name: "dry-run", Usage: "show what would change, and change nothing"},
		&cli.BoolFlag{Name: "hold", Usage: "stay, and put the files back when asked to end (SIGTERM): for a container beside the mirror's"},
		textOf("root", "/", "`DIR` in which the engine's file tree lies, for image builds", checkNotEmpty),
	}
}

// setupAction plans with the engine that pick makes of the flags, and shows or carries out the plan.
func setupAction(pick func(*cli.Context) (engine.Engine, error)) cli.ActionFunc {
	return func(c *cli.Context) error {
		e, err := pick(c)
		if err != nil {
			return usagef(c, "%v", err)
		}
		if c.Bool("hold") && (c.Bool("undo") || c.Bool("dry-run")) {
			return usagef(c, "--hold sets up and then takes back, so it goes with neither --undo nor --dry-run")
		}
		plan, err := setupPlan(e, c.Bool("undo"))
		if err != nil {
			return err
		}
		if c.Bool("dry-run") {
			plan.Diff(c.App.Writer)
			printNotes(c, plan)
			return nil
		}
		if !c.Bool("hold") {
			return runPlan(c, plan)
		}
		ctx, stop := signal.NotifyContext(c.Context, syscall.SIGHUP) // of a terminal that is closed
		defer stop()
		if err := runPlan(c, plan); err != nil {
			return err
		}
		<-ctx.Done()
		if plan, err = e.Undo(); err != nil {
			return err
		}
		return runPlan(c, plan)
	}
}

func setupPlan(e engine.Engine, undo bool) (*engine.Plan, error) {
	if undo {
		return e.Undo()
	}
	return e.Setup()
}

// runPlan carries out the plan and says what it did.
func runPlan(c *cli.Context, plan *engine.Plan) error {
	if err := plan.Run(c.App.Writer); err != nil {
		return err
	}
	if plan.Empty() {
		fmt.Fprintln(c.App.Writer, "nothing to change")
		return nil
	}
	printNotes(c, plan)
	return nil
}

// printNotes prints what a person should know or do besides, so that it cannot be taken for a change.
func printNotes(c *cli.Context, plan *engine.Plan) {
	for _, note := range plan.Notes {
		fmt.Fprintln(c.App.Writer, "note: "+note)
	}
}

// setupRegistries are the registries of --registry by the names that engines look them up by; the flag's check has passed them.
func setupRegistries(c *cli.Context) []string {
	var names []string
	for _, item := range listFlag(c, "registry") {
		name := item
		if item != engine.DefaultRegistry {
			name, _ = engine.ParseRegistry(item)
		}
		names = append(names, name)
	}
	return names
}

func checkSetupMirror(s string) error {
	_, err := engine.ParseMirror(s)
	return err
}

func checkSetupRegistry(s string) error {
	if s == engine.DefaultRegistry {
		return nil
	}
	_, err := engine.ParseRegistry(s)
	return err
}

func checkPodmanRegistry(s string) error {
	_, err := engine.ParsePathRegistry(s)
	return err
}

func checkDockerRegistry(s string) error {
	if name, err := engine.ParseRegistry(s); err != nil || name != "docker.io" {
		return fmt.Errorf("for Docker there are mirrors of Docker Hub only; pull by name instead: docker pull localhost:7080/%s/ORG/IMAGE:TAG", s)
	}
	return nil
}
