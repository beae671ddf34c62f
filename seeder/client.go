package seeder

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
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
	// Patience is how long a seeder may be silent before it is given up; 0 is a
	// second, which is what a pull may lose by it. Tests that share a busy machine
	// with a seeder which is well set more.
	Patience time.Duration
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
	health := newPatience(cfg.Patience, cfg.URL.JoinPath("/livez").String())
	client := registry.NewClient(registry.ClientConfig{Via: cfg.URL, Transport: health, Idle: 10 * cfg.Patience})
	return &Client{Upstream: client, client: client, url: cfg.URL, health: health}
}

// URL is the seeder's address.
func (c *Client) URL() string { return c.url.String() }

// Announce is the URL of the seeder's tracker.
func (c *Client) Announce() string { return c.url.JoinPath("/announce").String() }

// Alive returns nil when the seeder answers within the patience.
func (c *Client) Alive(ctx context.Context) error { return c.health.probe(ctx) }

// Torrent asks for the metainfo of a blob and thereby has the seeder fetch
// the blob, if the registry admits the caller. While it is being made m is
// nil and the arrival tells how far it is; the seeder waits that long for it
// before it answers.
func (c *Client) Torrent(ctx context.Context, repo registry.Repository, d digest.Digest, authorization string, wait time.Duration) (m *layers.Metainfo, a layers.Arrival, err error) {
	query := url.Values{}
	if wait > 0 {
		query.Set("wait", wait.String())
	}
	resp, err := c.client.Ask(ctx, "/v1/torrents/"+d.String(), repo, query, authorization)
	if err != nil {
		return nil, a, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, a, registry.Unavailable("seeder %s: %w", c.url.Redacted(), err)
	}
	if resp.StatusCode == http.StatusAccepted {
		if err = json.Unmarshal(body, &a); err == nil && (a.Digest != d || a.Size < 0) {
			err = fmt.Errorf("it is about blob %q of %d bytes", a.Digest, a.Size)
		}
	} else if m, err = layers.ParseMetainfo(body); err == nil && m.Digest() != d {
		m, err = nil, fmt.Errorf("it is the metainfo of %s", m.Digest())
	}
	if err != nil {
		return nil, a, registry.Unavailable("seeder %s: answer about %s: %w", c.url.Redacted(), d, err)
	}
	return m, a, nil
}
