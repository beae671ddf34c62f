package choice

// Zones is how many zones are kept.
func (s *Seed) Zones() int { return len(s.zones) }
