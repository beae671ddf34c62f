package layers

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Flights are the fetches under way: at most one of each digest, however many
// ask for it. The zero value is ready.
type Flights[F any] struct {
	mu      sync.Mutex // guards flights
	flights map[digest.Digest]*flight[F]
}

type flight[F any] struct {
	from  string
	who   string
	begun chan struct{} // closed when fetch and err are set
	fetch F
	err   error
}

// ErrElsewhere: a fetch from another registry has been beginning for some time.
var ErrElsewhere = errors.New("another registry is being asked for it")

// elsewhere is for how long one is waited for that begins in the name of another registry.
const elsewhere = time.Second

// Join returns the fetch of d that is under way; joined is true then. If there
// is none it begins one, alone: those who ask meanwhile wait, and join when it
// has begun. When it has not, begin's error holds for all who ask as the same
// who, lest a registry that hangs make one wait after the other; joined is true
// for those who did not call begin. The others try themselves. Those who would have it from
// another registry do not wait for one that hangs: their error is ErrElsewhere then. The
// error may be ctx's as well.
func (fs *Flights[F]) Join(ctx context.Context, d digest.Digest, from, who string, begin func() (F, error)) (fetch F, joined bool, err error) {
	for {
		f, mine := fs.enter(d, from, who)
		if mine {
			f.fetch, f.err = begin()
			if f.err != nil {
				fs.End(d)
			}
			close(f.begun)
			return f.fetch, false, f.err
		}
		var other <-chan time.Time
		if f.from != from {
			other = time.After(elsewhere)
		}
		select {
		case <-ctx.Done():
			return fetch, false, ctx.Err()
		case <-other:
			return fetch, false, ErrElsewhere
		case <-f.begun:
			if f.err == nil || f.who == who {
				return f.fetch, true, f.err
			}
		}
	}
}

func (fs *Flights[F]) enter(d digest.Digest, from, who string) (f *flight[F], mine bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.flights[d]; f != nil {
		return f, false
	}
	if fs.flights == nil {
		fs.flights = make(map[digest.Digest]*flight[F])
	}
	f = &flight[F]{from: from, who: who, begun: make(chan struct{})}
	fs.flights[d] = f
	return f, true
}

// Get returns the fetch of d if one has begun and not ended.
func (fs *Flights[F]) Get(d digest.Digest) (fetch F, ok bool) {
	fs.mu.Lock()
	f := fs.flights[d]
	fs.mu.Unlock()
	if f == nil {
		return fetch, false
	}
	select {
	case <-f.begun:
		return f.fetch, f.err == nil
	default:
		return fetch, false
	}
}

// Len returns how many are under way, those that begin included.
func (fs *Flights[F]) Len() int {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return len(fs.flights)
}

// End says that the fetch of d is over; the next to ask begins another.
func (fs *Flights[F]) End(d digest.Digest) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	delete(fs.flights, d)
}
