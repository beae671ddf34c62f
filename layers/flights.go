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
	begun chan struct{} // closed when fetch and err are set
	fetch F
	err   error
}

// Join returns the fetch of d that is under way; joined is true then. If there
// is none it begins one, alone: those who ask meanwhile wait, join when it has
// begun, and try themselves when it has not. The error is begin's or ctx's.
func (fs *Flights[F]) Join(ctx context.Context, d digest.Digest, begin func() (F, error)) (fetch F, joined bool, err error) {
	for {
		f, mine := fs.enter(d)
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
			if f.err == nil {
				return f.fetch, true, nil
			}
		}
	}
}

func (fs *Flights[F]) enter(d digest.Digest) (f *flight[F], mine bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.flights[d]; f != nil {
		return f, false
	}
	if fs.flights == nil {
		fs.flights = make(map[digest.Digest]*flight[F])
	}
	f = &flight[F]{begun: make(chan struct{})}
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

// End says that the fetch of d is over; the next to ask begins another.
func (fs *Flights[F]) End(d digest.Digest) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	delete(fs.flights, d)
}
