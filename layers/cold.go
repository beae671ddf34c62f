package layers

import (
	"io"

	"github.com/opencontainers/go-digest"
)

// SmallBlob is the size in bytes below which a blob goes over HTTP: a swarm
// takes longer to form than such a blob to send.
const SmallBlob = 256 << 10

// Answer is what a seeder gives a mirror that asks for a blob.
type Answer struct {
	Size int64 // of the blob, in bytes
	// Torrent is what the blob's swarm goes by; nil for a small blob.
	Torrent *Torrent
	// Body, if not nil, is for the mirror to read and close: the small blob
	// itself, or the file of a torrent that still grows (see ReadTorrent). One that is
	// Named has none.
	Body io.ReadCloser
}

// Arrival is what a seeder tells others of a blob that it is still fetching.
type Arrival struct {
	Digest   digest.Digest `json:"digest"`
	Size     int64         `json:"size"`     // bytes
	Received int64         `json:"received"` // bytes the seeder has
}
