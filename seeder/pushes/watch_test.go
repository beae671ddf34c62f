package pushes

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/registry"
)

func TestParsePattern(t *testing.T) {
	for text, want := range map[string]string{
		"reg.test/team/app":           "reg.test/team/app:*",
		"reg.test:5000/team/app:v1.*": "reg.test:5000/team/app:v1.*",
		"reg.test:5000/app":           "reg.test:5000/app:*",
		"localhost:5000/app:latest":   "localhost:5000/app:latest",
		"debian:12*":                  "docker.io/library/debian:12*",
		"app:[0-9]*":                  "docker.io/library/app:[0-9]*",
	} {
		if p, err := ParsePattern(text, "docker.io"); err != nil || p.String() != want {
			t.Errorf("ParsePattern(%q) = %v, %v; want %s", text, p, err, want)
		}
	}
	if p, err := ParsePattern("team/app:v1", "reg.test:5000"); err != nil || p.String() != "reg.test:5000/team/app:v1" {
		t.Errorf("of a default registry: %v, %v", p, err)
	}
	for _, text := range []string{"", ":v1", "reg.test/app:", "reg.test/App", "reg.test/app:v[", "reg.test/app:v 1", "reg.test/app@" + one, "reg.test/app:-x"} {
		if p, err := ParsePattern(text, "docker.io"); err == nil {
			t.Errorf("ParsePattern(%q) = %v, want an error", text, p)
		}
	}
}

func TestCompareTags(t *testing.T) {
	want := []string{"2026-01-02", "2026-01-10", "v1", "v1.2", "v1.9", "v1.10", "v1.10-rc1", "v2", "v12345678901234567890124"}
	got := slices.Clone(want)
	slices.Reverse(got)
	if slices.SortFunc(got, compareTags); !slices.Equal(got, want) {
		t.Errorf("sorted: %v, want %v", got, want)
	}
}

// tagged is a Registry of one repository, which gives its tags page by page.
type tagged struct {
	mu    sync.Mutex
	tags  map[string]digest.Digest
	hang  bool             // it does not answer for the list
	most  int              // tags of a page, whatever is asked for; 0 = as many as are
	by    string           // the parameter that names a page; "" = last
	fail  error            // of the list
	ill   map[string]error // of tags
	heads int
	lists []time.Time
}

func (r *tagged) Head(_ context.Context, _ registry.Repository, tag string) (digest.Digest, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heads++
	if err := r.ill[tag]; err != nil {
		return "", err
	}
	d, ok := r.tags[tag]
	if !ok {
		return "", &registry.Error{Status: http.StatusNotFound}
	}
	return d, nil
}

func (r *tagged) Tags(ctx context.Context, _ registry.Repository, query url.Values) (*http.Response, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lists = append(r.lists, time.Now())
	if r.hang {
		r.mu.Unlock()
		<-ctx.Done()
		r.mu.Lock()
		return nil, ctx.Err()
	}
	if r.fail != nil {
		return nil, r.fail
	}
	var tags []string
	by := cmp.Or(r.by, "last")
	for tag := range r.tags {
		if tag > query.Get(by) {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	header := http.Header{}
	n, _ := strconv.Atoi(query.Get("n"))
	if n = min(n, cmp.Or(r.most, n)); len(tags) > n {
		tags = tags[:n]
		header.Set("Link", fmt.Sprintf(`</v2/app/tags/list?%s=%s&n=%d>; rel="next"`, by, tags[n-1], n))
	}
	body, err := json.Marshal(map[string]any{"name": "app", "tags": tags})
	return &http.Response{Header: header, Body: io.NopCloser(strings.NewReader(string(body)))}, err
}

// asked returns when the registry was, and how often for one tag.
func (r *tagged) asked() (lists []time.Time, heads int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lists), r.heads
}

func (r *tagged) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// watching runs a Watch each minute until the test ends. found returns what it has told
// of since the last time, after the next look.
func watching(t *testing.T, r *tagged, pattern string, take func(Push) bool) (found func() []string) {
	p, err := ParsePattern(pattern, "reg.test")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var told []string
	w := &Watch{Pattern: p, Registry: r, Every: time.Minute, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Found: func(p Push) bool {
		mu.Lock()
		defer mu.Unlock()
		if !take(p) {
			return false
		}
		text := p.Tag + "=" + p.Digest.String()[7:8]
		if p.Old {
			text += " old"
		}
		told = append(told, text)
		return true
	}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	return func() []string {
		time.Sleep(70 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		defer func() { told = nil }()
		return told
	}
}

func all(Push) bool { return true }

func mustFind(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
}

// What is there at first, what is new and what moves is told of once each, and what does
// not match never is.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &tagged{tags: map[string]digest.Digest{"v1": one, "v2": one, "latest": one}}
		found := watching(t, r, "app:v*", all)
		mustFind(t, found(), "v1=1 old", "v2=1")
		mustFind(t, found())
		r.set(func() { r.tags["v2"], r.tags["v3"], r.tags["x"] = two, two, two; delete(r.tags, "v1") })
		mustFind(t, found(), "v2=2", "v3=2")
		r.set(func() { r.tags["v1"] = one })
		mustFind(t, found(), "v1=1")
	})
}

// One tag costs a HEAD, and no list; one that is not there yet is no failure.
func TestWatchOneTag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &tagged{tags: map[string]digest.Digest{}}
		found := watching(t, r, "app:latest", all)
		mustFind(t, found())
		r.set(func() { r.tags["latest"] = two })
		mustFind(t, found(), "latest=2")
		if lists, _ := r.asked(); len(lists) > 0 {
			t.Errorf("tags were listed %d times", len(lists))
		}
	})
}

// A repository to which nothing has been pushed yet is looked for at the usual pace.
func TestWatchRepositoryToCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &tagged{tags: map[string]digest.Digest{"v1": one}, fail: &registry.Error{Status: http.StatusNotFound}}
		found := watching(t, r, "app:v*", all)
		time.Sleep(24 * time.Hour)
		mustFind(t, found())
		r.set(func() { r.fail = nil })
		mustFind(t, found(), "v1=1")
	})
}

// What could not be taken is told of again.
func TestWatchIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &tagged{tags: map[string]digest.Digest{"v1": one}}
		var room atomic.Bool
		found := watching(t, r, "app", func(Push) bool { return room.Load() })
		mustFind(t, found())
		room.Store(true)
		mustFind(t, found(), "v1=1")
	})
}

// Of many tags the latest are watched, over several pages.
func TestWatchManyTags(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &tagged{tags: map[string]digest.Digest{}}
		for i := range 2500 {
			r.tags[fmt.Sprintf("v%d", i)] = one
		}
		found := watching(t, r, "app", all)()
		_, heads := r.asked()
		if len(found) != maxTags || found[0] != "v2400=1 old" || found[maxTags-1] != "v2499=1" || heads > 2*maxTags {
			t.Errorf("found %d with %d questions: %v", len(found), heads, found)
		}
	})
}

// A registry that never comes to an end is left after a while, and asked again.
func TestWatchWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &tagged{tags: map[string]digest.Digest{"v1": one}, hang: true}
		found := watching(t, r, "app", all)
		time.Sleep(2 * maxLook)
		r.set(func() { r.hang = false })
		time.Sleep(2 * maxLook)
		mustFind(t, found(), "v1=1")
	})
}

// However a registry names its pages, and however small it makes them, the latest tags are
// found on the last of them.
func TestWatchPages(t *testing.T) {
	for name, r := range map[string]*tagged{"as Quay": {by: "next_page"}, "a hundred a page": {most: 100}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r.tags = map[string]digest.Digest{}
				for i := range 9000 {
					r.tags[fmt.Sprintf("v%05d", i)] = one
				}
				if found := watching(t, r, "app", all)(); len(found) != maxTags || found[maxTags-1] != "v08999=1" {
					t.Errorf("found %d: %v", len(found), found)
				}
			})
		})
	}
}

func TestNextPage(t *testing.T) {
	for link, want := range map[string]string{
		`</v2/app/tags/list?last=v2&n=2>; rel="next"`:                       "last=v2&n=2",
		`<https://reg.test/v2/app/tags/list?next_page=x%3D%3D>;rel=next`:    "next_page=x%3D%3D",
		`</v2/app/tags/list?last=v0>; rel="prev", </x?last=v2>; rel="next"`: "last=v2",
		`</v2/app/tags/list?last=v0>; rel="prev"`:                           "",
		`</v2/app/tags/list>; rel="next"`:                                   "",
		`</v2/app/tags/list?last=next>`:                                     "",
		`nonsense`:                                                          "",
	} {
		if got := nextPage([]string{"", link}).Encode(); got != want {
			t.Errorf("next of %s = %q, want %q", link, got, want)
		}
	}
}

// A tag for which the registry does not answer hides no other, and is as it was.
func TestWatchTagThatIsIll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &tagged{tags: map[string]digest.Digest{"v1": one, "v2": one, "v3": one}}
		found := watching(t, r, "app", all)
		mustFind(t, found(), "v1=1 old", "v2=1 old", "v3=1")
		r.set(func() {
			r.ill = map[string]error{"v2": registry.Unavailable("its manifest is lost")}
			r.tags["v1"], r.tags["v3"] = two, two
		})
		mustFind(t, found(), "v1=2", "v3=2")
		time.Sleep(10 * maxWait)
		mustFind(t, found())
		r.set(func() { r.ill = nil })
		time.Sleep(10 * maxWait)
		mustFind(t, found())
	})
}

// A registry that has enough of questions is asked no more of them, and has answered for
// the latest tags by then.
func TestWatchTooManyQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &tagged{tags: map[string]digest.Digest{}, ill: map[string]error{"v5": &registry.Error{Status: http.StatusTooManyRequests}}}
		for i := range 10 {
			r.tags[fmt.Sprintf("v%d", i)] = one
		}
		found := watching(t, r, "app", all)
		mustFind(t, found(), "v6=1 old", "v7=1 old", "v8=1 old", "v9=1")
		if _, heads := r.asked(); heads != 5 {
			t.Errorf("asked for %d tags, want 5", heads)
		}
		r.set(func() {
			r.ill, r.heads = map[string]error{}, 0
			for tag := range r.tags {
				r.ill[tag] = registry.Unavailable("down")
			}
		})
		time.Sleep(2 * time.Minute)
		if _, heads := r.asked(); heads != maxRefusals {
			t.Errorf("asked a registry that is down for %d tags, want %d", heads, maxRefusals)
		}
	})
}

// A registry that fails is asked less and less often, and not before it wants to be.
func TestWatchBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &tagged{tags: map[string]digest.Digest{"v1": one}, fail: registry.Unavailable("down")}
		found := watching(t, r, "app", all)
		time.Sleep(24 * time.Hour)
		at, _ := r.asked()
		for i := 1; i < len(at); i++ {
			pause, least := at[i].Sub(at[i-1]), time.Minute<<min(i, 4)
			if pause < least*9/10 || pause > maxWait*11/10 {
				t.Errorf("look %d after %v, want at least about %v", i, pause, least)
			}
		}
		r.set(func() { r.fail = nil })
		time.Sleep(2 * maxWait)
		mustFind(t, found(), "v1=1")
		r.set(func() {
			r.lists = nil
			r.fail = &registry.Error{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"900"}}}
		})
		time.Sleep(14 * time.Minute)
		if at, _ := r.asked(); len(at) != 1 {
			t.Errorf("asked %d times in the quarter of an hour in which it did not want to be", len(at))
		}
	})
}

// Whatever a registry answers about its tags, what is made of it can be asked for, and the
// list has an end.
func FuzzPage(f *testing.F) {
	f.Add(`{"name":"app","tags":["v1","v2"]}`, `</v2/app/tags/list?last=v2&n=2>; rel="next"`)
	f.Add(`{"tags":null}`, ``)
	f.Add(`{"tags":["../x",""]}`, `<https://elsewhere/?last=..>;rel=next`)
	f.Fuzz(func(t *testing.T, body, link string) {
		pages := 0
		w := &Watch{Pattern: Pattern{Repo: registry.Repository{Host: "reg.test", Name: "app"}, Tags: "*"}, Log: slog.New(slog.DiscardHandler),
			Registry: list(func() *http.Response {
				pages++
				return &http.Response{Header: http.Header{"Link": {link}}, Body: io.NopCloser(strings.NewReader(body))}
			})}
		tags, err := w.tags(t.Context())
		if pages > maxPages || len(tags) > maxTags {
			t.Errorf("%d pages, %d tags", pages, len(tags))
		}
		for _, tag := range tags {
			if err != nil || !registry.IsTag(tag) {
				t.Errorf("tag %q, %v", tag, err)
			}
		}
	})
}

// list is a Registry that lists tags so.
type list func() *http.Response

func (l list) Tags(context.Context, registry.Repository, url.Values) (*http.Response, error) {
	return l(), nil
}
func (l list) Head(context.Context, registry.Repository, string) (digest.Digest, error) {
	return "", nil
}
