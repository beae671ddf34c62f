package seeder

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/layers/tracing"
	"github.com/murderp2p/murder/registry"
)

// origin brings blobs from the registries into the store, each once.
type origin struct {
	ctx      context.Context // the daemon's: a fetch outlives whoever asked first
	running  sync.WaitGroup
	store    *layers.Store
	upstream registry.Upstream
	grants   *registry.Grants
	shared   *layers.Shared
	ledger   *layers.Ledger
	download *layers.Limiter
	tracer   tracing.Tracer
	log      *slog.Logger
	key      [32]byte // of the names of draft swarms
	flights  layers.Flights[*fetch]

	slowAfter  time.Duration // that of layers.Pace if 0, as it is but in tests
	otherTick  time.Duration // a second, but in tests
	maxFetches int           // the constant, but in tests
}

// fetch is one blob on its way from the registry.
type fetch struct {
	ctx     context.Context // the daemon's, with the blob's span
	partial *layers.Partial
	torrent *layers.Torrent // grows with partial
	rights  registry.Rights
	ended   chan struct{} // closed when the next fetch of the blob can begin
}

// maxFetches bounds the blobs that are being fetched. Whoever can ask can name a registry
// of their own, which sends a byte now and then for ever.
const maxFetches = 1024

// maxTrickle bounds the time for which one of them is waited for that is too slow, in
// windows of layers.Pace: about a quarter of an hour. What has come is kept.
const maxTrickle = 60

// maxOther bounds the time for which a fetch from another registry is waited for, in
// origin.otherTick: a quarter of a minute, so that a mirror does not lose patience where the
// own registry then takes its time.
const maxOther = 15

// A registry that fails atOnce is asked once more after askPause.
const (
	atOnce   = 2 * time.Second
	askPause = 200 * time.Millisecond
)

// maxTries bounds the requests for one blob that bring nothing.
const maxTries = 4

func newOrigin(ctx context.Context, cfg Config, grants *registry.Grants, shared *layers.Shared) *origin {
	o := &origin{
		ctx: ctx, store: cfg.Store, upstream: cfg.Upstream, grants: grants, shared: shared,
		ledger: layers.NewLedger(), download: cfg.Download, tracer: cfg.Tracer, log: cfg.Log,
		otherTick: time.Second, maxFetches: maxFetches,
	}
	rand.Read(o.key[:])
	return o
}

// draft names the swarm of a blob whose metainfo is not known yet. The name must
// not follow from the digest, which is in manifests and logs: who is in a swarm is
// sent the blob, and only those whom the registry admits may be. Another registry's
// has another name: anyone can run one that begins to send what it has not, to be told.
func (o *origin) draft(registry string, d digest.Digest) (ih layers.InfoHash) {
	mac := hmac.New(sha256.New, o.key[:])
	mac.Write([]byte(registry + " " + string(d)))
	copy(ih[:], mac.Sum(nil))
	return ih
}

// acquire returns a blob for a caller whom the registry admits to it: whole,
// or being fetched. The error may be a [*registry.Uncached].
func (o *origin) acquire(ctx context.Context, req registry.Request) (*layers.Blob, *fetch, error) {
	for try := 1; ; try++ {
		// The flight first: it ends only after what it brought is on record.
		f, flying := o.flights.Get(req.Digest)
		blob, err := o.store.Open(req.Digest)
		if err == nil {
			err := o.admit(ctx, req, blob, f, flying)
			if err == nil {
				return blob, nil, nil
			}
			blob.Close()
			switch {
			case !layers.DiskFailed(err):
				return nil, nil, err
			case try == 1:
				continue // it has rotted, and is gone: it comes anew, once for all who ask
			}
			return nil, nil, registry.PassThrough(o.ctx, o.upstream, req, err)
		}
		if !errors.Is(err, layers.ErrNotFound) {
			return nil, nil, registry.PassThrough(o.ctx, o.upstream, req, err)
		}
		f, joined, err := o.flights.Join(ctx, req.Digest, req.Repo.Host, req.Asker(), func() (*fetch, error) { return o.begin(ctx, req) })
		if errors.Is(err, layers.ErrWhole) {
			continue // it became whole while we looked
		}
		if errors.Is(err, layers.ErrElsewhere) {
			return nil, nil, registry.PassThrough(ctx, o.upstream, req, registry.ErrOtherRegistry)
		}
		if u, ok := errors.AsType[*registry.Uncached](err); ok && joined {
			return nil, nil, registry.PassThrough(ctx, o.upstream, req, u.Cause) // the stream is another's
		}
		if err == nil && joined && errors.Is(f.partial.Err(), layers.ErrHangs) { // until it does not, the fetch does not end
			return nil, nil, registry.PassThrough(ctx, o.upstream, req, layers.ErrHangs)
		}
		if err == nil && joined && (f.failed(ctx) || !f.rights.From(req.Repo.Host) && o.soonOver(ctx, req, f)) {
			continue
		}
		if err == nil && joined {
			err = o.grants.AdmitArriving(ctx, o.upstream, req, f.partial.Size(), &f.rights)
		}
		return nil, f, err
	}
}

// admit asks for a whole blob, which may have come in just now.
func (o *origin) admit(ctx context.Context, req registry.Request, blob *layers.Blob, f *fetch, flying bool) error {
	if flying && f.rights.From(req.Repo.Host) {
		return o.grants.AdmitArriving(ctx, o.upstream, req, blob.Size(), &f.rights)
	}
	return o.grants.AdmitBlob(ctx, o.upstream, req, blob)
}

// begin asks the registry for a blob in the caller's name. That it is sent
// admits the caller, of whose context nothing but the trace is of account here.
func (o *origin) begin(caller context.Context, req registry.Request) (_ *fetch, err error) {
	if _, ok := o.store.Stat(req.Digest); ok {
		return nil, layers.ErrWhole
	}
	if o.flights.Len() > o.maxFetches {
		return nil, registry.PassThrough(o.ctx, o.upstream, req, registry.ErrTooMany)
	}
	ctx := o.tracer.Begin(o.ctx, caller, tracing.Fetch, req.Digest, req.Repo.Host, req.Repo.Name)
	defer func() {
		if err != nil {
			tracing.Of(ctx).Refuse(outcome(err))
		}
	}()
	if partial, err := o.onShelf(req); err != nil {
		return nil, err
	} else if partial != nil {
		return o.follow(ctx, req, partial, nil, 0), nil
	}
	off := o.store.Begun(req.Digest, req.Repo.Host) // what is here need not be sent again
	body, size, err := o.ask(ctx, req, off)
	if err != nil {
		return nil, err
	}
	if size < 0 {
		return nil, registry.PassOn(o.ctx, o.upstream, req, body, off, size, registry.ErrNoSize)
	}
	partial, err := o.store.Partial(req.Digest, size, req.Repo.Host)
	if errors.Is(err, layers.ErrWhole) {
		body.Close()
		return nil, err
	}
	if err != nil {
		o.log.Debug("blob not cached", "digest", req.Digest, "err", err) // the store says so once
		return nil, registry.PassOn(o.ctx, o.upstream, req, body, off, size, err)
	}
	return o.follow(ctx, req, partial, body, off), nil
}

// ask asks the registry for all of a blob behind byte off, and once more if it fails at once:
// all hosts that wait for the blob would else ask the registry themselves.
func (o *origin) ask(ctx context.Context, req registry.Request, off int64) (body io.ReadCloser, size int64, err error) {
	begun := time.Now()
	body, size, err = o.upstream.GetBlob(ctx, req.Repo, req.Digest, off, req.Authorization)
	if err == nil || registry.Refused(err) || time.Since(begun) > atOnce {
		return body, size, err
	}
	select {
	case <-ctx.Done():
		return nil, 0, err
	case <-time.After(askPause):
	}
	return o.upstream.GetBlob(ctx, req.Repo, req.Digest, off, req.Authorization)
}

// onShelf returns a blob that lies in the registry's own folder, once the registry has
// admitted the caller to it, or nil: then the registry itself is asked for it.
func (o *origin) onShelf(req registry.Request) (*layers.Partial, error) {
	held := o.store.OnShelf(req.Digest)
	if held == nil {
		return nil, nil
	}
	if o.grants.AdmitBlob(o.ctx, o.upstream, req, held) != nil {
		return nil, held.Close() // what it says to a request for the blob is said to the caller
	}
	partial, err := held.Partial(req.Repo.Host)
	if err != nil && !errors.Is(err, layers.ErrWhole) {
		o.log.Debug("blob on the shelf not used", "digest", req.Digest, "err", err)
		return nil, nil
	}
	return partial, err
}

// follow sees to a blob that has begun to come in, whose span is in ctx. body is the answer to a request for
// all behind byte off; nil where all is here.
func (o *origin) follow(ctx context.Context, req registry.Request, partial *layers.Partial, body io.ReadCloser, off int64) *fetch {
	o.grants.Began(req)
	way := "upstream"
	if body == nil {
		way = string(layers.FromCache)
	}
	f := &fetch{ctx: ctx, partial: partial, torrent: partial.Hashes(o.draft(req.Repo.Host, req.Digest)), ended: make(chan struct{})}
	f.rights.Add(req.Repo, req.Authorization)
	o.ledger.Begin(req.Digest, req.Repo.Host, req.Repo.Name, partial.Size())
	o.ledger.Way(req.Digest, way, "")
	tracing.Of(ctx).Way(way, "")
	o.offer(f)
	o.running.Go(func() { o.run(f, body, off) })
	return f
}

// offer lets the swarm have a blob as it comes in, if it is worth one.
func (o *origin) offer(f *fetch) {
	if f.partial.Size() < layers.SmallBlob {
		return
	}
	if err := o.shared.Arriving(o.ctx, f.torrent, f.partial); err != nil {
		o.log.Warn("blob not shared while it arrives", "digest", f.partial.Digest(), "err", err)
	}
}

// run brings all of a blob, in as many requests as it takes; first is the answer to one
// for all behind byte begun.
func (o *origin) run(f *fetch, first io.ReadCloser, begun int64) {
	d := f.partial.Digest()
	open := func(ctx context.Context, off int64) (io.ReadCloser, error) {
		if body := first; body != nil {
			first = nil
			if off == begun {
				return body, nil
			}
			body.Close() // an earlier fetch left us other bytes than it looked
		}
		body, _, err := f.rights.GetBlob(ctx, o.upstream, d, off)
		return body, err
	}
	if err := o.fill(f, open); err != nil {
		f.partial.Fail(err)
	}
	if first != nil {
		first.Close()
	}
	<-f.partial.Done()
	err := f.partial.Err()
	if err == nil {
		o.grants.Arrived(d, &f.rights)
		o.share(d, f.partial.Size())
	} else {
		o.shared.Drop(d) // before the next fetch of it offers it again
	}
	o.flights.End(d)
	close(f.ended)
	record := o.ledger.End(d, err)
	tracing.Of(f.ctx).End(record, outcome(err))
	log := o.log.With("digest", d, "bytes", record.Size, "dur", time.Duration(record.TookMS)*time.Millisecond)
	switch {
	case err == nil:
		log.Info("blob fetched", "way", record.Way)
	case layers.DiskFailed(err):
		log.Debug("blob not cached", "err", err) // the store says so once
	case o.ctx.Err() != nil:
		log.Info("blob left half done")
	default:
		log.Error("blob not fetched", "err", err)
	}
}

// outcome is how a fetch ended, for traces: a constant phrase.
func outcome(err error) string {
	_, uncached := errors.AsType[*registry.Uncached](err)
	switch {
	case err == nil:
		return tracing.Whole
	case uncached, layers.DiskFailed(err):
		return "not cached"
	case errors.Is(err, layers.ErrWhole):
		return "here already"
	case errors.Is(err, layers.ErrMismatch):
		return "wrong bytes"
	case errors.Is(err, context.Canceled):
		return "stopped"
	case registry.Refused(err):
		return "refused"
	default:
		return "unavailable"
	}
}

// share sees to it that the swarm can have a blob which is whole now, if it is worth
// one.
func (o *origin) share(d digest.Digest, size int64) {
	if size < layers.SmallBlob {
		return
	}
	if _, err := o.shared.Share(o.ctx, d); err != nil && o.ctx.Err() == nil {
		o.log.Warn("blob not shared", "digest", d, "err", err)
	}
}

// failed tells whether the blob will not come by this fetch, when the next can
// begin.
func (f *fetch) failed(ctx context.Context) bool {
	if f.partial.Err() == nil {
		return false
	}
	select {
	case <-f.ended:
	case <-ctx.Done():
	}
	return true
}

// soonOver waits for a fetch from another registry than the caller's as long as it goes to
// end within maxOther. Its bytes are not this caller's before they are whole and the own
// registry has shown that it has them too; but if none of a fleet waited, that registry
// would send each host a copy.
func (o *origin) soonOver(ctx context.Context, req registry.Request, f *fetch) bool {
	if _, err := o.upstream.StatBlob(ctx, req.Repo, req.Digest, req.Authorization); err != nil {
		return false // the caller hears of it at once
	}
	tick := time.NewTicker(o.otherTick)
	defer tick.Stop()
	before := f.partial.Received()
	for left := int64(maxOther); left > 0; left-- {
		select {
		case <-f.ended:
			return true
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		now := f.partial.Received()
		if (now-before)*left < f.partial.Size()-now {
			return false
		}
		before = now
	}
	return false
}

// fill goes on after an error where it stopped, as long as that helps.
func (o *origin) fill(f *fetch, open func(context.Context, int64) (io.ReadCloser, error)) error {
	p := f.partial
	received := func(n int) { o.ledger.Received(p.Digest(), layers.FromUpstream, int64(n)) }
	pace, over := o.pace()
	for try := 1; ; try++ {
		before := p.Received()
		err := pace.Watch(f.ctx, p, func(ctx context.Context) error {
			return layers.Fill(ctx, p, open, o.download, received)
		})
		if err == nil || registry.Refused(err) || o.ctx.Err() != nil || over() {
			return err
		}
		if p.Received() > before {
			try = 1
		}
		if try == maxTries {
			return err
		}
		tracing.Of(f.ctx).Left("upstream", "answer broke off", p.Received())
		o.log.Warn("registry's answer broke off", "digest", p.Digest(), "bytes", p.Received(), "err", err)
		select {
		case <-o.ctx.Done():
			return o.ctx.Err()
		case <-p.Done():
			return p.Err()
		case <-time.After(time.Duration(try) * 200 * time.Millisecond):
		}
	}
}

// pace has the registry asked anew when its answer trickles, but each time after twice as
// long as the last, since it may be the line. over tells when that is of no use any more.
func (o *origin) pace() (pace layers.Pace, over func() bool) {
	slow, windows, all := 0, 1, 0
	pace = layers.Pace{
		Window: o.slowAfter,
		Patience: func() float64 {
			if o.download.Held() {
				return 0
			}
			return 1
		},
		Leave: func(int64) bool {
			all++
			if slow++; slow < windows && all < maxTrickle {
				return false
			}
			slow, windows = 0, 2*windows
			return true
		},
	}
	return pace, func() bool { return all >= maxTrickle }
}

// known returns the size of a blob that is here or on its way.
func (o *origin) known(d digest.Digest) (size int64, ok bool) {
	if size, ok := o.store.Stat(d); ok {
		return size, true
	}
	if f, ok := o.flights.Get(d); ok {
		return f.partial.Size(), true
	}
	return 0, false
}
