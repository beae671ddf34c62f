package choice_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/murderp2p/murder/layers/swarm/choice"
)

const (
	pieceLen = 64 << 10
	chunk    = 16 << 10
	lan      = 125e6 // bytes a second
)

func newRand() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

func none(int) bool { return false }

func newLeech(pieces int) *choice.Leech {
	return choice.NewLeech(int64(pieces)*pieceLen, pieceLen, none, newRand())
}

// has makes a peer that has these pieces.
func has(l *choice.Leech, kind choice.PeerKind, now time.Duration, pieces ...int) *choice.Peer {
	p := l.Add(kind, now)
	for _, i := range pieces {
		l.Have(p, i)
	}
	return p
}

// all asks p until there is nothing more to ask.
func all(l *choice.Leech, p *choice.Peer, now time.Duration) []int {
	var asked []int
	for {
		i, ok := l.Next(p, now)
		if !ok {
			return asked
		}
		asked = append(asked, i)
	}
}

// next asks p for one piece, or returns -1.
func next(l *choice.Leech, p *choice.Peer, now time.Duration) int {
	if i, ok := l.Next(p, now); ok {
		return i
	}
	return -1
}

// deliver has p send all of piece i.
func deliver(l *choice.Leech, p *choice.Peer, i int, now time.Duration) []*choice.Peer {
	l.Progress(p, i, pieceLen, now)
	return l.Done(i)
}

func upTo(n int) []int {
	var s []int
	for i := range n {
		s = append(s, i)
	}
	return s
}

func TestRarestFirst(t *testing.T) {
	l := newLeech(100)
	has(l, choice.Near, 0, upTo(100)...)
	has(l, choice.Near, 0, slices.Delete(upTo(100), 70, 71)...)
	p := has(l, choice.Near, 0, 20, 70, 90)
	if got := next(l, p, 0); got != 70 {
		t.Errorf("asked for piece %d, want 70, which fewer have than others", got)
	}
}

func TestOriginIsNotRarity(t *testing.T) {
	l := newLeech(100)
	has(l, choice.Near, 0, 5, 6)
	has(l, choice.Near, 0, 6)
	for range 9 {
		has(l, choice.Origin, 0, 5)
	}
	if got := next(l, has(l, choice.Near, 0, 5, 6), 0); got != 5 {
		t.Errorf("asked for piece %d, want 5: that origins have it does not make it common", got)
	}
}

func TestTiesAreRandom(t *testing.T) {
	first := make(map[int]int)
	r := newRand()
	for range 200 {
		l := choice.NewLeech(50*pieceLen, pieceLen, none, r)
		first[next(l, has(l, choice.Near, 0, upTo(50)...), 0)]++
	}
	if len(first) < 40 {
		t.Errorf("200 hosts began with %d different pieces of 50: %v", len(first), first)
	}
}

func TestReaderComesFirst(t *testing.T) {
	l := newLeech(1000)
	l.Wanted([]int{300, 600})
	p := has(l, choice.Near, 0, 2, 301, 303, 600, 900)
	var got []int
	for range 5 {
		i := next(l, p, 0)
		got = append(got, i)
		deliver(l, p, i, 0)
	}
	if want := []int{301, 303, 600}; !slices.Equal(got[:3], want) {
		t.Errorf("asked for %v, want %v first", got, want)
	}
}

func TestPieceIsAskedOnce(t *testing.T) {
	l := newLeech(64)
	var asked []int
	for range 8 {
		asked = append(asked, all(l, has(l, choice.Near, 0, upTo(64)...), 0)...)
	}
	slices.Sort(asked)
	if got := len(slices.Compact(slices.Clone(asked))); got != len(asked) || got == 0 {
		t.Errorf("asked for %v", asked)
	}
}

func TestAskedLittle(t *testing.T) {
	l := newLeech(1000)
	n := 0
	for range 30 {
		n += len(all(l, has(l, choice.Near, 0, upTo(1000)...), 0))
	}
	if n < 8 || n > 12 {
		t.Errorf("asked 30 peers for %d pieces in all, want about 10", n)
	}
}

// A long piece is not followed by another while a slow peer has most of it to send.
func TestLongPiecesOfSlowPeer(t *testing.T) {
	const long = 16 << 20
	l := choice.NewLeech(100*long, long, none, newRand())
	p := has(l, choice.Near, 0, upTo(100)...)
	if got := all(l, p, 0); len(got) != 1 {
		t.Fatalf("asked a peer of unknown rate for %d pieces of 16 MiB, want 1", len(got))
	}
}

func TestPipeline(t *testing.T) {
	for _, c := range []struct {
		rate        float64
		pieceLen    int64
		least, most int64
	}{
		{0, 64 << 10, 64 << 10, 256 << 10},
		{25e6 / 8, 64 << 10, 3 * 64 << 10, 8 * 64 << 10}, // one peer fills a link of 25 Mbit/s
		{25e6 / 8 / 16, 64 << 10, 16 << 10, 64 << 10},    // one of sixteen
		{1e4, 16 << 20, 1, 4 << 20},
		{500e6, 512 << 10, 10 << 20, 64 << 20},
		{1e12, 512 << 10, 10 << 20, 64 << 20},
	} {
		if got := choice.Pipeline(c.rate, c.pieceLen); got < c.least || got > c.most {
			t.Errorf("Pipeline(%g, %d) = %d, want %d to %d", c.rate, c.pieceLen, got, c.least, c.most)
		}
	}
}

// One near peer on a fast link is kept busy: at 500 MB/s a millisecond is 500 KB.
func TestFastPeerIsKeptBusy(t *testing.T) {
	l := newLeech(1 << 16)
	p := has(l, choice.Near, 0, upTo(1<<16)...)
	var queue []int
	now := time.Duration(0)
	for range 5000 { // 64 KiB in 0.13 ms
		queue = append(queue, all(l, p, now)...)
		now += 131 * time.Microsecond
		deliver(l, p, queue[0], now)
		queue = queue[1:]
	}
	if ahead := len(queue) * pieceLen; ahead < 1<<20 {
		t.Errorf("after 0.6 s only %d bytes are asked ahead", ahead)
	}
}

func TestLatePieceIsAskedAgain(t *testing.T) {
	l := newLeech(100)
	dead := has(l, choice.Near, 0, 0)
	next(l, dead, 0)
	other := has(l, choice.Near, 0, 0)
	if got := next(l, other, 2*time.Second); got != -1 {
		t.Errorf("a piece asked for 2 s ago was asked of another peer")
	}
	l.Progress(dead, 0, chunk, 2*time.Second)
	if got := next(l, other, 3200*time.Millisecond); got != -1 {
		t.Errorf("a piece was asked of another peer though its own spoke 1.2 s ago")
	}
	if got := next(l, other, 3600*time.Millisecond); got != 0 {
		t.Fatalf("Next = %d, want piece 0, of which nothing came for 1.6 s", got)
	}
	third := has(l, choice.Near, 0, 0)
	if got := next(l, third, 5*time.Second); got != -1 {
		t.Errorf("a piece was asked of a third peer when the second had had it for 1.4 s")
	}
	if got := next(l, third, 7*time.Second); got != 0 {
		t.Errorf("Next = %d, want piece 0, with which two peers are late", got)
	}
	if also := deliver(l, third, 0, 8*time.Second); !slices.Equal(also, []*choice.Peer{dead, other}) {
		t.Errorf("Done told to cancel at %d peers, want the two late ones", len(also))
	}
}

// At the end others are asked for what is late, and later on a thin link, where a piece
// that is on its way takes longer.
func TestEndOfTheBlob(t *testing.T) {
	for _, test := range []struct {
		name        string
		each        time.Duration // for a piece, on our link
		early, late time.Duration // after it was asked for
	}{
		{"fast", 5 * time.Millisecond, 450 * time.Millisecond, 550 * time.Millisecond},
		{"thin", 100 * time.Millisecond, 1500 * time.Millisecond, 1700 * time.Millisecond},
		{"very thin", time.Second, 2900 * time.Millisecond, 3100 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLeech(100)
			p, other := has(l, choice.Near, 0, upTo(100)...), has(l, choice.Near, 0)
			now := time.Duration(0)
			for range 99 {
				i := next(l, p, now)
				now += test.each
				deliver(l, p, i, now)
			}
			last := next(l, p, now)
			l.Have(other, last)
			if got := next(l, other, now+test.early); got != -1 {
				t.Errorf("piece %d, on its way from another for %v, is asked for again", got, test.early)
			}
			if got := next(l, other, now+test.late); got != last {
				t.Errorf("Next = %d, want piece %d, waited for for %v", got, last, test.late)
			}
		})
	}
}

// A peer that brings nothing is not given another piece for each that is had elsewhere in
// its place, or a few such peers would hold up the reader again and again. When it sends
// something, or after a while, it is asked as any other.
func TestSilentPeerIsAskedForNothing(t *testing.T) {
	l := newLeech(100)
	dead := has(l, choice.Near, 0, upTo(100)...)
	asked := all(l, dead, 0)
	all(l, dead, 1100*time.Millisecond)
	for _, i := range asked[1:] {
		l.Done(i) // it came over HTTP
	}
	if got := next(l, dead, 2*time.Second); got != -1 {
		t.Errorf("asked piece %d of a peer that owes one and has been silent for 2 s", got)
	}
	l.Done(asked[0])
	if got := next(l, dead, 3*time.Second); got != -1 {
		t.Errorf("asked piece %d of a peer that never brought anything", got)
	}
	again := next(l, dead, 8*time.Second)
	if again == -1 {
		t.Error("asked it for nothing 5 s later, either")
	}
	if all(l, dead, 10*time.Second) != nil {
		t.Error("asked a peer for more that is silent again")
	}
	deliver(l, dead, again, 10*time.Second)
	if got := next(l, dead, 10*time.Second); got == -1 {
		t.Error("asked nothing of a peer that sends")
	}
}

// A peer that sends a little all the time does not hold the blob up.
func TestTricklingPeerIsTakenOver(t *testing.T) {
	l := newLeech(100)
	slow := has(l, choice.Near, 0, 0)
	next(l, slow, 0)
	fast := has(l, choice.Near, 0, upTo(100)...)
	for now := time.Duration(0); now < 10*time.Second; now += 100 * time.Millisecond {
		l.Progress(slow, 0, 100, now)
		if i := next(l, fast, now); i >= 0 {
			deliver(l, fast, i, now+50*time.Millisecond)
		}
	}
	if l.Missing() != 0 {
		t.Errorf("%d pieces missing after 10 s, with a fast peer that has them all", l.Missing())
	}
}

// What a reader stands at is asked again sooner, and though its peers are busy.
func TestReaderIsNotHeldUp(t *testing.T) {
	l := newLeech(1000)
	l.Wanted([]int{0})
	dead := has(l, choice.Near, 0, 0)
	next(l, dead, 0)
	busy := has(l, choice.Near, 0, upTo(1000)...)
	for now := time.Duration(0); now < 2*time.Second; now += 50 * time.Millisecond {
		for _, i := range all(l, busy, now) {
			if i == 0 {
				return
			}
			deliver(l, busy, i, now)
		}
	}
	t.Error("after 2 s the piece at which the reader stands was asked of nobody else")
}

func TestStuckPeersDoNotCount(t *testing.T) {
	l := newLeech(1000)
	for range 20 {
		all(l, has(l, choice.Near, 0, upTo(1000)...), 0)
	}
	p := has(l, choice.Near, 0, upTo(1000)...)
	if got := next(l, p, 0); got >= 0 {
		t.Fatalf("asked for more than is to be asked in all")
	}
	if got := next(l, p, 2*time.Second); got < 0 {
		t.Errorf("nothing is asked of a living peer as the others, which are silent, owe so much")
	}
}

func TestFreedPiecesAreAskedElsewhere(t *testing.T) {
	l := newLeech(4)
	a := has(l, choice.Near, 0, 0, 1, 2, 3)
	b := has(l, choice.Near, 0, 0, 1, 2, 3)
	got := all(l, a, 0)
	if len(got) == 0 || len(all(l, b, 0)) != 4-len(got) {
		t.Fatalf("a was asked for %v", got)
	}
	l.Drop(a, got[0])
	l.Lost(a, got[1])
	l.Remove(a)
	for range got {
		i := next(l, b, 0)
		if !slices.Contains(got, i) {
			t.Fatalf("then b was asked for %d, want one of %v", i, got)
		}
		deliver(l, b, i, 0)
	}
}

func TestFailedPieceIsFetchedAgain(t *testing.T) {
	l := newLeech(1)
	p := has(l, choice.Near, 0, 0)
	next(l, p, 0)
	l.Progress(p, 0, pieceLen, 0)
	l.Failed(0)
	if got := next(l, p, 0); got != 0 || l.Missing() != 1 {
		t.Errorf("Next after a wrong hash = %d with %d missing, want piece 0 again", got, l.Missing())
	}
}

func TestResume(t *testing.T) {
	l := choice.NewLeech(10*pieceLen-1, pieceLen, func(i int) bool { return i != 9 }, newRand())
	if l.Missing() != 1 {
		t.Fatalf("Missing = %d, want 1", l.Missing())
	}
	p := has(l, choice.Near, 0, upTo(9)...)
	if got := all(l, p, 0); len(got) > 0 {
		t.Errorf("asked for %v, which is here", got)
	}
	l.Have(p, 9)
	if next(l, p, 0) != 9 {
		t.Error("a peer that has what is missing is not asked for it")
	}
}

func TestFarPeers(t *testing.T) {
	t.Run("what near hosts have", func(t *testing.T) {
		l := newLeech(10)
		has(l, choice.Near, 0, 4)
		far := has(l, choice.Far, 0, 4)
		for now := time.Duration(0); now < time.Minute; now += time.Second {
			if got := next(l, far, now); got >= 0 {
				t.Fatalf("a far peer is asked for piece %d, which a near one has", got)
			}
		}
	})
	t.Run("alone in its zone", func(t *testing.T) {
		l := newLeech(10)
		if got := next(l, has(l, choice.Far, 0, 4), 0); got != 4 {
			t.Errorf("Next = %d, want 4 at once: there is nobody else to get it of", got)
		}
	})
	t.Run("one at a time, and all in the end", func(t *testing.T) {
		l := newLeech(10)
		has(l, choice.Near, 0)
		far := has(l, choice.Far, 0, upTo(10)...)
		for now := time.Duration(0); now < 10*time.Second; now += 100 * time.Millisecond {
			got := all(l, far, now)
			if len(got) > 1 {
				t.Fatalf("a far peer is asked for %v at once", got)
			}
			for _, i := range got {
				deliver(l, far, i, now+50*time.Millisecond)
			}
		}
		if l.Missing() > 0 {
			t.Errorf("%d of 10 pieces that only a far peer has are missing after 10 s", l.Missing())
		}
	})
	t.Run("each piece crosses about once", func(t *testing.T) { crossOnce(t, 0) })
	t.Run("also when we have been up for a month", func(t *testing.T) { crossOnce(t, 30*24*time.Hour) })
}

// crossOnce has eight hosts of a zone see pieces appear in another, a few a second. Each
// piece that one of them has fetched the others have heard of 0.1 s later.
func crossOnce(t *testing.T, now time.Duration) {
	const hosts, pieces = 8, 200
	r := newRand()
	var ls [hosts]*choice.Leech
	var fars [hosts]*choice.Peer
	var nears [hosts]*choice.Peer
	for h := range ls {
		ls[h] = choice.NewLeech(pieces*pieceLen, pieceLen, none, r)
		fars[h] = ls[h].Add(choice.Far, 0)
		for range hosts - 1 {
			nears[h] = ls[h].Add(choice.Near, 0)
		}
	}
	crossed := make([]int, pieces)
	coming := make(map[int]time.Duration) // piece: when all others hear of it
	for step := 0; step < 100*pieces && len(coming) < pieces; step++ {
		now += 20 * time.Millisecond
		if i := step / 5; step%5 == 0 && i < pieces {
			for h, l := range ls {
				l.Have(fars[h], i)
			}
		}
		for h, l := range ls {
			for i, at := range coming {
				if at <= now {
					l.Have(nears[h], i)
				}
			}
			for _, i := range all(l, fars[h], now) {
				crossed[i]++
				deliver(l, fars[h], i, now)
				if _, ok := coming[i]; !ok {
					coming[i] = now + 100*time.Millisecond
				}
			}
		}
	}
	total := 0
	for _, n := range crossed {
		total += n
	}
	if len(coming) < pieces || total > pieces*13/10 {
		t.Errorf("%d of %d pieces crossed, %d times in all, want 1.3 times each at most", len(coming), pieces, total)
	}
}

// Whatever peers do, what is asked of whom stays consistent, and the blob whole.
func TestLeechAtRandom(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 0))
		const pieces = 40
		l := choice.NewLeech(pieces*pieceLen, pieceLen, none, r)
		type peer struct {
			*choice.Peer
			asked []int
		}
		var peers []*peer
		var have [pieces]bool
		now := time.Duration(0)
		for step := 0; l.Missing() > 0; step++ {
			if step > 100_000 {
				t.Fatalf("seed %d: %d pieces missing after %v", seed, l.Missing(), now)
			}
			now += time.Duration(r.IntN(100)) * time.Millisecond
			if len(peers) == 0 || r.IntN(50) == 0 {
				peers = append(peers, &peer{Peer: l.Add(choice.PeerKind(r.IntN(3)), now)})
			}
			k := r.IntN(len(peers))
			p := peers[k]
			switch r.IntN(9) {
			case 0, 1, 2:
				l.Have(p.Peer, r.IntN(pieces))
			case 3:
				l.Wanted([]int{r.IntN(pieces)})
			case 4:
				if r.IntN(20) == 0 {
					l.Remove(p.Peer)
					peers = slices.Delete(peers, k, k+1)
					continue
				}
			case 5:
				if len(p.asked) > 0 && r.IntN(4) == 0 {
					l.Lost(p.Peer, p.asked[0])
					p.asked = p.asked[1:]
				}
			default:
				if len(p.asked) == 0 {
					break
				}
				i := p.asked[0]
				l.Progress(p.Peer, i, pieceLen, now)
				if r.IntN(10) == 0 {
					l.Failed(i)
				} else {
					l.Done(i)
					have[i] = true
				}
				for _, o := range peers {
					o.asked = slices.DeleteFunc(o.asked, func(j int) bool { return i == j })
				}
			}
			for _, i := range all(l, p.Peer, now) {
				if have[i] || slices.Contains(p.asked, i) {
					t.Fatalf("seed %d: asked for piece %d, which is here or asked of the same peer", seed, i)
				}
				p.asked = append(p.asked, i)
			}
		}
	}
}

// Where no piece is rare, pieces are asked for in the reader's order.
func TestCommonPiecesComeInOrder(t *testing.T) {
	l := newLeech(1000)
	l.Wanted([]int{0})
	p := has(l, choice.Near, 0, upTo(1000)...)
	has(l, choice.Near, 0, upTo(1000)...)
	for want := range 500 {
		got := next(l, p, 0)
		if got != want {
			t.Fatalf("asked for %d, want %d", got, want)
		}
		deliver(l, p, got, 0)
	}
	others := []*choice.Peer{has(l, choice.Near, 0), has(l, choice.Near, 0), has(l, choice.Near, 0), has(l, choice.Near, 0)}
	for _, o := range others[:2] {
		for i := range 990 {
			l.Have(o, i)
		}
	}
	l.Wanted([]int{500})
	rare := 0
	for range 20 {
		got := next(l, p, 0)
		if got >= 990 {
			rare++
		}
		deliver(l, p, got, 0)
	}
	if rare == 0 {
		t.Error("pieces that a third of the near peers have were left for the end")
	}
}

// What is on disk and may be right is asked of nobody, late or not, before it is found wrong.
func TestHeldPiecesAreNotAsked(t *testing.T) {
	l := newLeech(10)
	l.Hold(3)
	l.Hold(4)
	l.Wanted([]int{3})
	p, o := has(l, choice.Near, 0, upTo(10)...), has(l, choice.Origin, 0, upTo(10)...)
	asked := append(all(l, p, 0), all(l, o, time.Minute)...)
	if slices.Contains(asked, 3) || slices.Contains(asked, 4) || len(asked) == 0 {
		t.Errorf("asked for %v", asked)
	}
	l.Done(3)
	l.Failed(4)
	l.Wanted([]int{4})
	if i := next(l, has(l, choice.Near, time.Hour, upTo(10)...), time.Hour); i != 4 {
		t.Errorf("asked for %d once 4 was found wrong", i)
	}
}

// sender sends what it is asked for in order, a chunk at a time.
type sender struct {
	*choice.Peer
	rate  float64 // bytes a second
	asked []owed
	ready float64 // bytes it may send now
}

type owed struct {
	piece int
	left  int64
}

func (s *sender) forget(i int) {
	s.asked = slices.DeleteFunc(s.asked, func(o owed) bool { return o.piece == i })
}

// fetchInOrder fetches a blob from such peers over a link of that rate for a reader that
// takes what is here at once. It returns how long that took, for how long the reader waited
// for one piece at most, and what each brought.
func fetchInOrder(t *testing.T, l *choice.Leech, link float64, senders []*sender) (took, stall time.Duration, brought []int64) {
	t.Helper()
	const step = 5 * time.Millisecond
	brought = make([]int64, len(senders))
	room, turn := 0.0, 0
	here, front, since := make(map[int]bool), 0, time.Duration(0)
	for now := step; now < 10*time.Minute; now += step {
		l.Wanted([]int{front})
		for _, s := range senders {
			for _, i := range all(l, s.Peer, now) {
				s.asked = append(s.asked, owed{i, pieceLen})
			}
			s.ready = min(s.ready+s.rate*step.Seconds(), 2*chunk)
		}
		room = min(room+link*step.Seconds(), max(link*step.Seconds(), chunk))
		for idle := 0; room >= chunk && idle < len(senders); turn++ {
			k := turn % len(senders)
			s := senders[k]
			if idle++; s.ready < chunk || len(s.asked) == 0 {
				continue
			}
			idle, s.ready, room = 0, s.ready-chunk, room-chunk
			first := &s.asked[0]
			l.Progress(s.Peer, first.piece, chunk, now)
			brought[k] += chunk
			if first.left -= chunk; first.left > 0 {
				continue
			}
			i := first.piece
			here[i] = true
			l.Done(i)
			for _, o := range senders {
				o.forget(i)
			}
		}
		if l.Missing() == 0 {
			return now, stall, brought
		}
		for ; here[front]; front++ {
			stall, since = max(stall, now-since), now
		}
	}
	t.Fatal("it takes for ever")
	return 0, 0, nil
}

// Peers that offer all and trickle, as hosts or as seeders, cost a reader little: it waits for
// them once, and not at each piece they were asked for.
func TestTricklersHoldUpNoReader(t *testing.T) {
	const pieces, rate = 128, 2800e3
	for _, kind := range []choice.PeerKind{choice.Near, choice.Origin} {
		for _, trickle := range []float64{chunk / 2, chunk * 2} {
			l := newLeech(pieces)
			senders := []*sender{{Peer: has(l, choice.Near, 0, upTo(pieces)...), rate: rate}}
			for range 6 {
				senders = append(senders, &sender{Peer: has(l, kind, 0, upTo(pieces)...), rate: trickle})
			}
			took, stall, _ := fetchInOrder(t, l, lan, senders)
			alone := time.Duration(pieces*pieceLen) * time.Second / rate
			t.Logf("kind %v, %v B/s: %v, where one takes %v alone; a reader stalled for %v", kind, trickle, took, alone, stall)
			if took > alone*3/2+time.Second {
				t.Errorf("kind %v, %v B/s: it took %v, where one takes %v alone", kind, trickle, took, alone)
			}
		}
	}
}

// A host on a slow link is no liar: it brings what its link takes.
func TestSlowHostBringsWhatItCan(t *testing.T) {
	const pieces, rate, slow = 512, 2e6, 125e3
	l := newLeech(pieces)
	senders := []*sender{{Peer: has(l, choice.Near, 0, upTo(pieces)...), rate: rate}}
	for range 3 {
		senders = append(senders, &sender{Peer: has(l, choice.Near, 0, upTo(pieces)...), rate: slow})
	}
	took, _, brought := fetchInOrder(t, l, lan, senders)
	for _, n := range brought[1:] {
		if can := slow * took.Seconds(); float64(n) < 0.8*can {
			t.Errorf("a slow host brought %d bytes, and could have brought %.0f", n, can)
		}
	}
}

// Where a host's own link is so slow that all peers are late all of the time, nobody is to
// blame, and hardly anything is fetched twice.
func TestSlowLinkIsNobodysFault(t *testing.T) {
	const pieces, link = 512, 125e3
	for _, hosts := range []int{6, 12} {
		l := newLeech(pieces)
		var senders []*sender
		for range hosts {
			senders = append(senders, &sender{Peer: has(l, choice.Near, 0, upTo(pieces)...), rate: lan / 10})
		}
		_, _, brought := fetchInOrder(t, l, link, senders)
		all := int64(0)
		for _, n := range brought {
			all += n
		}
		twice := float64(all)/(pieces*pieceLen) - 1
		t.Logf("%d hosts: %.1f %% came twice", hosts, 100*twice)
		if twice > 0.05 {
			t.Errorf("%d hosts: %.1f %% came twice", hosts, 100*twice)
		}
	}
}

// A slow host among others is asked for pieces that the reader is not about to come to, and
// which are left to it: of little that it brings nothing is of use.
func TestSlowHostIsOfUse(t *testing.T) {
	const pieces, rate, slow = 1024, 250e3, 31e3
	l := newLeech(pieces)
	var senders []*sender
	for k := range 14 {
		s := &sender{Peer: has(l, choice.Near, 0, upTo(pieces)...), rate: rate}
		if k < 3 {
			s.rate = slow
		}
		senders = append(senders, s)
	}
	took, _, brought := fetchInOrder(t, l, lan, senders)
	all := int64(0)
	for _, n := range brought {
		all += n
	}
	twice, theirs := float64(all-pieces*pieceLen), 3*slow*took.Seconds()
	t.Logf("%.0f of %.0f bytes that slow hosts can send came twice", twice, theirs)
	if twice > theirs/4 {
		t.Errorf("%.0f of %.0f bytes that slow hosts can send came twice", twice, theirs)
	}
}

// tardy returns a peer that has all pieces and is tardy, as it owed one at which a reader
// stood, and another one, which has all but the last.
func tardy(t *testing.T, l *choice.Leech, pieces int) (slow, other *choice.Peer, now time.Duration) {
	t.Helper()
	slow, other = has(l, choice.Near, 0, upTo(pieces)...), has(l, choice.Near, 0, upTo(pieces-1)...)
	l.Wanted([]int{0})
	if i := next(l, slow, 0); i != 0 {
		t.Fatalf("asked for %d first", i)
	}
	for now < 10*time.Second {
		asked := all(l, other, now)
		now += 50 * time.Millisecond
		for _, i := range asked {
			deliver(l, other, i, now)
		}
		if slices.Contains(asked, 0) {
			l.Drop(slow, 0)
			return slow, other, now
		}
	}
	t.Fatal("a reader waits for ever")
	return nil, nil, 0
}

// Who is tardy is asked for pieces that a reader does not come to soon, one at a time; but
// for those that nobody else gives as anybody would be.
func TestTardyPeerIsAskedAwayFromTheReader(t *testing.T) {
	const pieces = 1000
	l := newLeech(pieces)
	slow, _, now := tardy(t, l, pieces)
	l.Wanted([]int{900})
	i := next(l, slow, now)
	if i < 0 || 900 <= i && i < 908 {
		t.Errorf("asked for %d, which a reader comes to", i)
	}
	if i := next(l, slow, now); i >= 0 {
		t.Errorf("asked for %d besides", i)
	}
	l.Drop(slow, i)
	l.Wanted([]int{pieces - 4})
	if i := next(l, slow, now); i != pieces-1 {
		t.Errorf("asked for %d, want the last one, which nobody else has", i)
	}
	l.Drop(slow, pieces-1)
	l.Wanted([]int{900})
	l.Drop(slow, next(l, slow, now))
	if i := next(l, slow, now+2*time.Second); i != 900 {
		t.Errorf("asked for %d, want 900, which nobody has brought to the reader", i)
	}
}

// A piece that a tardy peer has sent all of, and that is not verified yet, is not asked for
// again; and who sent it in time is tardy no more.
func TestTardyPeerSendsAll(t *testing.T) {
	for _, c := range []struct {
		took  time.Duration
		tardy bool
	}{{500 * time.Millisecond, false}, {5 * time.Second, true}} {
		const pieces = 1000
		l := newLeech(pieces)
		slow, _, now := tardy(t, l, pieces)
		l.Wanted([]int{pieces - 1})
		if i := next(l, slow, now); i != pieces-1 {
			t.Fatalf("asked for %d", i)
		}
		now += c.took
		for range pieceLen / chunk {
			l.Progress(slow, pieces-1, chunk, now)
		}
		third := has(l, choice.Near, now, pieces-1)
		if i := next(l, third, now); i >= 0 {
			t.Errorf("after %v: asked for %d, which is here", c.took, i)
		}
		l.Done(pieces - 1)
		l.Wanted([]int{900})
		if i := next(l, slow, now); (i != 900) != c.tardy {
			t.Errorf("after %v: asked for %d while a reader stands at 900", c.took, i)
		}
	}
}
