package swarm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
)

// Share offers a whole blob to the swarm until Drop. It implements layers.Swarm.
func (c *Client) Share(_ context.Context, m *layers.Metainfo, b *layers.Blob, trackers []string) error {
	b.Unpin()
	if m.Digest() != b.Digest() || m.Size() != b.Size() {
		return errors.Join(fmt.Errorf("share %s: metainfo is of %s", b.Digest(), m.Digest()), b.Close())
	}
	if m.Pieces() == 0 {
		return b.Close() // nobody has to ask for the empty blob
	}
	x := c.newExchange(m.Torrent(), nil, b.File(), b.CheckForPeer, b.Copied(), trackers, func() { _ = b.Close() })
	for i := range x.pieces {
		x.have.set(i)
	}
	x.missing = 0
	there, err := c.join(x)
	if err != nil || there != x {
		return errors.Join(err, b.Close())
	}
	c.publish(x)
	return nil
}

// ShareArriving offers pieces of a blob that is being fetched from a registry as their
// hashes become known. It implements layers.Swarm.
func (c *Client) ShareArriving(_ context.Context, t *layers.Torrent, p *layers.Partial, trackers []string) error {
	if t.Pieces() == 0 {
		return nil
	}
	x, err := c.open(t, p, trackers)
	if err != nil {
		return err
	}
	x.missing = 0 // it lacks nothing that a peer could give
	there, err := c.join(x)
	if err != nil || there != x {
		_ = x.file.Close()
		return err
	}
	c.publish(x) // hosts are told of the swarm as soon as we return
	x.running.Go(func() { x.grow() })
	return nil
}

// open begins an exchange of a blob that is arriving.
func (c *Client) open(t *layers.Torrent, p *layers.Partial, trackers []string) (*exchange, error) {
	f, err := p.OpenFile()
	if err != nil {
		return nil, fmt.Errorf("open arriving blob %s: %w", t.Digest(), err)
	}
	check := func(off, n int64) error { return p.CheckForPeer(f, off, n) }
	x := c.newExchange(t, p, f, check, p.Copied(f), trackers, func() {})
	x.missing = x.pieces
	return x, nil
}

// grow offers what becomes known of a torrent, until all is or it fails.
func (x *exchange) grow() {
	for {
		// Whether that is all is asked first: what comes to be known meanwhile is looked at again.
		changed, whole := x.torrent.Changed(), x.torrent.Metainfo() != nil
		x.mu.Lock()
		if n := x.here(); x.seed != nil {
			x.seed.Here(n)
			x.reveal()
		}
		x.mu.Unlock()
		x.client.publish(x)
		if err := x.torrent.Err(); err != nil {
			x.client.log.Debug("blob not shared any more", "digest", x.torrent.Digest(), "err", err)
			x.client.forsake(x)
			return
		}
		if whole {
			return
		}
		select {
		case <-changed:
		case <-x.leaving.Done():
			return
		}
	}
}

// Fetch joins the swarm for what p lacks. It implements layers.Swarm.
func (c *Client) Fetch(ctx context.Context, t *layers.Torrent, p *layers.Partial, trackers []string) error {
	if err := p.SetTorrent(t); err != nil {
		return fmt.Errorf("fetch %s: %w", t.Digest(), err)
	}
	if t.Pieces() == 0 {
		return nil
	}
	if m := p.Metainfo(); m != nil && t.Named() { // from an earlier run
		_ = t.SetInfo(m.InfoBytes()) // who has another is told so by his peers
	}
	x, err := c.begin(t, p, trackers)
	if err != nil {
		return err
	}
	err = x.fetch(ctx)
	c.end(x, err)
	return err
}

// begin joins the swarm for p, or goes in with who fetches the same p already. One
// that has another content is of an earlier life of the blob, and left.
func (c *Client) begin(t *layers.Torrent, p *layers.Partial, trackers []string) (*exchange, error) {
	for {
		x, err := c.open(t, p, trackers)
		if err != nil {
			return nil, err
		}
		there, err := c.join(x)
		if there != x {
			_ = x.file.Close()
		}
		if err != nil {
			return nil, err
		}
		if there.partial == p && c.countIn(there) {
			return there, nil
		}
		c.leave(there)
	}
}

// countIn counts a fetch in, unless x has been left meanwhile.
func (c *Client) countIn(x *exchange) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exchanges[x.torrent.Digest()] != x {
		return false
	}
	x.fetches++
	return true
}

// end counts a fetch out. The last one leaves the swarm if the blob is not whole.
func (c *Client) end(x *exchange, err error) {
	c.mu.Lock()
	x.fetches--
	last := x.fetches == 0
	c.mu.Unlock()
	if last && err != nil {
		c.leave(x)
	}
}

// syncPause is how long progress of a blob may gather before it is looked at.
// Every chunk is progress, and there may be ten thousand a second.
const syncPause = 20 * time.Millisecond

// fetch works until the blob has every piece.
func (x *exchange) fetch(ctx context.Context) error {
	p := x.partial
	checked, changed := p.Checked(), x.torrent.Changed()
	progress, wanted := p.Progress(), p.WantedChanged()
	var look <-chan time.Time
	x.want(p.Wanted())
	for !x.sync() {
		if err := x.torrent.Err(); err != nil {
			return err
		}
		x.publish()
		select {
		case <-checked: // what is on disk is known: the rest can be asked for
			checked = nil
		case <-changed:
			changed = x.torrent.Changed()
			x.prove()
			x.mu.Lock()
			x.sayInfo()
			x.mu.Unlock()
		case <-progress:
			progress, look = nil, time.After(syncPause)
		case <-look:
			progress, look = p.Progress(), nil
		case <-wanted:
			wanted = p.WantedChanged()
			x.want(p.Wanted())
		case <-x.failed:
			return x.failure
		case <-p.Done():
			if err := p.Err(); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-x.client.stopped.Done():
			return ErrClosed
		}
	}
	x.publish()
	x.client.completed(x)
	return nil
}

// publish is c.publish once x can take peers: what the tracker names before is lost.
func (x *exchange) publish() {
	x.mu.Lock()
	ready := x.leech != nil || x.missing == 0
	x.mu.Unlock()
	if ready {
		x.client.publish(x)
	}
}

// sync takes in pieces that came from elsewhere, as over HTTP, and begins to ask for
// the others. It returns whether all are here.
func (x *exchange) sync() (whole bool) {
	select {
	case <-x.partial.Checked():
	default:
		return false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if have, _ := x.partial.Pieces(); have > x.pieces-x.missing {
		for i := range x.pieces {
			if !x.have.has(i) && x.partial.PieceHave(i) {
				x.arrived(i)
			}
		}
	}
	if x.missing > 0 && x.leech == nil {
		x.lack()
	}
	if x.leech != nil {
		x.letGo()
	}
	return x.missing == 0
}

// want asks for the pieces first that readers wait for.
func (x *exchange) want(offsets []int64) {
	front := make([]int, 0, len(offsets))
	for _, off := range offsets {
		if i := int(off / x.torrent.PieceLength()); i < x.pieces {
			front = append(front, i)
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if !slices.Equal(x.front, front) {
		x.front, x.frontAt = front, x.now()
	}
	if x.leech != nil {
		x.leech.Wanted(front)
	}
}

// join adds x, unless its blob is exchanged already; then it returns that exchange. Of
// two that come with different contents the one who is there stays.
func (c *Client) join(x *exchange) (*exchange, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped.Err() != nil {
		return nil, ErrClosed
	}
	d := x.torrent.Digest()
	if there := c.exchanges[d]; there != nil {
		return there, nil
	}
	x.tally = c.tally(d)
	c.exchanges[d] = x
	return x, nil
}

// publish makes x known under its names, and announces it under the first of them
// unless it is. It does nothing once x has been left.
func (c *Client) publish(x *exchange) {
	x.announcing.Lock()
	defer x.announcing.Unlock()
	names := x.names()
	if len(names) == 0 || x.posts != nil && x.posted == names[0] {
		return
	}
	c.mu.Lock()
	joined := c.exchanges[x.torrent.Digest()] == x
	if joined {
		for _, name := range names {
			c.byName[name] = x
		}
	}
	c.mu.Unlock()
	if !joined {
		return
	}
	x.unpost()
	x.posts, x.posted = c.announcers.add(x, names[0], c.trackersOf(x)), names[0]
}

// trackersOf are those that x is announced to now.
func (c *Client) trackersOf(x *exchange) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if x.trackers == nil || c.trackers == nil {
		return x.trackers
	}
	return c.trackers
}

// Retrack announces to other trackers from now on. It implements layers.Swarm.
func (c *Client) Retrack(trackers []string) {
	c.retracking.Lock()
	defer c.retracking.Unlock()
	trackers = append([]string{}, trackers...)
	c.mu.Lock()
	c.trackers = trackers
	c.mu.Unlock()
	for _, x := range c.all() { // who comes now has the new ones
		if x.trackers != nil {
			c.retrack(x, trackers)
		}
	}
	c.announcers.keep(trackers)
}

// retrack says goodbye to the trackers of x that are not among those given, and announces
// it to those that are new.
func (c *Client) retrack(x *exchange, trackers []string) {
	x.announcing.Lock()
	defer x.announcing.Unlock()
	if x.posts == nil {
		return // not published yet, or not any more
	}
	kept := []*post{}
	fresh := slices.Clone(trackers)
	for _, p := range x.posts {
		if at := slices.Index(fresh, p.of.url); at >= 0 {
			fresh = slices.Delete(fresh, at, at+1)
			kept = append(kept, p)
		} else {
			p.remove()
		}
	}
	x.mu.Lock()
	maps.DeleteFunc(x.whole, func(tracker string, _ int) bool { return !slices.Contains(trackers, tracker) })
	x.mu.Unlock()
	x.posts = append(kept, c.announcers.add(x, x.posted, fresh)...)
}

// completed announces that the blob is whole here.
func (c *Client) completed(x *exchange) {
	x.announcing.Lock()
	defer x.announcing.Unlock()
	for _, p := range x.posts {
		p.completed()
	}
}

// need announces x for peers before its time, if it has too few.
func (c *Client) need(x *exchange) {
	if x.wants() == 0 {
		return
	}
	x.announcing.Lock()
	defer x.announcing.Unlock()
	for _, p := range x.posts {
		p.need()
	}
}

// leave ends c's part in a swarm.
func (c *Client) leave(x *exchange) {
	c.mu.Lock()
	c.forget(x)
	c.mu.Unlock()
	c.unpublish(x)
	x.close()
}

// forsake is leave for who runs on x.running himself: it waits for nobody.
func (c *Client) forsake(x *exchange) {
	c.mu.Lock()
	if c.stopped.Err() != nil { // Close leaves it
		c.mu.Unlock()
		return
	}
	c.forget(x)
	c.running.Go(x.close)
	c.mu.Unlock()
	c.unpublish(x)
}

// forget takes x out of the maps. c.mu is held.
func (c *Client) forget(x *exchange) {
	if d := x.torrent.Digest(); c.exchanges[d] == x {
		delete(c.exchanges, d)
	}
	for _, name := range x.names() {
		if c.byName[name] == x {
			delete(c.byName, name)
		}
	}
}

// unpublish says goodbye to the trackers.
func (c *Client) unpublish(x *exchange) {
	x.announcing.Lock()
	defer x.announcing.Unlock()
	x.unpost()
}

// unpost ends the announcing of x. x.announcing must be held.
func (x *exchange) unpost() {
	for _, p := range x.posts {
		p.remove()
	}
	x.posts = nil
}

// Drop leaves a swarm, if c is in it, and forgets what was counted there. It
// implements layers.Swarm.
func (c *Client) Drop(d digest.Digest) {
	if x := c.lookup(d); x != nil {
		c.leave(x)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.tallies, d)
}
