package integration

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// The faults of the chaos cases, each a function that a case or the soak calls.

func killSeeder(t *testing.T, f *flock, _ []*pull) { f.Seeder.Kill() }

func restartSeeder(t *testing.T, f *flock, _ []*pull) {
	f.Seeder.Kill()
	f.Seeder.Restart(t)
}

// stopSeeder leaves a seeder that accepts connections and never answers.
func stopSeeder(t *testing.T, f *flock, _ []*pull) {
	if !f.Seeder.hasEnded() { // by another fault of a soak
		f.Seeder.Signal(t, syscall.SIGSTOP)
	}
}

// killStopped spares us the time that a stopped seeder would take to end well.
func killStopped(_ *testing.T, f *flock) { f.Seeder.Kill() }

func endSeeder(t *testing.T, f *flock, _ []*pull) {
	if !f.Seeder.hasEnded() {
		f.Seeder.end(t)
	}
}

// end has a daemon end as an operator does, which it must do well.
func (p *part) end(t *testing.T) {
	t.Helper()
	p.Stop(t)
	if p.err != nil {
		t.Errorf("%s, by SIGTERM: %v", p.name, p.err)
	}
}

// half are half of the hosts, whose pulls are excused as their mirrors end.
func (f *flock) half(pulls []*pull) []*part {
	hosts := f.Hosts[:len(f.Hosts)/2]
	for i := range hosts {
		pulls[i].excused = true
	}
	return hosts
}

// restartMirrors kills half of the mirrors, all of them before the first is
// started again.
func restartMirrors(t *testing.T, f *flock, pulls []*pull) {
	hosts := f.half(pulls)
	for _, h := range hosts {
		h.Kill()
	}
	for _, h := range hosts {
		h.Restart(t)
	}
}

func endMirrors(t *testing.T, f *flock, pulls []*pull) {
	hosts := f.half(pulls)
	var ends sync.WaitGroup
	for _, h := range hosts {
		ends.Go(func() { h.end(t) })
	}
	ends.Wait()
	for _, h := range hosts {
		h.Restart(t)
	}
}

// rotPartials has the disks of half of the hosts go bad under what has arrived
// of the image, while their mirrors are down.
func rotPartials(t *testing.T, f *flock, pulls []*pull) {
	hosts := f.half(pulls)
	for _, h := range hosts {
		h.Kill()
	}
	flipped := 0
	for _, h := range hosts {
		flipped += h.rot(t, "partial") // nothing on a disk that went with its daemon
		h.Restart(t)
	}
	t.Logf("%d bits flipped", flipped)
}

// rotCaches has the disks of three hosts go bad that have had the image before
// and share it. The pulls are the others'.
func rotCaches(t *testing.T, f *flock) {
	others := f.Hosts[3:]
	f.Hosts = f.Hosts[:3]
	awaitPulls(t, f.pullEverywhere(t, nil), true)
	for _, h := range f.Hosts {
		for _, b := range f.image.Blobs {
			h.awaitNamed(t, b)
		}
		h.rot(t, "blobs")
	}
	f.Hosts = others
}

// awaitNamed waits until a blob has its name in the cache, and returns its file.
func (p *part) awaitNamed(t *testing.T, b blobInfo) (file string) {
	t.Helper()
	file = filepath.Join(p.DataDir, "blobs/sha256", b.Digest.Encoded())
	p.waitUntil(t, "a blob under its name", func() error {
		_, err := os.Stat(file)
		return err
	})
	return file
}

// rotUnderReaders has the caches of all hosts go bad while a client of each is being sent
// the largest blob: behind what may be on its way to him, as nothing can be taken back.
func rotUnderReaders(t *testing.T, f *flock, pulls []*pull) {
	const sent, onItsWay = 64 << 10, 5 << 20
	blob := f.image.Blobs[0]
	ctx, cancel := context.WithTimeout(t.Context(), hangsAfter)
	defer cancel()
	bodies, verifiers := make([]io.ReadCloser, len(pulls)), make([]digest.Verifier, len(pulls))
	for i, p := range pulls {
		p.host.awaitNamed(t, blob)
		resp, err := p.open(ctx, "blobs", blob.Digest.String(), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		bodies[i], verifiers[i] = resp.Body, blob.Digest.Verifier()
		if _, err := io.CopyN(verifiers[i], resp.Body, sent); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range pulls {
		flipBits(t, p.host.awaitNamed(t, blob), onItsWay)
	}
	for i, p := range pulls {
		if _, err := io.Copy(verifiers[i], bodies[i]); err != nil {
			t.Errorf("host %d: a client whose blob rotted as he read it: %v", i, err)
		} else if !verifiers[i].Verified() {
			t.Errorf("host %d: %v", i, errWrongBytes)
		}
		if p.host.Metrics(t).Sum("murder_cache_rotten_total") == 0 {
			t.Errorf("host %d does not say that its cache has rotted", i)
		}
	}
}

// pullAgain has all hosts pull once more, whatever has become of their caches.
func pullAgain(t *testing.T, f *flock) { awaitPulls(t, f.pullEverywhere(t, nil), true) }

// rotArriving has the disks of half of the hosts go bad while their mirrors run, under what
// is there of the largest blob ahead of their clients: once there is something.
func rotArriving(t *testing.T, f *flock, pulls []*pull) {
	const onItsWay = 256 << 10 // to a client
	blob := f.image.Blobs[0]
	hosts, flipped := f.half(pulls), 0
	for share := 0.2; flipped < len(hosts) && share < 0.8; share += 0.05 {
		awaitShare(t, pulls, share)
		for i, h := range hosts {
			for _, file := range h.files(t, "partial") {
				if info, err := os.Stat(file); err == nil && info.Size() == blob.Size {
					flipped += flipBits(t, file, int(pulls[i].reached(blob.Digest)+onItsWay)&^(64<<10-1))
				}
			}
		}
	}
	t.Logf("%d bits flipped", flipped)
}

// toldOfRot makes sure that rot was not taken for wrong bytes of the seeder's. How much there
// was to rot depends on how far ahead of the clients pieces had come; that it is counted is
// shown by a test in layers.
func toldOfRot(t *testing.T, f *flock) {
	rotten := 0.0
	for _, h := range f.Hosts {
		m := h.Metrics(t)
		rotten += m.Sum("murder_cache_rotten_total")
		if n := m.Sum("murder_fallbacks_total", `reason="blob came out wrong before"`); n > 0 {
			t.Errorf("%s blames the seeder for what its disk did", h.Addr)
		}
	}
	t.Logf("%v blobs rotted", rotten)
}

func killRegistry(t *testing.T, f *flock, _ []*pull) { f.Registry.Crash() }

func restartRegistry(t *testing.T, f *flock, _ []*pull) {
	f.Registry.Crash()
	f.Registry.Restart(t)
}

func corruptPeer(t *testing.T, f *flock) { f.bad = f.startBadPeer(t, false) }
func silentPeer(t *testing.T, f *flock)  { f.bad = f.startBadPeer(t, true) }

// wasAsked makes sure that a bad peer had its chance.
func wasAsked(t *testing.T, f *flock) {
	f.bad.waitLine(t, "being asked for bytes", func(line string) bool { return line == "asked" })
}

func fillDisks(t *testing.T, f *flock, _ []*pull) {
	for _, h := range f.Hosts {
		if h.cfg.DiskSize != "" {
			h.fillDisk(t)
		}
	}
}

// fillDisksKillSeeder does so once what goes past the full disks is on its way.
func fillDisksKillSeeder(t *testing.T, f *flock, pulls []*pull) {
	fillDisks(t, f, pulls)
	awaitShare(t, pulls[:2], 0.6)
	f.Seeder.Kill()
}

// cutCables leaves two hosts without any network. That takes its time, which is
// the fault itself and not a wait for anything.
func cutCables(t *testing.T, f *flock, pulls []*pull) {
	for i, h := range f.Hosts[:2] {
		pulls[i].excused = true
		if err := h.cfg.On.Cut(); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(20 * time.Second)
	for _, h := range f.Hosts[:2] {
		if err := h.cfg.On.Mend(); err != nil {
			t.Fatal(err)
		}
	}
}

// partition leaves the seeder with the hosts of its zone, and the registry with
// the others.
func partition(t *testing.T, f *flock, _ []*pull) {
	if err := f.network.Part(); err != nil {
		t.Fatal(err)
	}
}

// join ends the partition, for which no pull has waited.
func join(t *testing.T, f *flock) {
	if err := f.network.Join(); err != nil {
		t.Fatal(err)
	}
}

// jumpClocks has the seeder and some hosts wake up in another week.
func jumpClocks(t *testing.T, f *flock, _ []*pull) {
	needsClock(t)
	const ahead, back = 1000 * time.Hour, -1000 * time.Hour
	if !f.Seeder.hasEnded() {
		jumpClock(t, f.Seeder.process, ahead)
	}
	for i, h := range f.Hosts {
		switch i % 3 {
		case 0:
			jumpClock(t, h.process, ahead)
		case 1:
			jumpClock(t, h.process, back)
		}
	}
	f.Hosts[0].waitClock(t, ahead)
}

// crowd has 200 more clients, on all hosts, that read 64 KiB each time that the
// pulls have come a little further, and the rest in the end.
func crowd(t *testing.T, f *flock, pulls []*pull) {
	const clients, steps = 200, 20
	step := make([]chan struct{}, steps) // each closed when it is time
	for i := range step {
		step[i] = make(chan struct{})
	}
	ctx, cancel := context.WithTimeout(t.Context(), hangsAfter)
	defer cancel()
	blob := f.image.Blobs[0]
	var all sync.WaitGroup
	for i := range clients {
		host := pulls[i%len(pulls)]
		all.Go(func() {
			if err := host.readSlowly(ctx, blob, step); err != nil {
				t.Errorf("slow client %d: %v", i, err)
			}
		})
	}
	for i := range step {
		awaitShare(t, pulls, float64(i+1)/steps)
		close(step[i])
	}
	all.Wait()
}

// readSlowly reads a blob in steps, and checks it.
func (p *pull) readSlowly(ctx context.Context, blob blobInfo, step []chan struct{}) error {
	resp, err := p.open(ctx, "blobs", blob.Digest.String(), 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	verifier := blob.Digest.Verifier()
	for _, next := range step {
		select {
		case <-next:
		case <-ctx.Done():
			return ctx.Err()
		}
		if _, err := io.CopyN(verifier, resp.Body, min(64<<10, blob.Size/int64(len(step)))); err != nil {
			return err
		}
	}
	if _, err := io.Copy(verifier, resp.Body); err != nil {
		return err
	}
	if !verifier.Verified() {
		return errWrongBytes
	}
	return nil
}

// cutConnections breaks what the registry is sending.
func cutConnections(t *testing.T, g *gate) {
	g.Die()
	g.Revive(t)
}

// spoil cuts the registry's connections and has it spoil its next answers to
// requests for blobs.
func spoil(t *testing.T, g *gate, answers int64, spoilt http.HandlerFunc) {
	var left atomic.Int64
	left.Store(answers)
	g.Replace(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && digestOf(r.URL.Path) != "" && left.Add(-1) >= 0 {
			spoilt(w, r)
			return
		}
		g.Forward(w, r)
	})
	cutConnections(t, g)
}

// refuse has the registry refuse to send blobs for a while.
func refuse(status int) func(t *testing.T, f *flock, _ []*pull) {
	return func(t *testing.T, f *flock, _ []*pull) {
		spoil(t, f.Registry.gate, 24, func(w http.ResponseWriter, _ *http.Request) {
			if status == http.StatusTooManyRequests {
				w.Header().Set("Retry-After", "1")
			}
			http.Error(w, `{"errors":[{"code":"UNKNOWN","message":"this is a test"}]}`, status)
		})
	}
}

// truncate has the registry cut its answers off.
func truncate(t *testing.T, f *flock, _ []*pull) {
	spoil(t, f.Registry.gate, 12, func(w http.ResponseWriter, r *http.Request) {
		f.Registry.Forward(&truncator{ResponseWriter: w, left: 300 << 10}, r)
	})
}

// truncator takes only so many bytes; then the gate cuts the connection.
type truncator struct {
	http.ResponseWriter
	left int
}

func (w *truncator) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *truncator) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b[:min(len(b), w.left)])
	w.left -= n
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return n, err
}

// falsify has the registry send blobs with wrong bytes.
func falsify(t *testing.T, f *flock, _ []*pull) {
	spoil(t, f.Registry.gate, 6, func(w http.ResponseWriter, r *http.Request) {
		f.Registry.Forward(falsifier{w}, r)
	})
}

// falsifier gets the first byte of all that is written at once wrong.
type falsifier struct{ http.ResponseWriter }

func (w falsifier) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w falsifier) Write(b []byte) (int, error) {
	wrong := append([]byte(nil), b...)
	if len(wrong) > 0 {
		wrong[0] ^= 1
	}
	return w.ResponseWriter.Write(wrong)
}

// useBucket has the registry send blobs from object storage, by URLs that hold
// until expireURLs.
func useBucket(_ *testing.T, f *flock) {
	signature := func() string { return fmt.Sprint(f.era.Load()) }
	f.Registry.Replace(func(w http.ResponseWriter, r *http.Request) {
		redirectBlobs(f.Registry.gate, "http://"+f.Bucket.Addr+"/bucket", "?signature="+signature())(w, r)
	})
	f.Bucket.Replace(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("signature") != signature() {
			http.Error(w, "expired", http.StatusForbidden)
			return
		}
		r.URL.Path = strings.TrimPrefix(r.URL.Path, "/bucket")
		f.Bucket.Forward(w, r)
	})
}

// expireURLs has the URLs that were handed out hold no longer, nor the next two
// of the registry, as when its answers come late.
func expireURLs(t *testing.T, f *flock, _ []*pull) {
	f.era.Add(1)
	var late atomic.Int64
	late.Store(2)
	f.Registry.Replace(func(w http.ResponseWriter, r *http.Request) {
		era := f.era.Load()
		if digestOf(r.URL.Path) != "" && late.Add(-1) >= 0 {
			era--
		}
		redirectBlobs(f.Registry.gate, "http://"+f.Bucket.Addr+"/bucket", fmt.Sprintf("?signature=%d", era))(w, r)
	})
	cutConnections(t, f.Bucket.gate)
}

// wantTokens has the registry ask for tokens, which hold until expireTokens.
func wantTokens(_ *testing.T, f *flock) {
	f.Registry.Replace(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != currentToken(f) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="https://tokens.example/token",service="chaos"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"this is a test"}]}`, http.StatusUnauthorized)
			return
		}
		f.Registry.Forward(w, r)
	})
}

func currentToken(f *flock) string { return fmt.Sprintf("Bearer token-%d", f.era.Load()) }

func expireTokens(t *testing.T, f *flock, _ []*pull) {
	f.era.Add(1)
	cutConnections(t, f.Registry.gate)
}
