package proxy

import (
	"time"

	"github.com/murderp2p/murder/layers"
)

// SetStall is the silence after which a mirror leaves a swarm.
func (m *Mirror) SetStall(after time.Duration) { m.stallAfter = after }

// Shares tells whether a mirror offers a swarm's blob.
func (m *Mirror) Shares(ih layers.InfoHash) bool { return m.shared.Has(ih) }
