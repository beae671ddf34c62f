package layers

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Source is where bytes of a blob came from.
type Source string

// The sources, in the order in which a mirror tries them.
const (
	FromCache    Source = "cache"
	FromPeer     Source = "peer"
	FromSeeder   Source = "seeder" // over BitTorrent or HTTP
	FromUpstream Source = "upstream"
)

// Record tells where one blob came from, and why it did not come better.
type Record struct {
	Digest     digest.Digest    `json:"digest"`
	Registry   string           `json:"registry"`
	Repository string           `json:"repository"`
	Size       int64            `json:"size"`     // bytes
	Received   int64            `json:"received"` // bytes that have come in; the size when it is whole
	State      string           `json:"state"`    // arriving, whole or failed
	Way        string           `json:"way"`      // swarm, seeder or upstream: the way it is taking, or took last
	From       map[Source]int64 `json:"from"`     // bytes by source
	Why        string           `json:"why"`      // why a better way was left, as a constant phrase
	Started    time.Time        `json:"started"`
	TookMS     int64            `json:"took_ms"` // milliseconds, when it is over
}

// Ledger remembers where the latest blobs came from, in memory. It is safe for
// concurrent use.
type Ledger struct {
	mu      sync.Mutex // guards all below
	records map[digest.Digest]*Record
	order   []digest.Digest // the oldest first
	totals  map[Source]int64
	served  int64
}

// maxRecords bounds the blobs that a Ledger remembers.
const maxRecords = 4096

// NewLedger returns an empty Ledger.
func NewLedger() *Ledger {
	return &Ledger{records: make(map[digest.Digest]*Record), totals: make(map[Source]int64)}
}

// Begin opens the record of a blob that begins to arrive.
func (l *Ledger) Begin(d digest.Digest, registry, repository string, size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.records[d] == nil {
		l.order = append(l.order, d)
	}
	l.records[d] = &Record{
		Digest: d, Registry: registry, Repository: repository, Size: size,
		State: "arriving", From: make(map[Source]int64), Started: time.Now(),
	}
	if len(l.order) > maxRecords {
		delete(l.records, l.order[0])
		l.order = l.order[1:]
	}
}

// Way notes the way that a blob now takes, and why it left the one before.
func (l *Ledger) Way(d digest.Digest, way, why string) {
	l.update(d, func(r *Record) {
		r.Way = way
		if why != "" {
			r.Why = why
		}
	})
}

// Received counts n bytes of a blob from a source.
func (l *Ledger) Received(d digest.Digest, from Source, n int64) {
	l.update(d, func(r *Record) { r.From[from] += n })
	l.mu.Lock()
	l.totals[from] += n
	l.mu.Unlock()
}

// Served counts n bytes that went out to a client.
func (l *Ledger) Served(n int64) {
	l.mu.Lock()
	l.served += n
	l.mu.Unlock()
}

// End closes a blob's record, and returns it.
func (l *Ledger) End(d digest.Digest, err error) Record {
	return l.update(d, func(r *Record) {
		r.State, r.Received = "whole", r.Size
		if err != nil {
			r.State, r.Received = "failed", 0
		}
		r.TookMS = time.Since(r.Started).Milliseconds()
	})
}

func (l *Ledger) update(d digest.Digest, change func(*Record)) Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.records[d]
	if r == nil {
		return Record{Digest: d}
	}
	change(r)
	return r.copy()
}

// Records returns what is known of the blobs asked for, or of all, the latest
// first.
func (l *Ledger) Records(of ...digest.Digest) []Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(of) == 0 {
		of = l.order
	}
	records := make([]Record, 0, len(of))
	for i := len(of) - 1; i >= 0; i-- {
		if r := l.records[of[i]]; r != nil {
			records = append(records, r.copy())
		}
	}
	return records
}

// Arriving returns what is known of the blobs that are on their way, the latest first,
// most at the most.
func (l *Ledger) Arriving(most int) []Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	var records []Record
	for i := len(l.order) - 1; i >= 0 && len(records) < most; i-- {
		if r := l.records[l.order[i]]; r.State == "arriving" {
			records = append(records, r.copy())
		}
	}
	return records
}

// Totals returns the bytes received by source, and those served to clients.
func (l *Ledger) Totals() (received map[Source]int64, served int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	received = make(map[Source]int64, len(l.totals))
	for from, n := range l.totals {
		received[from] = n
	}
	return received, l.served
}

func (r *Record) copy() Record {
	c := *r
	c.From = make(map[Source]int64, len(r.From))
	for from, n := range r.From {
		c.From[from] = n
		if r.State != "whole" {
			c.Received = min(r.Size, c.Received+n)
		}
	}
	return c
}
