package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/murderp2p/murder/cmd/murder/mtls"
)

func prefetchCommand() *cli.Command {
	return &cli.Command{
		Name:      "prefetch",
		Usage:     "warms this host, the named hosts or the fleet with all that images consist of",
		ArgsUsage: "IMAGE...",
		Description: "Each mirror fetches the manifests, configs and layers of each IMAGE into its cache, all mirrors at once, so that they\n" +
			"share the bytes among themselves. Private images are fetched with this user's own credentials, those of `docker login`\n" +
			"and `podman login`; a mirror is given the token that a registry's token server grants for them, or, where a registry has\n" +
			"none, user name and password themselves, so name mirrors on other hosts as https://HOST:7080, with the --tls\n" +
			"flags of the daemons, or across trusted networks only.\n\n" +
			"Exits with 0 only when every host has everything, otherwise with 1 and a line on stderr for each host that has not. What\n" +
			"has been fetched stays, so a second run fetches what is missing.\n\n" +
			"With --fleet a seeder tells all mirrors that it is the seeder of, those that --hosts, --zone, --label and --percent leave, and\n" +
			"no host has to be reached from here. A host that is away gets the order when it comes back within --timeout (10m if not\n" +
			"given). Exits with 0 as soon as --ready of the hosts have everything; the others go on until the time is over. Exits with 1\n" +
			"when so many cannot be had any more, because hosts have failed or the order is refused, and with 3 when the time is over.",
		Flags: append([]cli.Flag{
			listOf("mirror", "`URL` or HOST:PORT of a mirror (repeatable; default: "+defaultMirror+", unless --mirrors-file is given)", checkMirrorAddress),
			textOf("mirrors-file", "", "`FILE` with a mirror on each line; # begins a comment", nil),
			listOf("platform", "`OS/ARCH` to fetch of a multi-platform image, or all (repeatable; default: each mirror's own)", checkPlatform),
			&cli.BoolFlag{Name: "pin", Usage: "keep the images in the caches until `murder unpin`, also when they are not used"},
			listOf("insecure-registry", "`HOST:PORT` of a registry whose token server may be given credentials without TLS (repeatable)", checkRegistry),
			durationOf("timeout", "0s", "`DURATION` after which to give up, 0 for as long as bytes arrive"),
			countOf("parallel", "256", 1, 65536, "`NUMBER` of hosts that are warmed at once"),
			apiTokenFlag(),
			outputFlag(),
		}, slices.Concat(fleetFlags(), tlsFlags())...),
		Action: prefetchAction,
	}
}

func prefetchAction(c *cli.Context) error {
	if err := checkFleetFlags(c); err != nil {
		return err
	}
	if c.Bool("fleet") {
		return fleetAction(c)
	}
	p, err := newPrefetch(c)
	if err != nil {
		return err
	}
	ctx, cancel := withTimeout(c)
	defer cancel()
	result := p.run(ctx)
	if err := result.print(c.App.Writer, wantsJSON(c)); err != nil {
		return err
	}
	return result.err(c.App.ErrWriter)
}

// prefetch is one run of the command.
type prefetch struct {
	mirrors   []string // base URLs
	images    []image
	platforms []string
	pin       bool
	parallel  int           // mirrors asked at once
	idle      time.Duration // a mirror that says nothing for so long is given up
	creds     *credentials
	token     string         // of the mirrors' own API, "" for none
	identity  *mtls.Identity // shown to mirrors that are asked by https; nil = none
	progress  progress
}

// streamIdle is how long a mirror may say nothing. It sends several progress events a second while it works, and its own limits for
// registries and peers that do not answer are well below this.
const streamIdle = time.Minute

func newPrefetch(c *cli.Context) (*prefetch, error) {
	p := &prefetch{
		platforms: listFlag(c, "platform"),
		pin:       c.Bool("pin"),
		parallel:  c.Int("parallel"),
		idle:      streamIdle,
		creds:     newCredentials(listFlag(c, "insecure-registry")),
	}
	var err error
	if p.images, err = imagesOf(c); err != nil {
		return nil, err
	}
	if p.mirrors, err = mirrorsOf(c); err != nil {
		return nil, err
	}
	if p.token, err = apiToken(c); err != nil {
		return nil, err
	}
	if p.identity, err = openTLS(c, slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	p.progress = newProgress(c.App.ErrWriter, p.mirrors)
	return p, nil
}

// imagesOf are the command's arguments.
func imagesOf(c *cli.Context) (images []image, err error) {
	if c.NArg() == 0 {
		return nil, usagef(c, "name at least one image, as in `murder prefetch registry.example/app:1.2`")
	}
	for _, arg := range c.Args().Slice() {
		img, err := parseImage(arg)
		if err != nil {
			return nil, usagef(c, "invalid image %q: %v", arg, err)
		}
		images = append(images, img)
	}
	return images, nil
}

// mirrorsOf are the mirrors that --mirror and --mirrors-file name, each once, in that order; this host's without either.
func mirrorsOf(c *cli.Context) ([]string, error) {
	named := listFlag(c, "mirror")
	file := c.String("mirrors-file")
	if file != "" {
		more, err := readMirrors(file)
		if err != nil {
			return nil, usagef(c, "--mirrors-file: %v", err)
		}
		named = append(named, more...)
	}
	if len(named) == 0 && file == "" {
		named = []string{defaultMirror}
	}
	var mirrors []string
	seen := make(map[string]bool)
	for _, m := range named {
		base, err := mirrorURL(m)
		if err != nil {
			return nil, usagef(c, "invalid mirror %q: %v", m, err)
		}
		if !seen[base] {
			seen[base] = true
			mirrors = append(mirrors, base)
		}
	}
	return mirrors, nil
}

func readMirrors(file string) ([]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var mirrors []string
	for n, line := range strings.Split(string(b), "\n") {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if err := checkMirrorAddress(line); err != nil {
			return nil, fmt.Errorf("%s:%d: invalid mirror %q: %w", file, n+1, line, err)
		}
		mirrors = append(mirrors, line)
	}
	if len(mirrors) == 0 {
		return nil, fmt.Errorf("%s names no mirror", file)
	}
	return mirrors, nil
}

// run asks all mirrors and returns when the last has answered or ctx has ended.
func (p *prefetch) run(ctx context.Context) *prefetchResult {
	start := time.Now()
	result := &prefetchResult{Hosts: make([]hostResult, len(p.mirrors))}
	places := make(chan struct{}, p.parallel)
	var wg sync.WaitGroup
	for i, mirror := range p.mirrors {
		wg.Go(func() {
			select {
			case places <- struct{}{}:
				defer func() { <-places }()
			case <-ctx.Done(): // the host's job sees that too, and says why
			}
			result.Hosts[i] = p.host(ctx, mirror)
		})
	}
	wg.Wait()
	p.progress.end()
	result.TookMS = time.Since(start).Milliseconds()
	result.OK = result.failed() == 0
	return result
}

// prefetchResult is the whole result, and the document of --output json.
type prefetchResult struct {
	OK     bool         `json:"ok"`
	TookMS int64        `json:"took_ms"`
	Hosts  []hostResult `json:"hosts"`
}

// hostResult is what became of one mirror.
type hostResult struct {
	Mirror string        `json:"mirror"`
	OK     bool          `json:"ok"`
	Error  string        `json:"error,omitempty"` // why the host failed as a whole
	TookMS int64         `json:"took_ms"`
	Images []imageResult `json:"images"`
}

// imageResult is what became of one image on one mirror.
type imageResult struct {
	Image  string  `json:"image"`
	OK     bool    `json:"ok"`
	Digest string  `json:"digest,omitempty"`
	Pinned bool    `json:"pinned,omitempty"`
	Bytes  int64   `json:"bytes"` // of its blobs, once resolved
	From   sources `json:"from"`
	Error  string  `json:"error,omitempty"`
}

func (r *prefetchResult) failed() (n int) {
	for _, h := range r.Hosts {
		if !h.OK {
			n++
		}
	}
	return n
}

func (r *prefetchResult) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, r)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "HOST\tIMAGE\tSIZE\tCACHED\tPEERS\tSEEDER\tREGISTRY\tRESULT")
	for _, h := range r.Hosts {
		for _, img := range h.Images {
			word := "ready"
			switch {
			case !img.OK:
				word = "FAILED"
			case img.Pinned:
				word = "ready, pinned"
			}
			f := img.From
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", hostOf(h.Mirror), img.Image, bytesText(img.Bytes),
				bytesText(f.Cache), bytesText(f.Peer), bytesText(f.Seeder), bytesText(f.Upstream), word)
		}
	}
	return t.Flush()
}

// err names each host that has not everything on w, and is nil when there is none.
func (r *prefetchResult) err(w io.Writer) error {
	for _, h := range r.Hosts {
		if h.Error != "" {
			fmt.Fprintf(w, "%s: %s\n", hostOf(h.Mirror), h.Error)
			continue
		}
		for _, img := range h.Images {
			if !img.OK {
				fmt.Fprintf(w, "%s: %s: %s\n", hostOf(h.Mirror), img.Image, img.Error)
			}
		}
	}
	if n := r.failed(); n > 0 {
		return fmt.Errorf("prefetch: %d of %d hosts have not everything", n, len(r.Hosts))
	}
	return nil
}

// hostOf is a base URL as people name the host.
func hostOf(base string) string {
	return strings.TrimPrefix(base, "http://")
}

// errIdle is why a mirror that has stopped talking is given up.
var errIdle = errors.New("says nothing any more")
