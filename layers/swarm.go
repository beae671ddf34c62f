package layers

import (
	"context"
	"net"
	"net/netip"

	"github.com/opencontainers/go-digest"
)

// Swarm moves blobs between hosts. layers/swarm implements it. All methods are safe
// for concurrent use.
type Swarm interface {
	// Share seeds a whole blob until Drop and announces it to the trackers (URLs),
	// which may be none. It takes b over whatever it returns: unpins it (see
	// Blob.Unpin), and closes it at Drop. Sharing what is shared already is no error.
	Share(ctx context.Context, m *Metainfo, b *Blob, trackers []string) error
	// ShareArriving seeds a blob that p is still getting in order: pieces of t are
	// offered as their hashes become known, under t's draft name and, once it is
	// complete, under its infohash. It goes on when the blob is whole, until Drop,
	// and ends by itself when p fails. It returns at once.
	ShareArriving(ctx context.Context, t *Torrent, p *Partial, trackers []string) error
	// Fetch joins the swarm for what p lacks, with SetTorrent(t) if that has not
	// been done. It returns nil when p has every piece and then goes on sharing
	// them until Drop; it returns ctx's error when ctx ends and leaves the swarm
	// then, t's when t fails, and p's when p fails. It does not judge how fast it
	// goes: the caller watches p's Progress and ends ctx.
	Fetch(ctx context.Context, t *Torrent, p *Partial, trackers []string) error
	// Retrack has all swarms that are announced to trackers, be they none at the moment,
	// announced to these instead, and those that will be, whatever they are given. Who was
	// given nil is announced to nobody as before.
	Retrack(trackers []string)
	// Peers lists who else is known in the swarm of a blob; none if it is not joined.
	Peers(d digest.Digest) []Peer
	// Received returns how many bytes of the blob came in so far, from mirrors
	// and from seeders; 0 for a swarm that is not joined.
	Received(d digest.Digest) (fromPeers, fromSeeders int64)
	// Drop leaves a blob's swarm and closes what Share was given; no error if not
	// joined.
	Drop(d digest.Digest)
	// Stats returns totals since the swarm was opened.
	Stats() Stats
	// Addr is where it listens for peers.
	Addr() net.Addr
	// Close leaves all swarms and stops listening. It may be called twice.
	Close() error
}

// Peer is another host in a swarm.
type Peer struct {
	Addr     netip.AddrPort
	Zone     string // "" if it named none
	Seeder   bool   // an origin's daemon rather than a mirror
	Complete bool   // has every piece
	Have     int    // pieces it has
	Pieces   int    // of how many
	Received int64  // bytes of the blob from it
	Sent     int64  // bytes of the blob to it
}

// Stats is what a Swarm has moved since it was opened. Bytes are of blobs, without
// the protocol's own.
type Stats struct {
	FromPeers  int64 // bytes received from mirrors
	FromSeeder int64 // bytes received from seeders
	Sent       int64 // bytes sent to either
	CrossZone  int64 // of all these, bytes exchanged with another zone
	Active     int   // swarms joined
}
