package layers

import (
	"context"
	"log/slog"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Shared are the blobs of a store that this host offers to the swarm: whole ones, and
// those that a seeder is still fetching.
type Shared struct {
	store    *Store
	swarm    Swarm
	trackers []string
	log      *slog.Logger

	mu      sync.Mutex // guards all below
	blobs   map[digest.Digest]offer
	names   map[InfoHash]digest.Digest // of their swarms, as far as they are known
	growing map[digest.Digest]*Torrent // those whose infohash is not in names yet
}

// offer is one blob in the swarm.
type offer struct {
	torrent *Torrent
	partial *Partial // that the swarm has it from; nil if it was whole
}

// stands tells whether the swarm can still have the blob from us.
func (o offer) stands() bool { return o.partial == nil || !o.partial.failed() }

// maxAtStart bounds the blobs that are shared again after a start before
// anyone asks for them.
const maxAtStart = 256

// NewShared shares nothing yet. What it shares is announced to trackers.
func NewShared(store *Store, swarm Swarm, trackers []string, log *slog.Logger) *Shared {
	return &Shared{store: store, swarm: swarm, trackers: trackers, log: log,
		blobs: make(map[digest.Digest]offer), names: make(map[InfoHash]digest.Digest), growing: make(map[digest.Digest]*Torrent)}
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
	blob.meta = m
	if err := s.swarm.Share(ctx, m, blob, s.trackers); err != nil {
		return nil, err
	}
	s.Joined(m.Torrent())
	return m, nil
}

// Arriving offers a blob while p is still getting it in order; t is that of p.Hashes.
func (s *Shared) Arriving(ctx context.Context, t *Torrent, p *Partial) error {
	if err := s.swarm.ShareArriving(ctx, t, p, s.trackers); err != nil {
		return err
	}
	s.note(offer{t, p})
	return nil
}

// Joined notes a swarm that was joined to fetch the blob, and that goes on
// sharing it.
func (s *Shared) Joined(t *Torrent) { s.note(offer{torrent: t}) }

func (s *Shared) note(o offer) {
	d := o.torrent.Digest()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(d)
	s.blobs[d] = o
	if draft, ok := o.torrent.Draft(); ok {
		s.names[draft] = d
	}
	if m := o.torrent.Metainfo(); m != nil {
		s.names[m.InfoHash()] = d
	} else {
		s.growing[d] = o.torrent
	}
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

// Has tells whether this host shares the blob of that swarm, by either of its names.
func (s *Shared) Has(ih InfoHash) bool {
	_, ok := s.Blob(ih)
	return ok
}

// Blob returns the digest of the blob that this host shares in that swarm.
func (s *Shared) Blob(ih InfoHash) (d digest.Digest, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d, t := range s.growing { // few: those being fetched
		if m := t.Metainfo(); m != nil {
			s.names[m.InfoHash()] = d
			delete(s.growing, d)
		}
	}
	d = s.names[ih]
	o, ok := s.blobs[d]
	return d, ok && o.stands()
}

// Drop leaves the swarm of a blob that has been evicted.
func (s *Shared) Drop(d digest.Digest) {
	s.mu.Lock()
	s.forget(d)
	s.mu.Unlock()
	s.swarm.Drop(d)
}

// Evicted leaves the swarm of a blob of which the store has told OnEvict, and joins it anew
// if the blob has only changed its place.
func (s *Shared) Evicted(ctx context.Context, d digest.Digest) {
	s.Drop(d)
	if size, there := s.store.Stat(d); !there || size < SmallBlob {
		return
	}
	if _, err := s.Share(ctx, d); err != nil && ctx.Err() == nil {
		s.log.Warn("blob not shared", "digest", d, "err", err)
	}
}

// forget takes a blob out of the maps. s.mu is held.
func (s *Shared) forget(d digest.Digest) {
	o, ok := s.blobs[d]
	if !ok {
		return
	}
	delete(s.blobs, d)
	delete(s.growing, d)
	if draft, ok := o.torrent.Draft(); ok {
		delete(s.names, draft)
	}
	if m := o.torrent.Metainfo(); m != nil {
		delete(s.names, m.InfoHash())
	}
}

// metainfo returns that of a blob that is on offer and whole.
func (s *Shared) metainfo(d digest.Digest) *Metainfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o, ok := s.blobs[d]; ok && o.stands() {
		return o.torrent.Metainfo()
	}
	return nil
}
