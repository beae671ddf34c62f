package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/murderp2p/murder/integration/netlab"
)

// marks are the shares of a pull at which its progress is noted.
var marks = [...]float64{0.10, 0.50, 0.75}

// pulled is how a host's pull went. Times are seconds after its start.
type pulled struct {
	FirstByte float64
	Stall     float64             // the longest time between two bytes of one stream
	At        [len(marks)]float64 // when that share of the bytes was there, in order
	End       float64             // when all digests had been found right
}

// puller is a client on one machine that pulls as an engine does: each blob in
// order, its digest checked as it streams, nothing kept.
type puller struct {
	http *http.Client
	base string // URL of the mirror or registry it asks
	ns   string // the registry's name, for a mirror; empty when base is that registry
}

func newPuller(m *netlab.Machine, base, ns string) *puller {
	return &puller{base: base, ns: ns, http: &http.Client{Transport: &http.Transport{
		DialContext:        m.DialContext,
		DisableCompression: true,
		ReadBufferSize:     readSize,
	}}}
}

func (p *puller) close() { p.http.CloseIdleConnections() }

// readSize is how much a client asks of its socket at once, in bytes.
const readSize = 64 << 10

// url is the address of something in the lab's repository.
func (p *puller) url(kind, reference string) string {
	url := fmt.Sprintf("%s/v2/%s/%s/%s", p.base, repository, kind, reference)
	if p.ns != "" {
		url += "?ns=" + p.ns
	}
	return url
}

// get asks for url and returns the body of a good answer.
func (p *puller) get(ctx context.Context, url string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", string(types.OCIManifestSchema1)+", */*")
	resp, err := p.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		resp.Body.Close()
		return nil, fmt.Errorf("GET %s = %d: %s", url, resp.StatusCode, text)
	}
	return resp.Body, nil
}

// body returns a small answer whole.
func (p *puller) body(ctx context.Context, url string) (string, error) {
	body, err := p.get(ctx, url)
	if err != nil {
		return "", err
	}
	defer body.Close()
	var text strings.Builder
	_, err = io.Copy(&text, body)
	return text.String(), err
}

// pull pulls blobs, at most parallel at a time.
func (p *puller) pull(ctx context.Context, blobs []blob, parallel int) (pulled, error) {
	w := newWatch(blobs)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, b := range blobs {
		group.Go(func() error { return p.pullBlob(ctx, b, w) })
	}
	err := group.Wait()
	return w.done(), err
}

// pullImage pulls an image by its tag as containerd does: the manifest, then
// its blobs, three at a time.
func (p *puller) pullImage(ctx context.Context, img image) (pulled, error) {
	const parallel = 3 // containerd's max_concurrent_downloads
	start := time.Now()
	if _, err := p.body(ctx, p.url("manifests", img.Tag)); err != nil {
		return pulled{}, err
	}
	before := time.Since(start).Seconds()
	r, err := p.pull(ctx, img.blobs(), parallel)
	r.FirstByte += before
	r.End += before
	for i := range r.At {
		r.At[i] += before
	}
	return r, err
}

// errWrong says that a stream ended as if all were well, with wrong bytes.
var errWrong = errors.New("the bytes do not have the digest")

func (p *puller) pullBlob(ctx context.Context, b blob, w *watch) error {
	body, err := p.get(ctx, p.url("blobs", b.Digest.String()))
	if err != nil {
		return err
	}
	defer body.Close()
	verifier := b.Digest.Verifier()
	buf := make([]byte, readSize)
	last := time.Time{}
	for {
		n, err := body.Read(buf)
		if n > 0 {
			last = w.read(n, last)
			_, _ = verifier.Write(buf[:n]) // a hash never fails
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("pull %s: %w", b.Digest, err)
		}
	}
	if !verifier.Verified() {
		return fmt.Errorf("pull %s: %w", b.Digest, errWrong)
	}
	return nil
}

// watch times the streams of one pull. Safe for concurrent use.
type watch struct {
	start time.Time
	total int64

	mu   sync.Mutex // guards the rest
	got  int64
	mark int // the next of marks
	r    pulled
}

func newWatch(blobs []blob) *watch {
	w := &watch{start: time.Now()}
	for _, b := range blobs {
		w.total += b.Size
	}
	return w
}

// read notes that n bytes came on a stream whose bytes before came at last,
// and returns the time. The zero time is for a stream's first bytes.
func (w *watch) read(n int, last time.Time) time.Time {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.got == 0 {
		w.r.FirstByte = now.Sub(w.start).Seconds()
	}
	if !last.IsZero() {
		w.r.Stall = max(w.r.Stall, now.Sub(last).Seconds())
	}
	w.got += int64(n)
	for w.mark < len(marks) && float64(w.got) >= marks[w.mark]*float64(w.total) {
		w.r.At[w.mark] = now.Sub(w.start).Seconds()
		w.mark++
	}
	return now
}

// done returns what was seen.
func (w *watch) done() pulled {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.r.End = time.Since(w.start).Seconds()
	return w.r
}

// waitReady polls until something at addr on m accepts connections, or p ends.
func waitReady(ctx context.Context, m *netlab.Machine, p *process, port uint16) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := m.DialContext(ctx, "tcp", net.JoinHostPort(m.Addr.String(), fmt.Sprint(port)))
		if err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-p.exited:
			return fmt.Errorf("%s ended: %w\n%s", p.name, errors.Join(p.err, errEnded), p.tail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w\n%s", p.name, err, p.tail())
		}
	}
}

// readyWithin bounds the wait for a program to come up.
const readyWithin = time.Minute

var errEnded = errors.New("no longer running")
