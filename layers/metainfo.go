package layers

import (
	"github.com/opencontainers/go-digest"
)

// Metainfo is the torrent file of one blob. It follows from the blob alone, bit for
// bit: no announce URL, no date; info holds length, name ("sha256-<hex>"), piece
// length, pieces (SHA-1, BEP 3) and private=1 (BEP 27) and nothing else. It is not
// changed once made.
type Metainfo struct {
}

// PieceLength returns the bytes in a piece of a blob of size bytes, its last piece
// aside.
func PieceLength(size int64) int64 { panic("not yet") }

// ParseMetainfo reads a torrent file. It accepts only what this package would make
// itself for some blob, but for keys outside info (announce, ...), which it drops.
func ParseMetainfo(b []byte) (*Metainfo, error) { panic("not yet") }

// Bytes returns the torrent file. The caller must not change it.
func (m *Metainfo) Bytes() []byte { panic("not yet") }

// InfoBytes returns the bencoded info dictionary. The caller must not change it.
func (m *Metainfo) InfoBytes() []byte { panic("not yet") }

// Digest returns the digest of the blob.
func (m *Metainfo) Digest() digest.Digest { panic("not yet") }

// Size returns the blob's length in bytes.
func (m *Metainfo) Size() int64 { panic("not yet") }

// PieceLength returns the length in bytes of all pieces but the last.
func (m *Metainfo) PieceLength() int64 { panic("not yet") }

// Pieces returns how many pieces there are; 0 for the empty blob.
func (m *Metainfo) Pieces() int { panic("not yet") }

// Piece returns the SHA-1 of piece i.
func (m *Metainfo) Piece(i int) [20]byte { panic("not yet") }

// PieceSize returns the length in bytes of piece i.
func (m *Metainfo) PieceSize(i int) int64 { panic("not yet") }

// InfoHash returns the SHA-1 of the info dictionary: the swarm's name.
func (m *Metainfo) InfoHash() InfoHash { panic("not yet") }

// InfoHash names a swarm (BEP 3).
type InfoHash [20]byte

// String returns the infohash in lower-case hex.
func (ih InfoHash) String() string { panic("not yet") }
