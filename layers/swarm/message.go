package swarm

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/bits"

	pp "github.com/anacrolix/torrent/peer_protocol"
)

// request is part of a piece as one peer asks another for it (BEP 3): bytes
// [begin, begin+length) of piece index.
type request struct {
	index, begin, length uint32
}

const (
	// maxRequest is the most bytes that a peer may ask for at once. BEP 3 knows
	// 16 KiB; some clients ask for up to 128 KiB.
	maxRequest = 128 << 10
	// maxExtended bounds a message of BEP 10: a block of metadata and what is said of it.
	maxExtended = infoBlock + 1<<10
)

// message is one that came in. A chunk's bytes follow it in the stream, and are read
// to where they belong.
type message struct {
	kind  pp.MessageType
	alive bool    // it is only a keep-alive
	index int     // Have
	req   request // Request, Cancel, Reject, Piece
	body  []byte  // Bitfield, Extended; valid until the next message
}

var errMessage = errors.New("malformed message")

// decoder reads messages.
type decoder struct {
	r        *bufio.Reader
	bitfield int // bytes in one for the blob's pieces; what is longer is not read
	body     []byte
}

// next reads a message and passes over kinds that we have no use for.
func (d *decoder) next() (message, error) {
	for {
		n, err := d.uint32()
		if err != nil {
			return message{}, err
		}
		if n == 0 {
			return message{alive: true}, nil
		}
		kind, err := d.r.ReadByte()
		if err != nil {
			return message{}, noEOF(err)
		}
		m := message{kind: pp.MessageType(kind)}
		known, err := d.fields(&m, int(n)-1)
		if err != nil {
			return m, fmt.Errorf("message %v of %d bytes: %w", m.kind, n, noEOF(err))
		}
		if known {
			return m, nil
		}
	}
}

// fields reads what a message of n bytes says. One that is not known is passed over.
func (d *decoder) fields(m *message, n int) (known bool, err error) {
	switch m.kind {
	case pp.Choke, pp.Unchoke, pp.Interested, pp.NotInterested, pp.HaveAll, pp.HaveNone:
		return true, want(n == 0)
	case pp.Have:
		if err = want(n == 4); err == nil {
			m.index, err = d.int()
		}
		return true, err
	case pp.Request, pp.Cancel, pp.Reject:
		if err = want(n == 12); err == nil {
			err = d.request(&m.req)
		}
		return true, err
	case pp.Piece:
		if err = want(n >= 8 && n-8 <= maxRequest); err == nil {
			err = d.chunk(&m.req, n-8)
		}
		return true, err
	case pp.Bitfield:
		m.body, err = d.take(n, d.bitfield)
		return true, err
	case pp.Extended:
		m.body, err = d.take(n, maxExtended)
		return true, err
	}
	_, err = d.take(n, maxExtended)
	return false, err
}

func want(ok bool) error {
	if !ok {
		return errMessage
	}
	return nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (d *decoder) uint32() (uint32, error) {
	b, err := d.r.Peek(4)
	if err != nil {
		if len(b) > 0 {
			err = noEOF(err)
		}
		return 0, err
	}
	n := binary.BigEndian.Uint32(b)
	_, _ = d.r.Discard(4) // they have been peeked at
	return n, nil
}

// int reads the index of a piece. One above 2^31 is none, and negative on no machine.
func (d *decoder) int() (int, error) {
	n, err := d.uint32()
	if err == nil && n > 1<<31-1 {
		err = errMessage
	}
	return int(n), err
}

func (d *decoder) request(r *request) (err error) {
	for _, field := range []*uint32{&r.index, &r.begin, &r.length} {
		if *field, err = d.uint32(); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) chunk(r *request, n int) (err error) {
	r.length = uint32(n)
	if r.index, err = d.uint32(); err == nil {
		r.begin, err = d.uint32()
	}
	return err
}

// take reads n bytes that the message consists of.
func (d *decoder) take(n, limit int) ([]byte, error) {
	if n < 0 || n > limit {
		return nil, errMessage
	}
	if cap(d.body) < n {
		d.body = make([]byte, n)
	}
	d.body = d.body[:n]
	_, err := io.ReadFull(d.r, d.body)
	return d.body, err
}

// The append functions write messages.

func appendSignal(b []byte, kind pp.MessageType) []byte {
	return append(b, 0, 0, 0, 1, byte(kind))
}

func appendHave(b []byte, i int) []byte {
	return binary.BigEndian.AppendUint32(append(b, 0, 0, 0, 5, byte(pp.Have)), uint32(i))
}

// appendRequest writes a Request, Cancel or Reject.
func appendRequest(b []byte, kind pp.MessageType, r request) []byte {
	b = append(b, 0, 0, 0, 13, byte(kind))
	b = binary.BigEndian.AppendUint32(b, r.index)
	b = binary.BigEndian.AppendUint32(b, r.begin)
	return binary.BigEndian.AppendUint32(b, r.length)
}

// appendPiece writes the head of a Piece message, which the chunk follows.
func appendPiece(b []byte, r request) []byte {
	b = binary.BigEndian.AppendUint32(b, 9+r.length)
	b = append(b, byte(pp.Piece))
	b = binary.BigEndian.AppendUint32(b, r.index)
	return binary.BigEndian.AppendUint32(b, r.begin)
}

func appendBitfield(b []byte, have bitset, pieces int) []byte {
	n := (pieces + 7) / 8
	b = binary.BigEndian.AppendUint32(b, uint32(1+n))
	b = append(b, byte(pp.Bitfield))
	at := len(b)
	b = append(b, make([]byte, n)...)
	for i := range pieces {
		if have.has(i) {
			b[at+i/8] |= 0x80 >> (i % 8)
		}
	}
	return b
}

// appendExtended writes a message of BEP 10, whose handshake is the one with number 0.
func appendExtended(b []byte, id pp.ExtensionNumber, head, body []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(2+len(head)+len(body)))
	b = append(b, byte(pp.Extended), byte(id))
	return append(append(b, head...), body...)
}

// bitset is a set of small numbers.
type bitset []uint64

func newBitset(n int) bitset    { return make(bitset, (n+63)/64) }
func (s bitset) has(i int) bool { return s[i/64]>>(i%64)&1 == 1 }
func (s bitset) set(i int)      { s[i/64] |= 1 << (i % 64) }
func (s bitset) clear(i int)    { s[i/64] &^= 1 << (i % 64) }

// all yields the numbers in the set, in order. The set may change meanwhile.
func (s bitset) all() iter.Seq[int] {
	return func(yield func(int) bool) {
		for w, word := range s {
			for ; word != 0; word &= word - 1 {
				if !yield(w*64 + bits.TrailingZeros64(word)) {
					return
				}
			}
		}
	}
}
