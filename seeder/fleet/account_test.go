package fleet

import (
	"fmt"
	"math"
	"net"
	"strings"
	"testing"
)

func accountsOf(f *Fleet, name string) (give func(Account)) {
	l := &link{member: Member{Name: name}}
	f.hosts[name] = &host{Member: l.member, link: l, address: "10.0.0.7:4711"}
	return func(a Account) { f.account(l, a) }
}

func TestMovedAddsUp(t *testing.T) {
	f := New(Config{})
	give, other := accountsOf(f, "a"), accountsOf(f, "b")
	give(Account{Received: Received{Peer: 1000}, Fell: map[string]int64{"too slow": 7}}) // before we knew it
	give(Account{Received: Received{Peer: 1500, Upstream: 10}, Fell: map[string]int64{"too slow": 9}})
	other(Account{})
	other(Account{Received: Received{Seeder: 70}, Fell: map[string]int64{"too slow": 1, "swarm stalled": 1}})
	give(Account{Received: Received{Peer: 30}}) // it was started anew
	got := f.Moved()
	if want := (Received{Peer: 530, Seeder: 70, Upstream: 10}); got.Received != want {
		t.Errorf("received = %+v, want %+v", got.Received, want)
	}
	if fmt.Sprint(got.Fell) != "map[swarm stalled:1 too slow:3]" {
		t.Errorf("fell back = %v", got.Fell)
	}
}

// TestAccountsAreBounded has a host say what no host would.
func TestAccountsAreBounded(t *testing.T) {
	f := New(Config{})
	give := accountsOf(f, "a")
	give(Account{})
	evil := func() Account {
		a := Account{
			Peer: strings.Repeat("1", 1000), Blobs: -1, Received: Received{Peer: math.MaxInt64, Seeder: math.MinInt64},
			Fell: map[string]int64{"registry.example/secret": 1, "<b>": 1, strings.Repeat("w", 1000): 1, "too slow": math.MaxInt64},
		}
		for range 1000 {
			a.Arriving = append(a.Arriving, Arriving{Digest: "sha256:ab", Size: -5, Have: math.MaxInt64})
		}
		a.Arriving[0].Digest = strings.Repeat("d", 1000)
		return a
	}
	for range 100 {
		give(evil())
		give(Account{})
	}
	h, moved := f.hosts["a"], f.Moved()
	give(evil())
	if a := h.account; a.Peer != "" || a.Blobs != 0 || len(a.Arriving) >= 1000 || a.Arriving[0] != (Arriving{Digest: "sha256:ab"}) {
		t.Errorf("account = %.300v", a)
	}
	if moved.Peer < 0 || moved.Seeder != 0 || len(moved.Fell) != 1 || moved.Fell["too slow"] < 0 {
		t.Errorf("moved = %+v", moved)
	}
}

func TestPeerAddr(t *testing.T) {
	for peer, want := range map[string]string{
		":7081": "10.0.0.7:7081", "192.0.2.1:99": "192.0.2.1:99", "": "invalid AddrPort", ":": "invalid AddrPort", "x:y:z": "invalid AddrPort",
	} {
		h := Host{Address: "10.0.0.7:4711", Account: Account{Peer: peer}}
		if got := h.PeerAddr().String(); got != want {
			t.Errorf("peer %q is at %s, want %s", peer, got, want)
		}
	}
}

// TestAccountsAreGivenWhenTheyChange reads what a host sends.
func TestAccountsAreGivenWhenTheyChange(t *testing.T) {
	var account Account
	agent := &Agent{Account: func() Account { return account }}
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	give := agent.accounts(there)
	sent := make(chan error, 1)
	go func() {
		defer close(sent)
		for range 3 {
			if err := give(); err != nil { // the first is none: nothing has changed
				sent <- err
			}
		}
		account = Account{Blobs: 1}
		sent <- give()
	}()
	err := readMessages(here, here, maxSaid, func(m message) error {
		if m.Account == nil || m.Account.Blobs != 1 {
			t.Errorf("message = %+v", m)
		}
		return net.ErrClosed
	})
	if err != net.ErrClosed {
		t.Error(err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}
