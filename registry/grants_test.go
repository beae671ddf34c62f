package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	testTTL   = 5 * time.Minute
	testGrace = time.Hour
)

// bubble is a test of grants in a time of its own.
type bubble struct {
	*testing.T
	*origin
	up     *Client
	grants *Grants

	mu      sync.Mutex // guards answers
	answers []string
}

func inBubble(t *testing.T, test func(b *bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{T: t, origin: newOrigin(), grants: NewGrants(testTTL, testGrace)}
		b.up = b.origin.client()
		b.grants.OnAnswer = func(result string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.answers = append(b.answers, result)
		}
		test(b)
	})
}

// admit asks for a blob of size bytes that we hold, and wants a status, 0 for
// leave.
func (b *bubble) admit(req Request, size int64, want int) {
	b.Helper()
	err := b.grants.AdmitBlob(b.Context(), b.up, req, b.held(req, size))
	if status(err) != want || want == 0 && err != nil {
		b.Errorf("AdmitBlob(%s@%s) = %v, want %d", req.Repo, req.Digest, err, want)
	}
}

// held is content that we hold.
type held string

func (h held) Size() int64 { return int64(len(h)) }

func (h held) ReadAt(p []byte, off int64) (int, error) {
	return strings.NewReader(string(h)).ReadAt(p, off)
}

// held returns the blob as the origin has it in any repository, or else size
// other bytes.
func (b *bubble) held(req Request, size int64) held {
	b.origin.mu.Lock()
	defer b.origin.mu.Unlock()
	for key, content := range b.content {
		if strings.HasSuffix(key, "@"+req.Digest.String()) && int64(len(content)) == size {
			return held(content)
		}
	}
	return held(make([]byte, size))
}

func (b *bubble) expectAnswers(want ...string) {
	b.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Equal(b.answers, want) {
		b.Errorf("answers = %q, want %q", b.answers, want)
	}
	b.answers = nil
}

func TestGrantHoldsForTheTTL(t *testing.T) {
	inBubble(t, func(b *bubble) {
		req := blobOf("a", b.push("a", "", "blob"), "")
		b.admit(req, 4, 0)
		b.expect(b.T, "GET a/blobs") // to see that it has the blob
		b.admit(req, 4, 0)
		time.Sleep(testTTL - time.Nanosecond)
		b.admit(req, 4, 0)
		b.expect(b.T)
		time.Sleep(time.Nanosecond)
		b.admit(req, 4, 0)
		b.expect(b.T, "HEAD a/blobs")
		b.expectAnswers("granted", "granted")
	})
}

// A grant is of one caller and one repository. Where both stand, content that
// anyone was served from there needs no question.
func TestGrantIsOfCallerAndRepository(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.readers["private"] = "ann"
		d1, d2 := b.push("private", "", "blob"), b.push("private", "", "blob2")
		b.push("public", "", "blob")

		b.admit(blobOf("private", d1, ""), 4, 401)
		b.admit(blobOf("private", d1, basic("ann")), 4, 0)
		b.admit(blobOf("private", d1, ""), 4, 401)
		b.admit(blobOf("private", d1, basic("bob")), 4, 401)
		b.admit(blobOf("private", d2, basic("ann")), 5, 0)
		b.expect(b.T, "GET private/blobs", "GET private/blobs", "HEAD private/blobs", "HEAD private/blobs", "GET private/blobs")

		b.admit(blobOf("public", d1, ""), 4, 0)
		b.expect(b.T, "GET public/blobs")
		b.grants.Record(basic("bob"), Content{blobOf("public", d1, "").Repo, Blob, d1})
		b.admit(blobOf("public", d1, basic("bob")), 4, 0)
		b.expect(b.T)
	})
}

// A private blob is not to be had under the name of a public repository, nor
// under that of another that the caller may read.
func TestBlobUnderAnotherRepositorysName(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.readers["private"], b.readers["bobs"] = "ann", "bob"
		secret := b.push("private", "", "secret")
		known := b.push("public", "", "known")
		bobs := b.push("bobs", "", "known")

		b.admit(blobOf("private", secret, basic("ann")), 6, 0)
		b.admit(blobOf("public", known, ""), 5, 0)
		b.admit(blobOf("bobs", bobs, basic("bob")), 5, 0)

		b.admit(blobOf("public", secret, ""), 6, 404)
		b.admit(blobOf("public", secret, basic("ann")), 6, 404)
		b.admit(blobOf("bobs", secret, basic("bob")), 6, 404)
		b.with(func() { b.away = true })
		b.admit(blobOf("public", secret, ""), 6, 502)
	})
}

// A registry that has another length under the digest has not got that blob.
func TestAdmitBlobComparesSizes(t *testing.T) {
	inBubble(t, func(b *bubble) {
		req := blobOf("a", b.push("a", "", "login page"), "")
		b.admit(req, 999, 403)
		b.admit(req, 999, 403)
		b.expectAnswers("refused", "refused")
	})
}

func TestKindsAreApart(t *testing.T) {
	inBubble(t, func(b *bubble) {
		req := blobOf("a", b.push("a", "", "blob"), "")
		b.grants.Record("", Content{req.Repo, Manifest, req.Digest})
		b.admit(req, 4, 0)
		b.expect(b.T, "GET a/blobs")
	})
}

func TestGrace(t *testing.T) {
	inBubble(t, func(b *bubble) {
		d, other := b.push("a", "", "blob"), b.push("a", "", "other")
		b.admit(blobOf("a", d, basic("ann")), 4, 0)
		b.with(func() { b.away = true })
		time.Sleep(testGrace - time.Nanosecond)
		b.admit(blobOf("a", d, basic("ann")), 4, 0)
		b.expectAnswers("granted", "grace")
		b.admit(blobOf("a", d, basic("bob")), 4, 502)
		b.admit(blobOf("a", d, ""), 4, 502)
		b.admit(blobOf("a", other, basic("ann")), 5, 502)
		time.Sleep(time.Nanosecond)
		b.admit(blobOf("a", d, basic("ann")), 4, 502)
		b.expectAnswers("unavailable", "unavailable", "unavailable", "unavailable")

		b.with(func() { b.away = false })
		b.admit(blobOf("a", d, basic("ann")), 4, 0)
	})
}

// To be told to ask later is no refusal: Docker Hub says so to whole networks.
func TestRateLimitIsNoRefusal(t *testing.T) {
	for _, busy := range []int{429, 503, 408} {
		inBubble(t, func(b *bubble) {
			d := b.push("a", "", "blob")
			b.admit(blobOf("a", d, ""), 4, 0)
			time.Sleep(testTTL)
			b.with(func() { b.status = busy })
			b.admit(blobOf("a", d, ""), 4, 0)
			b.admit(blobOf("a", d, ""), 4, 0)

			err := b.grants.AdmitBlob(b.Context(), b.up, blobOf("a", d, basic("ann")), held("blob"))
			if e, ok := err.(*Error); !ok || busy == 429 && (e.Status != 429 || e.Header.Get("Retry-After") != "1") {
				b.Errorf("AdmitBlob of a stranger = %v, want the registry's %d", err, busy)
			}
			b.expectAnswers("granted", "grace", "grace", "unavailable")
		})
	}
}

// Whoever has been turned away is not admitted by what was said before.
func TestRefusalForgets(t *testing.T) {
	for _, refusal := range []int{401, 403, 404} {
		inBubble(t, func(b *bubble) {
			d, other := b.push("a", "", "blob"), b.push("a", "", "other")
			b.admit(blobOf("a", d, basic("ann")), 4, 0)
			b.admit(blobOf("a", other, basic("ann")), 5, 0)
			b.admit(blobOf("a", d, basic("bob")), 4, 0)
			time.Sleep(testTTL)
			b.with(func() { b.status = refusal })
			b.admit(blobOf("a", d, basic("ann")), 4, refusal)
			b.with(func() { b.status, b.away = 0, true })
			b.admit(blobOf("a", d, basic("ann")), 4, 502)
			b.admit(blobOf("a", other, basic("ann")), 5, 502)
			want := 0 // bob has not been turned away
			if refusal == 404 {
				want = 502 // but the blob is gone
			}
			b.admit(blobOf("a", d, basic("bob")), 4, want)
		})
	}
}

// What a stranger is told does not take anything from those who were admitted.
func TestStrangersMakeNobodyForget(t *testing.T) {
	for _, refusal := range []int{401, 403, 404} {
		inBubble(t, func(b *bubble) {
			d := b.push("a", "", "blob")
			b.admit(blobOf("a", d, basic("ann")), 4, 0)
			b.with(func() { b.status = refusal })
			b.admit(blobOf("a", d, ""), 4, refusal)
			b.with(func() { b.status, b.away = 0, true })
			b.admit(blobOf("a", d, basic("ann")), 4, 0)
			time.Sleep(testTTL)
			b.admit(blobOf("a", d, basic("ann")), 4, 0)
		})
	}
}

func TestConcurrentQuestionsAreOne(t *testing.T) {
	inBubble(t, func(b *bubble) {
		d := b.push("a", "", "blob")
		gate := make(chan struct{})
		b.with(func() { b.gate = gate })
		var wait sync.WaitGroup
		for range 10 {
			wait.Go(func() { b.admit(blobOf("a", d, ""), 4, 0) })
		}
		wait.Go(func() { b.admit(blobOf("a", d, basic("ann")), 4, 0) })
		synctest.Wait()
		close(gate)
		wait.Wait()
		b.expect(b.T, "GET a/blobs", "GET a/blobs") // one by each caller
	})
}

// The first who asks may leave, and the others get their answer.
func TestQuestionOutlivesItsAsker(t *testing.T) {
	inBubble(t, func(b *bubble) {
		req := blobOf("a", b.push("a", "", "blob"), "")
		gate := make(chan struct{})
		b.with(func() { b.gate = gate })
		ctx, leave := context.WithCancel(b.Context())
		var wait sync.WaitGroup
		wait.Go(func() {
			if err := b.grants.AdmitBlob(ctx, b.up, req, held("blob")); !errors.Is(err, context.Canceled) {
				b.Errorf("AdmitBlob of who left = %v", err)
			}
		})
		synctest.Wait()
		wait.Go(func() { b.admit(req, 4, 0) })
		synctest.Wait()
		leave()
		synctest.Wait()
		close(gate)
		wait.Wait()
		b.expect(b.T, "GET a/blobs")
		b.expectAnswers("granted")
	})
}

// Who asks and leaves, again and again, has no more than a number of questions go on; and
// who waits for the answer to one of them has it all the same.
func TestQuestionsWithoutAskersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q questions
		var running atomic.Int64
		gate := make(chan struct{})
		ask := func(ctx context.Context) (string, error) {
			running.Add(1)
			defer running.Add(-1)
			select {
			case <-gate:
				return "yes", nil
			case <-ctx.Done():
				return "", ctx.Err()
			}
		}
		leaving, leave := context.WithCancel(t.Context())
		var wait sync.WaitGroup
		for i := range 3 * maxOrphans {
			wait.Go(func() {
				if _, err := share(leaving, &q, fmt.Sprint(i), ask); !errors.Is(err, context.Canceled) {
					t.Errorf("who left is told %v", err)
				}
			})
		}
		synctest.Wait()
		for i := range 3 * maxOrphans {
			wait.Go(func() {
				if i%100 != 0 {
					return
				}
				if answer, err := share(t.Context(), &q, fmt.Sprint(i), ask); answer != "yes" || err != nil {
					t.Errorf("who waits is told %q, %v", answer, err)
				}
			})
		}
		synctest.Wait()
		leave()
		synctest.Wait()
		if n := running.Load(); n > maxOrphans+3*maxOrphans/100+1 {
			t.Errorf("%d questions go on", n)
		}
		close(gate)
		wait.Wait()
		synctest.Wait()
		if n := q.orphans.Load(); n != 0 {
			t.Errorf("%d questions are still counted", n)
		}
	})
}

// A question that nobody waits for any more ends by itself.
func TestQuestionsEnd(t *testing.T) {
	inBubble(t, func(b *bubble) {
		req := blobOf("a", b.push("a", "", "blob"), "")
		b.with(func() { b.gate = make(chan struct{}) })
		begun := time.Now()
		b.admit(req, 4, 502)
		if took := time.Since(begun); took != askTimeout {
			b.Errorf("the question took %v, want %v", took, askTimeout)
		}
	})
}

func TestGrantsAreBounded(t *testing.T) {
	g := NewGrants(testTTL, testGrace)
	g.grants, g.members = newRecent[grant](100), newRecent[Content](100)
	repo := Repository{"h", "a"}
	for i := range 1000 {
		g.Record(fmt.Sprint(i), Content{repo, Blob, digest.FromString(fmt.Sprint(i))})
	}
	if len(g.grants.at) != 100 || g.grants.order.Len() != 100 || len(g.members.at) != 100 || g.members.order.Len() != 100 {
		t.Errorf("%d grants and %d contents are remembered", len(g.grants.at), len(g.members.at))
	}
	if g.Granted("899", repo, testTTL) || !g.Granted("900", repo, testTTL) {
		t.Error("not the oldest went first")
	}
}

func TestRecent(t *testing.T) {
	r := newRecent[int](2)
	at := time.Now()
	r.put(1, at)
	r.put(2, at)
	r.put(1, at.Add(1)) // and so 2 is the oldest
	r.put(3, at)
	if _, ok := r.get(2); ok {
		t.Error("get(2) = true, want it gone")
	}
	if got, ok := r.get(1); !ok || !got.Equal(at.Add(1)) {
		t.Errorf("get(1) = %v, %v", got, ok)
	}
	r.remove(1)
	r.remove(1)
	if _, ok := r.get(1); ok || r.order.Len() != 1 {
		t.Errorf("get(1) = %v, %d are kept", ok, r.order.Len())
	}
}

// Nothing that is kept tells credentials, nor are they comparable between
// processes.
func TestCallersAreHashed(t *testing.T) {
	g, other := NewGrants(0, 0), NewGrants(0, 0)
	x := g.caller("x")
	if x == other.caller("x") || x == g.caller("") || x != g.caller("x") {
		t.Error("callers are not told apart by a key of our own")
	}
}

func TestGraceIsNoLessThanTheTTL(t *testing.T) {
	g := NewGrants(time.Hour, time.Minute)
	if g.grace != time.Hour {
		t.Errorf("grace = %v", g.grace)
	}
}

// Anyone can run a registry that says yes to every digest.
func TestRegistryThatOnlyClaimsABlob(t *testing.T) {
	inBubble(t, func(b *bubble) {
		secret := digest.FromString("secret")
		b.with(func() { b.content["claims@"+secret.String()] = []byte("CLAIMS") })
		for range 2 {
			err := b.grants.AdmitBlob(b.Context(), b.up, blobOf("claims", secret, ""), held("secret"))
			if status(err) != 403 {
				t.Errorf("AdmitBlob = %v, want 403", err)
			}
		}
		if size, err := b.grants.StatBlob(b.Context(), b.up, blobOf("claims", secret, ""), 6); size != 6 || err != nil {
			t.Errorf("StatBlob = %d, %v, want what the registry says", size, err)
		}
		if err := b.grants.AdmitBlob(b.Context(), b.up, blobOf("claims", secret, ""), held("secret")); status(err) != 403 {
			t.Errorf("AdmitBlob after StatBlob = %v, want 403", err)
		}
	})
}

// Nor does it get what lies in another when it can guess a part of that, such as zeros,
// however often it is asked.
func TestRegistryThatGuessesABlob(t *testing.T) {
	inBubble(t, func(b *bubble) {
		blob, guessed := make([]byte, 1<<20), make([]byte, 1<<20)
		rand.Read(blob[512<<10:])
		d := digest.FromBytes(blob)
		b.with(func() { b.content["guesses@"+d.String()] = guessed })
		for range 40 {
			if err := b.grants.AdmitBlob(b.Context(), b.up, blobOf("guesses", d, ""), held(blob)); status(err) != 403 {
				t.Fatalf("AdmitBlob = %v, want 403", err)
			}
		}
		b.with(func() { b.content["guesses@"+d.String()] = blob })
		if err := b.grants.AdmitBlob(b.Context(), b.up, blobOf("guesses", d, ""), held(blob)); err != nil {
			t.Errorf("AdmitBlob of a registry that has it = %v", err)
		}
	})
}

// While a blob arrives nothing is known of it but who was admitted.
func TestAdmitArriving(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.readers["private"] = "ann"
		d := b.push("private", "", "blob")
		ann, bob := blobOf("private", d, basic("ann")), blobOf("private", d, basic("bob"))
		var rights Rights
		rights.Add(ann.Repo, ann.Authorization)
		b.grants.Began(ann)
		admit := func(req Request, want int) {
			t.Helper()
			if err := b.grants.AdmitArriving(b.Context(), b.up, req, 4, &rights); status(err) != want || want == 0 && err != nil {
				t.Errorf("AdmitArriving = %v, want %d", err, want)
			}
		}
		admit(ann, 0)
		b.expect(b.T)
		admit(bob, 401)
		b.expect(b.T, "HEAD private/blobs")
		if rights.has(bob) {
			t.Error("who was refused has a right")
		}
		if b.grants.member(Content{ann.Repo, Blob, d}) {
			t.Error("a blob that is not whole counts as the repository's")
		}
		b.grants.Arrived(d, &rights)
		b.admit(ann, 4, 0)
		b.expect(b.T)
	})
}
