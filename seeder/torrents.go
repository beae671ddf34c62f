package seeder

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/registry"
)

// maxWait bounds the wait= of GET /v1/torrents.
const maxWait = time.Minute

// serveTorrent answers GET /v1/torrents/<digest>?ns=&repo=&wait=: the metainfo
// of a whole blob, or 202 and a [layers.Arrival] while it is being fetched.
// The first question begins the fetch. Who may have the blob may have this.
func (s *Seeder) serveTorrent(w http.ResponseWriter, r *http.Request) {
	if err := s.torrent(w, r); err != nil && r.Context().Err() == nil {
		registry.WriteError(w, r, err)
	}
}

func (s *Seeder) torrent(w http.ResponseWriter, r *http.Request) error {
	req, wait, err := s.parseTorrent(r)
	if err != nil {
		return err
	}
	blob, fetch, err := s.origin.acquire(r.Context(), req)
	if u, ok := errors.AsType[*registry.Uncached](err); ok {
		u.Stream.Close()
		return registry.Unavailable("blob %s: %w", req.Digest, u.Cause)
	}
	if err != nil {
		return err
	}
	if blob != nil {
		blob.Close()
	} else if whole, err := settled(r.Context(), fetch.partial, wait); !whole {
		if err != nil {
			return err
		}
		return writeArrival(w, fetch)
	}
	m, err := s.shared.Share(s.origin.ctx, req.Digest)
	if err != nil {
		return registry.Unavailable("metainfo of %s: %w", req.Digest, err)
	}
	w.Header().Set("Content-Type", "application/x-bittorrent")
	w.Header().Set("Content-Length", strconv.Itoa(len(m.Bytes())))
	w.Header().Set("Docker-Content-Digest", req.Digest.String())
	w.Write(m.Bytes())
	return nil
}

func (s *Seeder) parseTorrent(r *http.Request) (req registry.Request, wait time.Duration, err error) {
	query := r.URL.Query()
	host := query.Get("ns")
	if host == "" {
		host = s.cfg.DefaultRegistry
	}
	req = registry.Request{Kind: registry.Blob, Authorization: r.Header.Get("Authorization")}
	if req.Digest, err = registry.ParseDigest(r.PathValue("digest")); err != nil {
		return req, 0, err
	}
	if req.Repo, err = registry.ParseRepository(host, query.Get("repo")); err != nil {
		return req, 0, err
	}
	if text := query.Get("wait"); text != "" {
		if wait, err = time.ParseDuration(text); err != nil || wait < 0 {
			return req, 0, &registry.Error{Status: http.StatusBadRequest, Code: registry.CodeUnsupported, Message: "wait is a duration such as 30s, not " + strconv.Quote(text[:min(len(text), 40)])}
		}
	}
	return req, min(wait, maxWait), nil
}

// settled waits until p is whole or has failed, for wait at the most.
func settled(ctx context.Context, p *layers.Partial, wait time.Duration) (whole bool, err error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-p.Done():
		if err := p.Err(); err != nil {
			return false, registry.Unavailable("blob %s: %w", p.Digest(), err)
		}
		return true, nil
	case <-timer.C:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

func writeArrival(w http.ResponseWriter, f *fetch) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	return json.NewEncoder(w).Encode(layers.Arrival{
		Digest: f.partial.Digest(), Size: f.partial.Size(), Received: f.partial.Received(), Stream: f.stream(),
	})
}
