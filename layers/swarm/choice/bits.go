package choice

import "math/bits"

// bitset is a set of pieces.
type bitset []uint64

func newBitset(n int) bitset { return make(bitset, (n+63)/64) }

func (b bitset) has(i int) bool { return b[i>>6]>>(i&63)&1 != 0 }
func (b bitset) add(i int)      { b[i>>6] |= 1 << (i & 63) }
func (b bitset) del(i int)      { b[i>>6] &^= 1 << (i & 63) }

// fill makes b the set of [0, n).
func (b bitset) fill(n int) {
	clear(b)
	for w := range n >> 6 {
		b[w] = ^uint64(0)
	}
	if n&63 != 0 {
		b[n>>6] = 1<<(n&63) - 1
	}
}

// firstIn returns the lowest piece of [from, to) that is in both sets.
func (b bitset) firstIn(c bitset, from, to int) (int, bool) {
	if from >= to {
		return 0, false
	}
	first, last := from>>6, (to-1)>>6
	for w := first; w <= last; w++ {
		x := b[w] & c[w]
		if w == first {
			x &= ^uint64(0) << (from & 63)
		}
		if w == last && to&63 != 0 {
			x &= 1<<(to&63) - 1
		}
		if x != 0 {
			return w<<6 + bits.TrailingZeros64(x), true
		}
	}
	return 0, false
}

// each calls f for every piece of the set, in order.
func (b bitset) each(f func(i int)) {
	for w, x := range b {
		for ; x != 0; x &= x - 1 {
			f(w<<6 + bits.TrailingZeros64(x))
		}
	}
}
