package swarm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/types/infohash"
	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
)

// joined is a swarm this host takes part in, from Share or Fetch to leave.
type joined struct {
	client  *Client
	hash    layers.InfoHash
	meta    *layers.Metainfo
	content content
	release func() // gives back what Share was given
	told    told

	// client.mu guards these.
	posts   []*post // nil before publish
	fetches int     // under way

	gone     chan struct{} // closed just before the library lets go for good
	failOnce sync.Once
	failed   chan struct{} // closed when a piece could not be kept
	failure  error         // why; set before failed is closed

	// mu guards the rest. It is held while the library takes the torrent up or
	// lets it go, and taken before the library's lock, so no callback may take it.
	mu      sync.Mutex
	t       *torrent.Torrent // nil while the library does not work on it
	woken   time.Time        // when it was last needed
	left    bool
	hurried []int // pieces at the highest priority
}

// told is which pieces the library knows to be here. It has a lock of its own since
// the library reports pieces while others hold joined.mu.
type told struct {
	mu     sync.Mutex
	pieces []bool
	n      int // true ones
}

func (t *told) set(i int, here bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pieces[i] == here {
		return
	}
	t.pieces[i] = here
	if here {
		t.n++
	} else {
		t.n--
	}
}

func (t *told) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

func (t *told) has(i int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pieces[i]
}

// Share offers a whole blob to the swarm until Drop. It implements layers.Swarm.
func (c *Client) Share(_ context.Context, m *layers.Metainfo, b *layers.Blob, trackers []string) error {
	b.Unpin()
	if m.Digest() != b.Digest() || m.Size() != b.Size() {
		return errors.Join(fmt.Errorf("share %s: metainfo is of %s", b.Digest(), m.Digest()), b.Close())
	}
	if m.Pieces() == 0 {
		return b.Close() // nobody has to ask for the empty blob
	}
	j, isNew, err := c.join(m, whole{b})
	if err != nil || !isNew {
		return errors.Join(err, b.Close())
	}
	c.publish(j, trackers)
	return nil
}

// ShareArriving offers a blob once it is whole. It implements layers.Swarm.
func (c *Client) ShareArriving(_ context.Context, t *layers.Torrent, p *layers.Partial, trackers []string) error {
	c.mu.Lock()
	c.coming[t.Digest()] = t
	c.mu.Unlock()
	c.running.Go(func() {
		select {
		case <-p.Done():
		case <-c.stopped:
			return
		}
		c.mu.Lock()
		awaited := c.coming[t.Digest()] == t
		delete(c.coming, t.Digest())
		c.mu.Unlock()
		if m := t.Metainfo(); awaited && m != nil && p.Err() == nil && m.Pieces() > 0 {
			if j, isNew, err := c.join(m, p); err == nil && isNew {
				c.publish(j, trackers)
			}
		}
	})
	return nil
}

// join enters the swarm of m, unless c is in it already. Of two that come with
// different contents the one who is there stays, but for one that failed.
func (c *Client) join(m *layers.Metainfo, content content) (j *joined, isNew bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.stopped:
		return nil, false, ErrClosed
	default:
	}
	if j := c.joined[m.InfoHash()]; j != nil {
		return j, false, nil
	}
	j = &joined{
		client: c, hash: m.InfoHash(), meta: m, content: content,
		release: func() {},
		gone:    make(chan struct{}),
		failed:  make(chan struct{}),
		told:    told{pieces: make([]bool, m.Pieces())},
	}
	if b, ok := content.(whole); ok {
		j.release = func() { _ = b.Close() } // it was read only
	}
	c.joined[j.hash], c.hashes[m.Digest()] = j, j.hash
	return j, true, nil
}

// publish begins to announce a swarm, unless that has been done or it has been left.
// A fetch does it once the library can take the peers that come back.
func (c *Client) publish(j *joined, trackers []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.joined[j.hash] == j && j.posts == nil {
		j.posts = c.announcer.add(j, trackers)
	}
}

// leave ends c's part in a swarm.
func (c *Client) leave(j *joined) {
	c.mu.Lock()
	if c.joined[j.hash] == j {
		delete(c.joined, j.hash)
	}
	posts := j.posts
	c.mu.Unlock()
	c.announcer.remove(posts)
	j.close()
	c.peers.settle()
	c.peers.forget(j.hash)
}

// Drop leaves a swarm, if c is in it, and forgets what was counted there. It
// implements layers.Swarm.
func (c *Client) Drop(d digest.Digest) {
	ih := c.hash(d)
	if j := c.lookup(ih); j != nil {
		c.leave(j)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.tallies, ih)
	delete(c.hashes, d)
	delete(c.coming, d)
}

// wake makes the library take up a swarm that a peer has named in its handshake,
// before it looks whether it knows it.
func (c *Client) wake(ih layers.InfoHash) {
	j := c.lookup(ih)
	if j == nil {
		return
	}
	if err := j.activate(); err != nil {
		c.log.Warn("take up a swarm", "infohash", ih, "err", err)
	}
}

// eachInfoHash calls f with the swarms' infohashes until it returns false: they are
// the keys that encrypted handshakes are opened with.
func (c *Client) eachInfoHash(f func(key []byte) (more bool)) {
	for _, j := range c.all() {
		if !f(j.hash[:]) {
			return
		}
	}
}

// activate makes the library work on the swarm, if it does not.
func (j *joined) activate() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.woken = time.Now()
	if j.left {
		return ErrClosed
	}
	if j.t != nil {
		return nil
	}
	for i := range j.meta.Pieces() {
		j.told.set(i, j.content.PieceHave(i)) // as the library is about to ask itself
	}
	t, _ := j.client.library.AddTorrentOpt(torrent.AddTorrentOpts{
		InfoHash:  infohash.T(j.hash),
		InfoBytes: j.meta.InfoBytes(),
		ChunkSize: chunkSize,
		Storage:   files{j},
		// What is here is known from the content, and hashed by it.
		DisableInitialPieceCheck: true,
	})
	if t.Info() == nil {
		t.Drop()
		return fmt.Errorf("metainfo of %s: the library does not take it", j.meta.Digest())
	}
	t.SetOnWriteChunkError(j.fail)
	j.t = t
	return nil
}

// retire makes the library let go of a swarm whose blob is whole and which nobody
// has used for a while; last is when somebody was last connected.
func (j *joined) retire(last time.Time, after time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.t == nil || time.Since(last) < after || time.Since(j.woken) < after || j.missing() > 0 {
		return
	}
	j.t.Drop()
	j.t = nil
}

// close lets go of everything.
func (j *joined) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.left {
		return
	}
	j.left = true
	close(j.gone)
	if j.t != nil {
		j.t.Drop()
		j.t = nil
	}
	j.release()
}

// missing is how many bytes of pieces are not here.
func (j *joined) missing() (n int64) {
	p, ok := j.content.(*layers.Partial)
	if !ok {
		return 0
	}
	have, total := p.Pieces()
	if have == total {
		return 0
	}
	return max(1, j.meta.Size()-int64(have)*j.meta.PieceLength())
}

// fail ends the fetches of a blob whose bytes cannot be kept.
func (j *joined) fail(err error) {
	j.failOnce.Do(func() {
		j.failure = err
		close(j.failed)
	})
}

// meet tells the library about peers that the tracker named. A host that has
// everything waits to be called: those who lack something call it.
func (j *joined) meet(addrs []netip.AddrPort) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.t == nil || j.missing() == 0 {
		return
	}
	peers := make([]torrent.PeerInfo, len(addrs))
	for i, addr := range addrs {
		peers[i] = torrent.PeerInfo{Addr: j.client.names.dialable(addr), Source: torrent.PeerSourceTracker}
	}
	j.t.AddPeers(peers)
}
