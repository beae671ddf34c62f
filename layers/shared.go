package layers

import (
	"context"
	"log/slog"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Shared are the whole blobs of a store that this host offers to the swarm.
type Shared struct {
	store    *Store
	swarm    Swarm
	trackers []string
	log      *slog.Logger

	mu       sync.Mutex // guards the two below
	byHash   map[InfoHash]digest.Digest
	byDigest map[digest.Digest]*Metainfo
}

// maxAtStart bounds the blobs that are shared again after a start before
// anyone asks for them.
const maxAtStart = 256

// NewShared shares nothing yet. What it shares is announced to trackers.
func NewShared(store *Store, swarm Swarm, trackers []string, log *slog.Logger) *Shared {
	return &Shared{store: store, swarm: swarm, trackers: trackers, log: log,
		byHash: make(map[InfoHash]digest.Digest), byDigest: make(map[digest.Digest]*Metainfo)}
}

// Share offers a whole blob, if that has not been done, and returns its
// metainfo. The error is ErrNotFound, or the disk's or the swarm's.
func (s *Shared) Share(ctx context.Context, d digest.Digest) (*Metainfo, error) {
	if m := s.metainfo(d); m != nil {
		return m, nil
	}
	m, err := s.store.Metainfo(d)
	if err != nil || m.Pieces() == 0 {
		return m, err
	}
	blob, err := s.store.Open(d)
	if err != nil {
		return nil, err
	}
	if err := s.swarm.Share(ctx, m, blob, s.trackers); err != nil {
		return nil, err
	}
	s.Joined(m)
	return m, nil
}

// Joined notes a swarm that was joined to fetch the blob, and that goes on
// sharing it.
func (s *Shared) Joined(m *Metainfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byHash[m.InfoHash()], s.byDigest[m.Digest()] = m.Digest(), m
}

// All offers the blobs of the store that were used last, after a start.
func (s *Shared) All(ctx context.Context) error {
	blobs := s.store.Blobs()
	for _, blob := range blobs[:min(len(blobs), maxAtStart)] {
		if ctx.Err() != nil {
			return nil
		}
		if blob.Size < SmallBlob {
			continue
		}
		if _, err := s.Share(ctx, blob.Digest); err != nil {
			s.log.Warn("blob not shared", "digest", blob.Digest, "err", err)
		}
	}
	return nil
}

// Has tells whether this host shares the blob of that swarm.
func (s *Shared) Has(ih InfoHash) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.byHash[ih]
	return ok
}

// Drop leaves the swarm of a blob that has been evicted.
func (s *Shared) Drop(d digest.Digest) {
	s.mu.Lock()
	m := s.byDigest[d]
	delete(s.byDigest, d)
	if m != nil {
		delete(s.byHash, m.InfoHash())
	}
	s.mu.Unlock()
	if m != nil {
		s.swarm.Drop(m.InfoHash())
	}
}

func (s *Shared) metainfo(d digest.Digest) *Metainfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byDigest[d]
}
