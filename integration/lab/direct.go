package main

import (
	"context"
	"fmt"
)

// directFleet is no fleet: each host pulls from the registry itself.
type directFleet struct {
	*stage
	clients []*puller
}

func openDirect(s *stage) *directFleet {
	f := &directFleet{stage: s}
	for _, m := range s.hosts {
		f.clients = append(f.clients, newPuller(m, fmt.Sprintf("http://%s:%d", registryAddr, registryPort), ""))
	}
	return f
}

func (f *directFleet) pull(ctx context.Context, i int) (pulled, error) {
	if f.plan.Image {
		return f.clients[i].pullImage(ctx, f.image)
	}
	return f.clients[i].pull(ctx, f.image.Layers, 1)
}

func (f *directFleet) kill(int) {}

// payload is not counted: all of it is the registry's.
func (f *directFleet) payload(context.Context) (payload, error) { return payload{}, nil }

func (f *directFleet) close() {
	for _, c := range f.clients {
		c.close()
	}
}
