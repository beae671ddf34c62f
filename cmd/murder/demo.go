package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"
)

func demoCommand() *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "a registry, a seeder and a fleet of mirrors on loopback, and an image pulled through them",
		Description: "Needs no root, no Docker and no network. All lies in one temporary folder ($TMPDIR), which is removed at the end, also\n" +
			"after Ctrl-C. The hosts are separate processes that share nothing but loopback; each pulls the whole image through its\n" +
			"mirror as an engine would, checks every digest, and throws the bytes away.",
		Flags: []cli.Flag{
			countOf("hosts", "5", 1, 200, "`NUMBER` of hosts"),
			typed("image-size", "256MiB", "`SIZE` of the image that is made", parseSize),
			textOf("image", "", "`PATH` of an image to take instead: an OCI layout, or a tarball of Docker or OCI", nil),
			outputFlag(),
		},
		Action: demoAction,
	}
}

func demoAction(c *cli.Context) error {
	if c.String("image") == "" && sizeFlag(c, "image-size") < minDemoImage {
		return usagef(c, "--image-size: an image has at least %s", bytesText(minDemoImage))
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	d := &demo{
		exe:      exe,
		hosts:    c.Int("hosts"),
		source:   c.String("image"),
		size:     sizeFlag(c, "image-size"),
		stderr:   c.App.ErrWriter,
		children: &family{stderr: c.App.ErrWriter},
	}
	report, err := d.run(c.Context)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if wantsJSON(c) {
		return printJSON(c.App.Writer, report)
	}
	return report.print(c.App.Writer)
}

// demo is one run of the command.
type demo struct {
	exe    string // this program
	hosts  int
	source string // path of the image; "" makes one
	size   int64  // of the image that is made, in bytes
	stderr io.Writer

	dir      string // of everything; removed at the end
	registry *demoRegistry
	children *family
	start    time.Time
}

// run does the whole demo and leaves nothing behind, however it ends.
func (d *demo) run(ctx context.Context) (report *demoReport, err error) {
	d.start = time.Now()
	if d.dir, err = os.MkdirTemp("", "murder-demo-"); err != nil {
		return nil, err
	}
	ctx, stop := d.heedSignals(ctx)
	defer stop()
	defer func() {
		d.children.end()
		if d.registry != nil {
			d.registry.close()
		}
		err = errors.Join(err, os.RemoveAll(d.dir))
	}()
	report, err = d.show(ctx)
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause // the error is but an effect of it
	}
	return report, err
}

// heedSignals ends the context at the first signal and the children, unasked, at the second. It has its own handler because the children
// must not outlive a second Ctrl-C, which otherwise ends this process at once.
func (d *demo) heedSignals(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for n := 1; ; n++ {
			select {
			case s := <-signals:
				cancel(fmt.Errorf("%s signal received", s))
				if n > 1 {
					d.children.kill()
				}
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		<-ended
		cancel(nil)
	}
}

// show starts everything, pulls, and tells what came of it.
func (d *demo) show(ctx context.Context) (*demoReport, error) {
	img, err := d.image(ctx)
	if err != nil {
		return nil, err
	}
	if d.registry, err = newDemoRegistry(filepath.Join(d.dir, "registry")); err != nil {
		return nil, err
	}
	d.say("pushing an image of %s in %d layers to a registry on %s", bytesText(img.size()), len(img.blobs)-1, d.registry.addr)
	var seeder *child
	var mirrors []*child
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.registry.push(gctx, img) })
	g.Go(func() (err error) {
		seeder, mirrors, err = d.startDaemons(gctx)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	d.registry.reset() // what was asked while pushing is not of interest
	d.say("a seeder and %d mirrors are up after %s; all hosts pull at once", len(mirrors), tookText(time.Since(d.start)))
	return d.pullAll(ctx, img, seeder, mirrors)
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.stderr, format+"\n", args...)
}

// checkSpace makes sure that the registry, the seeder and each host can hold the image, since a full disk would be somebody else's, too.
func (d *demo) checkSpace(imageSize int64) error {
	_, free, err := diskSpace(d.dir)
	if err != nil {
		return err
	}
	if need := imageSize * int64(d.hosts+2); need > free/10*9 {
		return fmt.Errorf("%d hosts, seeder and registry take %s, but %s has %s left: set TMPDIR, or lower --image-size or --hosts",
			d.hosts, bytesText(need), os.TempDir(), bytesText(free))
	}
	return nil
}

// startDaemons starts the seeder and then, when it is known where it listens, the mirrors.
func (d *demo) startDaemons(ctx context.Context) (seeder *child, mirrors []*child, err error) {
	seeder, err = d.daemon("seeder", "seeder")
	if err != nil {
		return nil, nil, err
	}
	if err := seeder.listening(ctx); err != nil {
		return nil, nil, err
	}
	for i := range d.hosts {
		name := fmt.Sprintf("host%d", i+1)
		m, err := d.daemon(name, "mirror", "--seeder", "http://"+seeder.addr, "--host-name", name)
		if err != nil {
			return nil, nil, err
		}
		mirrors = append(mirrors, m)
	}
	for _, m := range mirrors {
		if err := m.listening(ctx); err != nil {
			return nil, nil, err
		}
	}
	return seeder, mirrors, nil
}

// daemon starts a seeder or mirror whose data lies in a folder of its name.
func (d *demo) daemon(name, command string, args ...string) (*child, error) {
	args = append([]string{
		command,
		"--listen", "127.0.0.1:0",
		"--peer-listen", "127.0.0.1:0",
		"--data-dir", filepath.Join(d.dir, name),
		"--cache-size", "0", // checkSpace has seen to it
		"--insecure-registry", d.registry.addr,
		"--log-format", "json",
	}, args...)
	return d.children.start(name, filepath.Join(d.dir, name+".log"), d.exe, args)
}

// pullAll pulls the image on all mirrors at the same time and asks all daemons what they have seen.
func (d *demo) pullAll(ctx context.Context, img *demoImage, seeder *child, mirrors []*child) (*demoReport, error) {
	names := make([]string, len(mirrors))
	for i, m := range mirrors {
		names[i] = m.name
	}
	shown := newProgress(d.stderr, names)
	pulls := make([]*demoPull, len(mirrors))
	g, gctx := errgroup.WithContext(ctx)
	for i, m := range mirrors {
		pulls[i] = &demoPull{host: m.name, mirror: m.addr, registry: d.registry.addr, image: img}
		g.Go(func() error { return pulls[i].run(gctx, shown) })
	}
	err := g.Wait()
	shown.end()
	if err != nil {
		return nil, d.children.explain(err)
	}
	report, err := d.report(ctx, img, seeder, mirrors, pulls)
	if err != nil {
		return nil, d.children.explain(err)
	}
	return report, nil
}
