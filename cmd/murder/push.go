package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/murderp2p/murder/artifact"
	"github.com/murderp2p/murder/registry"
)

func pushCommand() *cli.Command {
	return &cli.Command{
		Name:      "push",
		Usage:     "sends a folder to a registry as an OCI artifact, for `murder fetch`",
		ArgsUsage: "DIR REF",
		Description: "DIR may be a single file too. It goes straight to the registry, as mirrors only pull, with the credentials of `docker login`\n" +
			"and `podman login`. Names, bytes, modes, empty folders and symlinks inside the folder are kept; times and owners are not.\n" +
			"What the registry has already is not sent: of the same folder nothing, of one with a few new files little more than those.\n\n" +
			"`oras pull` understands the artifact as well, but for the modes of large files.",
		Flags: []cli.Flag{
			textOf("artifact-type", artifact.Type, "media `TYPE` of the artifact", checkMediaType),
			&cli.BoolFlag{Name: "follow-symlinks", Usage: "send the files that symlinks lead to, wherever they are, in their place"},
			listOf("insecure-registry", "`HOST:PORT` of a registry that speaks plain HTTP (repeatable)", checkRegistry),
			durationOf("timeout", "0s", "`DURATION` after which to give up, 0 for as long as it takes"),
			outputFlag(),
		},
		Action: pushAction,
	}
}

func pushAction(c *cli.Context) error {
	if c.NArg() != 2 {
		return usagef(c, "name a folder and where it goes, as in `murder push llm registry.example/models/llm:v1`")
	}
	dir, arg := c.Args().Get(0), c.Args().Get(1)
	img, err := parseImage(arg)
	if err != nil {
		return usagef(c, "invalid artifact %q: %v", arg, err)
	}
	if _, isDigest := img.ref.(name.Digest); isDigest {
		return usagef(c, "invalid artifact %q: it gets its digest from the files; name a tag", arg)
	}
	folder, err := artifact.Pack(dir, artifact.PackOptions{FollowLinks: c.Bool("follow-symlinks")})
	if err != nil {
		return fmt.Errorf("push %s: %w", dir, err)
	}
	defer folder.Close()
	p, err := newPush(c, img, dir, folder)
	if err != nil {
		return err
	}
	ctx, cancel := withTimeout(c)
	defer cancel()
	result, err := p.run(ctx)
	if err != nil {
		return fmt.Errorf("push %s to %s: %w", dir, img, err)
	}
	if wantsJSON(c) {
		return printJSON(c.App.Writer, result)
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s is %s: %d files in %d layers, %s, of which %s were sent, %s\n", result.Artifact, result.Digest,
		result.Files, result.Layers, bytesText(result.Bytes), bytesText(result.Sent), tookText(millis(result.TookMS)))
	return err
}

// push is one run of the command.
type push struct {
	img          image
	dir          string
	folder       *artifact.Folder
	artifactType string
	pusher       *remote.Pusher
	puller       *remote.Puller // of what was pushed
	stderr       io.Writer

	sent atomic.Int64 // bytes that have gone to the registry
	done atomic.Int64 // bytes that were hashed, and that the registry has: progress shows the half
}

// pushStreams is how many layers are read and sent at a time.
const pushStreams = 4

func newPush(c *cli.Context, img image, dir string, folder *artifact.Folder) (*push, error) {
	for _, insecure := range listFlag(c, "insecure-registry") {
		if insecure != img.registry() {
			continue
		}
		ref, err := name.ParseReference(img.ref.String(), name.Insecure)
		if err != nil {
			return nil, err
		}
		img = image{ref}
	}
	via := registry.Transport()
	via.ResponseHeaderTimeout = 0 // a registry may copy a large blob before it answers that it has it
	options := []remote.Option{
		remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithTransport(via),
		remote.WithUserAgent("murder/" + buildVersion()), remote.WithJobs(pushStreams),
	}
	pusher, err := remote.NewPusher(options...)
	if err != nil {
		return nil, err
	}
	puller, err := remote.NewPuller(options...)
	return &push{img: img, dir: dir, folder: folder, artifactType: c.String("artifact-type"), pusher: pusher, puller: puller, stderr: c.App.ErrWriter}, err
}

// pushResult is the document of --output json.
type pushResult struct {
	Artifact string `json:"artifact"`
	Digest   string `json:"digest"`
	Type     string `json:"artifact_type"`
	Files    int    `json:"files"`
	Layers   int    `json:"layers"`
	Bytes    int64  `json:"bytes"` // of the files
	Sent     int64  `json:"sent"`  // to the registry, of layers
	TookMS   int64  `json:"took_ms"`
}

func (p *push) run(ctx context.Context) (pushResult, error) {
	start := time.Now()
	result := pushResult{
		Artifact: p.img.String(), Type: p.artifactType, Files: p.folder.Files, Layers: len(p.folder.Sources), Bytes: p.folder.Bytes(),
	}
	var descs []ocispec.Descriptor
	resolved := prefetchEvent{Event: "resolved", Image: result.Artifact, Bytes: result.Bytes, Blobs: result.Layers}
	err := showTransfer(ctx, p.stderr, p.dir, resolved, func() int64 { return p.done.Load() / 2 }, func(ctx context.Context) (err error) {
		descs, err = p.layers(ctx)
		return err
	})
	if err != nil {
		return result, err
	}
	manifest, err := p.folder.Manifest(p.artifactType, descs)
	if err != nil {
		return result, err
	}
	empty := static.NewLayer(ocispec.DescriptorEmptyJSON.Data, types.MediaType(ocispec.MediaTypeEmptyJSON))
	if err := p.pusher.Upload(ctx, p.img.ref.Context(), empty); err != nil {
		return result, pushError(ctx, err)
	}
	if err := p.pusher.Put(ctx, p.img.ref, rawManifest(manifest)); err != nil {
		return result, pushError(ctx, err)
	}
	result.Digest = digest.FromBytes(manifest).String()
	if err := p.confirm(ctx, result.Digest); err != nil {
		return result, pushError(ctx, err)
	}
	result.Sent, result.TookMS = p.sent.Load(), time.Since(start).Milliseconds()
	return result, nil
}

// confirm asks for what was pushed: the login page of a network, or of a proxy, says 200 to whatever is sent, and keeps nothing. Who may
// push and not pull is believed.
func (p *push) confirm(ctx context.Context, digest string) error {
	_, err := p.puller.Get(ctx, p.img.ref.Context().Digest(digest))
	if refusal, ok := errors.AsType[*transport.Error](err); ok && (refusal.StatusCode == http.StatusUnauthorized || refusal.StatusCode == http.StatusForbidden) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the registry has taken it, and does not have it: %w", err)
	}
	return nil
}

// layers reads each layer to know its digest, and sends it if the registry has it not; its bytes are then still in the
// page cache, if they fit.
func (p *push) layers(ctx context.Context) ([]ocispec.Descriptor, error) {
	descs := make([]ocispec.Descriptor, len(p.folder.Sources))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(pushStreams, runtime.GOMAXPROCS(0)))
	for i, source := range p.folder.Sources {
		g.Go(func() (err error) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if descs[i], err = source.Describe(ctx, func(n int) { p.done.Add(int64(n)) }); err != nil {
				return err
			}
			l := &pushedLayer{push: p, source: source, desc: descs[i]}
			if err := p.pusher.Upload(ctx, p.img.ref.Context(), l); err != nil {
				return fmt.Errorf("%q: %w", source.Title(), pushError(ctx, err))
			}
			p.done.Add(descs[i].Size - l.counted.Load()) // also what the registry had
			return nil
		})
	}
	return descs, g.Wait()
}

// checkMediaType wants TYPE/SUBTYPE (RFC 6838, 4.2).
func checkMediaType(s string) error {
	if t, params, err := mime.ParseMediaType(s); err != nil || len(params) > 0 || !strings.Contains(t, "/") {
		return errors.New("a media type is written as application/vnd.example.model.v1")
	}
	return nil
}

// pushError is an error of the library's, or the reason why it was to end.
func pushError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// pushedLayer is a layer as the library wants it.
type pushedLayer struct {
	push    *push
	source  *artifact.Source
	desc    ocispec.Descriptor
	counted atomic.Int64 // bytes of the latest attempt to send it
}

var _ v1.Layer = (*pushedLayer)(nil)

func (l *pushedLayer) Digest() (v1.Hash, error) { return v1.NewHash(l.desc.Digest.String()) }
func (l *pushedLayer) DiffID() (v1.Hash, error) { return l.Digest() }
func (l *pushedLayer) Size() (int64, error)     { return l.desc.Size, nil }
func (l *pushedLayer) MediaType() (types.MediaType, error) {
	return types.MediaType(l.desc.MediaType), nil
}
func (l *pushedLayer) Uncompressed() (io.ReadCloser, error) { return l.Compressed() }

// Compressed is called for each attempt to send it.
func (l *pushedLayer) Compressed() (io.ReadCloser, error) {
	r, err := l.source.Open()
	if err != nil {
		return nil, err
	}
	l.push.done.Add(-l.counted.Swap(0))
	return &counted{ReadCloser: r, layer: l, verifier: l.desc.Digest.Verifier()}, nil
}

// counted is a layer on its way. It ends with an error when it is not what was described, though registries would find
// that too.
type counted struct {
	io.ReadCloser
	layer    *pushedLayer
	verifier digest.Verifier
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.verifier.Write(b[:n])
	c.layer.counted.Add(int64(n))
	c.layer.push.done.Add(int64(n))
	c.layer.push.sent.Add(int64(n))
	if err == io.EOF && !c.verifier.Verified() {
		err = fmt.Errorf("%q has changed while it was sent: %w", c.layer.source.Title(), os.ErrInvalid)
	}
	return n, err
}

// rawManifest is an artifact's manifest as the library wants it.
type rawManifest []byte

func (m rawManifest) RawManifest() ([]byte, error) { return m, nil }
func (m rawManifest) MediaType() (types.MediaType, error) {
	return types.OCIManifestSchema1, nil
}
