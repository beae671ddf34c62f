package swarm

import (
	"bufio"
	"bytes"
	"testing"

	pp "github.com/anacrolix/torrent/peer_protocol"
)

// What we write the library reads, message for message.
func TestMessagesAreWhatTheLibraryReads(t *testing.T) {
	have := newBitset(10)
	have.set(0)
	have.set(9)
	r := request{index: 7, begin: 1 << 16, length: 1 << 14}
	var b []byte
	b = appendSignal(b, pp.Unchoke)
	b = appendHave(b, 70000)
	b = appendRequest(b, pp.Request, r)
	b = appendRequest(b, pp.Reject, r)
	b = appendBitfield(b, have, 10)
	b = appendExtended(b, 0, []byte("de"), nil)
	b = appendMetadata(b, 3, pp.ExtendedMetadataRequestMsg{Piece: 1, TotalSize: 16386, Type: pp.DataMetadataExtensionMsgType}, []byte("ab"))
	b = append(appendPiece(b, request{index: 3, begin: 5, length: 2}), "ab"...)

	d := pp.Decoder{R: bufio.NewReader(bytes.NewReader(b)), MaxLength: 1 << 20}
	for _, want := range []pp.Message{
		{Type: pp.Unchoke},
		{Type: pp.Have, Index: 70000},
		{Type: pp.Request, Index: 7, Begin: 1 << 16, Length: 1 << 14},
		{Type: pp.Reject, Index: 7, Begin: 1 << 16, Length: 1 << 14},
		{Type: pp.Bitfield, Bitfield: []bool{true, 9: true, 15: false}},
		{Type: pp.Extended, ExtendedPayload: []byte("de")},
		{Type: pp.Extended, ExtendedID: 3, ExtendedPayload: []byte("d8:msg_typei1e5:piecei1e10:total_sizei16386eeab")},
		{Type: pp.Piece, Index: 3, Begin: 5, Piece: []byte("ab")},
	} {
		var got pp.Message
		if err := d.Decode(&got); err != nil {
			t.Fatalf("%v: %v", want.Type, err)
		}
		if !bytes.Equal(got.MustMarshalBinary(), want.MustMarshalBinary()) {
			t.Errorf("the library reads %+v, want %+v", got, want)
		}
	}
}

func FuzzDecoder(f *testing.F) {
	f.Add(appendHave(appendSignal(nil, pp.HaveAll), 5))
	f.Add(appendRequest(nil, pp.Request, request{1, 2, 3}))
	f.Add(appendBitfield(nil, newBitset(9), 9))
	f.Add(append(appendPiece(nil, request{1, 2, 3}), "abc"...))
	f.Add(appendExtended(nil, 0, []byte("d1:v6:murdere"), nil))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 7})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 3, 99, 1, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		d := decoder{r: bufio.NewReaderSize(bytes.NewReader(b), readBuffer), bitfield: 100}
		for {
			m, err := d.next()
			if err != nil {
				return
			}
			switch {
			case m.index < 0, len(m.body) > len(b):
				t.Errorf("message %+v", m)
			case m.kind == pp.Bitfield && len(m.body) > d.bitfield:
				t.Errorf("a bitfield of %d bytes", len(m.body))
			case m.kind == pp.Piece && m.req.length > maxRequest:
				t.Errorf("a chunk of %d bytes", m.req.length)
			case m.kind == pp.Piece:
				if _, err := d.r.Discard(int(m.req.length)); err != nil {
					return
				}
			}
		}
	})
}

func FuzzIntroduce(f *testing.F) {
	f.Add([]byte("\x00d1:v24:murder/1 seeder zone=a e1:pi7081ee"))
	f.Add([]byte("\x00d1:v134217727:abce"))
	f.Add([]byte("\x00d1:md99999999:"))
	f.Add([]byte("\x00llllllllllllllll"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > maxExtended {
			return
		}
		p := &peer{x: &exchange{}, link: &link{}}
		p.introduce(b)
		if p.x.sources > maxOrigins {
			t.Errorf("believes in %d seeders", p.x.sources)
		}
	})
}
