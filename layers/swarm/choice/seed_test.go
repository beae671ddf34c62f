package choice_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/murderp2p/murder/layers/swarm/choice"
)

// source is a Seed with hosts that ask at once for what they are shown, and a
// link that sends one piece after the other, each in the same time.
type source struct {
	*choice.Seed
	t      *testing.T
	now    time.Duration
	each   time.Duration // to send a piece
	queue  []choice.Move
	hosts  map[*choice.Host]*taker
	order  []int // pieces in the order in which they left
	pieces int
}

// taker is a host. What it gets it announces, and tells all it is tied to.
type taker struct {
	got   map[int]bool
	deaf  bool // asks for nothing
	mute  bool // announces nothing
	tied  []*choice.Host
	took  int // pieces it got from the source
	taken int // pieces taken back
}

func newSource(t *testing.T, pieces int) *source {
	return &source{
		Seed: choice.NewSeed(pieces, newRand()), t: t, each: 20 * time.Millisecond,
		hosts: make(map[*choice.Host]*taker), pieces: pieces,
	}
}

func (s *source) add(zone string) *choice.Host {
	h := s.Seed.Add(zone, s.now)
	s.hosts[h] = &taker{got: make(map[int]bool)}
	return h
}

// tie makes hosts pass on to each other what they get.
func (s *source) tie(hosts ...*choice.Host) {
	for _, h := range hosts {
		s.hosts[h].tied = hosts
	}
}

// move does what the Seed decides.
func (s *source) move() {
	for _, m := range s.Moves(s.now) {
		h := s.hosts[m.Host]
		switch {
		case m.Withdraw:
			h.taken++
			s.queue = slices.DeleteFunc(s.queue, func(o choice.Move) bool { return o.Host == m.Host && o.Piece == m.Piece })
		case h == nil:
			s.t.Fatalf("piece %d revealed to a host that has left", m.Piece)
		case h.got[m.Piece] && !h.mute:
			s.t.Fatalf("piece %d revealed to a host that has it", m.Piece)
		case !h.deaf:
			s.Asked(m.Host, m.Piece, s.now)
			s.queue = append(s.queue, m)
		}
	}
}

// send sends the next piece, if one was asked for, and says whether.
func (s *source) send() bool {
	s.move()
	s.now += s.each
	if len(s.queue) == 0 {
		return false
	}
	m := s.queue[0]
	s.queue = s.queue[1:]
	s.order = append(s.order, m.Piece)
	s.Sent(m.Host, m.Piece, s.now)
	h := s.hosts[m.Host]
	h.took++
	s.gets(m.Host, m.Piece)
	for _, o := range h.tied {
		s.gets(o, m.Piece)
	}
	return true
}

func (s *source) gets(h *choice.Host, piece int) {
	if t := s.hosts[h]; t != nil && !t.got[piece] {
		t.got[piece] = true
		if !t.mute {
			s.Have(h, piece, s.now)
		}
	}
}

// leave has a host go away.
func (s *source) leave(h *choice.Host) {
	s.Remove(h, s.now)
	delete(s.hosts, h)
	s.queue = slices.DeleteFunc(s.queue, func(m choice.Move) bool { return m.Host == h })
}

func (s *source) whole(h *choice.Host) bool { return len(s.hosts[h].got) == s.pieces }

func TestEachPieceLeavesOnce(t *testing.T) {
	s := newSource(t, 200)
	var hosts []*choice.Host
	for range 8 {
		hosts = append(hosts, s.add(""))
	}
	s.tie(hosts...)
	for s.send() {
	}
	if !slices.Equal(s.order, upTo(200)) {
		t.Errorf("%d pieces left, want each of 200 once and in order: %v", len(s.order), s.order)
	}
	for _, h := range hosts {
		if took := s.hosts[h].took; took < 20 || took > 30 {
			t.Errorf("a host of eight got %d of 200 pieces", took)
		}
	}
}

func TestOneHostGetsAllInOrder(t *testing.T) {
	s := newSource(t, 300)
	s.each = time.Millisecond // 512 MB/s with pieces of 512 KiB
	h := s.add("")
	for s.send() {
		if len(s.queue) < 5 && len(s.order) < 280 && len(s.order) > 1 {
			t.Fatalf("only %d pieces wait for the link after %d", len(s.queue), len(s.order))
		}
	}
	if !s.whole(h) || !slices.Equal(s.order, upTo(300)) {
		t.Errorf("the only host got %d of 300 pieces: %v", len(s.hosts[h].got), s.order)
	}
}

// A host with no other source is served to the end, whatever the others do.
func TestHostWithoutPeersGetsAll(t *testing.T) {
	s := newSource(t, 200)
	alone := s.add("")
	s.tie(s.add(""), s.add(""), s.add(""))
	for n := 0; s.send(); n++ {
		if n > 1000 {
			t.Fatal("sends without end")
		}
	}
	if !s.whole(alone) {
		t.Errorf("it got %d of 200 pieces", len(s.hosts[alone].got))
	}
	for i := range 200 {
		if first := slices.Index(s.order, i); slices.Contains(s.order[:first], i) || first < 0 {
			t.Errorf("piece %d never left", i)
		}
	}
	if again := firstTwice(s.order); again < 190 {
		t.Errorf("a piece left twice after %d, before all had left once", again)
	}
}

// firstTwice is how many pieces had left when one left the second time.
func firstTwice(order []int) int {
	seen := make(map[int]bool)
	for n, i := range order {
		if seen[i] {
			return n
		}
		seen[i] = true
	}
	return len(order)
}

func TestHostThatDoesNotPassOnComesLast(t *testing.T) {
	s := newSource(t, 200)
	free := s.add("")
	var hosts []*choice.Host
	for range 4 {
		hosts = append(hosts, s.add(""))
	}
	s.tie(hosts...)
	for len(s.order) < 180 {
		s.send()
	}
	if took := s.hosts[free].took; took > 15 {
		t.Errorf("a host that passes nothing on got %d of the first 180 pieces", took)
	}
	for s.send() {
	}
	if !s.whole(free) {
		t.Errorf("it got %d of 200 pieces in the end", len(s.hosts[free].got))
	}
}

// With nobody else to serve, even such a host keeps the link busy.
func TestHostsThatDoNotPassOnAreServed(t *testing.T) {
	s := newSource(t, 100)
	a, b := s.add(""), s.add("")
	for n := range 200 {
		if !s.send() {
			t.Fatalf("nothing to send after %d pieces", n)
		}
	}
	if !s.whole(a) || !s.whole(b) {
		t.Errorf("two hosts got %d and %d of 100 pieces", len(s.hosts[a].got), len(s.hosts[b].got))
	}
}

func TestWhoLeavesTakesNothingAway(t *testing.T) {
	s := newSource(t, 100)
	a, b := s.add(""), s.add("")
	for len(s.order) < 30 {
		s.send()
	}
	had := s.hosts[a].got
	s.leave(a)
	n := len(s.order)
	for s.send() {
	}
	if !s.whole(b) {
		t.Fatalf("who stayed got %d of 100 pieces", len(s.hosts[b].got))
	}
	soon := s.order[n:][:len(had)+8] // after what was open already
	for i := range had {
		if !slices.Contains(soon, i) {
			t.Errorf("piece %d, which only the host had that left, was not among the next: %v", i, soon)
		}
	}
}

// What a deaf host was shown goes to others, and the link does not wait for it.
func TestDeafHost(t *testing.T) {
	s := newSource(t, 100)
	deaf := s.add("")
	s.hosts[deaf].deaf = true
	a, b := s.add(""), s.add("")
	s.tie(a, b)
	for n := 0; !s.whole(a); n++ {
		if n > 2000 {
			t.Fatalf("the others got %d of 100 pieces in %v", len(s.hosts[a].got), s.now)
		}
		s.send()
	}
	if s.now > 5*time.Second {
		t.Errorf("it took %v until the others had what the deaf host was shown", s.now)
	}
}

// A host that falls silent, its connection still there, takes nothing with it.
func TestSilentHost(t *testing.T) {
	s := newSource(t, 100)
	dead := s.add("")
	a, b := s.add(""), s.add("")
	s.tie(a, b)
	for len(s.order) < 40 {
		s.send()
	}
	s.hosts[dead].deaf, s.hosts[dead].mute = true, true
	for n := 0; !s.whole(a); n++ {
		if n > 2000 {
			t.Fatalf("the others got %d of 100 pieces in %v", len(s.hosts[a].got), s.now)
		}
		s.send()
	}
	if s.now > 10*time.Second {
		t.Errorf("it took %v until the others had what only the silent host has", s.now)
	}
}

func TestOnlyWhatIsHereIsRevealed(t *testing.T) {
	s := newSource(t, 50)
	s.Here(0)
	h := s.add("")
	if s.send() {
		t.Fatalf("revealed piece %d, of which nothing is here", s.order[0])
	}
	for here := 1; here <= 50; here++ {
		s.Here(here)
		if !s.send() || s.send() {
			t.Fatalf("with %d pieces here %d have been sent", here, len(s.order))
		}
	}
	if !s.whole(h) || !slices.Equal(s.order, upTo(50)) {
		t.Errorf("sent %v", s.order)
	}
}

// Every piece leaves once before any leaves for the second zone too.
func TestZones(t *testing.T) {
	s := newSource(t, 100)
	near := []*choice.Host{s.add("near"), s.add("near")}
	far := []*choice.Host{s.add("far"), s.add("far")}
	s.tie(near...)
	s.tie(far...)
	for s.send() {
	}
	if again := firstTwice(s.order); again < 95 {
		t.Errorf("a piece left twice when only %d had left", again)
	}
	if !s.whole(near[1]) || !s.whole(far[1]) {
		t.Error("zones without a way between them did not both get the blob")
	}
	if n := len(s.order); n > 210 {
		t.Errorf("%d pieces were sent for two zones of 100", n)
	}
}

// Two sources with the same hosts share the work. A host that gets a piece tells
// both sources at once, and the other hosts have it five pieces later.
func TestSourcesShare(t *testing.T) {
	for seed := range uint64(20) {
		const pieces, hosts = 600, 4
		r := rand.New(rand.NewPCG(seed, 0))
		var ss [2]*choice.Seed
		var queue [2][]choice.Move
		var ends [2][hosts]*choice.Host
		numbers := make(map[*choice.Host]int)
		for k := range ss {
			ss[k] = choice.NewSeed(pieces, r)
			ss[k].Shared(2)
			for h := range hosts {
				ends[k][h] = ss[k].Add("", 0)
				numbers[ends[k][h]] = h
			}
		}
		var got [hosts][pieces]bool
		gets := func(h, piece int, now time.Duration) {
			if !got[h][piece] {
				got[h][piece] = true
				ss[0].Have(ends[0][h], piece, now)
				ss[1].Have(ends[1][h], piece, now)
			}
		}
		var spread [][]int
		sent, firsts := 0, 0
		left := make(map[int]bool)
		for now := time.Duration(0); len(left) < pieces && now < time.Minute; now += 20 * time.Millisecond {
			var out []int
			for k, s := range ss {
				for _, m := range s.Moves(now) {
					s.Asked(m.Host, m.Piece, now)
					queue[k] = append(queue[k], m)
				}
				if len(queue[k]) == 0 {
					continue
				}
				m := queue[k][0]
				queue[k] = queue[k][1:]
				s.Sent(m.Host, m.Piece, now)
				gets(numbers[m.Host], m.Piece, now)
				out = append(out, m.Piece)
				left[m.Piece] = true
				if sent++; k == 0 {
					firsts++
				}
			}
			if spread = append(spread, out); len(spread) > 5 {
				for _, i := range spread[len(spread)-6] {
					for h := range hosts {
						gets(h, i, now)
					}
				}
			}
		}
		if len(left) < pieces || sent > pieces*115/100 || firsts < pieces/3 || firsts > pieces*2/3+pieces/10 {
			t.Errorf("seed %d: two sources sent %d pieces, %d of them the first, for %d of %d", seed, sent, firsts, len(left), pieces)
		}
	}
}

func TestWhatNobodyAsksForIsTakenBack(t *testing.T) {
	s := newSource(t, 10)
	h := s.add("")
	s.hosts[h].deaf = true
	for s.move(); s.hosts[h].taken == 0; s.move() {
		if s.now += 100 * time.Millisecond; s.now > time.Minute {
			t.Fatalf("reveals that nobody asks for stand after %v", s.now)
		}
	}
}

// Whatever hosts do, who stays long enough has it all, and nothing odd is said.
func TestSeedAtRandom(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 0))
		s := newSource(t, 60)
		last := s.add("a")
		var hosts []*choice.Host
		for n := 0; !s.whole(last); n++ {
			if n > 20_000 {
				t.Fatalf("seed %d: %d of 60 pieces after %v", seed, len(s.hosts[last].got), s.now)
			}
			switch r.IntN(20) {
			case 0:
				if len(hosts) < 10 {
					h := s.add(string(rune('a' + r.IntN(3))))
					s.hosts[h].deaf, s.hosts[h].mute = r.IntN(5) == 0, r.IntN(5) == 0
					hosts = append(hosts, h)
				}
			case 1:
				if len(hosts) > 0 {
					k := r.IntN(len(hosts))
					s.leave(hosts[k])
					hosts = slices.Delete(hosts, k, k+1)
				}
			case 2:
				if len(hosts) > 0 {
					s.gets(hosts[r.IntN(len(hosts))], r.IntN(60))
				}
			case 3:
				s.now += time.Duration(r.IntN(2000)) * time.Millisecond
			default:
				s.send()
			}
		}
	}
}

func TestTurn(t *testing.T) {
	behind := choice.NewTurn(100, 1000, time.Second)
	early := choice.NewTurn(200, 1000, 0)
	late := choice.NewTurn(201, 1000, time.Second)
	if !behind.Before(early) || early.Before(behind) {
		t.Error("who has less does not come first")
	}
	if !early.Before(late) || late.Before(early) {
		t.Error("of two that have about as much the first does not come first")
	}
}

func TestZonesNobodyIsLeftInAreForgotten(t *testing.T) {
	s := choice.NewSeed(100, rand.New(rand.NewPCG(1, 2)))
	s.Add("home", 0)
	for n := range 50 {
		h := s.Add(string(rune(0x100+n)), 0)
		s.Have(h, n, 0)
		s.Remove(h, 0)
	}
	if n := s.Zones(); n != 1 {
		t.Errorf("%d zones are kept, want 1", n)
	}
}
