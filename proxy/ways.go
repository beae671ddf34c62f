package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/registry"
)

const (
	// coldWait is how long a host waits for the metainfo of a blob that the
	// seeder is still fetching before it streams the blob from the seeder:
	// long enough for most layers to become a swarm, and no client gives up
	// after so short a silence.
	coldWait = 5 * time.Second
	// worthASwarm is how many bytes, or an eighth of the blob, must be missing
	// for a stream to be left for a swarm, which takes a moment to join.
	worthASwarm = 16 << 20
	// metainfoWait is how long one question for the metainfo stays open.
	metainfoWait = 30 * time.Second
	// stallAfter is the silence after which a swarm is left.
	stallAfter = 5 * time.Second
	watchEvery = 500 * time.Millisecond
)

var (
	errSkip     = errors.New("not a way for this blob")
	errMetainfo = errors.New("the metainfo has come")
	errStalled  = errors.New("no bytes from the swarm")
)

// bySwarm needs the metainfo, and a seeder that may be away by now.
func (d *download) bySwarm(ctx context.Context) error {
	if d.partial.Size() < layers.SmallBlob {
		if d.seeder != nil && d.why == "" {
			d.why = whySmall // the way to come says so
		}
		return errSkip
	}
	if !d.knowsMetainfo() {
		return errSkip
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { d.watch(ctx, cancel) })
	err := d.mirror.cfg.Swarm.Fetch(ctx, d.metainfo.Torrent(), d.partial, d.mirror.seeders.trackers())
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	cancel(nil)
	watching.Wait()
	if err == nil {
		d.mirror.shared.Joined(d.metainfo.Torrent())
	}
	return err
}

// watch counts what the swarm brings, and ends a fetch that brings nothing:
// soon when the seeder is away, since then a piece may be missing for good. The
// silence is that of the ticks: time in which we did not get to run is not the
// swarm's.
func (d *download) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	defer d.count()
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	silent, progress := time.Duration(0), d.partial.Progress()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.partial.Done():
			return
		case <-tick.C:
		}
		d.count()
		select {
		case <-progress:
			silent, progress = 0, d.partial.Progress()
			continue
		default:
			silent += watchEvery
		}
		if silent > d.mirror.stallAfter || silent > time.Second && !d.seederLives(ctx) {
			cancel(errStalled)
			return
		}
	}
}

func (d *download) seederLives(ctx context.Context) bool {
	if d.seeder == nil || d.mirror.seeders.isIll(d.seeder) {
		return false
	}
	if err := d.seeder.Alive(ctx); err != nil {
		d.mirror.seeders.failed(ctx, d.seeder, errors.Join(registry.ErrUnreachable, err))
		return false
	}
	return true
}

// moved are the bytes that the swarm has brought so far.
type moved struct{ peers, seeders int64 }

// count notes what the swarm has brought since the last time.
func (d *download) count() {
	peers, seeders := d.mirror.cfg.Swarm.Received(d.metainfo.Digest())
	d.mu.Lock()
	before := d.counted
	d.counted = moved{max(peers, before.peers), max(seeders, before.seeders)}
	now := d.counted
	d.mu.Unlock()
	d.received(layers.FromPeer, "swarm", int(now.peers-before.peers))
	d.received(layers.FromSeeder, "swarm", int(now.seeders-before.seeders))
}

// bySeeder streams over HTTP what is missing, until the metainfo comes and the
// swarm can do it.
func (d *download) bySeeder(ctx context.Context) error {
	if d.seeder == nil || d.mirror.seeders.isIll(d.seeder) {
		return errSkip
	}
	if d.partial.Size() < layers.SmallBlob || d.knowsMetainfo() { // the swarm is not for it, or has been tried
		err := d.fill(ctx, "seeder", d.seeder)
		d.mirror.seeders.failed(ctx, d.seeder, err)
		return err
	}
	d.awaitMeta.Do(func() { d.mirror.running.Go(d.awaitMetainfo) })
	if !d.stream && d.metainfoComes(ctx) {
		return errMetainfo
	}
	if d.mirror.seeders.isIll(d.seeder) {
		return fmt.Errorf("seeder waited for is %w", registry.ErrUnreachable)
	}
	d.why = whyCold
	d.mirror.ledger.Way(d.partial.Digest(), "seeder", d.why)
	return d.streamCold(ctx)
}

// streamCold streams until the metainfo comes, or to the end if that is near.
func (d *download) streamCold(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer cancel(nil)
	waiting.Go(func() {
		select {
		case <-d.hasMeta:
			if rest := d.partial.Size() - d.partial.Received(); rest > max(worthASwarm, d.partial.Size()/8) {
				cancel(errMetainfo)
			}
		case <-ctx.Done():
		}
	})
	err := d.fill(ctx, "seeder", d.seeder)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errMetainfo) {
		return cause
	}
	d.mirror.seeders.failed(ctx, d.seeder, err)
	return err
}

func (d *download) knowsMetainfo() bool {
	select {
	case <-d.hasMeta:
		return true
	default:
		return false
	}
}

// metainfoComes waits for the metainfo of a blob that the seeder is fetching,
// as long as a client may be kept waiting.
func (d *download) metainfoComes(ctx context.Context) bool {
	timer := time.NewTimer(time.Until(d.streamAt))
	defer timer.Stop()
	select {
	case <-d.hasMeta:
	case <-d.noMeta:
	case <-timer.C:
	case <-ctx.Done():
	case <-d.partial.Done():
	}
	return d.knowsMetainfo()
}

// awaitMetainfo asks until the seeder has the metainfo ready. It is no matter
// when that fails: the blob then comes another way.
func (d *download) awaitMetainfo() {
	defer close(d.noMeta)
	ctx, cancel := context.WithCancel(d.mirror.ctx)
	defer cancel()
	d.mirror.running.Go(func() {
		select {
		case <-d.partial.Done():
			cancel()
		case <-ctx.Done():
		}
	})
	for ctx.Err() == nil {
		again := time.After(time.Second) // in case that the seeder does not let us wait
		m, err := d.rightfulTorrent(ctx)
		if err != nil {
			d.mirror.seeders.failed(ctx, d.seeder, err)
			return
		}
		if m != nil {
			d.setMetainfo(m)
			return
		}
		select {
		case <-again:
		case <-ctx.Done():
		}
	}
}

func (d *download) rightfulTorrent(ctx context.Context) (m *layers.Metainfo, err error) {
	err = d.rights.Each(func(repo registry.Repository, authorization string) error {
		m, _, err = d.seeder.Torrent(ctx, repo, d.partial.Digest(), authorization, metainfoWait)
		return err
	})
	return m, err
}

// byUpstream goes to the registry itself.
func (d *download) byUpstream(ctx context.Context) error {
	err := d.fill(ctx, "upstream", d.mirror.cfg.Registries)
	if errors.Is(err, layers.ErrMismatch) {
		// The registry's bytes contradict what a seeder told of the blob. The
		// next download begins anew, and asks no seeder.
		d.partial.Fail(err)
	}
	return err
}

func (d *download) fill(ctx context.Context, way string, up registry.Upstream) error {
	from := layers.Source(way)
	open := func(ctx context.Context, off int64) (io.ReadCloser, error) {
		if body := d.first; body != nil && way == "upstream" {
			d.first = nil
			if off == 0 {
				return body, nil
			}
			body.Close() // an earlier download left us more than nothing
		}
		body, size, err := d.rights.GetBlob(ctx, up, d.partial.Digest(), off)
		if err == nil && size >= 0 && size != d.partial.Size() {
			body.Close()
			return nil, fmt.Errorf("%d bytes there, %d promised: %w", size, d.partial.Size(), layers.ErrMismatch)
		}
		return body, err
	}
	return layers.Fill(ctx, d.partial, open, d.mirror.cfg.Download, func(n int) { d.received(from, way, n) })
}
