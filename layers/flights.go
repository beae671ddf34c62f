package layers

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Flights are the fetches under way: at most one of each digest, however many
// ask for it. The zero value is ready.
type Flights[F any] struct {
	mu      sync.Mutex // guards flights
	flights map[digest.Digest]*flight[F]
}

type flight[F any] struct {
	who   string
	begun chan struct{} // closed when fetch and err are set
	fetch F
	err   error
}

// Join returns the fetch of d that is under way; joined is true then. If there
// is none it begins one, alone: those who ask meanwhile wait, and join when it
// has begun. When it has not, begin's error holds for all who ask as the same
// who, lest a registry that hangs make one wait after the other; joined is true
// for those who did not call begin. The others try themselves. The error may be
// ctx's as well.
func (fs *Flights[F]) Join(ctx context.Context, d digest.Digest, who string, begin func() (F, error)) (fetch F, joined bool, err error) {
	for {
		f, mine := fs.enter(d, who)
		if mine {
			f.fetch, f.err = begin()
			if f.err != nil {
				fs.End(d)
			}
			close(f.begun)
			return f.fetch, false, f.err
		}
		select {
		case <-ctx.Done():
			return fetch, false, ctx.Err()
		case <-f.begun:
			if f.err == nil || f.who == who {
				return f.fetch, true, f.err
			}
		}
	}
}

func (fs *Flights[F]) enter(d digest.Digest, who string) (f *flight[F], mine bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.flights[d]; f != nil {
		return f, false
	}
	if fs.flights == nil {
		fs.flights = make(map[digest.Digest]*flight[F])
	}
	f = &flight[F]{who: who, begun: make(chan struct{})}
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
