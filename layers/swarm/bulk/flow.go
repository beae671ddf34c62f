package bulk

import "time"

const (
	// fastRate is from how many bytes a second on a connection is fast: the longest
	// packet takes 8 ms there.
	fastRate = 8 << 20
	// window is over how many bytes that is measured.
	window = 1 << 20
)

// flow tells whether a connection is fast. It is slow until it has shown that it is not.
type flow struct {
	fast  bool
	since time.Duration // 0 before the first byte
	sent  int           // since then
}

// add takes in that n bytes have been sent by now.
func (f *flow) add(n int, now time.Duration) {
	if f.since == 0 {
		f.since = now
		return // how long these took is not known
	}
	if f.sent += n; f.sent >= window {
		f.fast = time.Duration(f.sent)*time.Second/fastRate >= now-f.since
		f.since, f.sent = now, 0
	}
}
