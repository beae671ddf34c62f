package swarm

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/types"

	"github.com/murderp2p/murder/layers"
)

// Fetch joins the swarm for what p lacks. It implements layers.Swarm.
func (c *Client) Fetch(ctx context.Context, t *layers.Torrent, p *layers.Partial, trackers []string) error {
	if err := p.SetTorrent(t); err != nil {
		return fmt.Errorf("fetch %s: %w", t.Digest(), err)
	}
	m, err := c.metainfo(ctx, t, p)
	if err != nil {
		return err
	}
	select {
	case <-p.Checked(): // what is on disk must be known before the swarm is asked
	case <-p.Done():
		return p.Err()
	case <-ctx.Done():
		return ctx.Err()
	case <-c.stopped:
		return ErrClosed
	}
	if m.Pieces() == 0 {
		return nil
	}
	j, err := c.enter(m, p)
	if err != nil {
		return err
	}
	if err = j.start(); err == nil {
		c.publish(j, trackers)
		err = j.fetch(ctx, p)
	}
	c.exit(j, err)
	return err
}

// metainfo waits until it is complete.
func (c *Client) metainfo(ctx context.Context, t *layers.Torrent, p *layers.Partial) (*layers.Metainfo, error) {
	for {
		changed := t.Changed()
		if m, err := t.Metainfo(), t.Err(); m != nil || err != nil {
			return m, err
		}
		select {
		case <-changed:
		case <-p.Done():
			return nil, p.Err()
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-c.stopped:
			return nil, ErrClosed
		}
	}
}

// enter joins the swarm for p, or goes in with who fetches the same p already. One
// that has another content is of an earlier life of the blob, and left.
func (c *Client) enter(m *layers.Metainfo, p *layers.Partial) (*joined, error) {
	for {
		j, _, err := c.join(m, p)
		if err != nil {
			return nil, err
		}
		if j.content == content(p) && c.begin(j) {
			return j, nil
		}
		c.leave(j)
	}
}

// begin counts a fetch in, unless j has been left meanwhile.
func (c *Client) begin(j *joined) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.joined[j.hash] != j {
		return false
	}
	j.fetches++
	return true
}

// exit counts a fetch out. The last one leaves the swarm if the blob is not whole.
func (c *Client) exit(j *joined, err error) {
	c.mu.Lock()
	j.fetches--
	last := j.fetches == 0
	c.mu.Unlock()
	if last && err != nil {
		c.leave(j)
	}
}

// syncPause is how long progress of a blob may gather before it is looked at.
// Every chunk is progress, and there may be ten thousand a second.
const syncPause = 20 * time.Millisecond

// fetch works until p has every piece.
func (j *joined) fetch(ctx context.Context, p *layers.Partial) error {
	progress, wanted := p.Progress(), p.WantedChanged()
	j.sync(p)
	j.hurry(p)
	var look <-chan time.Time
	for j.missing() > 0 {
		select {
		case <-progress:
			progress, look = nil, time.After(syncPause)
		case <-look:
			progress, look = p.Progress(), nil
			j.sync(p)
		case <-wanted:
			wanted = p.WantedChanged()
			j.hurry(p)
		case <-j.failed:
			return j.failure
		case <-p.Done():
			if err := p.Err(); err != nil {
				return err
			}
			return j.finish(p)
		case <-ctx.Done():
			return ctx.Err()
		case <-j.client.stopped:
			return ErrClosed
		}
	}
	return j.finish(p)
}

// finish tells library and trackers that the blob is whole here.
func (j *joined) finish(p *layers.Partial) error {
	j.sync(p)
	j.client.completed(j)
	return nil
}

// completed announces that the blob is whole here.
func (c *Client) completed(j *joined) {
	c.mu.Lock()
	posts := j.posts
	c.mu.Unlock()
	c.announcer.completed(posts)
}

// start makes the library download all that is missing.
func (j *joined) start() error {
	if err := j.activate(); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.t != nil {
		j.t.DownloadAll()
	}
	return nil
}

// sync tells the library about pieces that came from elsewhere, as over HTTP.
func (j *joined) sync(p *layers.Partial) {
	if have, _ := p.Pieces(); have == j.told.count() {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := 0; i < j.meta.Pieces() && j.t != nil; i++ {
		if p.PieceHave(i) && !j.told.has(i) {
			j.t.Piece(i).UpdateCompletion()
			j.told.set(i, true)
		}
	}
}

// hurry asks for the pieces first that readers wait for.
func (j *joined) hurry(p *layers.Partial) {
	var wanted []int
	for _, off := range p.Wanted() {
		if i := int(off / j.meta.PieceLength()); i < j.meta.Pieces() && !p.PieceHave(i) {
			wanted = append(wanted, i)
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.t == nil {
		return
	}
	for _, i := range j.hurried {
		if !slices.Contains(wanted, i) {
			j.t.Piece(i).SetPriority(types.PiecePriorityNormal)
		}
	}
	for _, i := range wanted {
		if !slices.Contains(j.hurried, i) {
			j.t.Piece(i).SetPriority(torrent.PiecePriorityNow)
		}
	}
	j.hurried = wanted
}
