package registry

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// origin is a registry without a network between it and its client, so that
// its tests can run in the time of a synctest bubble. Repositories with a
// reader are private to that user, the others public.
type origin struct {
	mu      sync.Mutex // guards all below
	readers map[string]string
	content map[string][]byte        // by repository@digest
	tags    map[string]digest.Digest // by repository:tag
	status  int                      // of all answers, when it is set
	gate    chan struct{}            // holds all answers back, when it is set
	away    bool
	noHead  bool // HEAD is not allowed
	vague   bool // HEAD tells no digest
	asked   []string
}

func newOrigin() *origin {
	return &origin{readers: make(map[string]string), content: make(map[string][]byte), tags: make(map[string]digest.Digest)}
}

// push puts content into a repository, under a tag unless that is empty.
func (o *origin) push(repo, tag, content string) digest.Digest {
	o.mu.Lock()
	defer o.mu.Unlock()
	d := digest.FromString(content)
	o.content[repo+"@"+d.String()] = []byte(content)
	if tag != "" {
		o.tags[repo+":"+tag] = d
	}
	return d
}

// with changes the registry's state.
func (o *origin) with(change func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	change()
}

// questions returns what was asked since the last call.
func (o *origin) questions() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	asked := o.asked
	o.asked = nil
	return asked
}

func (o *origin) expect(t *testing.T, want ...string) {
	t.Helper()
	if got := o.questions(); !slices.Equal(got, want) {
		t.Errorf("the registry was asked %q, want %q", got, want)
	}
}

var errAway = errors.New("connection refused")

// RoundTrip implements http.RoundTripper.
func (o *origin) RoundTrip(r *http.Request) (*http.Response, error) {
	o.mu.Lock()
	kind := strings.Split(r.URL.Path, "/")
	o.asked = append(o.asked, r.Method+" "+strings.Join(kind[2:len(kind)-1], "/"))
	gate, away := o.gate, o.away
	o.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	if away {
		return nil, errAway
	}
	w := httptest.NewRecorder()
	o.answer(w, r)
	resp := w.Result()
	resp.Request = r
	return resp, nil
}

func (o *origin) answer(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var repo, end, ref string
	fmt.Sscanf(strings.ReplaceAll(r.URL.Path, "/", " "), " v2 %s %s %s", &repo, &end, &ref)
	user, _, _ := r.BasicAuth()
	d := digest.Digest(ref)
	if tagged, ok := o.tags[repo+":"+ref]; ok {
		d = tagged
	}
	content, ok := o.content[repo+"@"+d.String()]
	switch {
	case o.status != 0:
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(o.status)
	case o.readers[repo] != "" && o.readers[repo] != user:
		w.Header().Set("Www-Authenticate", `Basic realm="origin"`)
		w.WriteHeader(http.StatusUnauthorized)
	case r.Method == http.MethodHead && o.noHead:
		w.WriteHeader(http.StatusMethodNotAllowed)
	case !ok:
		w.WriteHeader(http.StatusNotFound)
	default:
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		if !o.vague {
			w.Header().Set("Docker-Content-Digest", d.String())
		}
		if r.Method != http.MethodHead {
			w.Write(content)
		}
	}
}

// client returns a Client of the registry, by whatever host.
func (o *origin) client() *Client { return NewClient(ClientConfig{Transport: o}) }

// blobOf asks for a blob of a repository of the registry.
func blobOf(repo string, d digest.Digest, authorization string) Request {
	return Request{Kind: Blob, Repo: Repository{"origin.test", repo}, Digest: d, Authorization: authorization}
}

// manifestOf asks for a manifest by tag or digest.
func manifestOf(repo, ref, authorization string) Request {
	req := Request{Kind: Manifest, Repo: Repository{"origin.test", repo}, Tag: ref, Authorization: authorization}
	if d, err := ParseDigest(ref); err == nil {
		req.Tag, req.Digest = "", d
	}
	return req
}
