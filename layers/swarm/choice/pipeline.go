package choice

// Pipeline is how many bytes to keep asked of a peer that sends rate bytes per
// second: another piece is asked for when less than that is outstanding.
//
// It is what the peer sends in a second, for it serves others in between and
// must never find our queue empty; but at least four pieces while they are
// small, so that a peer not measured yet can begin, and at most 32 MiB.
func Pipeline(rate float64, pieceLen int64) int64 {
	least := min(4*pieceLen, 256<<10)
	return min(max(int64(rate), least), 32<<20)
}
