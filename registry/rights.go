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
// does, so a request in mid-blob goes out in the name of any of them.
type Rights struct {
	mu   sync.Mutex // guards list
	list []right    // the latest first
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
	added := right{repo, authorization}
	r.list = slices.DeleteFunc(r.list, func(known right) bool { return known == added })
	r.list = slices.Insert(r.list, 0, added)
	r.list = r.list[:min(len(r.list), maxRights)]
}

// GetBlob is [Upstream.GetBlob] in the name of the first of the callers whom
// the registry still admits.
func (r *Rights) GetBlob(ctx context.Context, up Upstream, d digest.Digest, off int64) (body io.ReadCloser, size int64, err error) {
	r.mu.Lock()
	list := slices.Clone(r.list)
	r.mu.Unlock()
	err = Unavailable("nobody is waiting for %s", d)
	for _, known := range list {
		body, size, err = up.GetBlob(ctx, known.repo, d, off, known.authorization)
		if !Refused(err) {
			break
		}
	}
	return body, size, err
}
