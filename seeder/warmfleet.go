package seeder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/seeder/fleet"
	"github.com/murderp2p/murder/seeder/pushes"
)

// sameOrder is for how long a push that is told of again is the same order.
const sameOrder = time.Hour

// ordersFleet tells whether hosts are to fetch a push, too. A seeder that has just been
// started does not fill their caches with all that it finds in a registry.
func (w *warmer) ordersFleet(p pushes.Push) bool {
	return p.Kind == registry.Manifest && p.Tag != "" && !p.Old && slices.ContainsFunc(w.seeder.cfg.WarmFleet, func(pattern string) bool {
		match, err := path.Match(pattern, p.Image())
		return err == nil && match
	})
}

// orderFleet has the fleet's hosts fetch what has been pushed. Its name follows from the
// push, so that hosts take it for one order that several seeders were told of.
//
// With it goes no more than a token for this repository: passwords stay here, so where a
// registry wants those hosts fetch public images only.
func (w *warmer) orderFleet(ctx context.Context, p pushes.Push) {
	id := sha256.Sum256([]byte(p.Image() + "@" + p.Ref() + time.Now().UTC().Truncate(sameOrder).String()))
	w.mu.Lock()
	authorization := w.auths[p.Repo]
	w.mu.Unlock()
	if !w.seeder.cfg.FleetCredentials || !strings.HasPrefix(authorization, "Bearer ") {
		authorization = ""
	}
	job, err := w.seeder.fleet.Order(ctx, fleet.Request{
		ID: hex.EncodeToString(id[:16]), Images: []fleet.RequestImage{{Ref: p.Image(), Digest: p.Digest, Authorization: authorization}},
	})
	if err != nil {
		w.seeder.cfg.Log.Warn("fleet not told of a push", "image", p.Image(), "err", err)
		return
	}
	w.seeder.cfg.Log.Info("fleet told of a push", "image", p.Image(), "order", job.ID)
}
