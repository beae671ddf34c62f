package main

import (
	"net/http"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/registry"
)

// report answers GET /v1/status[?digest=D...]: all blobs, or those asked for.
func (d *daemon) report(w http.ResponseWriter, r *http.Request, ledger *layers.Ledger, seeders []seederStatus, pins []pinStatus) {
	var digests []digest.Digest
	for _, text := range r.URL.Query()["digest"] {
		parsed, err := registry.ParseDigest(text)
		if err != nil {
			registry.WriteError(w, r, err)
			return
		}
		digests = append(digests, parsed)
	}
	usage, stats := d.store.Usage(), d.swarm.Stats()
	received, served := ledger.Totals()
	s := statusReport{
		Version: buildVersion(), Role: d.role,
		Listen: d.listener.Addr().String(), PeerListen: d.swarm.Addr().String(),
		DataDir: d.dataDir, Zone: d.cli.String("zone"),
		DefaultRegistry: d.cli.String("default-registry"), InsecureRegistries: d.insecure,
		Seeders:        seeders,
		Cache:          cacheStatus{Bytes: usage.Bytes, Pinned: usage.Pinned, Limit: usage.Limit, Blobs: int64(usage.Blobs), Evictions: usage.Evictions, Failures: usage.Failures},
		TorrentsActive: stats.Active,
		Pins:           pins,
		Blobs:          d.blobs(ledger, digests),
	}
	if d.shelfDir != "" {
		s.Shelf = &shelfStatus{Dir: d.shelfDir, Bytes: usage.Shelved}
		if usage.ShelfFailure != nil {
			s.Shelf.Error = usage.ShelfFailure.Error()
		}
	}
	s.LoadInto = flagValue[loader](d.cli, "load-into").status(r.Context())
	if d.tls != nil {
		s.TLS = &tlsStatus{Certificate: d.tls.CertFile(), Expires: d.tls.Expires()}
	}
	s.Totals.Received = sourcesOf(received)
	s.Totals.Sent.Peer, s.Totals.Sent.Client = stats.Sent, served
	w.Header().Set("Content-Type", "application/json")
	printJSON(w, s)
}

// blobs are those the ledger remembers, and those that lay in the cache
// before it began.
func (d *daemon) blobs(ledger *layers.Ledger, digests []digest.Digest) []blobStatus {
	blobs := []blobStatus{}
	known := make(map[digest.Digest]bool)
	for _, r := range ledger.Records(digests...) {
		known[r.Digest] = true
		b := blobStatus{
			Digest: r.Digest.String(), Registry: r.Registry, Repository: r.Repository, Size: r.Size, Received: r.Received,
			State: r.State, Way: r.Way, From: sourcesOf(r.From), Why: r.Why, Started: r.Started, TookMS: r.TookMS,
		}
		b.Peers = len(d.swarm.Peers(r.Digest))
		blobs = append(blobs, b)
	}
	pinned := make(map[digest.Digest]bool)
	for _, p := range d.store.Pins() {
		for _, b := range p.Blobs {
			pinned[b] = true
		}
	}
	shelved := make(map[digest.Digest]bool)
	for _, info := range d.store.Blobs() {
		shelved[info.Digest] = info.Shelved
		if !known[info.Digest] && (len(digests) == 0 || slices.Contains(digests, info.Digest)) {
			blobs = append(blobs, blobStatus{
				Digest: info.Digest.String(), Size: info.Size, Received: info.Size, State: "whole", Way: "cache", Started: info.Used,
			})
		}
	}
	for i, b := range blobs {
		blobs[i].Pinned = pinned[digest.Digest(b.Digest)]
		blobs[i].Shelved = shelved[digest.Digest(b.Digest)]
	}
	return blobs
}

func sourcesOf(bytes map[layers.Source]int64) sources {
	return sources{Peer: bytes[layers.FromPeer], Seeder: bytes[layers.FromSeeder], Upstream: bytes[layers.FromUpstream]}
}
