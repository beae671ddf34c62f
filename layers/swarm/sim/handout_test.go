package sim

import (
	"math/rand/v2"
	"time"
)

// handout says whom a host is to dial.
type handout interface {
	join(id int, now time.Duration) []int
	more(id int, now time.Duration) []int
	leave(id int, now time.Duration)
}

// randomHandout gives a newcomer so many random hosts of those below three
// times as many, and the sources to the first 32.
type randomHandout struct {
	conf    config
	rand    *rand.Rand
	members []int
	degree  map[int]int
	sources []int
	direct  int
}

func newHandout(c config, r *rand.Rand) handout {
	return &randomHandout{conf: c, rand: r, degree: make(map[int]int)}
}

const directConnections = 32

func (h *randomHandout) join(id int, now time.Duration) []int {
	if id >= h.conf.hosts {
		h.sources = append(h.sources, id)
		return nil
	}
	got := h.more(id, now)
	h.members = append(h.members, id)
	if h.direct < directConnections {
		h.direct++
		got = append(got, h.sources...)
	}
	return got
}

func (h *randomHandout) more(id int, now time.Duration) []int {
	var got []int
	across := 0
	for _, k := range h.rand.Perm(len(h.members)) {
		m := h.members[k]
		if m == id || h.degree[m] >= 3*h.conf.dials {
			continue
		}
		if h.conf.zones > 1 && m%h.conf.zones != id%h.conf.zones {
			if across == 2 {
				continue
			}
			across++
		}
		h.degree[m]++
		h.degree[id]++
		if got = append(got, m); len(got) >= h.conf.dials {
			break
		}
	}
	return got
}

func (h *randomHandout) leave(id int, now time.Duration) {
	for k, m := range h.members {
		if m == id {
			h.members[k] = h.members[len(h.members)-1]
			h.members = h.members[:len(h.members)-1]
			return
		}
	}
}
