package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/murderp2p/murder/artifact"
)

func fetchCommand() *cli.Command {
	return &cli.Command{
		Name:      "fetch",
		Usage:     "brings the files of an OCI artifact into a folder, over the swarm",
		ArgsUsage: "REF",
		Description: "REF is an artifact that `murder push` has made, or `oras push`. Its files come through the mirror, which shares them with\n" +
			"the fleet; where no mirror answers they come from the registry itself, with a line on stderr that says so. Private ones\n" +
			"are fetched with the credentials of `docker login` and `podman login`.\n\n" +
			"The folder is made where there is none. Nothing in it changes until all files are here and verified: then they get their\n" +
			"names at once. A fetch that fails or is killed leaves no file, and what it had brought is in the mirror's cache.",
		Flags: append([]cli.Flag{
			folderFlag(),
			&cli.BoolFlag{Name: "overwrite", Usage: "fetch into a folder that is not empty: files of the same names are replaced and listed on stderr, others stay"},
			&cli.BoolFlag{Name: "keep-setuid", Usage: "keep the setuid, setgid and sticky bits of files, which are dropped otherwise"},
			textOf("mirror", defaultMirror, "`URL` or HOST:PORT of the mirror", checkMirrorAddress),
			listOf("insecure-registry", "`HOST:PORT` of a registry that speaks plain HTTP, or whose token server does (repeatable)", checkRegistry),
			durationOf("timeout", "0s", "`DURATION` after which to give up, 0 for as long as bytes arrive"),
			outputFlag(),
		}, tlsFlags()...),
		Action: fetchAction,
	}
}

// folderFlag is -o.
func folderFlag() cli.Flag {
	f := textOf("folder", "", "`DIR` to fetch into", nil)
	f.Aliases = []string{"o"}
	return f
}

// fetchStreams is how many layers are fetched at a time, as many as a mirror prefetches of an image.
const fetchStreams = 4

func fetchAction(c *cli.Context) error {
	f, err := newFetch(c)
	if err != nil {
		return err
	}
	ctx, cancel := withTimeout(c)
	defer cancel()
	result, err := f.run(ctx)
	for _, p := range result.Overwritten {
		fmt.Fprintf(c.App.ErrWriter, "overwritten: %q\n", p)
	}
	if err != nil {
		return fmt.Errorf("fetch %s: %w", f.img, err)
	}
	if wantsJSON(c) {
		return printJSON(c.App.Writer, result)
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s is in %s: %d files, %s, %s, through %s\n",
		result.Artifact, result.Folder, result.Files, bytesText(result.Bytes), tookText(millis(result.TookMS)), result.Through)
	return err
}

// withTimeout is the context of a command with --timeout.
func withTimeout(c *cli.Context) (context.Context, context.CancelFunc) {
	d := c.Duration("timeout")
	if d == 0 {
		return c.Context, func() {}
	}
	return context.WithTimeoutCause(c.Context, d, fmt.Errorf("not done within --timeout %s", d))
}

// fetch is one run of the command.
type fetch struct {
	img    image
	folder string
	opts   artifact.StageOptions
	puller *puller
	stderr io.Writer

	read atomic.Int64 // bytes that have come
}

func newFetch(c *cli.Context) (*fetch, error) {
	f := &fetch{
		folder: c.String("folder"), stderr: c.App.ErrWriter,
		opts: artifact.StageOptions{Overwrite: c.Bool("overwrite"), KeepSetuid: c.Bool("keep-setuid")},
	}
	if c.NArg() != 1 {
		return nil, usagef(c, "name one artifact, as in `murder fetch registry.example/models/llm:v1 -o llm`")
	}
	if f.folder == "" {
		return nil, usagef(c, "say with -o which folder to fetch into")
	}
	var err error
	if f.img, err = parseImage(c.Args().First()); err != nil {
		return nil, usagef(c, "invalid artifact %q: %v", c.Args().First(), err)
	}
	mirror, err := mirrorURL(c.String("mirror"))
	if err != nil {
		return nil, usagef(c, "--mirror: %v", err)
	}
	id, err := openTLS(c, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	insecure := listFlag(c, "insecure-registry")
	f.puller, err = newPuller(f.img, mirror, id, newCredentials(insecure), insecure, func(text string) {
		fmt.Fprintln(c.App.ErrWriter, text)
	})
	return f, err
}

// fetchResult is the document of --output json.
type fetchResult struct {
	Artifact    string   `json:"artifact"`
	Digest      string   `json:"digest"`
	Type        string   `json:"artifact_type,omitempty"`
	Folder      string   `json:"folder"`
	Files       int      `json:"files"`
	Bytes       int64    `json:"bytes"`   // of its layers
	Through     string   `json:"through"` // whom the last of them came from: mirror or registry
	TookMS      int64    `json:"took_ms"`
	Overwritten []string `json:"overwritten"`
}

func (f *fetch) run(ctx context.Context) (fetchResult, error) {
	start := time.Now()
	result := fetchResult{Artifact: f.img.String(), Folder: f.folder, Overwritten: []string{}}
	stage, err := artifact.OpenStage(f.folder, f.opts)
	if errors.Is(err, artifact.ErrNotEmpty) {
		err = fmt.Errorf("%w; --overwrite fetches into it nevertheless", err)
	}
	if err != nil {
		return result, err
	}
	defer stage.Close()
	d, content, err := f.puller.manifest(ctx)
	if err != nil {
		return result, err
	}
	a, err := artifact.Parse(content)
	if err != nil {
		return result, err
	}
	result.Digest, result.Type, result.Bytes = d.String(), a.Type, a.Bytes()
	if free, err := artifact.DiskFree(f.folder); err == nil && free < result.Bytes {
		return result, fmt.Errorf("%w: %s is to have %s more, and there are %s free", artifact.ErrDiskFull, f.folder, bytesText(result.Bytes), bytesText(free))
	}
	var overwritten []string
	err = f.show(ctx, result, len(a.Layers), func(ctx context.Context) error {
		if err := f.layers(ctx, a, stage); err != nil {
			return err
		}
		overwritten, err = stage.Commit()
		return err
	})
	result.Overwritten = append(result.Overwritten, overwritten...)
	result.Files, result.Through, result.TookMS = stage.Files(), f.puller.through(), time.Since(start).Milliseconds()
	return result, err
}

// layers fetches all layers, the largest first, so that none is left alone at the end for long.
func (f *fetch) layers(ctx context.Context, a *artifact.Artifact, stage *artifact.Stage) error {
	ordered := slices.SortedStableFunc(slices.Values(a.Layers), func(a, b artifact.Layer) int { return cmp.Compare(b.Size, a.Size) })
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchStreams)
	for _, l := range ordered {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			blob := f.puller.blob(ctx, l.Digest, l.Size)
			defer blob.Close()
			return stage.Add(ctx, l, blob, func(n int) { f.read.Add(int64(n)) })
		})
	}
	return g.Wait()
}

// show shows how far work has come while it runs.
func (f *fetch) show(ctx context.Context, r fetchResult, layers int, work func(context.Context) error) error {
	resolved := prefetchEvent{Event: "resolved", Image: r.Artifact, Digest: r.Digest, Bytes: r.Bytes, Blobs: layers}
	return showTransfer(ctx, f.stderr, r.Folder, resolved, f.read.Load, work)
}

// showTransfer shows a transfer on w, under a name, while work runs; done is how many of the resolved bytes have gone.
func showTransfer(ctx context.Context, w io.Writer, name string, resolved prefetchEvent, done func() int64, work func(context.Context) error) error {
	shown, start := newProgress(w, []string{name}), time.Now()
	shown.event(name, resolved)
	finished := make(chan struct{})
	ticking := make(chan struct{})
	go func() {
		defer close(ticking)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-finished:
				return
			case <-tick.C:
				shown.event(name, prefetchEvent{Event: "progress", Image: resolved.Image, BytesDone: min(done(), resolved.Bytes), Bytes: resolved.Bytes})
			}
		}
	}()
	err := work(ctx)
	close(finished)
	<-ticking
	if err == nil {
		shown.event(name, prefetchEvent{Event: "progress", Image: resolved.Image, BytesDone: resolved.Bytes, Bytes: resolved.Bytes})
	}
	shown.hostEnd(hostResult{Mirror: name, OK: err == nil, TookMS: time.Since(start).Milliseconds()})
	shown.end()
	return err
}
