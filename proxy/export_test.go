package proxy

import "time"

// Hurry makes a mirror wait less before it leaves a way.
func (m *Mirror) Hurry(coldWait, stallAfter time.Duration) {
	m.coldWait, m.stallAfter = coldWait, stallAfter
}
