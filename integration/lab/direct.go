package main

import (
	"context"
	"fmt"
	"sync/atomic"
)

// directFleet is no fleet: each host pulls from the registry itself.
type directFleet struct {
	*stage
	clients []*puller
	sent    atomic.Int64 // bytes, to those who have everything
}

func openDirect(s *stage) *directFleet {
	f := &directFleet{stage: s}
	for _, m := range s.hosts {
		f.clients = append(f.clients, newPuller(m, fmt.Sprintf("http://%s:%d", registryAddr, registryPort), ""))
	}
	return f
}

func (f *directFleet) pull(ctx context.Context, i int) (pulled, error) {
	r, err := f.clients[i].pull(ctx, f.image.Layers, 1)
	if err == nil {
		f.sent.Add(f.plan.size())
	}
	return r, err
}

func (f *directFleet) kill(int) {}

func (f *directFleet) payload(context.Context) (payload, error) {
	sent := f.sent.Load()
	return payload{Registry: sent, Received: sent}, nil
}

func (f *directFleet) close() {
	for _, c := range f.clients {
		c.close()
	}
}
