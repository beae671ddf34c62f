package integration

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// hangsAfter is when a pull counts as stuck for good. It is no measure of speed:
// what takes long and moves is well.
const hangsAfter = 3 * time.Minute

// pull is one host's pull of the image, as an engine does it: the manifest by
// tag, then all blobs, three at a time, each digest checked as it streams.
type pull struct {
	host  *part
	flock *flock
	image *flockImage
	agent *http.Client
	token func() string // Authorization of each request; nil is none

	excused bool // the fault itself ends its mirror, or leaves it nobody to ask: the pull may break

	mu     sync.Mutex              // guards the rest
	got    int64                   // bytes of blobs, those that came twice included
	at     map[digest.Digest]int64 // up to where each blob is here
	again  int                     // requests that had to be made again
	broken []string                // why
	last   time.Time               // when bytes came last
	struck time.Time               // when the fault struck; zero if it has not, or too late
	next   time.Duration
	pause  time.Duration
	err    error
	ended  chan struct{} // closed once err is set
}

// pullEverywhere begins a pull of the image on each host. What breaks is asked for again, as
// engines do.
func (f *flock) pullEverywhere(t testing.TB, token func() string) []*pull {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hangsAfter)
	t.Cleanup(cancel)
	var pulls []*pull
	for _, h := range f.Hosts {
		p := &pull{
			host: h, flock: f, image: f.image, token: token, at: make(map[digest.Digest]int64), ended: make(chan struct{}),
			agent: &http.Client{Transport: transportOn(h.cfg.On)},
		}
		pulls = append(pulls, p)
		go func() { // ends with ctx at the latest; awaitPulls waits for it
			p.err = p.run(ctx)
			close(p.ended)
		}()
	}
	return pulls
}

// errWrongBytes says that a blob came to a polite end with wrong bytes, the one
// thing that must never happen.
var errWrongBytes = errors.New("a whole answer does not have the digest")

// engineRetry is how often an engine in these tests asks again for what broke.
const engineRetry = 200 * time.Millisecond

func (p *pull) run(ctx context.Context) error {
	attempt := func(what string, ask func() error) error {
		for {
			err := ask()
			if err == nil || errors.Is(err, errWrongBytes) || ctx.Err() != nil {
				return err
			}
			p.broke(what, err)
			select {
			case <-time.After(engineRetry):
			case <-ctx.Done():
			}
		}
	}
	err := attempt("manifest", func() error { return p.manifest(ctx) })
	if err != nil {
		return err
	}
	const parallel = 3 // containerd's max_concurrent_downloads
	var blobs errgroup.Group
	blobs.SetLimit(parallel)
	for _, b := range p.image.Blobs {
		blobs.Go(func() error {
			stream := &blobStream{pull: p, blob: b}
			return attempt(b.Digest.Encoded()[:12], func() error { return stream.resume(ctx) })
		})
	}
	return blobs.Wait()
}

func (p *pull) broke(what string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.again++
	if text := what + ": " + err.Error(); len(p.broken) < 20 && !slices.Contains(p.broken, text) {
		p.broken = append(p.broken, text)
	}
}

// open asks the host's mirror.
func (p *pull) open(ctx context.Context, kind, ref string, offset int64) (*http.Response, error) {
	url := fmt.Sprintf("http://%s/v2/%s/%s/%s?ns=%s", p.host.cfg.Listen, flockRepo, kind, ref, p.flock.Registry.Addr)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", strings.Join([]string{string(types.OCIManifestSchema1), string(types.DockerManifestSchema2)}, ", "))
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	if p.token != nil {
		req.Header.Set("Authorization", p.token())
	}
	resp, err := p.agent.Do(req)
	if err != nil {
		return nil, err
	}
	if want := cmp.Or(map[bool]int{true: http.StatusPartialContent}[offset > 0], http.StatusOK); resp.StatusCode != want {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		resp.Body.Close()
		return nil, fmt.Errorf("%s, want %d: %s", resp.Status, want, text)
	}
	return resp, nil
}

func (p *pull) manifest(ctx context.Context) error {
	resp, err := p.open(ctx, "manifests", p.image.Tag, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if digest.FromBytes(content) != p.image.Manifest {
		return fmt.Errorf("manifest: %w", errWrongBytes)
	}
	return nil
}

// blobStream is a blob that arrives at an engine, which goes on where it broke.
type blobStream struct {
	pull *pull
	blob blobInfo
	sum  hash.Hash
	at   int64
	cut  bool // sum is of bytes from before a cut, too
}

func (s *blobStream) resume(ctx context.Context) error {
	if s.sum == nil {
		s.sum, s.at, s.cut = s.blob.Digest.Algorithm().Hash(), 0, false
	}
	if s.at < s.blob.Size {
		if err := s.read(ctx); err != nil {
			s.cut = true
			return err
		}
	}
	if digest.NewDigest(s.blob.Digest.Algorithm(), s.sum) == s.blob.Digest {
		return nil
	}
	s.sum = nil
	if s.cut { // what came before the cut may have been wrong: a cut says so
		return errors.New("what came in parts does not have the digest")
	}
	return fmt.Errorf("%s: %w", s.blob.Digest, errWrongBytes)
}

func (s *blobStream) read(ctx context.Context) error {
	resp, err := s.pull.open(ctx, "blobs", s.blob.Digest.String(), s.at)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			_, _ = s.sum.Write(buf[:n]) // a hash never fails
			s.at += int64(n)
			s.pull.read(int64(n), s.blob.Digest, s.at)
		}
		if err == io.EOF && s.at < s.blob.Size {
			err = fmt.Errorf("a polite end: %w", errWrongBytes)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", s.at, err)
		}
	}
}

// read notes that n bytes came, of a blob that is here up to at.
func (p *pull) read(n int64, of digest.Digest, at int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !p.struck.IsZero() {
		if p.last.Before(p.struck) {
			p.next, p.last = now.Sub(p.struck), p.struck
		}
		p.pause = max(p.pause, now.Sub(p.last))
	}
	p.got += n
	p.at[of] = at
	p.last = now
}

// strike begins the clock of a fault, for pulls that have not ended.
func (p *pull) strike() (inFlight bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.ended:
		return false
	default:
		p.struck = time.Now()
		return true
	}
}

func (p *pull) received() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.got
}

// reached is up to where a blob is here.
func (p *pull) reached(of digest.Digest) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at[of]
}

// awaitShare returns once the pulls together have this share of all bytes.
func awaitShare(t testing.TB, pulls []*pull, share float64) {
	t.Helper()
	var want int64
	for _, p := range pulls {
		want += int64(share * float64(p.image.Size()))
	}
	waitUntil(t, fmt.Sprintf("%.0f %% of the image everywhere", 100*share), func() error {
		var got int64
		running := false
		for _, p := range pulls {
			got += p.received()
			select {
			case <-p.ended:
			default:
				running = true
			}
		}
		if got < want && running { // pulls that fail are told of by awaitPulls
			return fmt.Errorf("%d of %d bytes", got, want)
		}
		return nil
	})
}

// awaitPulls waits for all pulls, which must have ended well. With sturdy, none
// may have been broken on the way but those that are excused.
func awaitPulls(t testing.TB, pulls []*pull, sturdy bool) {
	t.Helper()
	for i, p := range pulls {
		<-p.ended
		if p.err != nil {
			t.Errorf("host %d: %v", i, p.err)
		}
		if p.again > 0 {
			t.Logf("host %d (%s) had to ask %d times again: %.400q", i, p.host.Addr, p.again, p.broken)
		}
		if sturdy && p.again > 0 && !p.excused {
			t.Errorf("the pull of host %d broke though there was another way", i)
		}
	}
}

// aftermath is how pulls went on after a fault.
type aftermath struct {
	fault       string
	struck      int             // pulls that were in flight
	next, pause []time.Duration // to the next byte; without any byte at the longest, of each
	again       int             // requests that engines had to make again
}

func newAftermath(fault string, pulls []*pull) aftermath {
	a := aftermath{fault: fault}
	for _, p := range pulls {
		a.again += p.again
		if !p.struck.IsZero() && p.next > 0 {
			a.struck++
			a.next, a.pause = append(a.next, p.next), append(a.pause, p.pause)
		}
	}
	slices.Sort(a.next)
	slices.Sort(a.pause)
	return a
}

// plus is the aftermath of both, of one fault.
func (a aftermath) plus(b aftermath) aftermath {
	b.struck, b.again = a.struck+b.struck, a.again+b.again
	b.next, b.pause = append(b.next, a.next...), append(b.pause, a.pause...)
	slices.Sort(b.next)
	slices.Sort(b.pause)
	return b
}

// String is a line of a table: seconds at the median and at most.
func (a aftermath) String() string {
	at := func(d []time.Duration, share float64) float64 {
		if len(d) == 0 {
			return 0
		}
		return d[int(share*float64(len(d)-1))].Seconds()
	}
	return fmt.Sprintf("%-34s %5d %9.3f %9.3f %9.3f %9.3f %7d", a.fault, a.struck,
		at(a.next, 0.5), at(a.next, 1), at(a.pause, 0.5), at(a.pause, 1), a.again)
}

// aftermathHead is the head of the table.
const aftermathHead = "fault                              pulls  next:p50       max pause:p50       max   again"
