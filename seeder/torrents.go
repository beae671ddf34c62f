package seeder

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/registry"
)

// maxWait bounds the wait= of GET /v1/torrents.
const maxWait = time.Minute

// Headers of the answer to a mirror: the infohash of the swarm in hex, which is another
// while the blob is still being fetched, and the blob's size in bytes.
const (
	swarmHeader = "Murder-Swarm"
	sizeHeader  = "Murder-Size"
)

// Types of what GET /v1/torrents answers.
const (
	torrentType = "application/x-bittorrent"
	blobType    = "application/octet-stream"
)

// torrentQuery is what GET /v1/torrents/<digest>?ns=&repo= is asked besides.
type torrentQuery struct {
	wait  time.Duration // for the metainfo of a blob that is being fetched
	draft bool          // by a mirror, which does not wait for it
	named bool          // by one to which the name of a complete swarm is enough
}

// serveTorrent answers GET /v1/torrents/<digest>: the metainfo of a whole blob, or
// 202 and a [layers.Arrival] while it is being fetched. A mirror, which says
// draft=1, is answered with what there is: the torrent file as it comes into being,
// or a small blob itself; and if it says magnet=1 too, for a whole blob only with the
// name of the swarm, where it gets the file's content (BEP 9). The first question
// begins the fetch. Who may have the blob may have this.
func (s *Seeder) serveTorrent(w http.ResponseWriter, r *http.Request) {
	if err := s.torrent(w, r); err != nil && r.Context().Err() == nil {
		registry.WriteError(w, r, err)
	}
}

func (s *Seeder) torrent(w http.ResponseWriter, r *http.Request) error {
	req, query, err := s.parseTorrent(r)
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
	w.Header().Set("Docker-Content-Digest", req.Digest.String())
	content := s.backend.content(req, blob, fetch)
	defer content.Close()
	switch {
	case query.draft && content.Size() < layers.SmallBlob:
		s.sendBlob(w, r, content)
		return nil
	case query.draft && fetch != nil:
		return s.sendDraft(w, r, fetch)
	case fetch != nil:
		if whole, err := settled(r.Context(), fetch.partial, query.wait); err != nil {
			return err
		} else if !whole {
			return writeArrival(w, fetch.partial)
		}
	}
	return s.sendMetainfo(w, req, query.draft && query.named)
}

// sendMetainfo sends the torrent file of a whole blob, or only its swarm's name: to send
// the file to all of a fleet that asks at once would take longer than many a layer.
func (s *Seeder) sendMetainfo(w http.ResponseWriter, req registry.Request, nameOnly bool) error {
	m, err := s.shared.Share(s.origin.ctx, req.Digest)
	switch {
	case err != nil:
		return registry.Unavailable("metainfo of %s: %w", req.Digest, err)
	case nameOnly:
		nameSwarm(w, m.InfoHash(), m.Size())
		w.Header().Set("Content-Length", "0")
		return nil
	}
	writeMetainfo(w, m)
	return nil
}

// nameSwarm says in the header what a mirror needs to join the swarm.
func nameSwarm(w http.ResponseWriter, ih layers.InfoHash, size int64) {
	w.Header().Set("Content-Type", torrentType)
	w.Header().Set(swarmHeader, ih.String())
	w.Header().Set(sizeHeader, strconv.FormatInt(size, 10))
}

func writeMetainfo(w http.ResponseWriter, m *layers.Metainfo) {
	w.Header().Set("Content-Type", torrentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(m.Bytes())))
	w.Write(m.Bytes())
}

// sendDraft sends the torrent file while it comes into being. When the fetch fails
// the connection is cut.
func (s *Seeder) sendDraft(w http.ResponseWriter, r *http.Request, f *fetch) error {
	if m := f.torrent.Metainfo(); m != nil {
		writeMetainfo(w, m)
		return nil
	}
	if err := f.torrent.Err(); err != nil {
		return registry.Unavailable("blob %s: %w", f.torrent.Digest(), err)
	}
	draft, _ := f.torrent.Draft()
	nameSwarm(w, draft, f.torrent.Size())
	if err := f.torrent.WriteTo(r.Context(), flushing{w, http.NewResponseController(w)}); err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

// flushing lets a torrent be sent as it grows.
type flushing struct {
	io.Writer
	controller *http.ResponseController
}

func (f flushing) Flush() { f.controller.Flush() }

// sendBlob sends a small blob, which is not worth another question. The header goes
// first: a connection that is cut before tells the mirror that the seeder is ill.
func (s *Seeder) sendBlob(w http.ResponseWriter, r *http.Request, content *registry.Carried) {
	w.Header().Set("Content-Type", blobType)
	w.Header().Set("Content-Length", strconv.FormatInt(content.Size(), 10))
	http.NewResponseController(w).Flush()
	n, err := io.Copy(w, content.Section(r.Context(), 0, content.Size()))
	s.origin.ledger.Served(n)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
}

func (s *Seeder) parseTorrent(r *http.Request) (req registry.Request, query torrentQuery, err error) {
	values := r.URL.Query()
	host := values.Get("ns")
	if host == "" {
		host = s.cfg.DefaultRegistry
	}
	req = registry.Request{Kind: registry.Blob, Authorization: r.Header.Get("Authorization")}
	if req.Digest, err = registry.ParseDigest(r.PathValue("digest")); err != nil {
		return req, query, err
	}
	if req.Repo, err = registry.ParseRepository(host, values.Get("repo")); err != nil {
		return req, query, err
	}
	if text := values.Get("wait"); text != "" {
		if query.wait, err = time.ParseDuration(text); err != nil || query.wait < 0 {
			return req, query, &registry.Error{Status: http.StatusBadRequest, Code: registry.CodeUnsupported, Message: "wait is a duration such as 30s, not " + strconv.Quote(text[:min(len(text), 40)])}
		}
		query.wait = min(query.wait, maxWait)
	}
	query.draft, query.named = values.Get("draft") == "1", values.Get("magnet") == "1"
	return req, query, nil
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

func writeArrival(w http.ResponseWriter, p *layers.Partial) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	return json.NewEncoder(w).Encode(layers.Arrival{Digest: p.Digest(), Size: p.Size(), Received: p.Received()})
}
