package layers

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"
)

// Partial is a blob that is arriving; Store.Partial hands out one for all who ask.
// It is safe for concurrent use.
//
// It takes bytes in one of two ways. Without metainfo they come in order, by Append,
// as an HTTP body brings them. From SetMetainfo on they come by pieces, in any order
// and from anywhere: WritePiece for one who has a whole piece in hand (an HTTP range),
// or WriteAt and PieceDone for a swarm that gathers chunks.
//
// Either way it ends by itself when the last byte is here: the whole digest is
// checked, Verified is closed, the blob gets its name in the store, and Done is
// closed. Who gives up on it calls Fail.
type Partial struct {
}

// Digest returns the digest the blob must have.
func (p *Partial) Digest() digest.Digest { panic("not yet") }

// Size returns the blob's length in bytes.
func (p *Partial) Size() int64 { panic("not yet") }

// Append adds the next bytes of the blob, in order. It returns ErrPieces once there
// is metainfo, ErrMismatch when the blob would become longer than Size (nothing is
// added then), the Partial's error when it has ended, and the disk's as it is
// (ENOSPC, ...), with what did fit counted in. The Partial does not fail by it; if
// the bytes cannot come another way, call Fail.
func (p *Partial) Append(b []byte) error { panic("not yet") }

// Prefix returns how many bytes from the start are here without a gap.
func (p *Partial) Prefix() int64 { panic("not yet") }

// Received returns how many bytes are here. SetMetainfo can make it less: what does
// not fill a piece is not counted then.
func (p *Partial) Received() int64 { panic("not yet") }

// SetMetainfo begins the arrival by pieces. What was appended is judged by m: a
// piece that is whole and right is kept, all else is missing again; a reader that
// was given bytes which turn out wrong ends with ErrMismatch, others go on. m is
// saved, so that pieces can be told right from wrong after a crash.
//
// Setting the same metainfo again is no error; setting another, or one for another
// blob, is ErrMismatch and changes nothing.
func (p *Partial) SetMetainfo(m *Metainfo) error { panic("not yet") }

// Metainfo returns what SetMetainfo was given, by anyone or in an earlier run, or nil.
func (p *Partial) Metainfo() *Metainfo { panic("not yet") }

// Checked is closed when all that was on disk at SetMetainfo, or when the arrival
// was resumed, has been judged. Until then Gap leaves out and PieceHave denies
// pieces that may turn out to be here. Without metainfo it stays open.
func (p *Partial) Checked() <-chan struct{} { panic("not yet") }

// Gap returns the next run of n bytes from off that is missing at or after from; ok
// is false when there is none. By pieces, off lies on the start of a piece, at or
// before from if from is in a missing piece, and runs that lie closer than 4 MiB
// are taken for one, so that one HTTP range for it is worth its round trip.
func (p *Partial) Gap(from int64) (off, n int64, ok bool) { panic("not yet") }

// WritePiece stores piece i, all of it, once its SHA-1 is found right. It returns
// ErrMismatch when it is not, nil when the piece is here already, and errors as
// Append does.
func (p *Partial) WritePiece(i int, b []byte) error { panic("not yet") }

// WriteAt implements io.WriterAt for bytes of pieces that are not verified yet. No
// reader sees them before PieceDone. What lies in pieces that are here already is
// ignored and reported as written.
func (p *Partial) WriteAt(b []byte, off int64) (int, error) { panic("not yet") }

// ReadAt implements io.ReaderAt over what is on disk, verified or not: only for who
// hashes pieces or knows from PieceHave that they are right. It works on after Done
// as long as the store has the blob.
func (p *Partial) ReadAt(b []byte, off int64) (int, error) { panic("not yet") }

// PieceDone marks piece i as here. The caller has read it back and found its SHA-1
// right, and no WriteAt on it is under way.
func (p *Partial) PieceDone(i int) error { panic("not yet") }

// PieceHave tells whether piece i is here and verified.
func (p *Partial) PieceHave(i int) bool { panic("not yet") }

// Pieces returns how many pieces are here, and of how many; 0, 0 without metainfo.
func (p *Partial) Pieces() (have, total int) { panic("not yet") }

// NewReader returns a reader of the n bytes from off, in order; Read blocks until
// some are here. Verified bytes flow at once. Bytes appended without metainfo flow
// too, but the last byte of the section is held back until all of it is verified,
// and the last byte of the blob until the whole digest is: so whoever gets io.EOF
// has the right bytes, and whoever was given a wrong byte gets an error.
//
// Read returns the Partial's error when it fails, ErrMismatch when bytes it gave out
// were found wrong, and ctx's error when ctx ends. The reader implements io.WriterTo
// and lets a TCP connection take the bytes by sendfile. It must be closed; while it
// is open the blob, once whole, is not evicted.
func (p *Partial) NewReader(ctx context.Context, off, n int64) io.ReadCloser { panic("not yet") }

// Wanted returns the offsets readers wait for at this moment, the lowest first.
func (p *Partial) Wanted() []int64 { panic("not yet") }

// WantedChanged is closed at the next change of what Wanted returns.
func (p *Partial) WantedChanged() <-chan struct{} { panic("not yet") }

// Verified is closed when the whole digest has been found right. From then on every
// byte can be read, whatever becomes of the disk's fsync and rename.
func (p *Partial) Verified() <-chan struct{} { panic("not yet") }

// Done is closed when the blob is in the store under its digest, or has failed.
func (p *Partial) Done() <-chan struct{} { panic("not yet") }

// Err returns nil before Done, nil after it if the blob is in the store, and else
// why it is not.
func (p *Partial) Err() error { panic("not yet") }

// Progress is closed when next some bytes come in, verified or not.
func (p *Partial) Progress() <-chan struct{} { panic("not yet") }

// Fail ends the Partial: readers get err. What is on disk stays, and the next
// Store.Partial goes on with it; but with an ErrMismatch it is deleted, metainfo
// included. It does nothing once the whole digest has been found right, nor a
// second time.
func (p *Partial) Fail(err error) { panic("not yet") }
