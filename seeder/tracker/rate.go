package tracker

import (
	"errors"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

const (
	// announceRate is how many announces a second one address may make on average, and
	// announceBurst at once. It is no measure of a host, which makes a few, but of the
	// balancer or the NAT that a fleet may stand behind: 10,000 hosts announce 333 times
	// a second for each torrent they fetch. More than half a core it does not cost.
	announceRate, announceBurst = 5000, 50_000
	// buckets is over how many counts the addresses are spread by chance, so that memory
	// is bounded whoever calls. Hosts that share one have enough for all of them.
	buckets = 4096
)

var errTooOften = errors.New("too many announces from this address")

// rates bounds what one address may ask for.
type rates struct {
	rate, burst float64
	seed        maphash.Seed
	each        [buckets]bucket
}

type bucket struct {
	mu   sync.Mutex // guards both
	used float64    // announces that count against the burst
	at   time.Duration
}

func newRates(rate, burst float64) *rates {
	return &rates{rate: rate, burst: burst, seed: maphash.MakeSeed()}
}

// allow counts an announce from ip. What comes from this machine is let through: fleets
// that are tried out run there, and who is there has other ways to do harm.
func (r *rates) allow(ip netip.Addr, now time.Duration) bool {
	ip = ip.Unmap().WithZone("")
	if ip.IsLoopback() {
		return true
	}
	if ip.Is6() { // one host has all of such a network
		network, _ := ip.Prefix(64)
		ip = network.Addr()
	}
	return r.each[maphash.Comparable(r.seed, ip)%buckets].take(r, now)
}

func (b *bucket) take(r *rates, now time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used = max(0, b.used-r.rate*(now-b.at).Seconds())
	b.at = now
	if b.used+1 > r.burst {
		return false
	}
	b.used++
	return true
}
