package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/registry"
)

const (
	// stallAfter is the silence after which a swarm is left.
	stallAfter = 5 * time.Second
	watchEvery = 500 * time.Millisecond
)

var (
	errSkip    = errors.New("not a way for this blob")
	errStalled = errors.New("no bytes from the swarm")
)

// bySwarm goes by the torrent that a seeder has told of. When that breaks off it asks the
// seeder once more: another fetch of the blob may go better, and to have it from a swarm
// is better for all than any other way. When the seeder is away the next takes over.
func (d *download) bySwarm(ctx context.Context) error {
	if d.torrent == nil {
		if d.seeder != nil && d.why == "" {
			d.why = whySmall // the way to come says so
		}
		return errSkip
	}
	if d.torrent.Err() != nil && d.renew(ctx) != nil {
		return errSkip
	}
	err := d.fetch(ctx)
	for tries := 0; err != nil && tries < maxRenewals && !d.over() && d.forsaken(err); tries++ {
		d.mirror.seeders.failed(ctx, d.seeder, err)
		if renewErr := d.renew(ctx); renewErr != nil {
			return fmt.Errorf("%w; asked again: %w", err, renewErr)
		}
		err = d.fetch(ctx)
	}
	return err
}

// maxRenewals bounds how often seeders are asked for a torrent before another way is
// taken: one may answer and be gone again, and again.
const maxRenewals = 3

// forsaken tells of a fetch that ended with err whether it is for want of a seeder.
func (d *download) forsaken(err error) bool {
	return d.torrent.Err() != nil || errors.Is(err, errStalled) && d.mirror.seeders.isIll(d.seeder)
}

// errAtEnd is why a torrent is not asked for again of which only the end is missing:
// the seeder has had all of the blob then, and found it wrong.
var errAtEnd = errors.New("all of the blob has been there")

// renew asks for another torrent: the seeder that told of the last, or if that is away
// the next in order, so that a fleet that has lost its seeder comes together at one.
func (d *download) renew(ctx context.Context) (err error) {
	if !d.mirror.seeders.isIll(d.seeder) {
		if d.torrent.Known() >= d.torrent.Pieces()-1 && d.seederLives(ctx) {
			return errAtEnd
		}
		if err = d.renewFrom(d.seeder); err == nil || !d.mirror.seeders.isIll(d.seeder) {
			return err
		}
	}
	err = registry.ErrUnreachable
	for _, next := range d.mirror.seeders.well(string(d.partial.Digest())) {
		err = d.renewFrom(next)
		if err == nil {
			d.mirror.cfg.Log.Info("seeder takes over", "digest", d.partial.Digest(), "seeder", next.URL(), "bytes", d.partial.Received())
		}
		if err == nil || !d.mirror.seeders.isIll(next) {
			break
		}
	}
	return err
}

// renewFrom goes by what seeder answers from now on.
func (d *download) renewFrom(seeder Seeder) error {
	err := d.rights.Each(func(repo registry.Repository, authorization string) error {
		answer, leave, err := d.ask(seeder, repo, d.partial.Digest(), authorization)
		if err != nil {
			return err
		}
		if answer.Torrent == nil || answer.Size != d.partial.Size() {
			leave()
			return fmt.Errorf("%d bytes there, %d promised: %w", answer.Size, d.partial.Size(), layers.ErrMismatch)
		}
		d.seeder = seeder
		d.take(answer, leave)
		return nil
	})
	d.mirror.seeders.failed(d.mirror.ctx, seeder, err)
	return err
}

// completeAfter is how long the swarm has to bring the hashes of a torrent of which the
// seeder has told the name, and half as much again by chance: those who began together
// had better not ask together.
const completeAfter = time.Second

// complete asks the seeder for the hashes of a named torrent when the swarm does not
// bring them, as long as they lack and ctx lasts.
func (d *download) complete(ctx context.Context, t *layers.Torrent) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.Done():
			return
		case <-time.After(completeAfter + rand.N(completeAfter/2)):
		}
		err := d.rights.Each(func(repo registry.Repository, authorization string) error {
			m, err := d.seeder.Metainfo(ctx, repo, t.Digest(), authorization)
			if err != nil {
				return err
			}
			return t.SetInfo(m.InfoBytes())
		})
		if err != nil && ctx.Err() == nil {
			d.mirror.cfg.Log.Debug("metainfo not had of the seeder", "digest", t.Digest(), "err", err)
			d.mirror.seeders.failed(ctx, d.seeder, err)
		}
	}
}

func (d *download) fetch(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { d.watch(ctx, cancel) })
	if d.torrent.Named() {
		watching.Go(func() { d.complete(ctx, d.torrent) })
	}
	err := d.paced(ctx, "swarm", func(ctx context.Context) error {
		return d.mirror.cfg.Swarm.Fetch(ctx, d.torrent, d.partial, d.mirror.seeders.trackers())
	})
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	cancel(nil)
	watching.Wait()
	if err == nil {
		d.mirror.shared.Joined(d.torrent)
	}
	return err
}

// watch counts what the swarm brings, and ends a fetch that brings nothing:
// soon when the seeder is away, since then a piece may be missing for good, and
// at once if there is another to take over. The
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
		if d.abreast() {
			silent = 0
		}
		if silent > d.mirror.stallAfter || silent > d.mirror.seeders.lostAfter() && !d.seederLives(ctx) {
			cancel(errStalled)
			return
		}
	}
}

// abreast tells whether the swarm has brought all that is known of a torrent which
// still grows. Then we wait for the registry, as the seeder does; that it lives is
// looked after by who reads the torrent. Of one that is named the seeder has all, and
// nobody reads it.
func (d *download) abreast() bool {
	have, _ := d.partial.Pieces()
	return !d.torrent.Named() && d.torrent.Metainfo() == nil && have >= d.torrent.Known()
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
	peers, seeders := d.mirror.cfg.Swarm.Received(d.partial.Digest())
	d.mu.Lock()
	before := d.counted
	d.counted = moved{max(peers, before.peers), max(seeders, before.seeders)}
	now := d.counted
	d.mu.Unlock()
	d.received(layers.FromPeer, "swarm", int(now.peers-before.peers))
	d.received(layers.FromSeeder, "swarm", int(now.seeders-before.seeders))
}

// bySeeder streams over HTTP what is missing, from the seeder at hand, or from who takes
// over from it.
func (d *download) bySeeder(ctx context.Context) error {
	err := errSkip
	for _, seeder := range d.line() {
		d.seeder = seeder
		err = d.fill(ctx, "seeder", seeder)
		if err == nil || d.over() || layers.DiskFailed(err) || isTooSlow(err) || d.stands(ctx, seeder, err) {
			break
		}
	}
	return err
}

// line are the seeders that may be asked for the blob, the one at hand first. Who has
// asked none for it asks none later.
func (d *download) line() []Seeder {
	if d.seeder == nil {
		return nil
	}
	line := d.mirror.seeders.well(string(d.partial.Digest()))
	if at := slices.Index(line, d.seeder); at > 0 {
		line = slices.Insert(slices.Delete(line, at, at+1), 0, d.seeder)
	}
	return line
}

// stands tells whether a seeder is well whose answer ended with err.
func (d *download) stands(ctx context.Context, seeder Seeder, err error) bool {
	if registry.Refused(err) {
		return true
	}
	return !d.mirror.seeders.failed(ctx, seeder, err) && d.seederLives(ctx)
}

// errReturned is why the registry is left for a seeder that is back.
var errReturned = errors.New("a seeder is well again")

// byUpstream goes to the registry itself; where it does so because no seeder is there, until one
// is: a fleet whose seeder is restarted would else have the rest of the blob once a host.
func (d *download) byUpstream(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	if d.torrent != nil && d.returns < maxRenewals && !d.seederThere() {
		watching.Go(func() { d.awaitSeeder(ctx, cancel) })
	}
	err := d.fill(ctx, "upstream", d.mirror.cfg.Registries)
	back := errors.Is(context.Cause(ctx), errReturned)
	cancel(nil)
	watching.Wait()
	switch {
	case errors.Is(err, layers.ErrMismatch):
		// The registry's bytes contradict what a seeder told of the blob. The
		// next download begins anew, and asks no seeder.
		d.partial.Fail(err)
	case err != nil && back && !layers.DiskFailed(err):
		d.returns++
		return errReturned
	}
	return err
}

// seederThere tells whether there is a seeder that could be asked for the blob.
func (d *download) seederThere() bool {
	return len(d.mirror.seeders.well(string(d.partial.Digest()))) > 0
}

// awaitSeeder calls cancel when a seeder is there.
func (d *download) awaitSeeder(ctx context.Context, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for !d.seederThere() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
	cancel(errReturned)
}

func (d *download) fill(ctx context.Context, way string, up registry.Upstream) error {
	from := layers.Source(way)
	open := func(ctx context.Context, off int64) (io.ReadCloser, error) {
		if first := d.first; first != nil && first.way == way {
			d.first = nil
			if off == first.off {
				return first.body, nil
			}
			first.body.Close() // an earlier download left us other bytes than it looked
		}
		body, size, err := d.rights.GetBlob(ctx, up, d.partial.Digest(), off)
		if err == nil && size >= 0 && size != d.partial.Size() {
			body.Close()
			return nil, fmt.Errorf("%d bytes there, %d promised: %w", size, d.partial.Size(), layers.ErrMismatch)
		}
		return body, err
	}
	return d.paced(ctx, way, func(ctx context.Context) error {
		return layers.Fill(ctx, d.partial, open, d.mirror.cfg.Download, func(n int) { d.received(from, way, n) })
	})
}
