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
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v2"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:      "status",
		Usage:     "what is here and in flight; for an image, where each layer's bytes came from and why",
		ArgsUsage: "[IMAGE or DIGEST]",
		Description: "Without an argument all that the mirror has and fetches, the latest first. With an IMAGE its config and layers on this\n" +
			"mirror, and with a DIGEST that blob; its beginning will do. A seeder answers too: --mirror http://SEEDER:7070,\n" +
			"or https:// with the --tls flags of the daemons.",
		Flags: append([]cli.Flag{
			textOf("mirror", defaultMirror, "`URL` or HOST:PORT of the mirror", checkMirrorAddress),
			textOf("platform", "", "`OS/ARCH` that is meant of a multi-platform image (default: this machine's)", checkOnePlatform),
			listOf("insecure-registry", "`HOST:PORT` of a registry whose token server may be given credentials without TLS (repeatable)", checkRegistry),
			apiTokenFlag(),
			outputFlag(),
		}, tlsFlags()...),
		Action: statusAction,
	}
}

func checkOnePlatform(s string) error {
	if s == "all" {
		return errors.New("one platform is meant, such as linux/arm64")
	}
	return checkPlatform(s)
}

func statusAction(c *cli.Context) error {
	if c.NArg() > 1 {
		return usagef(c, "takes one IMAGE or DIGEST, but was given %d", c.NArg())
	}
	daemon, err := daemonOf(c)
	if err != nil {
		return err
	}
	defer daemon.close()
	arg := c.Args().First()
	if arg == "" {
		return wholeStatus(c, daemon)
	}
	if hex, ok := strings.CutPrefix(arg, "sha256:"); ok && len(hex) < digest.SHA256.Size()*2 {
		if arg, err = wholeDigest(c, daemon, arg); err != nil {
			return err
		}
	}
	if d, err := digest.Parse(arg); err == nil {
		return partsStatus(c, daemon, imageStatus{Digest: d.String(), Parts: []partStatus{{Part: "blob", Digest: d.String()}}})
	}
	img, err := parseImage(arg)
	if err != nil {
		return usagef(c, "invalid argument %q: %v; a digest as sha256:...", arg, err)
	}
	r := &resolver{daemon: daemon, creds: newCredentials(listFlag(c, "insecure-registry")), image: img}
	status, err := r.resolve(c.Context, c.String("platform"))
	if err != nil {
		return fmt.Errorf("status of %s: %w", img, err)
	}
	return partsStatus(c, daemon, status)
}

// wholeDigest finds the blob that is meant by the beginning of its digest, as tables have it.
func wholeDigest(c *cli.Context, daemon *client, start string) (string, error) {
	report, _, err := daemon.status(c.Context)
	if err != nil {
		return "", fmt.Errorf("status of %s: %w", daemon.base, err)
	}
	var found []string
	for _, b := range report.Blobs {
		if strings.HasPrefix(b.Digest, start) {
			found = append(found, b.Digest)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("status: no blob at %s has a digest that begins with %s", daemon.base, start)
	case 1:
		return found[0], nil
	default:
		return "", fmt.Errorf("status: %s is the beginning of %d digests at %s: %s", start, len(found), daemon.base, strings.Join(found, ", "))
	}
}

func wholeStatus(c *cli.Context, daemon *client) error {
	report, raw, err := daemon.status(c.Context)
	if err != nil {
		return fmt.Errorf("status of %s: %w", daemon.base, err)
	}
	if wantsJSON(c) {
		var doc bytes.Buffer // the document as it is: a daemon of another version may tell more than this one knows
		if err := json.Indent(&doc, raw, "", "  "); err != nil {
			return err
		}
		_, err := fmt.Fprintln(c.App.Writer, strings.TrimSpace(doc.String()))
		return err
	}
	return report.print(c.App.Writer)
}

// print shows a daemon's state to people.
func (r statusReport) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "%s\t%s at %s, peers at %s\n", r.Role, r.Version, r.Listen, r.PeerListen)
	if r.Zone != "" {
		fmt.Fprintf(t, "zone\t%s\n", r.Zone)
	}
	limit := "without a limit"
	if r.Cache.Limit > 0 {
		limit = "of " + bytesText(r.Cache.Limit)
	}
	fmt.Fprintf(t, "cache\t%s %s in %s, %d blobs, %d evicted\n", bytesText(r.Cache.Bytes), limit, r.DataDir, r.Cache.Blobs, r.Cache.Evictions)
	if r.Cache.Failures > 0 {
		fmt.Fprintf(t, "disk\tFAILED %d times, pulls went past the cache: see the log\n", r.Cache.Failures)
	}
	switch shelf := r.Shelf; {
	case shelf != nil && shelf.Error != "":
		fmt.Fprintf(t, "no copy\tCANNOT USE %s: %s\n", shelf.Dir, shelf.Error)
	case shelf != nil:
		fmt.Fprintf(t, "no copy\t%s more, shared from %s\n", bytesText(shelf.Bytes), shelf.Dir)
	}
	if len(r.Pins) > 0 {
		fmt.Fprintf(t, "pinned\t%s in %d images\n", bytesText(r.Cache.Pinned), len(r.Pins))
	}
	for _, s := range r.Seeders {
		state := "answers"
		if !s.OK {
			state = "DOES NOT ANSWER: " + s.Error
		}
		fmt.Fprintf(t, "seeder\t%s %s\n", s.URL, state)
	}
	if r.TLS != nil {
		fmt.Fprintf(t, "certificate\t%s, good until %s\n", r.TLS.Certificate, r.TLS.Expires.Local().Format(time.DateTime))
	}
	fmt.Fprintf(t, "received\t%s\n", r.Totals.Received.orNothing())
	fmt.Fprintf(t, "sent\t%s to peers, %s to clients\n", bytesText(r.Totals.Sent.Peer), bytesText(r.Totals.Sent.Client))
	fmt.Fprintf(t, "swarms\t%d\n", r.TorrentsActive)
	if err := t.Flush(); err != nil {
		return err
	}
	if len(r.Pins) > 0 {
		fmt.Fprintln(w)
	}
	if err := printPins(w, r.Pins); err != nil || len(r.Blobs) == 0 {
		return err
	}
	t = tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "\nBLOB\tSIZE\tSTATE\tPEERS\tSEEDER\tREGISTRY\tTOOK\tREPOSITORY\tWHY")
	for _, b := range r.Blobs {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", shortDigest(b.Digest), b.row(), b.where(), orDash(b.Why))
	}
	return t.Flush()
}

func (s sources) orNothing() string {
	if s == (sources{}) {
		return "nothing yet"
	}
	return s.String()
}

// row are the columns that all tables of blobs share: size, state, bytes by source, time.
func (b blobStatus) row() string {
	state := b.State
	if state == "arriving" && b.Size > 0 {
		state = fmt.Sprintf("arriving, %d%%", b.Received*100/b.Size)
	}
	if b.Pinned {
		state += ", pinned"
	}
	if b.Shelved {
		state += ", no copy"
	}
	took := "-"
	if b.TookMS > 0 {
		took = tookText(millis(b.TookMS))
	}
	return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s", bytesText(b.Size), state,
		bytesText(b.From.Peer), bytesText(b.From.Seeder), bytesText(b.From.Upstream), took)
}

// where is the repository that the blob was fetched of; one that was here before the daemon started has none.
func (b blobStatus) where() string {
	if b.Repository == "" {
		return "-"
	}
	return b.Registry + "/" + b.Repository
}

// shortDigest is enough of a digest to tell it from others.
func shortDigest(d string) string {
	alg, hex, ok := strings.Cut(d, ":")
	if !ok || len(hex) <= 12 {
		return d
	}
	return alg + ":" + hex[:12]
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// imageStatus is an image on one mirror; the document of `murder status IMAGE --output json`.
type imageStatus struct {
	Image    string       `json:"image,omitempty"`
	Digest   string       `json:"digest"`
	Platform string       `json:"platform,omitempty"`
	Parts    []partStatus `json:"parts"`
}

// partStatus is a blob of an image.
type partStatus struct {
	Part   string      `json:"part"` // "config", "layer", or "blob" when it was asked for by its digest
	Digest string      `json:"digest"`
	Size   int64       `json:"size,omitempty"` // as the manifest says
	Blob   *blobStatus `json:"blob"`           // nil: not on this mirror
}

func partsStatus(c *cli.Context, daemon *client, status imageStatus) error {
	digests := make([]string, 0, len(status.Parts))
	for _, p := range status.Parts {
		digests = append(digests, p.Digest)
	}
	report, _, err := daemon.status(c.Context, digests...)
	if err != nil {
		return fmt.Errorf("status of %s: %w", daemon.base, err)
	}
	for i, p := range status.Parts {
		for _, b := range report.Blobs {
			if b.Digest == p.Digest {
				status.Parts[i].Blob = &b
			}
		}
	}
	if wantsJSON(c) {
		return printJSON(c.App.Writer, status)
	}
	return status.print(c.App.Writer)
}

func (s imageStatus) print(w io.Writer) error {
	if s.Image != "" {
		fmt.Fprintf(w, "%s for %s is %s\n\n", s.Image, s.Platform, s.Digest)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "PART\tDIGEST\tSIZE\tSTATE\tPEERS\tSEEDER\tREGISTRY\tTOOK\tWHY")
	for _, p := range s.Parts {
		if p.Blob == nil {
			size := "-"
			if p.Size > 0 {
				size = bytesText(p.Size)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\tnot here\t-\t-\t-\t-\t-\n", p.Part, shortDigest(p.Digest), size)
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", p.Part, shortDigest(p.Digest), p.Blob.row(), orDash(p.Blob.Why))
	}
	return t.Flush()
}

// resolver reads the manifests of an image through a mirror, as an engine would.
type resolver struct {
	daemon *client
	creds  *credentials
	image  image
	auth   string
}

// manifestTypes are the media types of manifests and indexes that engines accept.
var manifestTypes = []string{
	ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex,
	"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json",
}

// resolve finds the parts of the image for platform; "" is this machine's.
func (r *resolver) resolve(ctx context.Context, platform string) (imageStatus, error) {
	if platform == "" {
		platform = runtime.GOOS + "/" + runtime.GOARCH
	}
	reference := r.image.ref.Identifier()
	content, head, err := r.manifest(ctx, reference)
	if err != nil {
		return imageStatus{}, err
	}
	index, err := parseIndex(content)
	if err != nil {
		return imageStatus{}, err
	}
	if len(index.Manifests) > 0 {
		if reference, err = pick(index, platform); err != nil {
			return imageStatus{}, err
		}
		if content, head, err = r.manifest(ctx, reference); err != nil {
			return imageStatus{}, err
		}
	}
	return r.parts(content, head.Get("Docker-Content-Digest"), platform)
}

func (r *resolver) parts(content []byte, digest, platform string) (imageStatus, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(content, &m); err != nil {
		return imageStatus{}, fmt.Errorf("read the manifest: %w", err)
	}
	s := imageStatus{Image: r.image.String(), Digest: digest, Platform: platform}
	if m.Config.Digest != "" {
		s.Parts = append(s.Parts, partStatus{Part: "config", Digest: m.Config.Digest.String(), Size: m.Config.Size})
	}
	for _, l := range m.Layers {
		s.Parts = append(s.Parts, partStatus{Part: "layer", Digest: l.Digest.String(), Size: l.Size})
	}
	if len(s.Parts) == 0 {
		return imageStatus{}, errors.New("the manifest names neither config nor layers")
	}
	return s, nil
}

// manifest gets one by tag or digest, with the user's credentials if the registry wants them.
func (r *resolver) manifest(ctx context.Context, reference string) ([]byte, http.Header, error) {
	path := "/v2/" + r.image.repository() + "/manifests/" + reference + "?" + url.Values{"ns": {r.image.registry()}}.Encode()
	for {
		header := http.Header{"Accept": manifestTypes}
		if r.auth != "" {
			header.Set("Authorization", r.auth)
		}
		content, head, err := r.daemon.get(ctx, path, header)
		refusal, ok := errors.AsType[*answerError](err)
		if !ok || refusal.status != http.StatusUnauthorized || refusal.challenge == "" || r.auth != "" {
			return content, head, err
		}
		if r.auth, err = r.creds.authorization(ctx, r.image, refusal.challenge, ""); err != nil {
			return nil, nil, err
		}
	}
}

// parseIndex reads content as an index; that of a manifest is empty.
func parseIndex(content []byte) (ocispec.Index, error) {
	var index ocispec.Index
	if err := json.Unmarshal(content, &index); err != nil {
		return index, fmt.Errorf("read the manifest: %w", err)
	}
	return index, nil
}

// pick is the digest of the index's manifest for platform. linux/arm64 means any variant of it, linux/arm/v7 one.
func pick(index ocispec.Index, platform string) (string, error) {
	var have []string
	for _, m := range index.Manifests {
		if m.Platform == nil {
			continue
		}
		name := m.Platform.OS + "/" + m.Platform.Architecture
		full := name + "/" + m.Platform.Variant
		if platform == name || platform == full {
			return m.Digest.String(), nil
		}
		if m.Platform.OS != "unknown" { // attestations
			have = append(have, strings.TrimSuffix(full, "/"))
		}
	}
	return "", fmt.Errorf("is not there for %s, but for %s", platform, strings.Join(have, ", "))
}
