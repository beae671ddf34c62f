package proxy

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/murderp2p/murder/registry"
)

// failover is the upstream that asks a seeder, so that many hosts' questions
// become few, and the registry itself where no seeder gives its verdict.
type failover struct {
	seeders    *seeders
	registries registry.Upstream
	fellBack   func(why string)
}

var _ registry.Upstream = (*failover)(nil)

// try asks one after the other about key; see seeders.well.
func try[T any](ctx context.Context, f *failover, key string, ask func(registry.Upstream) (T, error)) (T, error) {
	for _, seeder := range f.seeders.well(key) {
		answer, err := ask(seeder)
		if err == nil || registry.Refused(err) || ctx.Err() != nil {
			return answer, err
		}
		f.fellBack(whySeederFailed)
		if !f.seeders.failed(ctx, seeder, err) {
			break // it is there, but cannot: no more could the next
		}
	}
	return ask(f.registries)
}

func (f *failover) Ping(ctx context.Context, host, authorization string) error {
	_, err := try(ctx, f, host, func(up registry.Upstream) (struct{}, error) {
		return struct{}{}, up.Ping(ctx, host, authorization)
	})
	return err
}

func (f *failover) HeadManifest(ctx context.Context, repo registry.Repository, ref, authorization string) (ocispec.Descriptor, error) {
	return try(ctx, f, repo.String()+" "+ref, func(up registry.Upstream) (ocispec.Descriptor, error) {
		return up.HeadManifest(ctx, repo, ref, authorization)
	})
}

func (f *failover) GetManifest(ctx context.Context, repo registry.Repository, ref, authorization string) (ocispec.Descriptor, []byte, error) {
	type answer struct {
		desc    ocispec.Descriptor
		content []byte
	}
	a, err := try(ctx, f, repo.String()+" "+ref, func(up registry.Upstream) (a answer, err error) {
		a.desc, a.content, err = up.GetManifest(ctx, repo, ref, authorization)
		return a, err
	})
	return a.desc, a.content, err
}

func (f *failover) StatBlob(ctx context.Context, repo registry.Repository, d digest.Digest, authorization string) (int64, error) {
	return try(ctx, f, string(d), func(up registry.Upstream) (int64, error) {
		return up.StatBlob(ctx, repo, d, authorization)
	})
}

func (f *failover) GetBlob(ctx context.Context, repo registry.Repository, d digest.Digest, off int64, authorization string) (io.ReadCloser, int64, error) {
	type answer struct {
		body io.ReadCloser
		size int64
	}
	a, err := try(ctx, f, string(d), func(up registry.Upstream) (a answer, err error) {
		a.body, a.size, err = up.GetBlob(ctx, repo, d, off, authorization)
		return a, err
	})
	return a.body, a.size, err
}

func (f *failover) ReadBlob(ctx context.Context, repo registry.Repository, d digest.Digest, off int64, n int, authorization string) ([]byte, error) {
	return try(ctx, f, string(d), func(up registry.Upstream) ([]byte, error) {
		return up.ReadBlob(ctx, repo, d, off, n, authorization)
	})
}

func (f *failover) Relay(ctx context.Context, repo registry.Repository, end string, query url.Values, authorization string) (*http.Response, error) {
	return try(ctx, f, repo.String(), func(up registry.Upstream) (*http.Response, error) {
		return up.Relay(ctx, repo, end, query, authorization)
	})
}
