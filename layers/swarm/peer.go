package swarm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/anacrolix/torrent/bencode"
	pp "github.com/anacrolix/torrent/peer_protocol"
	"golang.org/x/time/rate"

	"github.com/murderp2p/murder/layers/swarm/choice"
)

const (
	// keepAliveEvery is how often a silent connection says that it is alive. BEP 3
	// has peers hang up after two minutes.
	keepAliveEvery = time.Minute
	// maxSilence is how long a connection may bring nothing at all.
	maxSilence = 3 * time.Minute
	// maxSlow is how long a peer may take to let us send one chunk.
	maxSlow = time.Minute
	// maxQueue is how many requests of one peer wait at the most: reqq in BEP 10.
	maxQueue = 2048
	// maxUnread bounds what waits for a peer that does not read, in bytes.
	maxUnread = 1 << 20
	// changesPerSecond, and at once, are how often a peer may change what it lets us do,
	// wants, or has in whole: each has us look through the blob's pieces, and costs the peer
	// five bytes. Clients do so every few seconds.
	changesPerSecond, changesAtOnce = 16, 256
)

// peer is a connection in an exchange. Two goroutines serve it: one reads, one writes.
type peer struct {
	*link
	x    *exchange
	wake chan struct{} // has room for one: there is something to write
	gone chan struct{} // closed when the connection has been given up

	// x.mu guards the rest.
	closed     bool
	met        bool // it has said who it is
	who        identity
	introduced bool           // who has been set
	addr       netip.AddrPort // where it takes connections, as far as is known
	has        bitset
	count      int  // pieces it has
	choking    bool // it serves us nothing
	sated      bool // it has said that it wants nothing of us
	changes    *rate.Limiter
	received   int64
	sent       int64
	movedAt    time.Duration // when a chunk last went either way, or it was admitted

	info metadata

	// As a source.
	source   *choice.Peer // nil when it has nothing to say yet, or we lack nothing
	asks     []*ask
	requests int           // asked for and not answered
	heardAt  time.Duration // when it last answered one, or was first asked
	silent   time.Duration // for how long it had owed us an answer when others had brought all

	// As a taker.
	shy     bool         // we do not say what we have, but reveal pieces one by one
	host    *choice.Host // when shy, once it has said who it is
	out     []byte       // messages to go
	queue   []request    // what it asked for, the first first
	served  map[int]int64
	taker   *choice.Taker
	allowed int64 // bytes that may still go to it in this turn
}

func newPeer(x *exchange, l *link) *peer {
	p := &peer{
		link: l, x: x,
		wake: make(chan struct{}, 1), gone: make(chan struct{}),
		addr: l.remote(), has: newBitset(x.pieces), choking: true,
		served: make(map[int]int64), changes: rate.NewLimiter(changesPerSecond, changesAtOnce),
	}
	p.taker = choice.NewTaker(p.turnBegins)
	return p
}

// kick has the writer look for work.
func (p *peer) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// signal says something that has no fields.
func (p *peer) signal(kind pp.MessageType) {
	p.out = appendSignal(p.out, kind)
	p.kick()
}

// hello is how we present ourselves, after the handshake. x.mu is held.
func (p *peer) hello() {
	if p.extends {
		p.sayExtensions()
	}
	switch {
	case p.shy && p.fast:
		p.out = appendSignal(p.out, pp.HaveNone)
	case p.shy:
	case p.x.missing == 0 && p.fast:
		p.out = appendSignal(p.out, pp.HaveAll)
	case p.x.missing == p.x.pieces && p.fast:
		p.out = appendSignal(p.out, pp.HaveNone)
	case p.x.missing < p.x.pieces:
		p.out = appendBitfield(p.out, p.x.have, p.x.pieces)
	}
	p.signal(pp.Unchoke)
	if p.x.leech != nil {
		p.signal(pp.Interested)
	}
}

// sayExtensions is the handshake of BEP 10, which may be said again with what is new.
func (p *peer) sayExtensions() {
	m := pp.ExtendedHandshakeMessage{
		M: map[pp.ExtensionName]pp.ExtensionNumber{pp.ExtensionNameMetadata: ourMetadataID},
		V: p.x.self().String(), Reqq: maxQueue, Port: int(p.x.client.port()),
	}
	if p.offersInfo() {
		m.MetadataSize = p.x.torrent.InfoSize()
	}
	if b, err := bencode.Marshal(m); err == nil {
		p.out = appendExtended(p.out, 0, b, nil)
	}
}

// read hears the peer until the connection ends.
func (p *peer) read(ctx context.Context) error {
	d := decoder{r: p.r, bitfield: (p.x.pieces + 7) / 8}
	buf := chunkBuffers.Get().(*[]byte)
	defer chunkBuffers.Put(buf)
	for {
		if err := p.conn.SetReadDeadline(time.Now().Add(maxSilence)); err != nil {
			return err
		}
		m, err := d.next()
		if err != nil {
			return err
		}
		if m.alive {
			continue
		}
		if m.kind == pp.Piece {
			chunk := (*buf)[:m.req.length]
			if err := p.link.chunk(chunk); err != nil {
				return err
			}
			if err := p.x.client.cfg.Download.Wait(ctx, len(chunk)); err != nil {
				return err
			}
			err = p.x.chunk(p, m.req, chunk)
		} else {
			err = p.x.heard(p, m)
		}
		if err != nil {
			return err
		}
	}
}

// write tells the peer what there is to say, and serves it when it is its turn.
func (p *peer) write(ctx context.Context) error {
	alive := time.NewTicker(keepAliveEvery)
	defer alive.Stop()
	var buf []byte
	for {
		select {
		case <-p.wake:
		case <-alive.C:
			if err := p.say(make([]byte, 4)); err != nil {
				return err
			}
		case <-p.gone:
			return nil
		}
		for {
			head, req, ok := p.x.toWrite(p, buf[:0])
			if len(head) == 0 && !ok {
				break
			}
			buf = head
			var err error
			if ok {
				err = p.serve(ctx, head, req)
			} else if err = p.limitInfo(ctx, head); err == nil {
				err = p.say(head)
			}
			if err != nil {
				return err
			}
		}
	}
}

// limitInfo holds b to the upload limit if there is metadata in it, which is longer than
// all else that is said.
func (p *peer) limitInfo(ctx context.Context, b []byte) error {
	if len(b) < infoBlock/4 {
		return nil
	}
	return p.x.client.cfg.Upload.Wait(ctx, len(b))
}

// say sends b.
func (p *peer) say(b []byte) error {
	if err := p.conn.SetWriteDeadline(time.Now().Add(maxSlow)); err != nil {
		return err
	}
	_, err := p.w.Write(b)
	return err
}

// serve sends head and the chunk that req asks for.
func (p *peer) serve(ctx context.Context, head []byte, req request) error {
	if err := p.x.client.cfg.Upload.Wait(ctx, int(req.length)); err != nil {
		return err
	}
	// Only now: what the limit made us wait was not the peer's fault.
	if err := p.conn.SetWriteDeadline(time.Now().Add(maxSlow)); err != nil {
		return err
	}
	off := int64(req.index)*p.x.torrent.PieceLength() + int64(req.begin)
	if err := p.x.check(off, int64(req.length)); err != nil {
		return err
	}
	var err error
	if head = appendPiece(head, req); p.x.copied != nil {
		err = p.sendCopied(head, p.x.copied, off, int64(req.length))
	} else {
		err = p.send(head, p.x.file, off, int64(req.length))
	}
	if err == nil {
		p.x.wrote(p, req)
	}
	return err
}

var (
	errUnread = errors.New("the peer does not read")
	errFickle = errors.New("the peer changes its mind too often")
)

// heard takes in what p says, but for chunks.
func (x *exchange) heard(p *peer, m message) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p.closed {
		return errGone
	}
	if len(p.out) > maxUnread {
		return errUnread
	}
	switch m.kind {
	case pp.Choke, pp.Unchoke, pp.Interested, pp.NotInterested, pp.HaveAll, pp.HaveNone, pp.Bitfield:
		if !p.changes.Allow() {
			return errFickle
		}
	}
	switch m.kind {
	case pp.Extended:
		if len(m.body) > 0 && m.body[0] == ourMetadataID {
			x.heardInfo(p, m.body[1:])
		} else {
			p.introduce(m.body)
		}
		return nil // what it has to offer comes next
	case pp.Interested:
		p.sated = false
	case pp.NotInterested:
		p.sated = true
	case pp.Request:
		return x.asked(p, m.req)
	case pp.Cancel:
		x.cancelled(p, m.req)
		return nil
	}
	x.known(p)
	switch m.kind {
	case pp.Choke:
		p.choking = true
		x.takeBack(p)
	case pp.Unchoke:
		p.choking = false
	case pp.Have:
		if m.index >= x.pieces {
			return fmt.Errorf("have of piece %d among %d: %w", m.index, x.pieces, errMessage)
		}
		if p.has.has(m.index) {
			return nil
		}
		x.offered(p, m.index)
	case pp.HaveAll:
		for i := range x.pieces {
			x.offered(p, i)
		}
	case pp.Bitfield:
		if len(m.body) != (x.pieces+7)/8 {
			return fmt.Errorf("bitfield of %d bytes for %d pieces: %w", len(m.body), x.pieces, errMessage)
		}
		for i := range x.pieces {
			if m.body[i/8]&(0x80>>(i%8)) != 0 {
				x.offered(p, i)
			}
		}
	case pp.Reject:
		x.rejected(p, m.req)
	}
	x.pump(p)
	if x.done(p) {
		return errSated
	}
	return nil
}

// introduce takes in the handshake of BEP 10, number 0. A second one says only what is
// new.
func (p *peer) introduce(b []byte) {
	var m pp.ExtendedHandshakeMessage
	if len(b) > 0 && b[0] == 0 && decode(b[1:], &m) == nil {
		if !p.introduced { // who it is it cannot change: much has gone by it
			p.introduced, p.who = true, parseIdentity(m.V)
		}
		if id, ok := m.M[pp.ExtensionNameMetadata]; ok {
			p.info.id = id
		}
		if m.MetadataSize > 0 {
			p.info.size = m.MetadataSize
			p.x.infoServed(p)
			p.x.seekInfo()
		}
		if m.Port > 0 && m.Port < 1<<16 {
			p.addr = netip.AddrPortFrom(p.addr.Addr(), uint16(m.Port))
		}
		p.x.sourcesAre(p.who.origins)
	}
}

// decode reads bencode of strangers. The library makes room for a string of any length
// that it is told of before it looks whether it is there.
func decode(b []byte, v any) error {
	_, err := decodeHead(b, v)
	return err
}

// decodeHead reads bencode that something follows, and returns that.
func decodeHead(b []byte, v any) (rest []byte, err error) {
	r := bytes.NewReader(b)
	d := bencode.NewDecoder(r)
	d.MaxStrLen = int64(len(b))
	if err := d.Decode(v); err != nil {
		return nil, err
	}
	return b[d.Offset:], nil
}

// offered notes that p has piece i.
func (x *exchange) offered(p *peer, i int) {
	if p.has.has(i) {
		return
	}
	p.has.set(i)
	p.count++
	x.highest = max(x.highest, i)
	if p.source != nil {
		x.leech.Have(p.source, i)
	}
	if p.host != nil {
		x.seed.Have(p.host, i, x.now())
		x.reveal()
	}
}
