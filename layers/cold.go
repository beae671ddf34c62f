package layers

import "github.com/opencontainers/go-digest"

// SmallBlob is the size in bytes below which a blob goes over HTTP: a swarm
// takes longer to form than such a blob to send.
const SmallBlob = 1 << 20

// Arrival is what a seeder tells of a blob whose metainfo is still being made.
type Arrival struct {
	Digest   digest.Digest `json:"digest"`
	Size     int64         `json:"size"`     // bytes
	Received int64         `json:"received"` // bytes the seeder has
	// Stream asks the mirror to take the blob over HTTP now; to all others it
	// is better to wait for the metainfo, so that the swarm does the work.
	Stream bool `json:"stream"`
}
