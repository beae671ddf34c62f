package registry

import (
	"bytes"
	"container/list"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// Content is a blob or a manifest as a part of a repository. That a caller
// may read a repository says nothing about what else lies in the cache.
type Content struct {
	Repo   Repository
	Kind   Kind // Blob or Manifest
	Digest digest.Digest
}

// Grants remembers whom the registries admitted to which repository, and what
// they were seen to hold there. Cached content is served only with both: a
// grant of (caller, repository), and the knowledge that the content belongs
// to that repository. It is kept in memory only, and bounded.
type Grants struct {
	ttl   time.Duration
	grace time.Duration
	key   [32]byte // so that what is kept tells nothing about credentials
	asks  questions
	now   func() time.Time
	// OnAnswer, when set, is told of each question's result, one of Answers.
	OnAnswer func(result string)

	mu      sync.Mutex // guards the two below
	grants  *recent[grant]
	members *recent[Content]
}

// caller stands for an Authorization header; that of nobody is its own.
type caller [sha256.Size]byte

type grant struct {
	caller caller
	repo   Repository
}

// Answers are the results of questions to a registry. At "grace" it is away, and
// an earlier answer holds.
var Answers = []string{"granted", "refused", "grace", "unavailable"}

// maxRemembered bounds grants and known content, each. An entry takes about
// 300 bytes.
const maxRemembered = 50_000

// NewGrants returns a memory of registries' answers: each holds for ttl, and
// for grace while the registry cannot be asked.
func NewGrants(ttl, grace time.Duration) *Grants {
	g := &Grants{ttl: ttl, grace: max(ttl, grace), now: time.Now, grants: newRecent[grant](maxRemembered), members: newRecent[Content](maxRemembered)}
	rand.Read(g.key[:])
	return g
}

// Record notes that the registry has just served c, or said that it would, to
// the caller with this authorization.
func (g *Grants) Record(authorization string, c Content) {
	g.grant(authorization, c.Repo)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members.put(c, g.now())
}

// grant notes that the registry has just admitted the caller to repo.
func (g *Grants) grant(authorization string, repo Repository) {
	who := g.caller(authorization)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.grants.put(grant{who, repo}, g.now())
}

// revoke takes a grant back.
func (g *Grants) revoke(authorization string, repo Repository) {
	who := g.caller(authorization)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.grants.remove(grant{who, repo})
}

// Admit returns nil when the caller may have c: from memory, or by ask, which
// puts the question to the registry. Concurrent questions of one caller about
// one content are one. ask's error is returned, unless the registry is away
// and its earlier answers still hold.
func (g *Grants) Admit(ctx context.Context, authorization string, c Content, ask func(context.Context) error) error {
	who := g.caller(authorization)
	if g.known(who, c, g.ttl) {
		return nil
	}
	question := g.question(Request{Repo: c.Repo, Authorization: authorization}) + "/" + strconv.Itoa(int(c.Kind)) + "@" + c.Digest.String()
	_, err := share(ctx, &g.asks, question, func(ctx context.Context) (struct{}, error) { return struct{}{}, ask(ctx) })
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		g.Record(authorization, c)
		g.answered("granted")
	case decided(err):
		g.forget(who, c, err)
		g.answered("refused")
	case g.known(who, c, g.grace):
		g.answered("grace")
		return nil
	default:
		g.answered("unavailable")
	}
	return err
}

// Held is a whole blob in our hands.
type Held interface {
	io.ReaderAt
	Size() int64
}

// AdmitBlob is Admit for a blob that we hold, with up to ask. The registry must
// name the blob's very size: behind some sign-on proxies any path answers 200.
// And one that was not seen to hold the blob in this repository must show some
// of its bytes: anyone can run a registry that says yes to every digest, to be
// given by us what lies in another.
func (g *Grants) AdmitBlob(ctx context.Context, up Upstream, req Request, held Held) error {
	c := Content{req.Repo, Blob, req.Digest}
	return g.Admit(ctx, req.Authorization, c, func(ctx context.Context) error {
		if g.member(c) {
			return stat(ctx, up, req, held.Size())
		}
		return g.prove(ctx, up, req, held)
	})
}

// AdmitArriving is for a blob of size bytes that is on its way in the name of
// rights, from the registry of req. The caller's right is added to them.
//
// One that arrives from another registry is not given: what that registry has
// under the digest may be something else, and this one may have nothing. The
// error is an [*Uncached] then, if this one sends the blob.
func (g *Grants) AdmitArriving(ctx context.Context, up Upstream, req Request, size int64, rights *Rights) error {
	if !rights.From(req.Repo.Host) {
		return PassThrough(ctx, up, req, ErrOtherRegistry)
	}
	if rights.has(req) && g.Granted(req.Authorization, req.Repo, g.ttl) {
		return nil
	}
	_, err := share(ctx, &g.asks, g.question(req)+"+"+req.Digest.String(), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, stat(ctx, up, req, size)
	})
	switch {
	case err == nil:
		g.grant(req.Authorization, req.Repo)
		rights.Add(req.Repo, req.Authorization)
		g.answered("granted")
	case decided(err):
		g.revoke(req.Authorization, req.Repo)
		g.answered("refused")
	case rights.has(req) && g.Granted(req.Authorization, req.Repo, g.grace):
		g.answered("grace")
		return nil
	default:
		g.answered("unavailable")
	}
	return err
}

// Began notes that the registry has begun to send a caller a blob: the caller
// may read the repository. That the blob belongs to it shows when the blob has
// come in and is right; see Arrived.
func (g *Grants) Began(req Request) { g.grant(req.Authorization, req.Repo) }

// Arrived notes that the blob which was fetched in the name of rights is whole
// and right.
func (g *Grants) Arrived(d digest.Digest, rights *Rights) {
	for _, r := range rights.all() {
		g.Record(r.authorization, Content{r.repo, Blob, d})
	}
}

// StatBlob asks for the size of a blob of which we hold size bytes. That we
// hold it helps only a caller who was admitted to it.
func (g *Grants) StatBlob(ctx context.Context, up Upstream, req Request, size int64) (int64, error) {
	who, c := g.caller(req.Authorization), Content{req.Repo, Blob, req.Digest}
	if g.known(who, c, g.ttl) {
		return size, nil
	}
	said, err := up.StatBlob(ctx, req.Repo, req.Digest, req.Authorization)
	if err != nil && !decided(err) && g.known(who, c, g.grace) {
		return size, nil
	}
	return said, err
}

// stat wants the registry to name a blob's very size.
func stat(ctx context.Context, up Upstream, req Request, size int64) error {
	said, err := up.StatBlob(ctx, req.Repo, req.Digest, req.Authorization)
	if err == nil && said != size {
		return newError(http.StatusForbidden, CodeDenied, "registry %s: blob %s has %d bytes there, %d here", req.Repo.Host, req.Digest, said, size)
	}
	return err
}

const (
	// proofSize is how many bytes a registry must show of a blob, in proofParts sections
	// from all over it: more than are likely to be guessed, few enough to cost nothing.
	proofSize  = 64 << 10
	proofParts = 4
	// proofTries bounds the places that are looked at for a section.
	proofTries = 16
)

// prove wants the registry to show sections of the blob that it cannot have
// expected.
func (g *Grants) prove(ctx context.Context, up Upstream, req Request, held Held) error {
	if held.Size() == 0 {
		return stat(ctx, up, req, 0)
	}
	parts, n := proofParts, proofSize/proofParts
	if held.Size() <= proofSize {
		parts, n = 1, int(held.Size())
	}
	asks, ctx := errgroup.WithContext(ctx)
	for part := range parts {
		asks.Go(func() error {
			off, want, err := g.section(held, req.Digest, part, n)
			if err != nil {
				return fmt.Errorf("blob %s in the cache: %w", req.Digest, err)
			}
			got, err := up.ReadBlob(ctx, req.Repo, req.Digest, off, n, req.Authorization)
			if err == nil && !bytes.Equal(got, want) {
				return newError(http.StatusForbidden, CodeDenied, "registry %s: blob %s is not what it shows there", req.Repo.Host, req.Digest)
			}
			return err
		})
	}
	return asks.Wait()
}

// section returns n bytes of a blob and where they are. Of one blob they are always the
// same, wherever it is asked for: who knows a part of it, and asks again and again, would
// be asked for that part some day. Nor are they one byte all over, as much of disks and
// models is.
func (g *Grants) section(held Held, d digest.Digest, part, n int) (off int64, section []byte, err error) {
	section = make([]byte, n)
	for try := range proofTries {
		mac := hmac.New(sha256.New, g.key[:])
		fmt.Fprintf(mac, "%s %d %d", d, part, try)
		off = int64(binary.BigEndian.Uint64(mac.Sum(nil)) % uint64(held.Size()-int64(n)+1))
		if _, err = held.ReadAt(section, off); err != nil || bytes.Count(section, section[:1]) < n {
			break
		}
	}
	return off, section, err
}

// Granted is true when the registry admitted the caller to the repository
// within the last age, at most the grace.
func (g *Grants) Granted(authorization string, repo Repository, within time.Duration) bool {
	who := g.caller(authorization)
	g.mu.Lock()
	defer g.mu.Unlock()
	at, ok := g.grants.get(grant{who, repo})
	return ok && g.now().Sub(at) < min(within, g.grace)
}

// known is true when a grant not older than age meets content seen in the
// repository. That a blob belongs to a repository hardly ever changes, so
// this half holds for the grace in any case.
func (g *Grants) known(who caller, c Content, age time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	granted, ok := g.grants.get(grant{who, c.Repo})
	seen, member := g.members.get(c)
	return ok && member && g.now().Sub(granted) < age && g.now().Sub(seen) < g.grace
}

// member is true when the registry was seen to hold c within the grace.
func (g *Grants) member(c Content) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	seen, ok := g.members.get(c)
	return ok && g.now().Sub(seen) < g.grace
}

// forget takes back what a refusal contradicts: the grant, since a registry may
// turn a caller away with a 404 as well, and with a 404 the content, unless a
// stranger was told so.
func (g *Grants) forget(who caller, c Content, refusal error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	gone := hasStatus(refusal, http.StatusNotFound)
	if _, granted := g.grants.get(grant{who, c.Repo}); granted && gone {
		g.members.remove(c)
	}
	if gone || TurnedAway(refusal) {
		g.grants.remove(grant{who, c.Repo})
	}
}

func (g *Grants) answered(result string) {
	if g.OnAnswer != nil {
		g.OnAnswer(result)
	}
}

// question is a key for questions about a repository by one caller.
func (g *Grants) question(req Request) string {
	who := g.caller(req.Authorization)
	return string(who[:]) + req.Repo.String()
}

func (g *Grants) caller(authorization string) (c caller) {
	mac := hmac.New(sha256.New, g.key[:])
	mac.Write([]byte(authorization))
	mac.Sum(c[:0])
	return c
}

// recent remembers when it was last told of each of at most limit keys.
type recent[K comparable] struct {
	limit int
	at    map[K]*list.Element
	order *list.List // of entry[K], the oldest in front
}

type entry[K comparable] struct {
	key K
	at  time.Time
}

func newRecent[K comparable](limit int) *recent[K] {
	return &recent[K]{limit: limit, at: make(map[K]*list.Element), order: list.New()}
}

func (r *recent[K]) put(key K, at time.Time) {
	r.remove(key)
	r.at[key] = r.order.PushBack(entry[K]{key, at})
	if len(r.at) > r.limit {
		r.remove(r.order.Front().Value.(entry[K]).key)
	}
}

func (r *recent[K]) get(key K) (time.Time, bool) {
	e, ok := r.at[key]
	if !ok {
		return time.Time{}, false
	}
	return e.Value.(entry[K]).at, true
}

func (r *recent[K]) remove(key K) {
	if e, ok := r.at[key]; ok {
		r.order.Remove(e)
		delete(r.at, key)
	}
}
