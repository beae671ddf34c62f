package registry

import (
	"context"
	"io"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Rights are the callers on whose behalf one blob is being fetched. A fetch
// outlives the caller who began it, and a token may end before a long blob
// does, so a request in mid-blob goes out in the name of any of them. All are
// of one registry: another may have something else under the digest.
type Rights struct {
	mu    sync.Mutex // guards the rest
	list  []right    // the latest first
	added int
}

type right struct {
	repo          Repository
	authorization string
}

// maxRights bounds the callers that are remembered for one blob.
const maxRights = 8

// Add notes a caller whom the registry has just admitted to the blob in repo.
func (r *Rights) Add(repo Repository, authorization string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.added++
	added := right{repo, authorization}
	r.list = slices.DeleteFunc(r.list, func(known right) bool { return known == added })
	r.list = slices.Insert(r.list, 0, added)
	r.list = r.list[:min(len(r.list), maxRights)]
}

// Added returns how often a caller has been added: who was refused in the name of all
// knows by it whether there may be another now.
func (r *Rights) Added() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.added
}

// From tells whether they are of the registry at host.
func (r *Rights) From(host string) bool {
	list := r.all()
	return len(list) > 0 && list[0].repo.Host == host
}

// has tells whether req's caller and repository are among them.
func (r *Rights) has(req Request) bool {
	return slices.Contains(r.all(), right{req.Repo, req.Authorization})
}

func (r *Rights) all() []right {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list)
}

// Each puts a question in the name of one caller after the other until it is
// not refused, and returns the last error.
func (r *Rights) Each(ask func(repo Repository, authorization string) error) (err error) {
	err = Unavailable("nobody is waiting any more")
	for _, known := range r.all() {
		if err = ask(known.repo, known.authorization); !Refused(err) {
			break
		}
	}
	return err
}

// GetBlob is [Upstream.GetBlob] in the name of the first of the callers whom
// the registry still admits.
func (r *Rights) GetBlob(ctx context.Context, up Upstream, d digest.Digest, off int64) (body io.ReadCloser, size int64, err error) {
	err = r.Each(func(repo Repository, authorization string) error {
		body, size, err = up.GetBlob(ctx, repo, d, off, authorization)
		return err
	})
	return body, size, err
}
