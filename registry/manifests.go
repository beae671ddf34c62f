package registry

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ManifestStore keeps manifests by digest. Manifest returns an error for what
// it does not have; PutManifest checks content against desc.
type ManifestStore interface {
	Manifest(d digest.Digest) (ocispec.Descriptor, []byte, error)
	PutManifest(desc ocispec.Descriptor, content []byte, ref string) error
	// NameManifest notes that ref stands for the manifest, if that is stored.
	NameManifest(d digest.Digest, ref string)
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

	asks    questions // about tags
	fetches questions // of manifests

	keeping atomic.Int64 // manifests that are being stored

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
		err = m.Grants.Admit(ctx, req.Authorization, c, func(ctx context.Context) error { return m.prove(ctx, req, c) })
		return desc, content, err
	}
	fetched, err := share(ctx, &m.fetches, m.Grants.question(req)+"@"+d.String(), func(ctx context.Context) (manifest, error) {
		desc, content, err := m.fetch(ctx, req, d.String())
		return manifest{desc, content}, err
	})
	return fetched.desc, fetched.content, err
}

// prove asks whether the caller may have a manifest that we hold. A registry
// that was not seen to hold it must show its bytes: anyone can run a registry
// that names a digest in a header, to be given the content by us.
func (m *Manifests) prove(ctx context.Context, req Request, c Content) error {
	if m.Grants.member(c) {
		head, err := m.Upstream.HeadManifest(ctx, req.Repo, c.Digest.String(), req.Authorization)
		if err == nil && head.Digest == c.Digest || err != nil && !headUnwelcome(err) {
			return err
		}
	}
	_, _, err := m.Upstream.GetManifest(ctx, req.Repo, c.Digest.String(), req.Authorization)
	return err
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
	if m.keeping.Add(1) > maxKeeping {
		m.keeping.Add(-1)
		return desc, content, nil
	}
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		defer m.keeping.Add(-1)
		m.keep(req, desc, content)
	}()
	select {
	case <-kept:
	case <-time.After(keepPatience):
	}
	return desc, content, nil
}

// keepPatience is how long a manifest's answer waits until the manifest is stored, as what is
// asked next may ask for it: on a disk that is busy that may take minutes.
const keepPatience = time.Second

// maxKeeping bounds the manifests that are being stored, each by a thread of the kernel's that
// may wait for the disk; of more none is kept.
const maxKeeping = 256

// keep stores a manifest under the names that it has.
func (m *Manifests) keep(req Request, desc ocispec.Descriptor, content []byte) {
	name := "" // the parts of an index have none
	if req.Tag != "" {
		name = req.Repo.String() + ":" + req.Tag
	}
	if err := m.Store.PutManifest(desc, content, name); err != nil {
		m.Log.Debug("manifest not cached", "digest", desc.Digest, "err", err)
	}
	for _, name := range m.names(req.Repo, desc.Digest) {
		m.Store.NameManifest(desc.Digest, name)
	}
}

// names are what tags have been said to stand for a manifest: engines ask for a tag's
// digest first, and then for the manifest by that.
func (m *Manifests) names(repo Repository, d digest.Digest) (names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, last := range m.tags {
		if key.repo == repo && last.desc.Digest == d {
			names = append(names, repo.String()+":"+key.tag)
		}
	}
	return names
}

// resolve asks which digest a tag has now. While the registry is away, its
// last answer holds for those whom it admitted, for as long as the grace.
func (m *Manifests) resolve(ctx context.Context, req Request) (ocispec.Descriptor, error) {
	key := tagged{req.Repo, req.Tag}
	if last, ok := m.last(key); ok && m.Grants.now().Sub(last.at) < m.TagTTL && m.Grants.Granted(req.Authorization, req.Repo, m.Grants.ttl) {
		return last.desc, nil
	}
	desc, err := share(ctx, &m.asks, m.Grants.question(req)+":"+req.Tag, func(ctx context.Context) (ocispec.Descriptor, error) {
		return m.ask(ctx, req)
	})
	if decided(err) {
		m.refused(key, req, err)
		return desc, err
	}
	if err == nil || ctx.Err() != nil {
		return desc, err
	}
	last, ok := m.last(key)
	if !ok || m.Grants.now().Sub(last.at) >= m.Grants.grace || !m.Grants.Granted(req.Authorization, req.Repo, m.Grants.grace) {
		return desc, err
	}
	m.Log.Warn("tag served as last seen", "ref", req.Repo.String()+":"+req.Tag, "digest", last.desc.Digest, "err", err)
	return last.desc, nil
}

// refused takes back what a refusal contradicts: the grant of a caller who is
// turned away, and a tag that is gone, unless a stranger was told so.
func (m *Manifests) refused(key tagged, req Request, refusal error) {
	if TurnedAway(refusal) {
		m.Grants.revoke(req.Authorization, req.Repo)
	}
	if hasStatus(refusal, http.StatusNotFound) && m.Grants.Granted(req.Authorization, req.Repo, m.Grants.grace) {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.tags, key)
	}
}

// ask puts the question about a tag to the upstream. Some registries do not
// say all in the answer to HEAD; their manifest is fetched. That a tag is there
// says that the caller may read the repository, but not what it holds: the
// digest is the registry's word only, until its bytes have been seen.
func (m *Manifests) ask(ctx context.Context, req Request) (ocispec.Descriptor, error) {
	desc, err := m.Upstream.HeadManifest(ctx, req.Repo, req.Tag, req.Authorization)
	if headUnwelcome(err) || err == nil && (desc.Digest == "" || desc.MediaType == "" || desc.Size < 0) {
		desc, _, err = m.fetch(ctx, req, req.Tag)
	}
	if err != nil {
		return desc, err
	}
	m.Grants.grant(req.Authorization, req.Repo)
	m.remember(tagged{req.Repo, req.Tag}, desc)
	m.Store.NameManifest(desc.Digest, req.Repo.String()+":"+req.Tag)
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
	m.tags[key] = resolved{desc, m.Grants.now()}
}
