package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// pullStreams is how many layers an engine fetches at a time: containerd and Docker both take three.
const pullStreams = 3

// pullIdle is how long a pull may see no byte. The mirror takes another way much earlier than that.
const pullIdle = 30 * time.Second

// demoPull is one host's pull of the image through its mirror, as an engine would do it: manifest by tag, config, then the layers. What
// it gets is hashed and thrown away.
type demoPull struct {
	host     string
	mirror   string // HOST:PORT
	registry string // HOST:PORT, the ns of the requests
	image    *demoImage

	start time.Time
	first atomic.Int64 // nanoseconds from start to the first byte of a layer
	done  atomic.Int64 // bytes here
	took  time.Duration
}

func (p *demoPull) run(ctx context.Context, shown progress) error {
	p.start = time.Now()
	p.show(shown)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		p.watch(ctx, cancel, shown)
	}()
	err := p.pull(ctx)
	p.took = time.Since(p.start)
	cancel(nil)
	<-watched
	result := hostResult{Mirror: p.host, OK: err == nil, TookMS: p.took.Milliseconds()}
	shown.hostEnd(result)
	if err != nil {
		return fmt.Errorf("%s: %w", p.host, err)
	}
	return nil
}

// watch shows how far the pull is, and ends it when nothing arrives any more.
func (p *demoPull) watch(ctx context.Context, cancel context.CancelCauseFunc, shown progress) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	last, since := int64(0), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			done := p.done.Load()
			if done != last {
				last, since = done, now
			}
			if now.Sub(since) > pullIdle {
				cancel(fmt.Errorf("no byte has come for %s, after %s", pullIdle, bytesText(done)))
				return
			}
			p.show(shown)
		}
	}
}

func (p *demoPull) show(shown progress) {
	shown.event(p.host, prefetchEvent{Event: "progress", Image: demoRepository, BytesDone: p.done.Load(), Bytes: p.image.size()})
}

func (p *demoPull) pull(ctx context.Context) error {
	c := newClient("http://"+p.mirror, "")
	defer c.close()
	manifest, err := p.get(ctx, c, "manifests/"+demoTag, int64(len(p.image.manifest)), digest.FromBytes(p.image.manifest))
	if err != nil {
		return fmt.Errorf("manifest %s: %w", demoTag, err)
	}
	p.done.Add(manifest)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(pullStreams)
	for i, b := range p.image.blobs {
		if i == 0 { // the config; engines want it before the layers
			if err := p.blob(ctx, c, b); err != nil {
				return err
			}
			continue
		}
		g.Go(func() error { return p.blob(ctx, c, b) })
	}
	return g.Wait()
}

func (p *demoPull) blob(ctx context.Context, c *client, b demoBlob) error {
	if _, err := p.get(ctx, c, "blobs/"+b.digest.String(), b.size, b.digest); err != nil {
		return fmt.Errorf("blob %s: %w", shortDigest(b.digest.String()), err)
	}
	return nil
}

// get reads one answer, which must have that size and digest, and counts what comes of blobs as it comes.
func (p *demoPull) get(ctx context.Context, c *client, what string, size int64, want digest.Digest) (int64, error) {
	path := "/v2/" + demoRepository + "/" + what + "?ns=" + p.registry
	resp, err := c.do(ctx, http.MethodGet, path, http.Header{"Accept": manifestTypes}, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	verifier := want.Verifier()
	n, err := io.CopyBuffer(verifier, readerFunc(func(b []byte) (int, error) {
		n, err := resp.Body.Read(b)
		if n > 0 && what != "manifests/"+demoTag {
			p.done.Add(int64(n))
			p.first.CompareAndSwap(0, int64(time.Since(p.start)))
		}
		return n, err
	}), make([]byte, 256<<10))
	switch {
	case err != nil:
		return n, fmt.Errorf("after %s: %w", bytesText(n), withoutURL(ctx, err))
	case n != size || !verifier.Verified():
		return n, errors.New("the mirror sent other bytes than the registry has")
	default:
		return n, nil
	}
}
