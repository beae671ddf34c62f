package proxy

import (
	"time"

	"github.com/murderp2p/murder/layers"
)

// SetWaits is for how long a mirror waits before it leaves a way.
func (m *Mirror) SetWaits(coldWait, stallAfter time.Duration) {
	m.coldWait, m.stallAfter = coldWait, stallAfter
}

// Shares tells whether a mirror offers a swarm's blob.
func (m *Mirror) Shares(ih layers.InfoHash) bool { return m.shared.Has(ih) }
