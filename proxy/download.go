package proxy

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/layers/tracing"
	"github.com/murderp2p/murder/registry"
)

// maxFruitless bounds the ways tried in a row that bring nothing: each twice, so
// that a registry's restart does not end a pull.
const maxFruitless = 6

// maxDownloads bounds the blobs that are arriving. More go past the cache, a client each.
const maxDownloads = 1024

// download is one blob on its way to this host. It takes one way after the
// other, and each goes on where the last one stopped.
type download struct {
	mirror  *Mirror
	host    string          // of the registry
	ctx     context.Context // the daemon's, with the blob's span
	partial *layers.Partial
	rights  registry.Rights
	seeder  Seeder          // that was asked for the blob; nil = none answered
	torrent *layers.Torrent // what it answered; nil = not worth a swarm
	leave   func()          // ends its answer; nil = there is none
	first   *opened         // what the answer was, if not a torrent
	why     string          // why there is no seeder
	shelved bool            // all of it is here, and only has to be verified
	pace    *pace
	returns int // how often it has left the registry for a seeder

	ended chan struct{} // closed when the next download of the blob can begin

	mu      sync.Mutex // guards the two below
	ways    map[string]bool
	counted moved // of what the swarm has brought
}

// opened is a blob from byte off on, as a way has begun to bring it.
type opened struct {
	way  string
	off  int64
	body io.ReadCloser
}

// begin asks the seeder for a blob, or else the registry, in the caller's
// name. That it is promised admits the caller, of whose context nothing but the trace
// is of account here.
func (m *Mirror) begin(caller context.Context, req registry.Request) (_ *download, err error) {
	if _, ok := m.cfg.Store.Stat(req.Digest); ok {
		return nil, layers.ErrWhole
	}
	if m.flights.Len() > maxDownloads {
		return nil, registry.PassThrough(m.ctx, m.upstream, req, registry.ErrTooMany)
	}
	if m.uncached.has(origin{req.Repo.Host, req.Digest}) {
		return nil, registry.PassThrough(m.ctx, m.upstream, req, errCacheFailed)
	}
	d := &download{mirror: m, host: req.Repo.Host, ended: make(chan struct{}), ways: make(map[string]bool), pace: newPace()}
	d.rights.Add(req.Repo, req.Authorization)
	d.ctx = m.cfg.Tracer.Begin(m.ctx, caller, tracing.Pull, req.Digest, req.Repo.Host, req.Repo.Name)
	defer func() {
		if err != nil {
			tracing.Of(d.ctx).Refuse(outcome(err))
		}
	}()
	if err := d.takeFromShelf(req); err != nil {
		return nil, err
	} else if d.partial != nil {
		d.start(req)
		return d, nil
	}
	size, err := d.askSeeder(req)
	if err == nil && d.seeder == nil {
		size, err = d.askRegistry(req)
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
		m.cfg.Log.Debug("blob not cached", "digest", req.Digest, "err", err) // the store says so once
		if d.seeder == nil {
			return nil, registry.PassOn(m.ctx, m.upstream, req, d.first.body, d.first.off, size, err)
		}
		d.close()
		return nil, registry.PassThrough(m.ctx, m.upstream, req, err)
	}
	// What an earlier download of the blob has had of the swarm is not ours.
	d.counted.peers, d.counted.seeders = m.cfg.Swarm.Received(req.Digest)
	d.start(req)
	if err := d.settleSpace(); err != nil {
		return nil, registry.PassThrough(m.ctx, m.upstream, req, err)
	}
	return d, nil
}

// start has the blob brought.
func (d *download) start(req registry.Request) {
	d.mirror.grants.Began(req)
	d.mirror.ledger.Begin(req.Digest, req.Repo.Host, req.Repo.Name, d.partial.Size())
	d.mirror.running.Go(d.run)
}

// takeFromShelf takes a blob that lies in the engine's own store, once the registry has
// admitted the caller to it. Otherwise d.partial stays nil, and the blob is asked for.
func (d *download) takeFromShelf(req registry.Request) error {
	m := d.mirror
	held := m.cfg.Store.OnShelf(req.Digest)
	if held == nil {
		return nil
	}
	if m.grants.AdmitBlob(m.ctx, m.upstream, req, held) != nil {
		return held.Close() // what is said to a request for the blob is said to the caller
	}
	partial, err := held.Partial(req.Repo.Host)
	if errors.Is(err, layers.ErrWhole) {
		return err
	}
	if err != nil {
		m.cfg.Log.Debug("blob on the shelf not used", "digest", req.Digest, "err", err)
		return nil
	}
	d.partial, d.shelved = partial, true
	d.ways[string(layers.FromCache)] = true
	return nil
}

// spacePatience is how long a client waits for the disk to take the blob's space, so
// that it is not promised what cannot be kept. As a rule that takes some milliseconds.
const spacePatience = 100 * time.Millisecond

// settleSpace returns why the blob does not fit the disk, if that is soon known.
func (d *download) settleSpace() error {
	select {
	case <-d.partial.Reserved():
	case <-time.After(spacePatience):
	}
	if err := d.partial.Err(); layers.DiskFailed(err) {
		return err
	}
	return nil
}

// askSeeder asks for the blob. With no seeder to ask d.seeder stays nil; an
// error is the registry's verdict on the caller.
func (d *download) askSeeder(req registry.Request) (size int64, err error) {
	m := d.mirror
	if m.suspects.has(origin{req.Repo.Host, req.Digest}) {
		d.why = whyWrong
		return 0, nil
	}
	d.why = whyNoSeeder
	if len(m.seeders.all()) > 0 {
		d.why = whySeederFailed
	}
	for _, seeder := range m.seeders.well(string(req.Digest)) {
		answer, leave, err := d.ask(seeder, req.Repo, req.Digest, req.Authorization)
		switch {
		case err == nil:
			d.seeder, d.why = seeder, ""
			d.take(answer, leave)
			return answer.Size, nil
		case registry.Refused(err):
			return 0, err
		case !m.seeders.failed(m.ctx, seeder, err):
			d.why = whyCannot // it is there; no more could the next
			return 0, nil
		}
	}
	return 0, nil
}

// ask puts the question for the blob to a seeder. Its answer ends with leave.
func (d *download) ask(seeder Seeder, repo registry.Repository, of digest.Digest, authorization string) (a layers.Answer, leave func(), err error) {
	ctx, leave := context.WithCancel(d.ctx)
	if a, err = seeder.Ask(ctx, repo, of, authorization); err != nil {
		leave()
	}
	return a, leave, err
}

// take goes by a seeder's answer from now on.
func (d *download) take(a layers.Answer, leave func()) {
	d.close()
	d.torrent, d.leave = a.Torrent, leave
	switch {
	case a.Torrent == nil:
		d.first = &opened{"seeder", 0, a.Body}
	case a.Body != nil:
		d.mirror.running.Go(func() {
			defer a.Body.Close()
			layers.ReadTorrent(a.Torrent, a.Body) // whoever needs the torrent hears of the error
		})
	}
}

// askRegistry asks for the blob where no seeder can be asked.
func (d *download) askRegistry(req registry.Request) (size int64, err error) {
	m := d.mirror
	if d.why != whyNoSeeder {
		m.fellBack(d.why)
	}
	off := m.cfg.Store.Begun(req.Digest, req.Repo.Host) // what is here need not be sent again
	body, size, err := m.cfg.Registries.GetBlob(m.ctx, req.Repo, req.Digest, off, req.Authorization)
	if err != nil {
		return 0, err
	}
	if size < 0 {
		return 0, registry.PassOn(m.ctx, m.upstream, req, body, off, size, registry.ErrNoSize)
	}
	d.first = &opened{"upstream", off, body}
	return size, nil
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
	if errors.Is(err, layers.ErrMismatch) && !d.shelved {
		m.suspects.add(origin{d.host, p.Digest()})
	}
	if d.passedBy() {
		m.uncached.add(origin{d.host, p.Digest()})
	}
	m.flights.End(p.Digest())
	close(d.ended)
	record := m.ledger.End(p.Digest(), err)
	tracing.Of(d.ctx).End(record, outcome(err))
	log := m.cfg.Log.With("digest", p.Digest(), "bytes", p.Size(), "peer", record.From[layers.FromPeer],
		"seeder", record.From[layers.FromSeeder], "upstream", record.From[layers.FromUpstream], "why", record.Why,
		"dur", time.Duration(record.TookMS)*time.Millisecond)
	if m.ctx.Err() != nil && err != nil {
		log.Info("blob left half done")
		return
	}
	if layers.DiskFailed(err) {
		log.Debug("blob not cached", "err", err) // the store says so once
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

// passedBy tells whether the disk has failed the download, which it may take long to end.
func (d *download) passedBy() bool { return !d.shelved && layers.DiskFailed(d.partial.Err()) }

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

// close ends what was answered to begin.
func (d *download) close() {
	if d.first != nil {
		d.first.body.Close()
		d.first = nil
	}
	if d.leave != nil {
		d.leave()
		d.leave = nil
	}
}

// bring takes the ways in order, again and again as long as that helps.
func (d *download) bring() error {
	ctx := d.ctx
	if d.shelved {
		d.mirror.ledger.Way(d.partial.Digest(), string(layers.FromCache), "")
		tracing.Of(d.ctx).Way(string(layers.FromCache), "")
		<-d.partial.Done()
		return nil
	}
	ways := map[string]func(context.Context) error{"swarm": d.bySwarm, "seeder": d.bySeeder, "upstream": d.byUpstream}
	var last error
	for at, fruitless := 0, 0; fruitless < maxFruitless; {
		before, callers, way := d.partial.Received(), d.rights.Added(), waysInOrder[at]
		d.mirror.ledger.Way(d.partial.Digest(), way, d.why)
		tracing.Of(d.ctx).Way(way, d.why)
		err := ways[way](ctx)
		if !isTooSlow(err) && !errors.Is(err, errReturned) {
			d.pace.failed(way)
		}
		switch {
		case err == nil:
			return nil
		case d.over(), layers.DiskFailed(err):
			return err
		case errors.Is(err, errReturned):
			fruitless = 0
			d.mirror.cfg.Log.Info("seeder is back", "digest", d.partial.Digest(), "bytes", d.partial.Received())
		case !errors.Is(err, errSkip):
			last = err
			d.left(way, err)
			fruitless++
			if d.partial.Received() > before {
				fruitless = 0
			}
			if way == "upstream" && registry.TurnedAway(err) && d.rights.Added() == callers {
				return err // so that clients, who alone can get other tokens, hear of it
			}
		}
		if at++; at == len(waysInOrder) && fruitless < maxFruitless {
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
	case isTooSlow(err):
		d.why = whySlow
	case errors.Is(err, registry.ErrUnreachable) && way != "upstream":
		d.why = whySeederFailed
	default:
		d.why = whyBrokeOff
	}
	m.fellBack(d.why)
	tracing.Of(d.ctx).Left(way, d.why, d.partial.Received())
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
	d.count() // the client may be served before that is done next
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.ways) != 1 {
		return "mixed"
	}
	return slices.Collect(maps.Keys(d.ways))[0]
}
