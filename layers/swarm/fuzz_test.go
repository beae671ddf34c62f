package swarm

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"testing"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/murderp2p/murder/layers"
)

// sends is a connection on which b comes, and nothing more.
func sends(b []byte) (conn net.Conn, end func()) {
	conn, far := net.Pipe()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, far)
	}()
	go func() {
		_, _ = far.Write(b)
		far.Close()
	}()
	return conn, func() { conn.Close(); <-drained }
}

// FuzzAnswer lets a stranger say anything in the place of a handshake, encrypted or not.
func FuzzAnswer(f *testing.F) {
	ours := layers.InfoHash{1, 2, 3}
	hello := append([]byte(pp.Protocol), extensions[:]...)
	known := append(append(bytes.Clone(hello), ours[:]...), "-XX0000-............"...)
	f.Add(known)
	f.Add(append(append(hello, bytes.Repeat([]byte{9}, 20)...), "-XX0000-............"...))
	f.Add(known[:40])
	f.Add(bytes.Repeat([]byte{0xfe}, 700)) // might be the key of an encrypted one
	f.Add([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	secrets := func(f func([]byte) bool) { f(ours[:]) }
	f.Fuzz(func(t *testing.T, b []byte) {
		conn, end := sends(b)
		defer end()
		l, err := answer(t.Context(), conn, [20]byte{7}, secrets, func(name layers.InfoHash) bool { return name == ours })
		if err == nil && l.name != ours {
			t.Errorf("let into a swarm by the name of %s", l.name)
		}
	})
}

// FuzzPeer lets a peer say anything to hosts that have a blob, that fetch it, and that fetch
// it and know no hash of it yet. It must leave nothing behind, and no wrong byte that counts.
func FuzzPeer(f *testing.F) {
	blob, _ := testBlob(300<<10, 90)
	quiet := Config{Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(context.Background())
	f.Cleanup(cancel)
	seeder := newHost(f, Config{Log: quiet.Log, Seeder: true})
	m := seeder.share(f, blob)
	hosts := []*host{seeder}
	for _, torrent := range []*layers.Torrent{m.Torrent(), named(m)} {
		h := newHost(f, quiet)
		p := h.partial(f, m)
		go h.Fetch(ctx, torrent, p, nil)
		hosts = append(hosts, h)
	}
	for _, h := range hosts {
		eventually(f, "in the swarm", func() bool { return h.knows(m.InfoHash()) })
	}
	hello := appendExtended(nil, 0, []byte("d1:md11:ut_metadatai3ee13:metadata_sizei236e1:pi7081e4:reqqi9e1:v21:murder/1 zone=a seedere"), nil)
	all := appendSignal(appendSignal(bytes.Clone(hello), pp.HaveAll), pp.Unchoke)
	f.Add(byte(0), byte(3), appendRequest(appendSignal(bytes.Clone(hello), pp.Interested), pp.Request, request{0, 0, 16 << 10}))
	f.Add(byte(0), byte(1), appendRequest(appendRequest(nil, pp.Request, request{4, 0, 1 << 20}), pp.Cancel, request{1, 1, 1}))
	f.Add(byte(0), byte(3), appendMetadata(appendMetadata(bytes.Clone(hello), 1, pp.ExtendedMetadataRequestMsg{}, nil), 1, pp.ExtendedMetadataRequestMsg{Piece: 1 << 30}, nil))
	f.Add(byte(1), byte(3), append(bytes.Clone(all), chunkOf(0, 0, make([]byte, 16<<10))...))
	f.Add(byte(1), byte(1), appendRequest(appendHave(appendHave(bytes.Clone(all), 4), 99), pp.Reject, request{0, 0, 16 << 10}))
	f.Add(byte(1), byte(0), appendBitfield(appendSignal(nil, pp.Choke), newBitset(5), 5))
	f.Add(byte(2), byte(3), appendMetadata(bytes.Clone(all), ourMetadataID, pp.ExtendedMetadataRequestMsg{Type: pp.DataMetadataExtensionMsgType}, make([]byte, m.Torrent().InfoSize())))
	f.Add(byte(2), byte(2), appendMetadata(bytes.Clone(hello), ourMetadataID, pp.ExtendedMetadataRequestMsg{Piece: -1, Type: pp.RejectMetadataExtensionMsgType}, nil))
	caller := uint64(0)
	f.Fuzz(func(t *testing.T, which, speaks byte, b []byte) {
		h := hosts[int(which)%len(hosts)]
		conn, end := sends(b)
		defer end()
		l := newLink(conn)
		l.name, l.fast, l.extends = m.InfoHash(), speaks&1 > 0, speaks&2 > 0
		caller++
		binary.BigEndian.PutUint64(l.id[:], caller)
		x := h.enter(l.name)
		if x == nil {
			t.Fatal("the host has left the swarm")
		}
		x.run(l)
		x.running.Done()
		x.mu.Lock()
		defer x.mu.Unlock()
		if len(x.peers) > 0 || len(x.hosts) > 0 || x.infoBusy > 0 || len(x.infoLine) > 0 {
			t.Errorf("left behind: %d peers, %d hosts, %d and %d who are sent the hashes", len(x.peers), len(x.hosts), x.infoBusy, len(x.infoLine))
		}
		for _, pc := range x.arriving {
			if len(pc.asks) > 0 {
				t.Errorf("piece %d is waited for", pc.index)
			}
		}
		if h != seeder && x.missing != x.pieces {
			t.Errorf("%d of %d pieces are missing, though no right one came", x.missing, x.pieces)
		}
	})
}
