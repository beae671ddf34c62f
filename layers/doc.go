// Package layers is one blob as a swarm sees it: bytes under a digest, cut into
// pieces, kept on disk when they are whole and known to be right, and read in
// order by clients while they are still arriving.
//
// It has three parts. A [Store] is the disk: an OCI image layout of whole blobs,
// held to a size. A [Partial] is the one blob that many ask for while it comes
// in, from an HTTP body, from the swarm or from both in turn. [Metainfo] is the
// torrent file of a blob, which follows from the blob alone, so that any two
// seeders make the same one; a [Torrent] is what is known of it while a seeder
// is still fetching the blob.
//
// How bytes travel between hosts is behind the [Swarm] interface; the room
// layers/swarm implements it. The daemons, proxy and seeder, decide where a blob
// is to come from; they drive a Partial and answer from a Store. This package
// knows nothing of them, of registries or of HTTP, and imports neither.
//
// The promise that shapes it: no reader ever ends cleanly on a wrong byte. See
// [Partial.NewReader].
package layers
