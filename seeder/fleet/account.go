package fleet

import (
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
)

const (
	// MaxArriving bounds the blobs of an Account.
	MaxArriving = 32
	maxDigest   = 160     // bytes of its text; sha512 has 135
	maxBlob     = 1 << 50 // bytes
	// maxReasons bounds the reasons for a fallback, of a host and of all.
	maxReasons = 32
	maxReason  = 40 // bytes
	// maxMoved bounds what one Account can add, in bytes: a host may say anything.
	maxMoved = 1 << 40
	// minAccountEvery is the least time between two Accounts of a host.
	minAccountEvery = time.Second
)

// Account is what a host says of itself, when it is another than before and not more
// often than the seeder asks for: what it has moved since it started, and what is on
// its way. It is for people to look at; nothing is decided by it.
type Account struct {
	// Peer is where the host's swarm is reached: IP:PORT, or only :PORT.
	Peer     string           `json:"peer,omitempty"`
	Blobs    int              `json:"blobs"` // whole, in its cache
	Received Received         `json:"received"`
	Arriving []Arriving       `json:"arriving,omitempty"`
	Fell     map[string]int64 `json:"fell,omitempty"` // back, by reason
}

// Received are bytes of blobs by where they came from.
type Received struct {
	Peer     int64 `json:"peer"`
	Seeder   int64 `json:"seeder"`
	Upstream int64 `json:"upstream"`
}

// Arriving is a blob on its way to a host.
type Arriving struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
	Have   int64  `json:"have"`
}

// Moved is what all hosts say they have received and fallen back since the seeder
// started.
type Moved struct {
	Received
	Fell map[string]int64
}

// Moved adds the hosts' Accounts up.
func (f *Fleet) Moved() Moved {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.moved
	m.Fell = make(map[string]int64, len(f.moved.Fell))
	for reason, n := range f.moved.Fell {
		m.Fell[reason] = n
	}
	return m
}

// PeerAddr is where the host's swarm is reached, as far as is known.
func (h Host) PeerAddr() netip.AddrPort {
	if a, err := netip.ParseAddrPort(h.Account.Peer); err == nil {
		return a
	}
	from, err := netip.ParseAddrPort(h.Address)
	_, port, errPort := net.SplitHostPort(h.Account.Peer)
	if err != nil || errPort != nil {
		return netip.AddrPort{}
	}
	a, _ := netip.ParseAddrPort(net.JoinHostPort(from.Addr().Unmap().String(), port))
	return a
}

// account takes one in.
func (f *Fleet) account(l *link, a Account) {
	a.bound()
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hosts[l.member.Name]
	if h == nil || h.link != l {
		return
	}
	if h.told { // the first tells what was before we knew the host
		f.moved.add(h.account, a)
	}
	h.account, h.told = a, true
}

// bound makes an Account one that costs little, whoever gives it.
func (a *Account) bound() {
	if len(a.Arriving) > MaxArriving {
		a.Arriving = a.Arriving[:MaxArriving]
	}
	for reason := range a.Fell {
		if !isReason(reason) || len(a.Fell) > maxReasons {
			delete(a.Fell, reason)
		}
	}
	a.Blobs = max(a.Blobs, 0)
	if len(a.Peer) > maxWord {
		a.Peer = ""
	}
	a.Arriving = slices.DeleteFunc(a.Arriving, func(b Arriving) bool { return len(b.Digest) > maxDigest })
	for i := range a.Arriving {
		b := &a.Arriving[i]
		b.Size = min(max(b.Size, 0), maxBlob)
		b.Have = min(max(b.Have, 0), b.Size)
	}
}

// isReason tells whether text can be a constant phrase of murder's, and no name.
func isReason(text string) bool {
	return text != "" && len(text) <= maxReason && strings.Trim(text, "abcdefghijklmnopqrstuvwxyz ") == ""
}

// add counts what a host has moved between two accounts.
func (m *Moved) add(was, is Account) {
	m.Peer = sum(m.Peer, more(was.Received.Peer, is.Received.Peer))
	m.Seeder = sum(m.Seeder, more(was.Received.Seeder, is.Received.Seeder))
	m.Upstream = sum(m.Upstream, more(was.Received.Upstream, is.Received.Upstream))
	for reason, n := range is.Fell {
		if _, known := m.Fell[reason]; !known && len(m.Fell) >= maxReasons {
			continue
		}
		if m.Fell == nil {
			m.Fell = make(map[string]int64)
		}
		m.Fell[reason] = sum(m.Fell[reason], more(was.Fell[reason], n))
	}
}

// more is by how much a count has grown, which begins anew when the host does.
func more(was, is int64) int64 {
	if is < was {
		was = 0
	}
	return min(max(is-max(was, 0), 0), maxMoved)
}

func sum(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// accountEvery is how often a host is to give an Account, of as many as there are.
func (f *Fleet) accountEvery() Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Duration(max(reportEvery(len(f.hosts)), minAccountEvery))
}

// accounts returns what gives the seeder an Account if it is another than the last.
func (a *Agent) accounts(conn net.Conn) func() error {
	var last Account
	return func() error {
		if a.Account == nil {
			return nil
		}
		account := a.Account()
		if reflect.DeepEqual(account, last) {
			return nil
		}
		last = account
		return writeMessage(conn, message{Account: &account})
	}
}

// untilAccount is how long to wait for the next: a little more or less than asked for,
// so that the hosts of a fleet do not speak at the same time.
func (u *uplink) untilAccount() time.Duration {
	every := max(time.Duration(u.accountEvery.Load()), minAccountEvery)
	return every*3/4 + rand.N(every/2)
}
