package layers

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"

	// digest.Algorithm finds its hash among what is linked in.
	_ "crypto/sha256"
	_ "crypto/sha512"

	"github.com/opencontainers/go-digest"
)

const (
	// minPieceLength: a host passes a piece on when it is whole and checked, so
	// short pieces fill a swarm sooner. This one is a chunk of BEP 3.
	minPieceLength = 16 << 10
	// fewPieces are enough until pieces have cheapPieceLength: shorter ones make HAVE
	// messages and bookkeeping outweigh what they save.
	fewPieces        = 1024
	cheapPieceLength = 64 << 10
	// maxPieceLength: a piece is held in memory whole by who fetches it over HTTP,
	// and a slow host should still finish one now and then.
	maxPieceLength = 16 << 20
	// maxPieces a blob is cut into before its pieces grow further. What a swarm loses is some
	// pieces' time at the start and some at the end, however many there are between:
	// twice as many halve that share.
	maxPieces = 4096
	// maxMetainfo is the largest torrent file that is read: 800,000 pieces, or 12 TiB.
	maxMetainfo = 16 << 20
)

// Metainfo is the torrent file of one blob. It follows from the blob alone, bit for
// bit: no announce URL, no date; info holds length, name ("sha256-<hex>"), piece
// length, pieces (SHA-1, BEP 3) and private=1 (BEP 27) and nothing else. It is not
// changed once made.
type Metainfo struct {
	digest   digest.Digest
	size     int64
	raw      []byte // the torrent file
	info     []byte // the part of raw under "info"
	hashes   []byte // the part of raw under "pieces"
	infoHash InfoHash
}

// PieceLength returns the bytes in a piece of a blob of size bytes, its last piece
// aside. It is a power of two from 16 KiB to 16 MiB: the smallest that makes at most 1,024
// pieces, or from 64 KiB on at most 4,096.
func PieceLength(size int64) int64 {
	pl := int64(minPieceLength)
	for pl < maxPieceLength && (size > maxPieces*pl || size > fewPieces*pl && pl < cheapPieceLength) {
		pl *= 2
	}
	return pl
}

// pieceCount returns how many pieces a blob of size bytes has.
func pieceCount(size int64) int {
	if size <= 0 {
		return 0
	}
	return int((size-1)/PieceLength(size)) + 1 // size may be foreign, and close to 1<<63
}

// pieceSpan returns where piece i of a blob of size bytes lies: [from, to).
func pieceSpan(size int64, i int) (from, to int64) {
	pl := PieceLength(size)
	return int64(i) * pl, min(size, int64(i+1)*pl)
}

// A torrent file is a head, the piece hashes and a tail. Bencode sorts the keys of a
// dictionary (BEP 3), and these are in order.
const (
	torrentStart = "d4:info" // info begins behind it
	infoTail     = "7:privatei1ee"
	torrentTail  = infoTail + "e"
)

// torrentHead returns what stands before the hashes. d is valid.
func torrentHead(d digest.Digest, size int64) []byte {
	return append([]byte(torrentStart), infoHead(d, size)...)
}

// infoHead is the part of it that belongs to info.
func infoHead(d digest.Digest, size int64) []byte {
	name := fileName(d)
	return fmt.Appendf(nil, "d6:lengthi%de4:name%d:%s12:piece lengthi%de6:pieces%d:",
		size, len(name), name, PieceLength(size), int64(pieceCount(size))*sha1.Size)
}

// newMetainfo writes the torrent file. d is valid, and hashes holds one SHA-1 per
// piece.
func newMetainfo(d digest.Digest, size int64, hashes []byte) *Metainfo {
	head := torrentHead(d, size)
	m := &Metainfo{digest: d, size: size, raw: slices.Concat(head, hashes, []byte(torrentTail))}
	at, end := len(head)+len(hashes), len(m.raw)-1
	m.hashes = m.raw[len(head):at:at]
	m.info = m.raw[len(torrentStart):end:end]
	m.infoHash = sha1.Sum(m.info)
	return m
}

// ParseMetainfo reads a torrent file. It accepts only what this package would make
// itself for some blob, but for keys outside info (announce, ...), which it drops.
func ParseMetainfo(b []byte) (*Metainfo, error) {
	m, err := parseMetainfo(b)
	if err != nil {
		return nil, fmt.Errorf("parse metainfo: %w", err)
	}
	return m, nil
}

func parseMetainfo(b []byte) (*Metainfo, error) {
	if len(b) > maxMetainfo {
		return nil, fmt.Errorf("%d bytes are more than %d", len(b), maxMetainfo)
	}
	var info bencode
	file := bencode(b)
	err := file.dict(func(key string, value bencode) error {
		if key == "info" {
			info = value
		}
		return nil
	})
	if err != nil || len(file) > 0 {
		return nil, errBencode
	}
	m, err := parseInfo(info)
	if err != nil {
		return nil, fmt.Errorf("info: %w", err)
	}
	return m, nil
}

// parseInfo makes the metainfo that b, an info dictionary, is part of.
func parseInfo(b bencode) (*Metainfo, error) {
	var size int64
	var name, hashes []byte
	whole := b
	err := b.dict(func(key string, value bencode) (err error) {
		switch key {
		case "length":
			size, err = value.integer()
		case "name":
			name, err = value.str()
		case "pieces":
			hashes, err = value.str()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	d, err := parseFileName(string(name))
	if err != nil {
		return nil, err
	}
	// The first conditions keep the count of pieces within an int.
	if size < 0 || size > maxMetainfo*maxPieceLength || len(hashes) != pieceCount(size)*sha1.Size {
		return nil, fmt.Errorf("%d bytes of hashes for a blob of %d bytes", len(hashes), size)
	}
	m := newMetainfo(d, size, hashes)
	if !bytes.Equal(m.info, whole) {
		return nil, errors.New("not as this blob's metainfo is made")
	}
	return m, nil
}

// Bytes returns the torrent file. The caller must not change it.
func (m *Metainfo) Bytes() []byte { return m.raw }

// InfoBytes returns the bencoded info dictionary. The caller must not change it.
func (m *Metainfo) InfoBytes() []byte { return m.info }

// Digest returns the digest of the blob.
func (m *Metainfo) Digest() digest.Digest { return m.digest }

// Size returns the blob's length in bytes.
func (m *Metainfo) Size() int64 { return m.size }

// PieceLength returns the length in bytes of all pieces but the last.
func (m *Metainfo) PieceLength() int64 { return PieceLength(m.size) }

// Pieces returns how many pieces there are; 0 for the empty blob.
func (m *Metainfo) Pieces() int { return len(m.hashes) / sha1.Size }

// Piece returns the SHA-1 of piece i.
func (m *Metainfo) Piece(i int) [20]byte {
	return [sha1.Size]byte(m.hashes[i*sha1.Size:])
}

// PieceSize returns the length in bytes of piece i.
func (m *Metainfo) PieceSize(i int) int64 {
	from, to := pieceSpan(m.size, i)
	return to - from
}

// InfoHash returns the SHA-1 of the info dictionary: the swarm's name.
func (m *Metainfo) InfoHash() InfoHash { return m.infoHash }

// InfoHash names a swarm (BEP 3).
type InfoHash [20]byte

// String returns the infohash in lower-case hex.
func (ih InfoHash) String() string { return hex.EncodeToString(ih[:]) }

// pieceHasher makes the piece hashes of a blob whose bytes are written to it in order.
type pieceHasher struct {
	length int64 // bytes in a piece
	piece  hash.Hash
	n      int64  // bytes in piece, less than length
	sums   []byte // of the pieces that are complete
}

func newPieceHasher(size int64) *pieceHasher {
	return &pieceHasher{length: PieceLength(size), piece: sha1.New()}
}

// Write implements io.Writer and never fails.
func (h *pieceHasher) Write(b []byte) (int, error) {
	total := len(b)
	for len(b) > 0 {
		n := min(int64(len(b)), h.length-h.n)
		h.piece.Write(b[:n])
		h.n += n
		b = b[n:]
		if h.n == h.length {
			h.cut()
		}
	}
	return total, nil
}

// at returns how many bytes have been written, as long as finish was not called.
func (h *pieceHasher) at() int64 { return int64(len(h.sums)/sha1.Size)*h.length + h.n }

// cut ends a piece.
func (h *pieceHasher) cut() {
	h.sums = h.piece.Sum(h.sums)
	h.piece.Reset()
	h.n = 0
}

// finish ends the last piece and returns all hashes.
func (h *pieceHasher) finish() []byte {
	if h.n > 0 {
		h.cut()
	}
	return h.sums
}

// makeMetainfo reads a blob's size bytes from r and checks its digest on the way.
func makeMetainfo(d digest.Digest, size int64, r io.Reader) (*Metainfo, error) {
	whole := d.Algorithm().Hash()
	pieces := newPieceHasher(size)
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	n, err := io.CopyBuffer(io.MultiWriter(whole, pieces), struct{ io.Reader }{r}, *buf)
	if err != nil {
		return nil, err
	}
	if n != size || digest.NewDigest(d.Algorithm(), whole) != d {
		return nil, ErrMismatch
	}
	return newMetainfo(d, size, pieces.finish()), nil
}

// checkDigest refuses what may not become part of a path: all but well-formed sha256
// and sha512 digests.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d, err)
	}
	if a := d.Algorithm(); a != digest.SHA256 && a != digest.SHA512 {
		return fmt.Errorf("digest %q: %w", d, digest.ErrDigestUnsupported)
	}
	return nil
}

// fileName returns a valid digest as the name of a file: colons trouble some systems.
func fileName(d digest.Digest) string {
	return d.Algorithm().String() + "-" + d.Encoded()
}

// parseFileName is the inverse of fileName.
func parseFileName(name string) (digest.Digest, error) {
	alg, enc, _ := strings.Cut(name, "-")
	d := digest.Digest(alg + ":" + enc)
	return d, checkDigest(d)
}
