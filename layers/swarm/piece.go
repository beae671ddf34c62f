package swarm

import (
	"io"
	"net/netip"
	"sync"
	"time"

	"github.com/murderp2p/murder/layers"
)

const (
	// minChunk is BEP 3's. Short ones let what we say to a peer overtake its data.
	minChunk = 16 << 10
	// maxChunk spares CPU at both ends, and is the most that aria2 answers.
	maxChunk = 64 << 10
)

// chunkLength is what one request asks for: a quarter of a piece within bounds.
func chunkLength(pieceLength int64) int64 {
	return min(max(pieceLength/4, minChunk), maxChunk)
}

// chunks returns how many chunks a piece of size bytes has.
func chunks(size, length int64) int { return int((size + length - 1) / length) }

// piece is one that is coming in. Its chunks go to the disk as they come, and are
// hashed in passing as long as they come in order, which they do unless two peers
// bring the piece: so memory is flat in the length of pieces.
type piece struct {
	index  int
	size   int64
	chunk  int64 // bytes in a chunk, the last one aside
	got    bitset
	left   int // chunks that have not come
	writes int // chunks on their way to the disk
	asks   []*ask
	from   map[[20]byte]netip.AddrPort // who has sent any of it
	judged bool                        // at this moment: it must not be written over
	spoilt bool                        // to be fetched anew once nothing of it is being written or judged

	hashing sync.Mutex // guards the two below
	hash    *layers.PieceHash
	hashed  int64 // bytes from the piece's start
}

func newPiece(t *layers.Torrent, i int, chunk int64) *piece {
	size := t.PieceSize(i)
	n := chunks(size, chunk)
	return &piece{index: i, size: size, chunk: chunk, got: newBitset(n), left: n,
		from: make(map[[20]byte]netip.AddrPort), hash: layers.NewPieceHash()}
}

// request returns what chunk c is asked by.
func (p *piece) request(c int) request {
	begin := int64(c) * p.chunk
	return request{uint32(p.index), uint32(begin), uint32(min(p.chunk, p.size-begin))}
}

// find returns which chunk r stands for, or false.
func (p *piece) find(r request) (c int, ok bool) {
	c = int(int64(r.begin) / p.chunk)
	return c, int64(r.begin) < p.size && p.request(c) == r
}

// comes tells whether somebody was asked for it who is not silent.
func (p *piece) comes(now time.Duration) bool {
	for _, a := range p.asks {
		if now-a.peer.heardAt < readersWait {
			return true
		}
	}
	return false
}

// mixes tells whether another than id has sent a part of it.
func (p *piece) mixes(id [20]byte) bool {
	_, ok := p.from[id]
	return len(p.from) > 1 || len(p.from) == 1 && !ok
}

// feed hashes b, which lies at begin, if it comes next.
func (p *piece) feed(b []byte, begin int64) {
	p.hashing.Lock()
	defer p.hashing.Unlock()
	if begin == p.hashed {
		p.hash.Write(b)
		p.hashed += int64(len(b))
	}
}

// sum returns the hash of the piece, all of which is on disk in r, from the byte at
// from on.
func (p *piece) sum(r io.ReaderAt, from int64) (sum layers.PieceSum, err error) {
	p.hashing.Lock()
	defer p.hashing.Unlock()
	if p.hashed < p.size {
		rest := io.NewSectionReader(r, from+p.hashed, p.size-p.hashed)
		n, err := io.CopyBuffer(p.hash, struct{ io.Reader }{rest}, make([]byte, maxChunk))
		if err != nil {
			return sum, err
		}
		if p.hashed += n; p.hashed < p.size {
			return sum, io.ErrUnexpectedEOF
		}
	}
	return p.hash.Sum(), nil
}

// ask is a piece that one peer has been asked for.
type ask struct {
	peer  *peer
	piece *piece
	next  int    // the first chunk that has not been considered
	open  bitset // chunks asked for that have not come
	n     int    // of them
}

// chunkBuffers hold a chunk between socket and disk.
var chunkBuffers = sync.Pool{New: func() any { b := make([]byte, maxRequest); return &b }}
