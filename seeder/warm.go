package seeder

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/seeder/pushes"
)

const (
	// maxWarming bounds the pushes that wait to be fetched. Whoever tells of more is told
	// to come again, and registries do.
	maxWarming = 1024
	// warmAtOnce is how many of them are being fetched.
	warmAtOnce = 4
	// warmBlobs is how many blobs of one image are, as engines do it.
	warmBlobs = 4
	// warmTries bounds the attempts at one; warmPause is before the second, four times as
	// long before each that follows: a registry may be restarting.
	warmTries, warmPause = 4, time.Second
	// maxWarmManifests and maxWarmBlobs bound those of one image, all platforms together,
	// and maxWarmDepth indexes within indexes.
	maxWarmManifests, maxWarmBlobs, maxWarmDepth = 1024, 8192, 4
)

// Self answers a registry's challenge about a repository with credentials of the seeder's
// own. refused is the Authorization that has just been refused, or "". The error says why
// there are none.
type Self func(ctx context.Context, repo registry.Repository, challenge, refused string) (authorization string, err error)

// warmer fetches what has been pushed, before anyone pulls it. It asks registries as the
// seeder itself, which lets nobody else have anything: whoever pulls is put to the
// registry as always.
type warmer struct {
	seeder    *Seeder
	self      Self          // nil = nobody
	platforms []v1.Platform // that are wanted; none = all
	pause     time.Duration

	wake chan struct{} // has room for one: there is something in line

	mu    sync.Mutex // guards all below
	line  []pushes.Push
	known map[pushes.Push]bool // in line
	auths map[registry.Repository]string
}

func newWarmer(s *Seeder) *warmer {
	return &warmer{seeder: s, self: s.cfg.Self, platforms: s.cfg.WarmPlatforms, pause: warmPause, wake: make(chan struct{}, 1),
		known: make(map[pushes.Push]bool), auths: make(map[registry.Repository]string)}
}

// heeds tells whether a push is to be fetched. Of which platform a blob is, only manifests
// tell; where it matters they are waited for.
func (w *warmer) heeds(p pushes.Push) bool {
	return p.Kind == registry.Manifest || len(w.platforms) == 0 && w.mine(p.Digest)
}

// mine tells whether a blob is for this seeder to fetch, and not for another.
func (w *warmer) mine(d digest.Digest) bool { return w.seeder.cfg.Mine == nil || w.seeder.cfg.Mine(d) }

// add puts a push in line; false means that there is no room. One that is in line already
// needs none.
func (w *warmer) add(p pushes.Push) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.known[p] {
		return true
	}
	if len(w.line) >= maxWarming {
		return false
	}
	w.known[p] = true
	w.line = append(w.line, p)
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return true
}

func (w *warmer) next() (p pushes.Push, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.line) == 0 {
		return p, false
	}
	p, w.line = w.line[0], w.line[1:]
	delete(w.known, p)
	return p, true
}

// run fetches what is in line until ctx ends.
func (w *warmer) run(ctx context.Context) error {
	var group errgroup.Group
	group.SetLimit(warmAtOnce)
	defer group.Wait()
	for {
		p, ok := w.next()
		if ok {
			group.Go(func() error { w.warm(ctx, p); return nil })
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		}
	}
}

// warm fetches one push, again if that may help.
func (w *warmer) warm(ctx context.Context, p pushes.Push) {
	log := w.seeder.cfg.Log.With("repo", p.Repo.String(), "tag", p.Tag, "digest", p.Digest)
	begun, pause := time.Now(), w.pause
	for try := 1; ; try++ {
		blobs, bytes, err := w.fetch(ctx, p)
		switch {
		case err == nil:
			w.seeder.cfg.Metrics.warmed("ready")
			if p.Kind == registry.Manifest {
				log.Info("pushed image is ready", "blobs", blobs, "bytes", bytes, "dur", time.Since(begun))
			}
			if w.ordersFleet(p) {
				w.orderFleet(ctx, p)
			}
			return
		case ctx.Err() != nil:
			return
		case registry.Refused(err):
			w.seeder.cfg.Metrics.warmed("refused")
			log.Warn("pushed content is not for the seeder", "err", err)
			return
		case try == warmTries:
			w.seeder.cfg.Metrics.warmed("failed")
			log.Error("pushed content not fetched", "err", err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
			pause *= 4
		}
	}
}

// fetch brings all that a push consists of, and makes its metainfo.
func (w *warmer) fetch(ctx context.Context, p pushes.Push) (blobs int, bytes int64, err error) {
	if p.Kind == registry.Blob {
		return 1, 0, w.blob(ctx, p.Repo, p.Digest)
	}
	tree := &pushedTree{warmer: w, repo: p.Repo, known: make(map[digest.Digest]bool)}
	if err := tree.walk(ctx, p, 0, false); err != nil {
		return 0, 0, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(warmBlobs)
	for _, blob := range tree.blobs {
		if !w.mine(blob.Digest) {
			continue
		}
		blobs++
		bytes += blob.Size
		group.Go(func() error { return w.blob(ctx, p.Repo, blob.Digest) })
	}
	return blobs, bytes, group.Wait()
}

// blob brings one, and returns when a mirror could have its metainfo.
func (w *warmer) blob(ctx context.Context, repo registry.Repository, d digest.Digest) error {
	if size, ok := w.seeder.cfg.Store.Stat(d); ok { // whoever may have it will be asked for
		w.seeder.origin.share(d, size)
		return nil
	}
	return w.asSelf(ctx, repo, func(authorization string) error {
		req := registry.Request{Kind: registry.Blob, Repo: repo, Digest: d, Authorization: authorization}
		blob, fetch, err := w.seeder.origin.acquire(ctx, req)
		if u, ok := errors.AsType[*registry.Uncached](err); ok {
			u.Stream.Close()
			return fmt.Errorf("blob %s: %w", d, u.Cause)
		}
		if err != nil {
			return err
		}
		if blob != nil {
			return blob.Close()
		}
		select {
		case <-fetch.ended:
			return fetch.partial.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

// manifest brings one of a repository, and returns it.
func (w *warmer) manifest(ctx context.Context, p pushes.Push) (desc ocispec.Descriptor, content []byte, err error) {
	err = w.asSelf(ctx, p.Repo, func(authorization string) (err error) {
		req := registry.Request{Kind: registry.Manifest, Repo: p.Repo, Tag: p.Tag, Digest: p.Digest, Authorization: authorization}
		if p.Digest != "" {
			req.Tag = ""
		}
		desc, content, err = w.seeder.backend.manifests.Get(ctx, req)
		return err
	})
	return desc, content, err
}

// asSelf asks for something of a repository with the seeder's own credentials, if the
// registry wants any. An answer to a challenge is kept for the questions that follow.
func (w *warmer) asSelf(ctx context.Context, repo registry.Repository, ask func(authorization string) error) error {
	w.mu.Lock()
	authorization := w.auths[repo]
	w.mu.Unlock()
	err := ask(authorization)
	refusal, ok := errors.AsType[*registry.Error](err)
	if !ok || refusal.Status != http.StatusUnauthorized || w.self == nil {
		return err
	}
	fresh, selfErr := w.self(ctx, repo, refusal.Header.Get("Www-Authenticate"), authorization)
	if selfErr != nil {
		return fmt.Errorf("%w: %w", err, selfErr)
	}
	w.mu.Lock()
	if len(w.auths) >= maxWarming {
		clear(w.auths)
	}
	w.auths[repo] = fresh
	w.mu.Unlock()
	return ask(fresh)
}

// Head and Tags make the warmer a [pushes.Registry].
func (w *warmer) Head(ctx context.Context, repo registry.Repository, tag string) (d digest.Digest, err error) {
	err = w.asSelf(ctx, repo, func(authorization string) error {
		desc, err := w.seeder.backend.manifests.Head(ctx, registry.Request{Kind: registry.Manifest, Repo: repo, Tag: tag, Authorization: authorization})
		d = desc.Digest
		return err
	})
	return d, err
}

// Tags implements [pushes.Registry].
func (w *warmer) Tags(ctx context.Context, repo registry.Repository, query url.Values) (resp *http.Response, err error) {
	err = w.asSelf(ctx, repo, func(authorization string) (err error) {
		resp, err = w.seeder.cfg.Upstream.Relay(ctx, repo, "tags/list", query, authorization)
		return err
	})
	return resp, err
}
