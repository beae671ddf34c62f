package swarm

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/layers/swarm/choice"
)

const (
	// maxPeers bounds the connections of one exchange.
	maxPeers = 40
	// enoughPeers is how many a host that fetches looks for. If others connect to it
	// besides, it parts from one of more than mostPeers, or mostFarPeers of other
	// zones. Every piece is told to each, and waits for its turn with each who asks
	// for it: in the simulator 2,000 hosts that keep 11 to 14 neighbours lose half as
	// much over the limit as with 10 to 30. That all keep about as many, and that it
	// is chance who is parted with, makes a random graph of those that the tracker
	// tells of one another in the order in which they come.
	enoughPeers  = 11
	mostPeers    = 14
	mostFarPeers = 6
	// tickEvery is how often an exchange with peers looks for what is late.
	tickEvery = 100 * time.Millisecond
	// idleAfter is how long a connection may move nothing before another may take its
	// place, where there are too many.
	idleAfter = 3 * time.Second
	// deadAfter is how long a peer may owe us something and bring nothing.
	deadAfter = 20 * time.Second
)

// Why a connection is given up.
var (
	errGone      = errors.New("connection given up")
	errSated     = errors.New("nothing left to exchange")
	errOneself   = errors.New("it is ourselves")
	errTwice     = errors.New("connected already")
	errTooMany   = errors.New("enough peers")
	errBanned    = errors.New("banned for wrong pieces")
	errNotShared = errors.New("blob is not shared any more")
)

// exchange is one blob between this host and its peers, from Share or Fetch to Drop.
//
// What comes in and what goes out are decided by package choice, under mu: what to ask
// of whom as long as we lack pieces (leech.go), what to reveal to whom where we are
// the one who has them all (serve.go).
type exchange struct {
	client      *Client
	torrent     *layers.Torrent
	partial     *layers.Partial // nil when the blob was whole from the start
	file        *os.File        // the blob, whole or arriving
	check       checker         // whether it still has what it should
	copied      io.ReaderAt     // what is read instead of sending from file; nil = sending will do
	pieces      int
	chunkLength int64
	trackers    []string        // one beside each seeder
	release     func()          // gives back what Share was given
	leaving     context.Context // ended by leave
	leave       context.CancelFunc
	running     sync.WaitGroup // all goroutines
	tally       *tally
	fetches     int // under way; client.mu guards it

	failOnce sync.Once
	failed   chan struct{} // closed when a piece could not be kept
	failure  error         // why; set before failed is closed

	announcing sync.Mutex // guards the two below
	posts      []*post
	posted     layers.InfoHash // the name they are under

	mu         sync.Mutex // guards the rest, and what peers say of it
	left       bool
	whole      map[string]int // how many hosts have the whole blob, as each tracker says
	sources    int            // how many are, us included
	have       bitset
	missing    int    // pieces
	held       bitset // missing, but on disk unjudged: not to be fetched
	peers      map[[20]byte]*peer
	candidates map[netip.AddrPort]*candidate
	dialing    int
	ticking    bool
	line       *choice.Line // of peers that have asked for something
	arriving   map[int]*piece
	unproven   map[int]*piece // here, but the hash to compare with is not
	suspects   map[int]bool   // came from several and were wrong
	leech      *choice.Leech  // nil when nothing is missing, or this is an origin's
	front      []int          // pieces readers stand at
	frontAt    time.Duration  // since when
	highest    int            // the last piece that any peer has
	seed       *choice.Seed   // nil while nothing is revealed to anyone
	hosts      map[*choice.Host]*peer
	infoLine   []*peer // who waits to be sent the torrent's hashes
	infoBusy   int     // how many are being sent them
	saidInfo   bool    // peers that came before we had them have been told
}

// checker tells of n bytes of a blob from off on whether they may be sent; see
// layers.Blob.CheckForPeer.
type checker func(off, n int64) error

func (c *Client) newExchange(t *layers.Torrent, p *layers.Partial, f *os.File, check checker, copied io.ReaderAt, trackers []string, release func()) *exchange {
	x := &exchange{
		client: c, torrent: t, partial: p, file: f, check: check, copied: copied, pieces: t.Pieces(), chunkLength: chunkLength(t.PieceLength()), trackers: trackers, release: release,
		failed:     make(chan struct{}),
		have:       newBitset(t.Pieces()),
		held:       newBitset(t.Pieces()),
		peers:      make(map[[20]byte]*peer),
		candidates: make(map[netip.AddrPort]*candidate),
		arriving:   make(map[int]*piece),
		unproven:   make(map[int]*piece),
		suspects:   make(map[int]bool),
		hosts:      make(map[*choice.Host]*peer),
		whole:      make(map[string]int),
	}
	x.line = choice.NewLine(turnsOf(c.cfg), tickEvery)
	x.leaving, x.leave = context.WithCancel(context.Background())
	return x
}

// names are the infohashes of the swarm, the one to be used first first.
func (x *exchange) names() []layers.InfoHash {
	var names []layers.InfoHash
	if m := x.torrent.Metainfo(); m != nil {
		names = append(names, m.InfoHash())
	}
	if draft, ok := x.torrent.Draft(); ok {
		names = append(names, draft)
	}
	return names
}

// now is the time as package choice counts it.
func (x *exchange) now() time.Duration { return time.Since(x.client.began) }

// fail ends the fetches of a blob whose bytes cannot be kept.
func (x *exchange) fail(err error) {
	x.failOnce.Do(func() {
		x.failure = err
		close(x.failed)
	})
}

// close ends all connections, waits for them, and lets go of the blob.
func (x *exchange) close() {
	x.mu.Lock()
	x.left = true
	for _, p := range x.peers {
		x.giveUp(p)
	}
	x.mu.Unlock()
	x.leave()
	x.running.Wait()
	_ = x.file.Close() // it was only read
	x.release()
}

// run serves a connection until it ends. It is called on running.
func (x *exchange) run(l *link) {
	defer l.conn.Close()
	p := newPeer(x, l)
	if err := x.admit(p); err != nil {
		x.client.log.Debug("peer not taken", "peer", p.addr, "err", err)
		return
	}
	var writing sync.WaitGroup
	writing.Go(func() {
		if err := p.write(x.leaving); err != nil {
			l.conn.Close()
		}
	})
	err := p.read(x.leaving)
	x.dismiss(p)
	x.client.need(x)
	writing.Wait()
	x.client.log.Debug("peer gone", "peer", p.addr, "received", p.received, "sent", p.sent, "err", err)
}

// admit takes a connection in, or tells why not.
func (x *exchange) admit(p *peer) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	other := x.peers[p.id]
	switch {
	case x.left:
		return errNotShared
	case p.id == x.client.id:
		delete(x.candidates, p.addr)
		return errOneself
	case x.client.bans.has(p.id, p.addr):
		return errBanned
	case other != nil && !x.prefers(p, other):
		return errTwice
	case other == nil && len(x.peers) >= maxPeers && !x.partIdle():
		return errTooMany
	}
	if other != nil {
		x.giveUp(other)
		x.unknown(other) // its reader may take a while to hear of it
		x.leaveLine(other)
		x.infoServed(other)
	}
	x.peers[p.id] = p
	p.movedAt = x.now()
	p.shy = x.reveals()
	p.hello()
	x.tick()
	return nil
}

// partIdle makes room for one more where the connections are as many as may be, at the
// cost of the one that nothing has moved on for longest: its host may have died without
// a word, or never have wanted anything but the place. mu is held.
func (x *exchange) partIdle() bool {
	var idle *peer
	for _, p := range x.peers {
		if !p.closed && x.now()-p.movedAt >= idleAfter && (idle == nil || p.movedAt < idle.movedAt) {
			idle = p
		}
	}
	if idle == nil {
		return false
	}
	x.giveUp(idle)
	delete(x.peers, idle.id)
	x.unknown(idle) // its reader may take a while to hear of it
	x.leaveLine(idle)
	x.infoServed(idle)
	return true
}

// prefers decides between two connections to one peer, so that both ends decide alike:
// for the one that the lesser peer ID dialed. Of two from the same end the older is dead.
// But who calls from another address may only claim to be that peer.
func (x *exchange) prefers(p, other *peer) bool {
	if !p.dialed && p.addr.Addr() != other.addr.Addr() {
		return false
	}
	if p.dialed == other.dialed {
		return true
	}
	return p.dialed == (string(x.client.id[:]) < string(p.id[:]))
}

// giveUp ends a connection. Its reader hears of it and dismisses it. mu is held.
func (x *exchange) giveUp(p *peer) {
	p.closed = true
	p.conn.Close()
}

// dismiss takes a connection out that has ended.
func (x *exchange) dismiss(p *peer) {
	p.conn.Close()
	x.mu.Lock()
	defer x.mu.Unlock()
	p.closed = true
	close(p.gone)
	if x.peers[p.id] == p {
		delete(x.peers, p.id)
	}
	x.unknown(p)
	x.leaveLine(p)
	x.infoServed(p)
	x.seekInfo()
}

// known makes p, which has said who it is, a source and a taker. mu is held.
func (x *exchange) known(p *peer) {
	if !p.met {
		p.met = true
		x.makeRoom(p)
	}
	if x.leech != nil && p.source == nil {
		p.source = x.leech.Add(x.kind(p), x.now())
	}
	if p.shy && p.host == nil {
		p.host = x.revealing().Add(p.who.zone, x.now())
		x.hosts[p.host] = p
		x.reveal()
	}
}

// makeRoom parts us from a random host of p's kind if with p there are too many. Not
// from other clients, of which there are few: they may know of nobody else. mu is held.
func (x *exchange) makeRoom(p *peer) {
	kind, most := x.kind(p), mostPeers
	if kind == choice.Far {
		most = mostFarPeers
	}
	if x.leech == nil || kind == choice.Origin || !p.who.murder() {
		return
	}
	var parted *peer
	same := 1
	for _, o := range x.peers {
		if o == p || o.closed || !o.met || !o.who.murder() || x.kind(o) != kind {
			continue
		}
		same++
		if rand.IntN(same-1) == 0 {
			parted = o
		}
	}
	if same > most {
		x.giveUp(parted)
	}
}

func (x *exchange) kind(p *peer) choice.PeerKind {
	switch {
	case p.who.seeder:
		return choice.Origin
	case p.who.murder() && p.who.zone != x.client.cfg.Zone:
		return choice.Far
	}
	return choice.Near
}

// unknown undoes known. mu is held.
func (x *exchange) unknown(p *peer) {
	x.takeBack(p)
	if p.source != nil {
		x.leech.Remove(p.source)
		p.source = nil
		x.pumpAll()
	}
	if p.host != nil {
		x.seed.Remove(p.host, x.now())
		delete(x.hosts, p.host)
		p.host = nil
		x.reveal()
	}
}

// tick looks after the peers as long as there are any. mu is held.
func (x *exchange) tick() {
	if x.ticking || x.left {
		return
	}
	x.ticking = true
	x.running.Go(func() {
		tick := time.NewTicker(tickEvery)
		defer tick.Stop()
		for {
			select {
			case <-x.leaving.Done():
				return
			case <-tick.C:
			}
			if !x.look() {
				return
			}
		}
	})
}

// look is one tick. It returns false when there is nobody to look after.
func (x *exchange) look() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.redial()
	if len(x.peers) == 0 && x.dialing == 0 && len(x.candidates) == 0 {
		x.ticking = false
		x.seed = nil
		return false
	}
	now := x.now()
	for _, p := range x.peers {
		if len(p.out) > 0 {
			p.kick()
		}
		if p.requests > 0 && now-p.heardAt > deadAfter {
			x.client.log.Debug("peer stalls", "peer", p.addr, "requests", p.requests)
			x.giveUp(p)
		}
	}
	x.line.Grant(now)
	x.endInfoTurns(now)
	x.seekInfo()
	x.rescue(now)
	x.pumpAll()
	x.reveal()
	return true
}

// list tells who is connected.
func (x *exchange) list() []layers.Peer {
	x.mu.Lock()
	defer x.mu.Unlock()
	peers := make([]layers.Peer, 0, len(x.peers))
	for _, p := range x.peers {
		peer := layers.Peer{
			Addr: p.addr, Zone: p.who.zone, Seeder: p.who.seeder, Have: p.count, Pieces: x.pieces,
			Received: p.received, Sent: p.sent,
		}
		if p.who.seeder || p.sated && p.who.murder() { // it may not have told us all
			peer.Have = x.pieces
		}
		peer.Complete = peer.Have == x.pieces
		peers = append(peers, peer)
	}
	return peers
}

// random is where choices between equals come from.
func random() *rand.Rand { return rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())) }

// eager is how many peers that lack it hear of a new piece at once. Hardly more than one
// will ask us for it; but each packet costs as much as one full of data, so the others
// hear of it with what else there is to say to them, or at the next tick.
const eager = 4

// tell announces that we have piece i. Who has it too is told as well: by how many pieces
// a host has the others see who is behind and is to be served first. mu is held.
func (x *exchange) tell(i int) {
	told := 0
	for _, p := range x.peers { // in random order
		if p.shy {
			continue
		}
		p.out = appendHave(p.out, i)
		if p.taker.Idle() && told < eager && (p.who.seeder || !p.has.has(i)) {
			told++
			p.kick()
		}
	}
}

// enough tells everybody that we lack nothing any more, and gives up those who lack
// nothing either. mu is held.
func (x *exchange) enough() {
	x.leech = nil
	for _, p := range x.peers {
		p.source = nil
		p.signal(pp.NotInterested)
		if x.done(p) {
			x.giveUp(p)
		}
	}
}

// done tells whether there is nothing left to exchange with p. mu is held.
func (x *exchange) done(p *peer) bool {
	return x.missing == 0 && !p.who.seeder && (p.count == x.pieces || p.sated && p.who.murder())
}

// without is list without what is equal to v.
func without[T comparable](list []T, v T) []T {
	if i := slices.Index(list, v); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}
