package registry

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"
)

// ManifestStore keeps manifests by digest. Manifest returns an error for what
// it does not have; PutManifest checks content against desc.
type ManifestStore interface {
	Manifest(d digest.Digest) (ocispec.Descriptor, []byte, error)
	PutManifest(desc ocispec.Descriptor, content []byte, ref string) error
}

// Manifests answers for manifests: those by digest from the store, tags from
// the upstream each time, so that a tag that moved is seen at once.
type Manifests struct {
	Upstream Upstream
	Store    ManifestStore
	Grants   *Grants
	// TagTTL is for how long an answer about a tag is shared among those who
	// ask for it; 0 = only with those who ask at the same moment.
	TagTTL time.Duration
	Log    *slog.Logger

	asks    singleflight.Group // about tags
	fetches singleflight.Group // of manifests

	mu   sync.Mutex // guards tags
	tags map[tagged]resolved
}

type tagged struct {
	repo Repository
	tag  string
}

type resolved struct {
	desc ocispec.Descriptor
	at   time.Time
}

// maxTags bounds the tags whose last answer is remembered.
const maxTags = 20_000

// Head returns a manifest's descriptor.
func (m *Manifests) Head(ctx context.Context, req Request) (ocispec.Descriptor, error) {
	if req.Tag != "" {
		return m.resolve(ctx, req)
	}
	desc, _, err := m.byDigest(ctx, req, req.Digest)
	return desc, err
}

// Get returns a manifest.
func (m *Manifests) Get(ctx context.Context, req Request) (ocispec.Descriptor, []byte, error) {
	d := req.Digest
	if req.Tag != "" {
		desc, err := m.resolve(ctx, req)
		if err != nil {
			return desc, nil, err
		}
		d = desc.Digest
	}
	return m.byDigest(ctx, req, d)
}

// byDigest serves from the store whom the registry admits, and fetches what
// is not there.
func (m *Manifests) byDigest(ctx context.Context, req Request, d digest.Digest) (ocispec.Descriptor, []byte, error) {
	c := Content{req.Repo, Manifest, d}
	desc, content, err := m.Store.Manifest(d)
	if err == nil {
		err = m.Grants.Admit(ctx, req.Authorization, c, func(ctx context.Context) error {
			head, err := m.Upstream.HeadManifest(ctx, req.Repo, d.String(), req.Authorization)
			if err == nil && head.Digest == d || Refused(err) && !headUnwelcome(err) {
				return err
			}
			_, _, err = m.Upstream.GetManifest(ctx, req.Repo, d.String(), req.Authorization)
			return err
		})
		return desc, content, err
	}
	fetched, err := share(ctx, &m.fetches, m.Grants.question(req)+"@"+d.String(), func(ctx context.Context) (manifest, error) {
		desc, content, err := m.fetch(ctx, req, d.String())
		return manifest{desc, content}, err
	})
	return fetched.desc, fetched.content, err
}

type manifest struct {
	desc    ocispec.Descriptor
	content []byte
}

func (m *Manifests) fetch(ctx context.Context, req Request, ref string) (ocispec.Descriptor, []byte, error) {
	desc, content, err := m.Upstream.GetManifest(ctx, req.Repo, ref, req.Authorization)
	if err != nil {
		return desc, nil, err
	}
	m.Grants.Record(req.Authorization, Content{req.Repo, Manifest, desc.Digest})
	name := req.Repo.String()
	if req.Tag != "" {
		name += ":" + req.Tag
	}
	if err := m.Store.PutManifest(desc, content, name); err != nil {
		m.Log.Warn("manifest not cached", "digest", desc.Digest, "err", err)
	}
	return desc, content, nil
}

// resolve asks which digest a tag has now. While the registry is away, its
// last answer holds for those whom it admitted, for as long as the grace.
func (m *Manifests) resolve(ctx context.Context, req Request) (ocispec.Descriptor, error) {
	key := tagged{req.Repo, req.Tag}
	if last, ok := m.last(key); ok && time.Since(last.at) < m.TagTTL && m.Grants.Granted(req.Authorization, req.Repo, m.Grants.ttl) {
		return last.desc, nil
	}
	desc, err := share(ctx, &m.asks, m.Grants.question(req)+":"+req.Tag, func(ctx context.Context) (ocispec.Descriptor, error) {
		return m.ask(ctx, req)
	})
	if err == nil || Refused(err) || ctx.Err() != nil {
		return desc, err
	}
	last, ok := m.last(key)
	if !ok || time.Since(last.at) >= m.Grants.grace || !m.Grants.Granted(req.Authorization, req.Repo, m.Grants.grace) {
		return desc, err
	}
	m.Log.Warn("tag served as last seen", "ref", req.Repo.String()+":"+req.Tag, "digest", last.desc.Digest, "err", err)
	return last.desc, nil
}

// ask puts the question about a tag to the upstream. Some registries do not
// name the digest in the answer to HEAD; their manifest is fetched.
func (m *Manifests) ask(ctx context.Context, req Request) (ocispec.Descriptor, error) {
	desc, err := m.Upstream.HeadManifest(ctx, req.Repo, req.Tag, req.Authorization)
	if headUnwelcome(err) || err == nil && desc.Digest == "" {
		desc, _, err = m.fetch(ctx, req, req.Tag)
	}
	if err != nil {
		return desc, err
	}
	m.Grants.Record(req.Authorization, Content{req.Repo, Manifest, desc.Digest})
	m.remember(tagged{req.Repo, req.Tag}, desc)
	return desc, nil
}

func (m *Manifests) last(key tagged) (resolved, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.tags[key]
	return r, ok
}

func (m *Manifests) remember(key tagged, desc ocispec.Descriptor) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tags == nil || len(m.tags) >= maxTags {
		m.tags = make(map[tagged]resolved)
	}
	m.tags[key] = resolved{desc, time.Now()}
}
