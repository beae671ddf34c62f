package registry

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// shelf is a ManifestStore in memory.
type shelf struct {
	mu     sync.Mutex // guards all below
	stored map[digest.Digest][]byte
	types  map[digest.Digest]string
	refs   map[string]digest.Digest
	full   bool
}

func newShelf() *shelf {
	return &shelf{stored: make(map[digest.Digest][]byte), types: make(map[digest.Digest]string), refs: make(map[string]digest.Digest)}
}

func (s *shelf) Manifest(d digest.Digest) (ocispec.Descriptor, []byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	content, ok := s.stored[d]
	if !ok {
		return ocispec.Descriptor{}, nil, errors.New("not stored")
	}
	return ocispec.Descriptor{MediaType: s.types[d], Digest: d, Size: int64(len(content))}, content, nil
}

func (s *shelf) PutManifest(desc ocispec.Descriptor, content []byte, ref string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full {
		return errors.New("no space left on device")
	}
	s.stored[desc.Digest], s.types[desc.Digest] = content, desc.MediaType
	if ref != "" {
		s.refs[ref] = desc.Digest
	}
	return nil
}

func (s *shelf) NameManifest(d digest.Digest, ref string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stored[d] != nil {
		s.refs[ref] = d
	}
}

// manifestsBubble is a test of manifests in a time of its own.
type manifestsBubble struct {
	*bubble
	shelf     *shelf
	manifests *Manifests
}

func manifestsInBubble(t *testing.T, test func(b *manifestsBubble)) {
	t.Helper()
	inBubble(t, func(b *bubble) {
		shelf := newShelf()
		test(&manifestsBubble{b, shelf, &Manifests{Upstream: b.up, Store: shelf, Grants: b.grants, Log: testLog(b)}})
	})
}

// version is a manifest that says who it is.
func version(name string) string { return fmt.Sprintf(`{"schemaVersion":2,"name":%q}`, name) }

// get asks for a manifest and wants content, or a status.
func (b *manifestsBubble) get(req Request, want any) {
	b.Helper()
	desc, content, err := b.manifests.Get(b.Context(), req)
	switch want := want.(type) {
	case int:
		if status(err) != want {
			b.Errorf("Get(%s:%s%s) = %s, %v, want %d", req.Repo, req.Tag, req.Digest, content, err, want)
		}
	case string:
		if err != nil || string(content) != want || desc.Digest != digest.FromString(want) || desc.Size != int64(len(want)) || desc.MediaType != ocispec.MediaTypeImageManifest {
			b.Errorf("Get(%s:%s%s) = %+v, %s, %v, want %s", req.Repo, req.Tag, req.Digest, desc, content, err, want)
		}
	}
}

func TestTagIsAskedEachTime(t *testing.T) {
	manifestsInBubble(t, func(b *manifestsBubble) {
		one := b.push("a", "v1", version("one"))
		b.get(manifestOf("a", "v1", ""), version("one"))
		b.expect(b.T, "HEAD a/manifests", "GET a/manifests")
		b.get(manifestOf("a", "v1", ""), version("one"))
		b.expect(b.T, "HEAD a/manifests")

		two := b.push("a", "v1", version("two"))
		if desc, err := b.manifests.Head(b.Context(), manifestOf("a", "v1", "")); err != nil || desc.Digest != two {
			b.Errorf("Head of a tag that moved = %v, %v, want %s", desc, err, two)
		}
		b.get(manifestOf("a", "v1", ""), version("two"))
		b.get(manifestOf("a", one.String(), ""), version("one"))
		b.expect(b.T, "HEAD a/manifests", "HEAD a/manifests", "GET a/manifests")
		if got := b.shelf.refs["origin.test/a:v1"]; got != two {
			b.Errorf("the tag is stored as %s, want %s", got, two)
		}
	})
}

func TestOneQuestionPerTagTTL(t *testing.T) {
	manifestsInBubble(t, func(b *manifestsBubble) {
		b.manifests.TagTTL = 2 * time.Second
		b.readers["a"] = "ann"
		b.push("a", "v1", version("one"))
		b.get(manifestOf("a", "v1", basic("ann")), version("one"))
		b.questions()
		b.push("a", "v1", version("two"))
		time.Sleep(2*time.Second - time.Nanosecond)
		b.get(manifestOf("a", "v1", basic("ann")), version("one"))
		b.expect(b.T)
		// The answer is not for whom the registry has not admitted.
		if desc, err := b.manifests.Head(b.Context(), manifestOf("a", "v1", basic("eve"))); !Unauthorized(err) {
			b.Errorf("Head by a stranger = %v, %v, want a 401", desc, err)
		}
		b.questions()
		b.get(manifestOf("a", "v1", ""), 401)
		b.get(manifestOf("a", "v1", basic("bob")), 401)
		b.expect(b.T, "HEAD a/manifests", "HEAD a/manifests")
		time.Sleep(time.Nanosecond)
		b.get(manifestOf("a", "v1", basic("ann")), version("two"))
	})
}

// Ten thousand hosts that ask for a new image cost the registry two questions.
func TestConcurrentAskersAskOnce(t *testing.T) {
	manifestsInBubble(t, func(b *manifestsBubble) {
		b.manifests.TagTTL = 2 * time.Second
		b.push("a", "v1", version("one"))
		gate := make(chan struct{})
		b.with(func() { b.gate = gate })
		var wait sync.WaitGroup
		for range 100 {
			wait.Go(func() { b.get(manifestOf("a", "v1", ""), version("one")) })
		}
		synctest.Wait()
		b.expect(b.T, "HEAD a/manifests")
		gate <- struct{}{}
		synctest.Wait()
		b.expect(b.T, "GET a/manifests")
		close(gate)
		wait.Wait()
		b.expect(b.T)
	})
}

func TestTagWhileTheRegistryIsAway(t *testing.T) {
	manifestsInBubble(t, func(b *manifestsBubble) {
		b.push("a", "v1", version("one"))
		b.get(manifestOf("a", "v1", basic("ann")), version("one"))
		seen := time.Now()
		for _, change := range []func(){
			func() { b.away = true },
			func() { b.away, b.status = false, 503 },
			func() { b.status = 429 },
		} {
			b.with(change)
			b.get(manifestOf("a", "v1", basic("ann")), version("one"))
		}
		b.get(manifestOf("a", "v1", ""), 429)
		b.with(func() { b.status, b.away = 0, true })
		b.get(manifestOf("a", "v1", ""), 502)
		b.get(manifestOf("a", "v2", basic("ann")), 502)
		time.Sleep(time.Until(seen.Add(testGrace)) - time.Nanosecond)
		b.get(manifestOf("a", "v1", basic("ann")), version("one"))
		time.Sleep(time.Nanosecond)
		b.get(manifestOf("a", "v1", basic("ann")), 502)
	})
}

// A registry that is away is asked in vain as seldom as can be.
func TestAwayIsFoundOutSoon(t *testing.T) {
	manifestsInBubble(t, func(b *manifestsBubble) {
		d := b.push("a", "v1", version("one"))
		b.get(manifestOf("a", d.String(), ""), version("one"))
		time.Sleep(testTTL)
		b.questions()
		b.with(func() { b.away = true })
		b.get(manifestOf("a", d.String(), ""), version("one"))
		b.expect(b.T, "HEAD a/manifests")
	})
}

func TestTagThatIsGone(t *testing.T) {
	manifestsInBubble(t, func(b *manifestsBubble) {
		b.push("a", "v1", version("one"))
		b.get(manifestOf("a", "v1", basic("ann")), version("one"))
		b.with(func() { delete(b.tags, "a:v1") })
		b.get(manifestOf("a", "v1", basic("ann")), 404)
		b.with(func() { b.away = true })
		b.get(manifestOf("a", "v1", basic("ann")), 502)
	})
}

// Some registries say 404 to strangers. That takes nothing from the others.
func TestTagThatIsNotForStrangers(t *testing.T) {
	manifestsInBubble(t, func(b *manifestsBubble) {
		b.push("a", "v1", version("one"))
		b.get(manifestOf("a", "v1", basic("ann")), version("one"))
		b.with(func() { b.status = 404 })
		b.get(manifestOf("a", "v1", ""), 404)
		b.with(func() { b.status, b.away = 0, true })
		b.get(manifestOf("a", "v1", basic("ann")), version("one"))
	})
}

// Whoever is turned away has no grace any more.
func TestTagRefusalForgets(t *testing.T) {
	manifestsInBubble(t, func(b *manifestsBubble) {
		d := b.push("a", "v1", version("one"))
		b.get(manifestOf("a", "v1", basic("ann")), version("one"))
		b.with(func() { b.readers["a"] = "bob" })
		b.get(manifestOf("a", "v1", basic("ann")), 401)
		b.get(manifestOf("a", d.String(), basic("ann")), 401)
		b.with(func() { b.away = true })
		b.get(manifestOf("a", "v1", basic("ann")), 502)
		b.get(manifestOf("a", d.String(), basic("ann")), 502)
	})
}

func TestManifestByDigestIsForTheAdmitted(t *testing.T) {
	manifestsInBubble(t, func(b *manifestsBubble) {
		b.readers["private"] = "ann"
		d := b.push("private", "v1", version("secret")).String()
		b.push("public", "v1", version("public"))
		b.get(manifestOf("private", d, ""), 401)
		b.get(manifestOf("private", d, basic("ann")), version("secret"))
		b.get(manifestOf("public", "v1", ""), version("public"))

		b.get(manifestOf("private", d, ""), 401)
		b.get(manifestOf("private", d, basic("bob")), 401)
		b.get(manifestOf("private", "v1", ""), 401)
		b.get(manifestOf("public", d, ""), 404)
		b.get(manifestOf("public", d, basic("ann")), 404)
		b.questions()

		b.get(manifestOf("private", d, basic("ann")), version("secret"))
		b.expect(b.T)
		time.Sleep(testTTL)
		b.get(manifestOf("private", d, basic("ann")), version("secret"))
		b.expect(b.T, "HEAD private/manifests")
		b.with(func() { b.away = true })
		b.get(manifestOf("private", d, basic("ann")), version("secret"))
		b.get(manifestOf("private", d, ""), 502)
	})
}

// Anyone can run a registry, and have it name any digest.
func TestRegistryThatOnlyNamesADigest(t *testing.T) {
	manifestsInBubble(t, func(b *manifestsBubble) {
		b.readers["private"] = "ann"
		d := b.push("private", "v1", version("secret"))
		b.get(manifestOf("private", "v1", basic("ann")), version("secret"))

		// The length is right as well, the bytes are not.
		b.with(func() {
			b.tags["evil:v1"] = d
			b.content["evil@"+d.String()] = []byte(strings.Repeat("x", len(version("secret"))))
		})
		for range 2 {
			b.get(manifestOf("evil", "v1", ""), 502)
			b.get(manifestOf("evil", d.String(), ""), 502)
		}
		b.with(func() { b.away = true })
		b.get(manifestOf("evil", "v1", ""), 502)
		b.get(manifestOf("evil", d.String(), ""), 502)
	})
}

func TestRegistriesThatAnswerHeadPoorly(t *testing.T) {
	for name, change := range map[string]func(o *origin){
		"not at all":     func(o *origin) { o.noHead = true },
		"without digest": func(o *origin) { o.vague = true },
	} {
		t.Run(name, func(t *testing.T) {
			manifestsInBubble(t, func(b *manifestsBubble) {
				change(b.origin)
				one := b.push("a", "v1", version("one"))
				for range 2 {
					b.get(manifestOf("a", "v1", ""), version("one"))
				}
				if desc, err := b.manifests.Head(b.Context(), manifestOf("a", "v1", "")); err != nil || desc.Digest != one {
					b.Errorf("Head = %v, %v", desc, err)
				}
				b.push("a", "v1", version("two"))
				b.get(manifestOf("a", "v1", ""), version("two"))
				time.Sleep(testTTL)
				b.get(manifestOf("a", one.String(), ""), version("one"))
			})
		})
	}
}

// A full disk turns caching off, not pulling.
func TestManifestThatCannotBeStored(t *testing.T) {
	manifestsInBubble(t, func(b *manifestsBubble) {
		b.shelf.full = true
		d := b.push("a", "v1", version("one"))
		for range 2 {
			b.get(manifestOf("a", "v1", ""), version("one"))
			b.get(manifestOf("a", d.String(), ""), version("one"))
		}
	})
}

// The parts of an index, asked for by digest, have no name of their own.
func TestOnlyTagsAreNamed(t *testing.T) {
	manifestsInBubble(t, func(b *manifestsBubble) {
		d := b.push("a", "", version("part"))
		b.get(manifestOf("a", d.String(), ""), version("part"))
		if len(b.shelf.refs) != 0 {
			b.Errorf("refs = %v", b.shelf.refs)
		}
	})
}

func TestTagsAreBounded(t *testing.T) {
	m := &Manifests{Grants: NewGrants(0, 0)}
	for i := range 2*maxTags + 1 {
		m.remember(tagged{Repository{"h", "a"}, fmt.Sprint(i)}, ocispec.Descriptor{})
	}
	if len(m.tags) > maxTags {
		t.Errorf("%d tags are remembered", len(m.tags))
	}
}

func TestHeadByDigest(t *testing.T) {
	manifestsInBubble(t, func(b *manifestsBubble) {
		d := b.push("a", "", version("one"))
		for range 2 {
			desc, err := b.manifests.Head(b.Context(), manifestOf("a", d.String(), ""))
			if err != nil || desc.Digest != d || desc.Size != int64(len(version("one"))) || desc.MediaType != ocispec.MediaTypeImageManifest {
				b.Errorf("Head = %+v, %v", desc, err)
			}
		}
	})
}
