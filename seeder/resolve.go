package seeder

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/seeder/fleet"
)

// resolve asks the registry for the digest of an image that hosts are to bring, in the
// name of whoever orders it: so an order for what is not there, or not theirs to read,
// reaches no host.
func (s *Seeder) resolve(ctx context.Context, image fleet.RequestImage) (digest.Digest, error) {
	req, err := s.parseImage(image)
	if err != nil {
		return "", &fleet.Refusal{Status: http.StatusBadRequest, Message: err.Error(), Image: image.Ref}
	}
	desc, err := s.backend.HeadManifest(ctx, req)
	if e, ok := errors.AsType[*registry.Error](err); ok {
		refusal := &fleet.Refusal{Status: http.StatusUnprocessableEntity, Message: image.Ref + ": " + e.Message, Image: image.Ref}
		if !registry.Refused(err) {
			refusal.Status = http.StatusBadGateway
		}
		if e.Status == http.StatusUnauthorized {
			refusal.Challenge = e.Header.Get("Www-Authenticate")
		}
		return "", refusal
	}
	return desc.Digest, err
}

func (s *Seeder) parseImage(image fleet.RequestImage) (registry.Request, error) {
	ref, err := name.ParseReference(image.Ref, name.WithDefaultRegistry(s.cfg.DefaultRegistry))
	if err != nil {
		return registry.Request{}, fmt.Errorf("image %.80q: %w", image.Ref, err)
	}
	repo, err := registry.ParseRepository(ref.Context().RegistryStr(), ref.Context().RepositoryStr())
	if err != nil {
		return registry.Request{}, err
	}
	req := registry.Request{Kind: registry.Manifest, Repo: repo, Authorization: image.Authorization}
	if d, ok := ref.(name.Digest); ok && image.Digest == "" {
		image.Digest = digest.Digest(d.DigestStr())
	}
	if image.Digest != "" {
		req.Digest, err = registry.ParseDigest(image.Digest.String())
		return req, err
	}
	req.Tag = ref.Identifier()
	return req, nil
}
