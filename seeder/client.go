package seeder

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/registry"
)

// maxAnswer bounds what a mirror reads of a seeder's answer in bytes: the
// metainfo of the largest blob is far smaller.
const maxAnswer = 64 << 20

// ClientConfig says which seeder a [Client] asks.
type ClientConfig struct {
	URL *url.URL
	// Allow lists the registries that it may be asked about, as in
	// [registry.ClientConfig].
	Allow []string
	// Patience is how long a seeder may be silent before it is given up; 0 is a
	// second, which is what a pull may lose by it. Tests that share a busy machine
	// with a seeder which is well set more.
	Patience time.Duration
	// DialTLS connects to a seeder of https; nil = as the system's CAs have it, with
	// no certificate of our own.
	DialTLS func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Client asks a seeder on behalf of pullers. Through its Upstream it answers
// for all registries. A seeder that is down or hangs is given up within the
// patience, with an error that is a [registry.Unavailable].
type Client struct {
	registry.Upstream
	client *registry.Client
	url    *url.URL
	health *patience
}

// NewClient returns a Client that is safe for concurrent use.
func NewClient(cfg ClientConfig) *Client {
	health := newPatience(cfg)
	client := registry.NewClient(registry.ClientConfig{Via: cfg.URL, Allow: cfg.Allow, Transport: health, Idle: 10 * cfg.Patience})
	return &Client{Upstream: client, client: client, url: cfg.URL, health: health}
}

// URL is the seeder's address.
func (c *Client) URL() string { return c.url.String() }

// Announce is the URL of the seeder's tracker.
func (c *Client) Announce() string { return c.url.JoinPath("/announce").String() }

// Alive returns nil when the seeder answers within the patience.
func (c *Client) Alive(ctx context.Context) error { return c.health.probe(ctx) }

// Ask has the seeder fetch a blob, if it has not and the registry admits the
// caller, and returns what the mirror needs to bring it. The torrent in the answer
// may still grow; what feeds it is the answer's body, which ends with ctx. With no body
// the torrent is named only, and the swarm has the rest.
func (c *Client) Ask(ctx context.Context, repo registry.Repository, d digest.Digest, authorization string) (layers.Answer, error) {
	resp, err := c.client.Ask(ctx, "/v1/torrents/"+d.String(), repo, url.Values{"draft": {"1"}, "magnet": {"1"}}, authorization)
	if err != nil {
		return layers.Answer{}, err
	}
	a, err := c.answer(resp, d)
	if err != nil {
		resp.Body.Close()
		return layers.Answer{}, registry.Unavailable("seeder %s: answer about %s: %w", c.url.Redacted(), d, err)
	}
	return a, nil
}

func (c *Client) answer(resp *http.Response, d digest.Digest) (a layers.Answer, err error) {
	switch contentType := resp.Header.Get("Content-Type"); {
	case resp.StatusCode != http.StatusOK:
		return a, fmt.Errorf("it is %s", resp.Status)
	case contentType == blobType && resp.ContentLength >= 0:
		return layers.Answer{Size: resp.ContentLength, Body: c.client.Bound(resp.Body)}, nil
	case contentType != torrentType:
		return a, fmt.Errorf("it is of type %q", contentType)
	case resp.Header.Get(swarmHeader) != "":
		return draft(resp, d)
	}
	m, err := c.metainfo(resp, d)
	if err != nil {
		return a, err
	}
	return layers.Answer{Size: m.Size(), Torrent: m.Torrent()}, nil
}

// Metainfo asks for the torrent file of a blob that the seeder has.
func (c *Client) Metainfo(ctx context.Context, repo registry.Repository, d digest.Digest, authorization string) (*layers.Metainfo, error) {
	// All hashes may be known a moment before the blob is on record as whole.
	resp, err := c.client.Ask(ctx, "/v1/torrents/"+d.String(), repo, url.Values{"wait": {"1s"}}, authorization)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("seeder %s: metainfo of %s: %s", c.url.Redacted(), d, resp.Status)
	}
	return c.metainfo(resp, d)
}

// metainfo reads a torrent file.
func (c *Client) metainfo(resp *http.Response, d digest.Digest) (*layers.Metainfo, error) {
	body := c.client.Whole(resp.Body)
	content, err := io.ReadAll(io.LimitReader(body, maxAnswer))
	if err != nil {
		return nil, err
	}
	body.Close()
	m, err := layers.ParseMetainfo(content)
	if err == nil && m.Digest() != d {
		err = fmt.Errorf("it is the metainfo of %s", m.Digest())
	}
	return m, err
}

// draft is the answer about a blob of which not all hashes are known, to the seeder yet
// or to us.
func draft(resp *http.Response, d digest.Digest) (a layers.Answer, err error) {
	name, err := hex.DecodeString(resp.Header.Get(swarmHeader))
	if err != nil || len(name) != len(layers.InfoHash{}) {
		return a, fmt.Errorf("no infohash in %s", swarmHeader)
	}
	size, err := strconv.ParseInt(resp.Header.Get(sizeHeader), 10, 64)
	if err != nil || size < 0 {
		return a, fmt.Errorf("no size in %s", sizeHeader)
	}
	if resp.ContentLength == 0 {
		resp.Body.Close()
		t := layers.NamedTorrent(d, size, layers.InfoHash(name))
		if t.InfoSize() > maxAnswer {
			return a, fmt.Errorf("it would be of %d pieces", t.Pieces())
		}
		return layers.Answer{Size: size, Torrent: t}, nil
	}
	t := layers.NewTorrent(d, size, layers.InfoHash(name))
	if t.Pieces() > maxAnswer/len(name) {
		return a, fmt.Errorf("it would be of %d pieces", t.Pieces())
	}
	return layers.Answer{Size: size, Torrent: t, Body: resp.Body}, nil
}
