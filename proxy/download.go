package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
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
	// maxFruitless bounds the ways tried in a row that bring nothing: each
	// twice, so that a registry's restart does not end a pull.
	maxFruitless = 6
)

var (
	errSkip     = errors.New("not a way for this blob")
	errMetainfo = errors.New("the metainfo has come")
	errStalled  = errors.New("no bytes from the swarm")
)

// download is one blob on its way to this host. It takes one way after the
// other, and each goes on where the last one stopped.
type download struct {
	mirror  *Mirror
	partial *layers.Partial
	rights  registry.Rights
	seeder  Seeder        // that was asked for the metainfo; nil = none answered
	stream  bool          // the seeder asks us to stream over HTTP at once
	first   io.ReadCloser // the registry's body, where begin has opened one
	why     string        // why there is no seeder

	metainfo  *layers.Metainfo // set before hasMeta is closed
	hasMeta   chan struct{}
	awaitMeta sync.Once
	noMeta    chan struct{} // closed when the metainfo is waited for no more
	streamAt  time.Time     // until when a cold blob waits for it

	ended chan struct{} // closed when the next download of the blob can begin

	mu      sync.Mutex // guards the two below
	ways    map[string]bool
	counted moved // of what the swarm has brought
}

// begin asks the seeder for a blob, or else the registry, in the caller's
// name. That it is promised admits the caller.
func (m *Mirror) begin(req registry.Request) (*download, error) {
	if _, ok := m.cfg.Store.Stat(req.Digest); ok {
		return nil, layers.ErrWhole
	}
	if m.uncached.has(req.Digest) {
		return nil, registry.PassThrough(m.ctx, m.upstream, req, errCacheFailed)
	}
	d := &download{mirror: m, hasMeta: make(chan struct{}), noMeta: make(chan struct{}), ended: make(chan struct{}),
		streamAt: time.Now().Add(m.coldWait), ways: make(map[string]bool)}
	d.rights.Add(req.Repo, req.Authorization)
	size, err := d.askSeeder(req)
	if err == nil && d.seeder == nil {
		if d.why != whyNoSeeder {
			m.fellBack(d.why)
		}
		d.first, size, err = m.cfg.Registries.GetBlob(m.ctx, req.Repo, req.Digest, 0, req.Authorization)
		if err == nil && size < 0 {
			return nil, &registry.Uncached{Stream: registry.NewStream(d.first, size, req.Digest), Cause: registry.ErrNoSize}
		}
	}
	if err != nil {
		return nil, err
	}
	d.partial, err = m.cfg.Store.Partial(req.Digest, size, req.Repo.Host)
	if errors.Is(err, layers.ErrWhole) {
		d.close()
		return nil, err
	}
	if err != nil {
		m.cfg.Log.Error("blob not cached", "digest", req.Digest, "err", err)
		if d.first != nil {
			return nil, &registry.Uncached{Stream: registry.NewStream(d.first, size, req.Digest), Cause: err}
		}
		return nil, registry.PassThrough(m.ctx, m.upstream, req, err)
	}
	m.grants.Began(req)
	m.ledger.Begin(req.Digest, req.Repo.Host, req.Repo.Name, size)
	m.running.Go(d.run)
	return d, nil
}

// askSeeder asks for the blob's metainfo. With no seeder to ask d.seeder stays
// nil; an error is the registry's verdict on the caller.
func (d *download) askSeeder(req registry.Request) (size int64, err error) {
	m := d.mirror
	if m.suspects.has(req.Digest) {
		d.why = whyWrong
		return 0, nil
	}
	d.why = whyNoSeeder
	if len(m.cfg.Seeders) > 0 {
		d.why = whySeederFailed
	}
	for _, seeder := range m.seeders.well() {
		metainfo, arrival, err := seeder.Torrent(m.ctx, req.Repo, req.Digest, req.Authorization, 0)
		switch {
		case err == nil:
			return d.take(seeder, metainfo, arrival), nil
		case registry.Refused(err):
			return 0, err
		case !m.seeders.failed(m.ctx, seeder, err):
			return 0, nil // it is there, but cannot: no more could the next
		}
	}
	return 0, nil
}

// take notes what a seeder has told of the blob, and returns the size.
func (d *download) take(seeder Seeder, metainfo *layers.Metainfo, arrival layers.Arrival) (size int64) {
	d.seeder, d.why = seeder, ""
	if metainfo != nil {
		d.setMetainfo(metainfo)
		return metainfo.Size()
	}
	d.stream = arrival.Stream
	return arrival.Size
}

func (d *download) setMetainfo(m *layers.Metainfo) {
	d.metainfo = m
	// What an earlier download of the blob has had of the swarm is not ours.
	d.counted.peers, d.counted.seeders = d.mirror.cfg.Swarm.Received(m.InfoHash())
	close(d.hasMeta)
}

// run brings the blob, and shares it when it is whole.
func (d *download) run() {
	m, p := d.mirror, d.partial
	if err := d.bring(); err != nil {
		p.Fail(err)
	}
	d.close()
	<-p.Done()
	err := p.Err()
	if err == nil {
		m.grants.Arrived(p.Digest(), &d.rights)
	}
	if err != nil {
		m.shared.Drop(p.Digest()) // the swarm of wrong bytes, if they came from one
	}
	if errors.Is(err, layers.ErrMismatch) {
		m.suspects.add(p.Digest())
	}
	if diskFailed(err) {
		m.uncached.add(p.Digest())
	}
	m.flights.End(p.Digest())
	close(d.ended)
	record := m.ledger.End(p.Digest(), err)
	log := m.cfg.Log.With("digest", p.Digest(), "bytes", p.Size(), "peer", record.From[layers.FromPeer],
		"seeder", record.From[layers.FromSeeder], "upstream", record.From[layers.FromUpstream], "why", record.Why,
		"dur", time.Duration(record.TookMS)*time.Millisecond)
	if m.ctx.Err() != nil && err != nil {
		log.Info("blob left half done")
		return
	}
	if err != nil {
		log.Error("blob not brought", "err", err)
		return
	}
	log.Info("blob brought")
	if p.Size() >= layers.SmallBlob {
		if _, err := m.shared.Share(m.ctx, p.Digest()); err != nil && m.ctx.Err() == nil {
			m.cfg.Log.Warn("blob not shared", "digest", p.Digest(), "err", err)
		}
	}
}

// failed tells whether the blob will not come by this download, when the next
// can begin.
func (d *download) failed(ctx context.Context) bool {
	if d.partial.Err() == nil {
		return false
	}
	select {
	case <-d.ended:
	case <-ctx.Done():
	}
	return true
}

func (d *download) close() {
	if d.first != nil {
		d.first.Close()
		d.first = nil
	}
}

// bring takes the ways in order, again and again as long as that helps.
func (d *download) bring() error {
	ctx := d.mirror.ctx
	ways := []struct {
		name  string
		bring func(context.Context) error
	}{{"swarm", d.bySwarm}, {"seeder", d.bySeeder}, {"upstream", d.byUpstream}}
	var last error
	for at, fruitless := 0, 0; fruitless < maxFruitless; {
		before := d.partial.Received()
		d.mirror.ledger.Way(d.partial.Digest(), ways[at].name, d.why)
		err := ways[at].bring(ctx)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errMetainfo):
			at = 0
			continue
		case d.over(), diskFailed(err):
			return err
		case !errors.Is(err, errSkip):
			last = err
			d.left(ways[at].name, err)
			fruitless++
			if d.partial.Received() > before {
				fruitless = 0
			}
		}
		if at++; at == len(ways) {
			at = 0
			d.pause(fruitless)
		}
	}
	return last
}

// over is true when no other way can help: the daemon stops, or the blob has
// ended by itself.
func (d *download) over() bool {
	select {
	case <-d.partial.Done():
		return true
	default:
		return d.mirror.ctx.Err() != nil
	}
}

// left notes why a way was left for the next.
func (d *download) left(way string, err error) {
	m := d.mirror
	switch {
	case errors.Is(err, errStalled):
		d.why = whyStalled
	case errors.Is(err, registry.ErrUnreachable) && way != "upstream":
		d.why = whySeederFailed
	default:
		d.why = whyBrokeOff
	}
	m.fellBack(d.why)
	m.cfg.Log.Warn("way left", "digest", d.partial.Digest(), "way", way, "bytes", d.partial.Received(), "why", d.why, "err", err)
}

// pause lets a registry that has just failed come back.
func (d *download) pause(fruitless int) {
	select {
	case <-d.mirror.ctx.Done():
	case <-d.partial.Done():
	case <-time.After(time.Duration(fruitless) * 200 * time.Millisecond):
	}
}

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
	err := d.mirror.cfg.Swarm.Fetch(ctx, d.metainfo, d.partial, d.mirror.seeders.trackers())
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	cancel(nil)
	watching.Wait()
	if err == nil {
		d.mirror.shared.Joined(d.metainfo)
	}
	return err
}

// watch counts what the swarm brings, and ends a fetch that brings nothing:
// soon when the seeder is away, since then a piece may be missing for good.
func (d *download) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	defer d.count()
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	last, progress := time.Now(), d.partial.Progress()
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
			last, progress = time.Now(), d.partial.Progress()
			continue
		default:
		}
		if silent := time.Since(last); silent > d.mirror.stallAfter || silent > time.Second && !d.seederLives(ctx) {
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
	peers, seeders := d.mirror.cfg.Swarm.Received(d.metainfo.InfoHash())
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

func (d *download) received(from layers.Source, way string, n int) {
	if n == 0 {
		return
	}
	d.mirror.ledger.Received(d.partial.Digest(), from, int64(n))
	d.mu.Lock()
	d.ways[way] = true
	d.mu.Unlock()
}

// source names the one way that brought the blob, or says that several did.
func (d *download) source() string {
	if d.knowsMetainfo() {
		d.count() // the client may be served before that is done next
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.ways) != 1 {
		return "mixed"
	}
	return slices.Collect(maps.Keys(d.ways))[0]
}
