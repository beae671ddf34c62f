package proxy

import "testing"

// What trickles is left for what may be faster at once, and a line that is slow whichever
// way is taken less and less often.
func TestPace(t *testing.T) {
	way := func(at int) string { return waysInOrder[at%len(waysInOrder)] }
	t.Run("the next is tried", func(t *testing.T) {
		p := newPace()
		if !p.leave("swarm", 1000) || !p.leave("seeder", 1000) {
			t.Error("a way that trickles was not left while others had not been tried")
		}
	})
	t.Run("back to the better one", func(t *testing.T) {
		p := newPace()
		p.leave("swarm", 10_000)
		p.failed("seeder")
		if !p.leave("upstream", 1000) {
			t.Error("the registry was not left for a swarm of ten times its rate")
		}
		if p.leave("swarm", 10_000) {
			t.Error("the swarm was left again for what is slower")
		}
	})
	t.Run("slow for all", func(t *testing.T) {
		p, at, left := newPace(), 0, 0
		for range 24 * 60 * 4 { // windows of a day
			if p.leave(way(at), 1000) {
				at++
				left++
			}
		}
		if left < 4 || left > 20 {
			t.Errorf("ways were left %d times in a day, want some times and no more", left)
		}
	})
}
