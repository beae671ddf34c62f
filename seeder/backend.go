package seeder

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/registry"
)

// backend answers the pull API: blobs by the origin's fetches, all else from
// the registry.
type backend struct {
	store     *layers.Store
	grants    *registry.Grants
	origin    *origin
	upstream  registry.Upstream
	manifests *registry.Manifests
	upload    *layers.Limiter
}

var _ registry.Backend = (*backend)(nil)

func (b *backend) Ping(ctx context.Context, req registry.Request) error {
	return b.upstream.Ping(ctx, req.Repo.Host, req.Authorization)
}

func (b *backend) HeadManifest(ctx context.Context, req registry.Request) (ocispec.Descriptor, error) {
	return b.manifests.Head(ctx, req)
}

func (b *backend) GetManifest(ctx context.Context, req registry.Request) (ocispec.Descriptor, []byte, error) {
	return b.manifests.Get(ctx, req)
}

func (b *backend) StatBlob(ctx context.Context, req registry.Request) (int64, error) {
	if size, ok := b.origin.known(req.Digest); ok {
		return b.grants.StatBlob(ctx, b.upstream, req, size)
	}
	return b.upstream.StatBlob(ctx, req.Repo, req.Digest, req.Authorization)
}

func (b *backend) OpenBlob(ctx context.Context, req registry.Request) (registry.OpenBlob, error) {
	blob, fetch, err := b.origin.acquire(ctx, req)
	if u, ok := errors.AsType[*registry.Uncached](err); ok {
		return u.Stream, nil
	}
	if err != nil {
		return nil, err
	}
	return b.content(req, blob, fetch), nil
}

// content serves what acquire has returned, and goes on past the cache where the disk
// fails.
func (b *backend) content(req registry.Request, blob *layers.Blob, fetch *fetch) *registry.Carried {
	var content *layers.Content
	if blob != nil {
		content = blob.Content()
	} else {
		content = fetch.partial.Content()
	}
	content.Limit = b.upload
	return &registry.Carried{
		Readable: content, Digest: req.Digest, Lost: layers.DiskFailed,
		From: func(ctx context.Context, off int64) (io.ReadCloser, int64, error) {
			return b.upstream.GetBlob(ctx, req.Repo, req.Digest, off, req.Authorization)
		},
	}
}

func (b *backend) Relay(ctx context.Context, req registry.Request, end string, query url.Values) (*http.Response, error) {
	return b.upstream.Relay(ctx, req.Repo, end, query, req.Authorization)
}
