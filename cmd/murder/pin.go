package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
)

func pinCommand() *cli.Command {
	return &cli.Command{
		Name:      "pin",
		Usage:     "keeps images in this host's cache, however long nobody pulls them",
		ArgsUsage: "IMAGE...",
		Description: "All that each IMAGE consists of stays in the mirror's cache, over restarts too, until `murder unpin IMAGE`. It must be there\n" +
			"already: pin fetches nothing and asks no registry. `murder prefetch --pin IMAGE` fetches and pins.\n\n" +
			"Pinned is what the name stands for on this mirror now. When a tag moves later the pin stays with what it was, until it is\n" +
			"pinned again. Of a multi-platform image what this host would run is pinned, and whatever else is there in full; with\n" +
			"--platform the named platforms. `murder status` lists what is pinned.",
		Flags: append(pinFlags(),
			listOf("platform", "`OS/ARCH` to pin of a multi-platform image, or all (repeatable)", checkPlatform),
		),
		Action: pinAction,
	}
}

func unpinCommand() *cli.Command {
	return &cli.Command{
		Name:        "unpin",
		Usage:       "lets pinned images go when room is needed",
		ArgsUsage:   "IMAGE...",
		Description: "Nothing is deleted. What other pinned images share with IMAGE stays.",
		Flags:       pinFlags(),
		Action:      unpinAction,
	}
}

func pinFlags() []cli.Flag {
	return append([]cli.Flag{
		textOf("mirror", defaultMirror, "`URL` or HOST:PORT of the mirror", checkMirrorAddress),
		apiTokenFlag(),
		outputFlag(),
	}, tlsFlags()...)
}

func pinAction(c *cli.Context) error {
	platforms := listFlag(c, "platform")
	var pinned []pinStatus
	err := eachPin(c, "pin", func(daemon *client, img image) error {
		p, err := daemon.pin(c.Context, img, platforms)
		if text, ok := notFound(err); ok {
			return fmt.Errorf("%s; `murder prefetch --pin %s` fetches and pins it", text, img)
		}
		if err == nil {
			pinned = append(pinned, p)
		}
		return err
	})
	var usage *usageError
	if errors.As(err, &usage) {
		return err
	}
	if wantsJSON(c) {
		if pinned == nil {
			pinned = []pinStatus{}
		}
		return errors.Join(printJSON(c.App.Writer, map[string]any{"pins": pinned}), err)
	}
	return errors.Join(printPins(c.App.Writer, pinned), err)
}

func unpinAction(c *cli.Context) error {
	return eachPin(c, "unpin", func(daemon *client, img image) error {
		err := daemon.unpin(c.Context, img)
		if _, ok := notFound(err); ok {
			return errors.New("is not pinned")
		}
		return err
	})
}

// notFound returns what a mirror says that has no such image, or no such pin. One that is too old to know of pins says that it has no
// such page.
func notFound(err error) (text string, ok bool) {
	refusal, ok := errors.AsType[*answerError](err)
	if !ok || refusal.status != http.StatusNotFound || strings.HasPrefix(refusal.text, "404 page not found") {
		return "", false
	}
	return refusal.text, true
}

// eachPin does what the verb says with each image, and names on stderr those with which it went wrong.
func eachPin(c *cli.Context, verb string, do func(*client, image) error) error {
	if c.NArg() == 0 {
		return usagef(c, "name at least one image, as in `murder %s registry.example/app:1.2`", verb)
	}
	var images []image
	for _, arg := range c.Args().Slice() {
		img, err := parseImage(arg)
		if err != nil {
			return usagef(c, "invalid image %q: %v", arg, err)
		}
		images = append(images, img)
	}
	daemon, err := daemonOf(c)
	if err != nil {
		return err
	}
	defer daemon.close()
	failed := 0
	for _, img := range images {
		if err := do(daemon, img); err != nil {
			failed++
			fmt.Fprintf(c.App.ErrWriter, "%s: %v\n", img, err)
		}
	}
	if failed > 0 {
		return fmt.Errorf("%s: %d of %d images could not be %sned", verb, failed, len(images), verb)
	}
	return nil
}

// pin asks the mirror to pin an image that it has.
func (c *client) pin(ctx context.Context, img image, platforms []string) (p pinStatus, err error) {
	body, err := json.Marshal(map[string]any{"image": img.String(), "platforms": platforms})
	if err != nil {
		return p, err
	}
	header := http.Header{"Content-Type": {"application/json"}}
	resp, err := c.do(ctx, http.MethodPost, "/v1/pins", header, bytes.NewReader(body))
	if err != nil {
		return p, mirrorError(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&p); err != nil {
		return p, fmt.Errorf("read the mirror's answer: %w", err)
	}
	return p, nil
}

func (c *client) unpin(ctx context.Context, img image) error {
	resp, err := c.do(ctx, http.MethodDelete, "/v1/pins?"+url.Values{"image": {img.String()}}.Encode(), nil, nil)
	if err != nil {
		return mirrorError(err)
	}
	return resp.Body.Close()
}

// printPins shows pinned images to people.
func printPins(w io.Writer, pins []pinStatus) error {
	if len(pins) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "PINNED\tDIGEST\tBLOBS\tSIZE\tSINCE\tSTATE")
	for _, p := range pins {
		state := "all here"
		if n := len(p.Missing); n > 0 {
			state = fmt.Sprintf("%d blobs LOST, a pull brings them again", n)
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\n", p.Image, shortDigest(p.Digest), p.Blobs, bytesText(p.Bytes), p.Pinned.Local().Format("2006-01-02 15:04"), state)
	}
	return t.Flush()
}
