package seeder

import (
	"time"

	"github.com/murderp2p/murder/seeder/page"
)

// SetSlow is over how long a registry's answer is measured that may trickle.
func (s *Seeder) SetSlow(after time.Duration) { s.origin.slowAfter = after }

// SetOtherTick is how often a fetch from another registry is looked at that is waited for.
func (s *Seeder) SetOtherTick(every time.Duration) { s.origin.otherTick = every }

// SetMaxFetches bounds the blobs that are being fetched.
func (s *Seeder) SetMaxFetches(n int) { s.origin.maxFetches = n }

// SetWarmPause is the pause before a push is tried to be fetched once more.
func (s *Seeder) SetWarmPause(pause time.Duration) { s.warmer.pause = pause }

// View is what the page shows now.
func (s *Seeder) View() page.View { return (&viewer{seeder: s}).View() }
