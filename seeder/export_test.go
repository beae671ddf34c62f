package seeder

import "time"

// SetSlow is over how long a registry's answer is measured that may trickle.
func (s *Seeder) SetSlow(after time.Duration) { s.origin.slowAfter = after }
