package swarm

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

func TestIdentityIsReadBack(t *testing.T) {
	for _, id := range []identity{
		{version: "1.0", seeder: true, zone: "a"},
		{version: "dev", zone: "rack 7 zone=b\n%"},
		{version: "dev"},
	} {
		if got := parseIdentity(id.String()); got != id {
			t.Errorf("parseIdentity(%q) = %+v, want %+v", id, got, id)
		}
	}
	for _, v := range []string{"", "aria2/1.36.0", "murder", "x murder/1 seeder", "murder/1 baker zone=%zz"} {
		if got := parseIdentity(v); got.seeder || got.zone != "" {
			t.Errorf("parseIdentity(%q) = %+v", v, got)
		}
	}
}

func TestAliases(t *testing.T) {
	b := newBook()
	x, y := netip.MustParseAddrPort("10.0.0.1:7081"), netip.MustParseAddrPort("10.0.0.1:7082")
	if first, again := b.dialable(x), b.dialable(x); first != again {
		t.Errorf("two aliases for one peer: %v and %v", first, again)
	}
	if b.dialable(x).String() == b.dialable(y).String() {
		t.Error("peers behind one IP share an alias: a ban would hit both")
	}
	for _, addr := range []netip.AddrPort{x, y, netip.MustParseAddrPort("[fd00::1]:1")} {
		if got, ok := b.real(b.dialable(addr).String()); !ok || got != addr {
			t.Errorf("real(dialable(%v)) = %v, %v", addr, got, ok)
		}
	}
	if b.accepted(x).alias.Addr() != b.accepted(y).alias.Addr() {
		t.Error("one host that dials twice has two aliases: a ban would not hold it")
	}
	lx, ly := netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")
	if b.accepted(lx).alias.Addr() == b.accepted(ly).alias.Addr() {
		t.Error("two connections on loopback share an alias")
	}
	if _, ok := b.real("10.0.0.1:7081"); ok {
		t.Error("an address that is no alias can be dialled")
	}
}

func TestBookIsBounded(t *testing.T) {
	b := newBook()
	for i := range 3 * maxDials {
		b.dialable(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1))
	}
	if n := len(b.dials) + len(b.older); n > 2*maxDials {
		t.Errorf("%d aliases kept, want at most %d", n, 2*maxDials)
	}
}

func TestParseAnswer(t *testing.T) {
	an, err := parseAnswer([]byte("d8:intervali7e12:min intervali2e5:peers12:\x0a\x00\x00\x01\x1b\xa9\x00\x00\x00\x00\x00\x016:peers618:\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x07e"))
	if err != nil || len(an.peers) != 2 || an.peers[0].String() != "10.0.0.1:7081" || an.peers[1].String() != "[fd00::1]:7" {
		t.Errorf("parseAnswer = %+v, %v", an, err)
	}
	if an.interval.Seconds() != 7 || an.minInterval.Seconds() != 2 {
		t.Errorf("intervals = %v and %v", an.interval, an.minInterval)
	}
	if _, err := parseAnswer([]byte("d14:failure reason2:noe")); err == nil {
		t.Error("a refusal is no error")
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte("d8:intervali1800e5:peers6:\x0a\x00\x00\x01\x1b\xa9e"))
	f.Add([]byte("d5:peersld2:ip8:10.0.0.14:porti1eeee"))
	f.Add([]byte("d14:failure reason2:noe"))
	f.Fuzz(func(t *testing.T, b []byte) {
		an, err := parseAnswer(b)
		if err != nil {
			return
		}
		if an.interval < pauseMin || an.interval > pauseMax || an.minInterval > an.interval {
			t.Errorf("intervals %v and %v", an.interval, an.minInterval)
		}
		for _, p := range an.peers {
			if !p.IsValid() || p.Port() == 0 {
				t.Errorf("peer %v", p)
			}
		}
	})
}

// written is a net.Conn that keeps what is written to it.
type written struct {
	net.Conn
	bytes.Buffer
}

func (w *written) Write(b []byte) (int, error) { return w.Buffer.Write(b) }
func (w *written) Read(b []byte) (int, error)  { return w.Buffer.Read(b) }

func TestKeepAlivesShowOnlyOnSilentConnections(t *testing.T) {
	w := new(written)
	c := &conn{Conn: w}
	send := func(b []byte) {
		t.Helper()
		if n, err := c.Write(b); n != len(b) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	send([]byte("data"))
	send(keepAlive)
	send(keepAlive)
	if got := w.Len(); got != 4 {
		t.Errorf("%d bytes went out, want the data only", got)
	}
	c.wrote.Add(-int64(keepAliveEvery))
	send(keepAlive)
	send(keepAlive)
	if got := w.Len(); got != 8 {
		t.Errorf("%d bytes went out after a minute's silence, want one keep-alive more", got)
	}
}

// A read of a content that is closed must not fail once the swarm is left: the library
// would panic.
func TestReadOfWhatIsGone(t *testing.T) {
	j := &joined{content: closedContent{}, gone: make(chan struct{})}
	p := piece{files{j}, 0, 0, 100}
	time.AfterFunc(10*time.Millisecond, func() { close(j.gone) })
	if n, err := p.ReadAt(make([]byte, 100), 0); n != 100 || err != nil {
		t.Errorf("ReadAt = %d, %v, want 100 bytes", n, err)
	}
}

type closedContent struct{ content }

func (closedContent) ReadAt([]byte, int64) (int, error) { return 0, os.ErrClosed }
