package pushes

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/registry"
)

const (
	// maxTags bounds the tags that one pattern is about. Each costs the registry a HEAD
	// every time.
	maxTags = 100
	// maxPages and maxPage bound what is read of a list of tags: pages, and bytes of one.
	// Some registries give a hundred tags a page, others all of them at once, whatever they
	// are asked for.
	maxPages, maxPage = 500, 32 << 20
	// pageSize is how many tags a registry is asked for at a time.
	pageSize = 1000
	// maxRefusals is how many tags one after the other a registry may fail to answer for
	// before it is left in peace: one whose manifest it has lost is no reason to overlook
	// the others.
	maxRefusals = 3
	// maxLook bounds one look, as a registry may send its list byte by byte.
	maxLook = 15 * time.Minute
	// maxWait bounds the time between two looks at a registry that does not answer.
	maxWait = 30 * time.Minute
)

// Pattern names tags of a repository.
type Pattern struct {
	Repo registry.Repository
	Tags string // as path.Match has it; without a * or the like it is one tag
}

// ParsePattern reads REPO[:TAG-GLOB]. Without a glob all tags are meant; without a
// registry, that of names which have none.
func ParsePattern(text, defaultRegistry string) (Pattern, error) {
	repoText, tags := text, "*"
	if at := strings.LastIndexByte(text, ':'); at > strings.LastIndexByte(text, '/') && at >= 0 {
		repoText, tags = text[:at], text[at+1:]
	}
	repo, err := name.NewRepository(repoText, name.WithDefaultRegistry(defaultRegistry))
	if err != nil {
		return Pattern{}, errors.New("it is written as HOST/REPOSITORY or HOST/REPOSITORY:TAG, in which * stands for any characters of the tag")
	}
	p := Pattern{Tags: tags}
	if p.Repo, err = registry.ParseRepository(repo.RegistryStr(), repo.RepositoryStr()); err != nil {
		return Pattern{}, err
	}
	// What matches no tag whatever its stars stand for is a mistake.
	if _, err := path.Match(tags, ""); err != nil || tags == "" || strings.ContainsAny(tags, "/@") || p.exact() && !registry.IsTag(tags) {
		return Pattern{}, fmt.Errorf("%q matches no tag", tags)
	}
	return p, nil
}

func (p Pattern) String() string { return p.Repo.String() + ":" + p.Tags }

// exact tells whether the pattern is one tag.
func (p Pattern) exact() bool { return !strings.ContainsAny(p.Tags, `*?[\`) }

func (p Pattern) matches(tag string) bool {
	match, err := path.Match(p.Tags, tag)
	return err == nil && match && registry.IsTag(tag)
}

// Registry is asked for what a pattern is about.
type Registry interface {
	// Head returns the digest that a tag has now.
	Head(ctx context.Context, repo registry.Repository, tag string) (digest.Digest, error)
	// Tags asks for tags/list.
	Tags(ctx context.Context, repo registry.Repository, query url.Values) (*http.Response, error)
}

// Watch asks a registry what the tags of a pattern are, and tells of those that are new,
// or have moved. At first all of them are; see [Push.Old].
type Watch struct {
	Pattern  Pattern
	Registry Registry
	// Every is how often the registry is asked; less often while it fails.
	Every time.Duration
	// Found is told of a push. If it returns false it is told again the next time.
	Found func(Push) bool
	Log   *slog.Logger

	seen  map[string]digest.Digest
	old   map[string]bool // tags of the first look that have not been told of yet; nil before
	many  bool            // it has been said that there are too many
	none  bool            // it has been said that the repository is not there
	fails int
}

// Run asks until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	w.seen = make(map[string]digest.Digest)
	for wait := rand.N(time.Second); ; { // who watches much does not ask for all at once
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		err := w.timedLook(ctx)
		if ctx.Err() != nil {
			return nil
		}
		wait = w.next(err)
		w.report(err, wait)
	}
}

// next is when to look again, some time around what it should be: registries are not to
// be asked by all their seeders together.
func (w *Watch) next(err error) time.Duration {
	if err == nil {
		w.fails = 0
		return jitter(w.Every)
	}
	w.fails++
	wait := w.Every << min(w.fails, 10)
	if wait <= 0 || wait > max(maxWait, w.Every) {
		wait = max(maxWait, w.Every)
	}
	return max(jitter(wait), retryAfter(err))
}

// jitter is d, give or take a tenth.
func jitter(d time.Duration) time.Duration { return d - d/10 + rand.N(d/5+1) }

// retryAfter is what a registry that has enough of us asks for, within reason.
func retryAfter(err error) time.Duration {
	e, ok := errors.AsType[*registry.Error](err)
	if !ok {
		return 0
	}
	seconds, err := strconv.Atoi(e.Header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return min(time.Duration(min(seconds, 1<<20))*time.Second, maxWait)
}

// report says once that a registry fails, and once that it does not any more.
func (w *Watch) report(err error, wait time.Duration) {
	switch {
	case err != nil && w.fails == 1:
		w.Log.Warn("registry cannot be watched", "pattern", w.Pattern.String(), "again_in", wait.Round(time.Second), "err", err)
	case err != nil:
		w.Log.Debug("registry cannot be watched", "pattern", w.Pattern.String(), "again_in", wait.Round(time.Second), "err", err)
	}
}

func (w *Watch) timedLook(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, maxLook)
	defer cancel()
	return w.look(ctx)
}

// look asks for all tags once, for the latest first: of these it hears also from a registry
// that has enough before the end. They are told of in their order, so that the latest is what
// a cache that is too small for all of them keeps.
func (w *Watch) look(ctx context.Context) error {
	tags, err := w.tags(ctx)
	if err != nil {
		return err
	}
	if w.old == nil {
		w.old = make(map[string]bool)
		for _, tag := range tags[:max(0, len(tags)-1)] {
			w.old[tag] = true
		}
	}
	has, unknown, failed := w.heads(ctx, tags)
	now := make(map[string]digest.Digest)
	for _, tag := range tags {
		d, ok := has[tag]
		if ok && (w.seen[tag] == d || w.Found(Push{Repo: w.Pattern.Repo, Kind: registry.Manifest, Tag: tag, Digest: d, Old: w.old[tag]})) {
			now[tag] = d
			delete(w.old, tag)
		}
	}
	for _, tag := range unknown { // they are as they were
		if d, ok := w.seen[tag]; ok {
			now[tag] = d
		}
	}
	w.seen = now
	return failed
}

// heads asks for the digests of tags, the last first. Those that have been deleted have
// none; unknown are those for which there was no answer, and failed is why.
func (w *Watch) heads(ctx context.Context, tags []string) (has map[string]digest.Digest, unknown []string, failed error) {
	has = make(map[string]digest.Digest)
	refusals := 0
	for i, tag := range slices.Backward(tags) {
		d, err := w.Registry.Head(ctx, w.Pattern.Repo, tag)
		switch {
		case err == nil:
			has[tag], refusals = d, 0
			continue
		case gone(err):
			continue
		}
		unknown, failed = append(unknown, tag), err
		if refusals++; refusals == maxRefusals || enough(err) || ctx.Err() != nil {
			return has, append(unknown, tags[:i]...), failed
		}
	}
	return has, unknown, failed
}

// enough is true of a registry's answer that it is asked too much.
func enough(err error) bool {
	e, ok := errors.AsType[*registry.Error](err)
	return ok && e.Status == http.StatusTooManyRequests
}

func gone(err error) bool {
	e, ok := errors.AsType[*registry.Error](err)
	return ok && e.Status == http.StatusNotFound
}

// tags are those that the pattern is about: of too many the last, by the order in which
// versions and dates come.
func (w *Watch) tags(ctx context.Context) ([]string, error) {
	if w.Pattern.exact() {
		return []string{w.Pattern.Tags}, nil
	}
	var tags []string
	query := url.Values{"n": {strconv.Itoa(pageSize)}}
	for n := 1; query != nil; n++ {
		if n > maxPages {
			return nil, fmt.Errorf("list of tags of %s: it has more than %d pages", w.Pattern.Repo, maxPages)
		}
		page, next, err := w.page(ctx, query)
		if gone(err) && n == 1 { // nothing has been pushed to it yet
			if !w.none {
				w.none = true
				w.Log.Warn("repository to be watched is not there, it is looked for again and again", "pattern", w.Pattern.String())
			}
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		w.none = false
		for _, tag := range page {
			if w.Pattern.matches(tag) {
				tags = append(tags, tag)
			}
		}
		tags = w.latest(tags)
		if next.Encode() == query.Encode() { // it leads to itself
			break
		}
		query = next
	}
	return tags, nil
}

// latest sorts tags and leaves as many of them as are watched.
func (w *Watch) latest(tags []string) []string {
	slices.SortFunc(tags, compareTags)
	tags = slices.Compact(tags)
	if len(tags) <= maxTags {
		return tags
	}
	if !w.many {
		w.many = true
		w.Log.Warn("more tags than are watched, only the last are", "pattern", w.Pattern.String(), "watched", maxTags)
	}
	return slices.Clone(tags[len(tags)-maxTags:])
}

// page asks for one page of the list of tags. next is what to ask for the next one, or nil.
func (w *Watch) page(ctx context.Context, query url.Values) (tags []string, next url.Values, err error) {
	resp, err := w.Registry.Tags(ctx, w.Pattern.Repo, query)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	var list struct {
		Tags []string `json:"tags"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxPage)).Decode(&list); err != nil {
		return nil, nil, fmt.Errorf("list of tags of %s: %w", w.Pattern.Repo, err)
	}
	return list.Tags, nextPage(resp.Header.Values("Link")), nil
}

// nextPage is the query of the Link header that leads to the next page (RFC 8288), or nil.
// Which parameter names the page is the registry's affair: as a rule last, with Quay
// next_page. Where else the link leads is of no interest: a registry has but one list of
// tags.
func nextPage(links []string) url.Values {
	for _, header := range links {
		for _, link := range linkOf.FindAllStringSubmatch(header, -1) {
			u, err := url.Parse(link[1])
			if err == nil && u.RawQuery != "" && relNext.MatchString(link[2]) {
				return u.Query()
			}
		}
	}
	return nil
}

// linkOf is one link of a header that may have several, with its parameters; relNext are those of a next page.
var (
	linkOf  = regexp.MustCompile(`<([^>]*)>((?:\s*;[^,<]*)*)`)
	relNext = regexp.MustCompile(`(?i)\brel\s*=\s*"?next\b`)
)

// compareTags orders tags so that v1.9 comes before v1.10: digits count as the numbers
// that they are.
func compareTags(a, b string) int {
	for a != "" && b != "" {
		m, n := digits(a), digits(b)
		if m > 0 && n > 0 {
			x, y := strings.TrimLeft(a[:m], "0"), strings.TrimLeft(b[:n], "0")
			if c := cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(x, y)); c != 0 {
				return c
			}
			a, b = a[m:], b[n:]
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

// digits is how many s begins with.
func digits(s string) int {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return i
		}
	}
	return len(s)
}
