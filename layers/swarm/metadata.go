package swarm

import (
	"math/rand/v2"
	"time"

	"github.com/anacrolix/torrent/bencode"
	pp "github.com/anacrolix/torrent/peer_protocol"
)

// Who joins a swarm need not know its piece hashes: they go from peer to peer, as BEP 9
// has it, so that a fleet does not wait for a seeder that sends them to all. Whoever has
// them gives them to a few at a time and the others meanwhile get them from those.
const (
	// infoBlock is how much one message has of it: BEP 9.
	infoBlock = 16 << 10
	// infoTurns is how many peers we send it to at a time. A turn ends when the peer
	// says that it has it, or after infoTurn.
	infoTurns = 3
	infoTurn  = 300 * time.Millisecond
	// infoAsks is how many mirrors are asked for it at a time, besides a seeder.
	infoAsks = 2
	// infoPatience is how long one may take before another is asked besides.
	infoPatience = 500 * time.Millisecond
	// infoTimes is how often one peer is sent all of it: it may have dropped a block.
	infoTimes = 3
	// ourMetadataID is by what number peers send us such messages (BEP 10).
	ourMetadataID = 1
)

// metadata is how a peer and we exchange what is under "info" in the torrent file. The
// exchange's mu guards it.
type metadata struct {
	id      pp.ExtensionNumber // by what it takes such messages; 0 = it does not
	size    int                // bytes that it has; 0 = none
	coming  []byte             // what we have asked it for; nil = nothing
	since   time.Duration      // when that was
	lacking int                // blocks of it that have not come
	came    bitset
	useless bool          // it has refused, or what it sent was wrong
	asked   []int         // blocks that it has asked us for
	sent    int           // blocks that it has been sent
	turn    bool          // it is being sent them
	begun   time.Duration // when that began
}

// offersInfo tells whether p can be sent the hashes under the name it knows the swarm by.
func (p *peer) offersInfo() bool {
	m := p.x.torrent.Metainfo()
	return m != nil && m.InfoHash() == p.name
}

// sayInfo tells everybody that we have the hashes now. mu is held.
func (x *exchange) sayInfo() {
	if x.saidInfo || x.torrent.Metainfo() == nil {
		return
	}
	x.saidInfo = true
	for _, p := range x.peers {
		p.info.coming, p.info.came = nil, nil
		if p.extends && p.offersInfo() {
			p.sayExtensions()
			p.kick()
		}
	}
}

// seekInfo asks for the hashes if we lack them: a seeder, and some mirrors. mu is held.
func (x *exchange) seekInfo() {
	if x.partial == nil || !x.torrent.Named() || x.torrent.Metainfo() != nil {
		return
	}
	mirrors, seeders := 0, 0
	for _, p := range x.peers {
		switch {
		case p.info.coming == nil || x.now()-p.info.since > infoPatience:
		case p.who.seeder:
			seeders++
		default:
			mirrors++
		}
	}
	for _, p := range x.peers { // in random order
		in := &p.info
		switch {
		case p.closed || in.id == 0 || in.size != x.torrent.InfoSize() || in.coming != nil || in.useless:
		case p.who.seeder && seeders == 0:
			seeders++
			p.askInfo()
		case !p.who.seeder && mirrors < infoAsks:
			mirrors++
			p.askInfo()
		}
	}
}

func (p *peer) askInfo() {
	in := &p.info
	in.coming, in.since = make([]byte, in.size), p.x.now()
	in.lacking = infoBlocks(in.size)
	in.came = newBitset(in.lacking)
	for i := range in.lacking {
		p.out = appendMetadata(p.out, in.id, pp.ExtendedMetadataRequestMsg{Piece: i, Type: pp.RequestMetadataExtensionMsgType}, nil)
	}
	p.kick()
}

// heardInfo takes in a message of BEP 9. mu is held.
func (x *exchange) heardInfo(p *peer, b []byte) {
	var m pp.ExtendedMetadataRequestMsg
	rest, err := decodeHead(b, &m)
	if err != nil || m.Piece < 0 {
		return
	}
	switch m.Type {
	case pp.RequestMetadataExtensionMsgType:
		x.askedInfo(p, m.Piece)
	case pp.DataMetadataExtensionMsgType:
		x.gotInfo(p, m.Piece, rest)
	case pp.RejectMetadataExtensionMsgType:
		p.info.fail()
	}
	x.seekInfo()
}

func (in *metadata) fail() { in.coming, in.useless = nil, true }

// gotInfo takes a block in. What is whole is right when its hash is the swarm's name.
func (x *exchange) gotInfo(p *peer, i int, b []byte) {
	in := &p.info
	from := i * infoBlock
	if in.coming == nil || i >= infoBlocks(len(in.coming)) || in.came.has(i) || len(b) != min(infoBlock, len(in.coming)-from) {
		return
	}
	copy(in.coming[from:], b)
	in.came.set(i)
	if in.lacking--; in.lacking > 0 {
		return
	}
	if err := x.torrent.SetInfo(in.coming); err != nil {
		x.client.log.Warn("peer sent wrong metadata", "peer", p.addr, "digest", x.torrent.Digest(), "err", err)
		in.fail()
	}
	// fetch hears of the change and says so
}

// askedInfo has p sent a block when it is its turn.
func (x *exchange) askedInfo(p *peer, i int) {
	in := &p.info
	if in.id == 0 {
		return
	}
	blocks := infoBlocks(x.torrent.InfoSize())
	if !p.offersInfo() || i >= blocks || in.sent >= infoTimes*blocks {
		p.out = appendMetadata(p.out, in.id, pp.ExtendedMetadataRequestMsg{Piece: i, Type: pp.RejectMetadataExtensionMsgType}, nil)
		p.kick()
		return
	}
	if len(in.asked) >= blocks {
		return
	}
	in.asked = append(in.asked, i)
	if in.turn {
		p.sendInfo()
		return
	}
	if len(in.asked) == 1 {
		x.infoLine = append(x.infoLine, p)
	}
	x.grantInfo()
}

// grantInfo begins the turns that can begin, in random order: else all peers would give
// it to the same ones first. mu is held.
func (x *exchange) grantInfo() {
	for len(x.infoLine) > 0 && x.infoBusy < infoTurns {
		p := x.infoLine[rand.IntN(len(x.infoLine))]
		x.infoLine = without(x.infoLine, p)
		if p.closed {
			continue
		}
		p.info.turn, p.info.begun = true, x.now()
		x.infoBusy++
		p.sendInfo()
	}
}

// sendInfo sends what p has asked for.
func (p *peer) sendInfo() {
	info := p.x.torrent.Metainfo().InfoBytes()
	for _, i := range p.info.asked {
		from := i * infoBlock
		head := pp.ExtendedMetadataRequestMsg{Piece: i, TotalSize: len(info), Type: pp.DataMetadataExtensionMsgType}
		p.out = appendMetadata(p.out, p.info.id, head, info[from:min(len(info), from+infoBlock)])
	}
	p.info.sent += len(p.info.asked)
	p.info.asked = nil
	p.kick()
}

// infoServed ends p's turn, and its waiting for one. mu is held.
func (x *exchange) infoServed(p *peer) {
	if p.info.turn {
		p.info.turn = false
		x.infoBusy--
	}
	if len(p.info.asked) > 0 {
		p.info.asked = nil
		x.infoLine = without(x.infoLine, p)
	}
	x.grantInfo()
}

// endInfoTurns ends those of peers that do not say that they have it. mu is held.
func (x *exchange) endInfoTurns(now time.Duration) {
	if x.infoBusy == 0 {
		return
	}
	for _, p := range x.peers {
		if p.info.turn && now-p.info.begun > infoTurn {
			x.infoServed(p)
		}
	}
}

func infoBlocks(size int) int { return (size + infoBlock - 1) / infoBlock }

// appendMetadata writes a message of BEP 9: a dictionary and, in one of data, a block.
func appendMetadata(b []byte, id pp.ExtensionNumber, m pp.ExtendedMetadataRequestMsg, block []byte) []byte {
	head, err := bencode.Marshal(m)
	if err != nil {
		return b // there is nothing in it that could fail
	}
	return appendExtended(b, id, head, block)
}
