package proxy

import (
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
)

// SetStall is the silence after which a mirror leaves a swarm.
func (m *Mirror) SetStall(after time.Duration) { m.stallAfter = after }

// SetSlow is over how long a way is measured that may be too slow.
func (m *Mirror) SetSlow(after time.Duration) { m.slowAfter = after }

// Shares tells whether a mirror offers a swarm's blob.
func (m *Mirror) Shares(ih layers.InfoHash) bool { return m.shared.Has(ih) }

// Preferred is the URL of the seeder that a mirror would ask for a blob first.
func (m *Mirror) Preferred(d digest.Digest) string { return m.seeders.well(string(d))[0].URL() }
