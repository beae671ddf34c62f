// Package handout chooses which peers of a swarm a host is told of, so that
// those told of one another make a good graph: random, near to regular, and so
// of small diameter.
//
// A small swarm's peers are all told of one another. In one of more than
// 2*[Degree] a newcomer is told of Degree others, drawn at random from those who
// have fewer than [MaxDegree] neighbours, and is then found by who comes later. Who comes last
// finds places as the first did, since each newcomer takes Degree places of
// MaxDegree: a third of a swarm has room whatever its size. Some time after, who
// has not been found enough asks again, so that all have 2*Degree and more. In a
// random graph of such degrees any two of N peers are about log N / log 2*Degree
// steps apart: of 10,000 three or four.
//
// A neighbour is whom the swarm has told a peer of, or told of it, while both
// are there: one who leaves, or is silent too long, makes room at all of its
// neighbours. Whether two did connect is not known here. But who asks for n
// peers has lost them or never had them, so the oldest of what was counted for
// it beyond 2*Degree-n is struck off, and it is told of others first.
//
// An ordinary client, which asks for more than 2*Degree, is given them all,
// but only Degree are counted.
//
// Most neighbours are of the same zone, and a few (see across) are not, so that
// bytes cross zones seldom but no zone is cut off. And the swarm keeps the
// places at the seeder beside the tracker, of which there are [OriginPlaces].
//
// The package knows no clock, no network and no lock: time comes as an argument
// and chance from a generator, so that a simulation can drive it. The tracker
// around it is package tracker.
package handout

import (
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

const (
	// Degree is how many neighbours a peer of a large swarm is given at a time.
	Degree = 10
	// MaxDegree bounds a peer's neighbours, those given to it and those it was
	// given to.
	MaxDegree = 3 * Degree
	// OriginPlaces is how many peers that lack something are told of the origin
	// at the same time: enough that its uplink has a choice whom to feed, few
	// enough that it can keep a connection with each.
	OriginPlaces = 32
	// spareEvery is how often one more is told of the origin though all places are
	// taken: their holders may have died without a word, and be forgotten late.
	spareEvery = time.Second
	// MaxPeers is how many peers a swarm can hold: they are numbered in 16 bits,
	// which halves the memory of a large swarm.
	MaxPeers = 1<<16 - 2

	// across is how many neighbours of other zones a peer is given; an ordinary
	// client a fifth of what it asks for.
	across = 2
	// maxAcross bounds the neighbours a peer has in other zones, or else the
	// hosts of a large zone would take up all places of a small one, and those
	// of the small one not find each other.
	maxAcross = 3 * across
	// maxZones bounds the zones told apart in one swarm, since anybody may name
	// one. Peers of later zones count as having none.
	maxZones = 256
)

// Swarm is the peers of one torrent.
type Swarm struct {
	rand      *rand.Rand
	seed      maphash.Seed
	slots     []uint16 // index of peers by address, see find
	peers     []peer   // in no order
	zones     []zone
	waiting   []*Waiter     // the longest first
	complete  int           // peers that have everything
	completed int           // how many have said so
	fed       int           // peers that have a place at the origin
	spare     time.Duration // when one more may be told of it
}

// Peer is a peer as it is handed out.
type Peer struct {
	Addr netip.AddrPort
	ID   [20]byte
}

// Ask is what an announce says.
type Ask struct {
	// Addrs is where the asker listens: one address, or one of each IP version.
	Addrs []netip.AddrPort
	ID    [20]byte
	Zone  string
	// Complete says that the asker lacks nothing. It is not told of others like it.
	Complete bool
	// Completed says that it has come to be so just now, for Completed to count.
	Completed bool
	// Want is how many peers it asks for.
	Want int
	// Fresh asks for peers that it has not been told of before or nobody. Else
	// those make up the number.
	Fresh bool
	// Origin says that there is an origin that the asker can be told of.
	Origin bool
	// Now is the time, and Expires when the asker is to be forgotten, on the clock of Expire.
	Now, Expires time.Duration
}

// New returns an empty swarm. r is used as long as the swarm is.
func New(r *rand.Rand) *Swarm { return &Swarm{rand: r, seed: maphash.MakeSeed()} }

// Announce lists the asker, or renews it, and appends the peers that it is
// told of to dst. A newcomer is not listed if there are max peers already.
// origin says that it is told of the origin too, which counts as one of those
// it wants. Peers that wait may be told of the asker.
func (s *Swarm) Announce(a *Ask, max int, dst []Peer) (peers []Peer, origin bool) {
	i, isNew := s.enlist(a, min(max, MaxPeers))
	want := a.Want
	if a.Origin && want > 0 && s.feed(i, a) {
		origin = true
		want--
	}
	p := picker{s: s, ask: a, self: i, known: s.neighbours(i)}
	if want > 0 {
		p.strikeOld(want)
	}
	p.meetWaiting(want, isNew)
	if want > 0 {
		p.pick(want)
	}
	for _, c := range p.chosen {
		dst = append(dst, s.peers[c].handed())
	}
	return dst, origin
}

// enlist takes every address of a up and returns the number of the first;
// nobody if that is not listed.
func (s *Swarm) enlist(a *Ask, max int) (first int, isNew bool) {
	if a.Completed {
		s.completed++
	}
	for _, addr := range a.Addrs {
		i, there := s.find(addr)
		if there && (s.peers[i].id != a.ID || s.peers[i].zone != s.zone(a.Zone)) {
			s.remove(i) // a new process took the old one's place
		}
	}
	first = nobody
	for n, addr := range a.Addrs {
		i, there := s.find(addr)
		if !there && len(s.peers) >= max {
			continue
		}
		if !there {
			i = s.add(addr, a)
		}
		s.renew(i, a)
		if n == 0 {
			first, isNew = i, !there
		}
	}
	return first, isNew
}

// Leave takes the asker off the list, if it is the same client still: a late
// goodbye must not remove the process that took its place.
func (s *Swarm) Leave(a *Ask) {
	for _, addr := range a.Addrs {
		if i, there := s.find(addr); there && s.peers[i].id == a.ID {
			s.remove(i)
		}
	}
}

// Expire forgets the peers whose time was up before now.
func (s *Swarm) Expire(now time.Duration) {
	for i := len(s.peers) - 1; i >= 0; i-- { // from the end, since the last takes a removed one's place
		if time.Duration(s.peers[i].expires)*time.Second < now {
			s.remove(i)
		}
	}
}

// small tells that each peer has room for all others, and for newcomers besides.
func (s *Swarm) small() bool { return len(s.peers) <= 2*Degree+1 }

// Len is how many peers are listed, Complete how many of them lack nothing,
// Completed how many have said in all that they came to be so.
func (s *Swarm) Len() int       { return len(s.peers) }
func (s *Swarm) Complete() int  { return s.complete }
func (s *Swarm) Completed() int { return s.completed }

// feed gives i a place at the origin, if there is one. It reports whether i is told
// of the origin; if it asks for what is fresh, whether it has only just been given
// its place.
func (s *Swarm) feed(i int, a *Ask) bool {
	if i == nobody || s.peers[i].complete {
		return false
	}
	p := &s.peers[i]
	if p.fed || s.fed >= OriginPlaces {
		return !a.Fresh && (p.fed || s.spares(a.Now))
	}
	p.fed = true
	s.fed++
	return true
}

// spares tells whether one more is told of the origin now than there are places.
func (s *Swarm) spares(now time.Duration) bool {
	if now < s.spare {
		return false
	}
	s.spare = now + spareEvery
	return true
}

// Waiter is a peer that waits to be told of another.
type Waiter struct {
	peer int // nobody: it waits no longer
	told func(p Peer, ok bool)
}

// Wait calls told once, from within a later call of Announce, Leave or Expire,
// with the first peer that the asker has not been told of before; or with ok
// false if the asker is not listed any more or waits a second time. An asker
// that is not listed is not waited for, and gets nil.
func (s *Swarm) Wait(a *Ask, told func(p Peer, ok bool)) *Waiter {
	i, there := s.find(a.Addrs[0])
	if !there || s.peers[i].id != a.ID {
		return nil
	}
	s.tell(i, Peer{}, false)
	w := &Waiter{peer: i, told: told}
	s.peers[i].waiting = true
	s.waiting = append(s.waiting, w)
	return w
}

// Cancel ends a wait without a call of told. It may come late.
func (s *Swarm) Cancel(w *Waiter) {
	if w == nil || w.peer == nobody {
		return
	}
	s.peers[w.peer].waiting = false
	w.peer = nobody
	s.waiting = slices.DeleteFunc(s.waiting, func(x *Waiter) bool { return x == w })
}

// tell ends i's wait, if it waits.
func (s *Swarm) tell(i int, p Peer, ok bool) {
	if !s.peers[i].waiting {
		return
	}
	at := slices.IndexFunc(s.waiting, func(w *Waiter) bool { return w.peer == i })
	w := s.waiting[at]
	s.Cancel(w)
	w.told(p, ok)
}

// Each tells of all peers that are listed, in no order.
func (s *Swarm) Each(tell func(p Peer, zone string, complete bool)) {
	for i := range s.peers {
		tell(s.peers[i].handed(), s.zoneOf(i).name, s.peers[i].complete)
	}
}
