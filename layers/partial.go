package layers

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

// gapMerge is how close two missing runs must lie to be asked for as one: at 1 Gbit/s,
// sending 4 MiB again takes about as long as a new request to a distant registry.
const gapMerge = 4 << 20

// Partial is a blob that is arriving; Store.Partial hands out one for all who ask.
// It is safe for concurrent use.
//
// It takes bytes in one of two ways. Without a torrent they come in order, by Append,
// as an HTTP body brings them. From SetTorrent on they come by pieces, in any order
// and from anywhere: WritePiece for one who has a whole piece in hand (an HTTP range),
// or WriteAt and PieceDone for a swarm that gathers chunks. The torrent may grow: a
// piece is taken when its hash is known. One that fails before it is complete leaves
// what is here as if it had been appended, and the rest comes in order again.
//
// Either way it ends by itself when the last byte is here: the whole digest is
// checked, Verified is closed, the blob gets its name in the store, and Done is
// closed. Who gives up on it calls Fail.
type Partial struct {
	store  *Store
	digest digest.Digest
	size   int64
	origin string
	// shelved is what the file was when it was opened, if it is the shelf's: nobody may be
	// given what it was later.
	shelved *stamp

	reserved chan struct{} // closed when the disk has room for all of it, or has not
	verified chan struct{} // closed when the digest is right
	done     chan struct{} // closed when the blob is in the store, or will not be
	atRest   chan struct{} // closed when nothing of this Partial is under way any more

	// appending is held by Append and by the change to pieces, file access included.
	appending sync.Mutex

	// work counts who uses the file. It is added to under mu, by enter.
	work sync.WaitGroup

	mu       sync.Mutex    // guards all below
	*arrival               // not to be changed by who has not entered, see settle
	turn     int           // how often torrent has changed
	checked  chan struct{} // closed when no piece whose hash is known is unknown
	whole    bool          // the digest is right; verified is closed
	shut     bool          // the file is being let go of: nobody enters
	ended    bool          // done is closed
	err      error         // why it failed
	named    *entry        // the blob in the store, once it has its name
	pin      *entry        // the blob, whole now, that open readers keep from being evicted
	made     *Torrent      // what Hashes returned
	readers  map[*reader]struct{}
	moved    signal // readers can get further, or not at all
	progress signal // bytes of any kind
	wants    signal // Wanted has changed
	followed signal // something has been hashed

	// Who is at work on a piece: the number of its writers, or -1 for one who needs
	// it to himself while he verifies it.
	busy    map[int]int
	turning bool      // nobody may begin, until torrent has changed
	free    sync.Cond // on mu: somebody has left a piece, or turning is over
}

func newPartial(s *Store, a *arrival) *Partial {
	p := &Partial{
		store:    s,
		digest:   a.digest,
		size:     a.size,
		origin:   a.origin,
		shelved:  a.shelved,
		reserved: make(chan struct{}),
		verified: make(chan struct{}),
		done:     make(chan struct{}),
		checked:  make(chan struct{}),
		atRest:   make(chan struct{}),
		arrival:  a,
		readers:  make(map[*reader]struct{}),
		busy:     make(map[int]int),
	}
	p.free.L = &p.mu
	return p
}

// start sets the Partial's own goroutines to work. They end with it, and Store.Close
// waits for them.
func (p *Partial) start() {
	p.work.Go(p.reserve)
	if t := p.torrent; t != nil {
		p.work.Go(func() { p.goBy(t, 0, false) })
	}
	go p.run()
}

// reserveStep is how many bytes are reserved at once: writers wait meanwhile.
const reserveStep = 8 << 20

// reserve takes the blocks that the blob will need, so that a disk which others fill
// meanwhile says so early. The first pieces do not wait for it: on some file systems it
// takes longer than they do.
func (p *Partial) reserve() {
	defer close(p.reserved)
	if p.shelved != nil {
		return
	}
	for off := int64(0); off < p.size && !p.over(); off += reserveStep {
		if err := reserve(p.file, off, min(reserveStep, p.size-off)); err != nil {
			p.Fail(fmt.Errorf("reserve space for blob %s: %w", p.digest, err))
			return
		}
	}
}

// Reserved is closed when the blob's space on disk has been taken, or the Partial has
// failed because it could not be.
func (p *Partial) Reserved() <-chan struct{} { return p.reserved }

// Digest returns the digest the blob must have.
func (p *Partial) Digest() digest.Digest { return p.digest }

// Size returns the blob's length in bytes.
func (p *Partial) Size() int64 { return p.size }

// errShut is told to who would enter a Partial that is whole: it needs nothing more.
var errShut = errors.New("blob is whole")

// enter lets the caller use the file until it calls p.work.Done. p.mu is held.
func (p *Partial) enter() error {
	switch {
	case p.shut && p.whole:
		return errShut
	case p.err != nil:
		return p.err
	}
	p.work.Add(1)
	return nil
}

// Append adds the next bytes of the blob, those from Prefix on; what is here of them
// already is left out. It returns ErrPieces while there is a torrent, ErrMismatch when the blob would become longer than Size (nothing is
// added then), the Partial's error when it has ended, and the disk's as it is
// (ENOSPC, ...), with what did fit counted in. The Partial does not fail by it; if
// the bytes cannot come another way, call Fail.
func (p *Partial) Append(b []byte) error {
	p.appending.Lock()
	defer p.appending.Unlock()
	off, err := p.beginAppend(int64(len(b)))
	if err != nil || len(b) == 0 {
		return err
	}
	defer p.work.Done()
	for len(b) > 0 {
		next, err := p.appendSome(b, off)
		if err != nil {
			return fmt.Errorf("append to blob %s: %w", p.digest, err)
		}
		b = b[min(int64(len(b)), next-off):]
		off = next
	}
	p.awaitFollower()
	return nil
}

// awaitFollower waits until what was appended has been hashed but for maxBehind: what has
// not is lost by a crash, and the blob is not whole before all is hashed anyway. After a
// restart the follower begins at the start, and is not waited for until it has come to
// what was hashed before.
func (p *Partial) awaitFollower() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.err == nil && !p.whole && p.torrent == nil && p.hashed >= p.noted.bytes() && p.prefix-p.hashed > maxBehind {
		followed := p.followed.wait()
		p.mu.Unlock()
		<-followed
		p.mu.Lock()
	}
}

// appendSome writes b at off, which is prefix, up to the next piece that is here, and
// returns what prefix has become. p.appending is held and the caller has entered.
func (p *Partial) appendSome(b []byte, off int64) (next int64, err error) {
	p.mu.Lock()
	hole := p.hole()
	p.mu.Unlock()
	over := p.store.patience.call()
	n, err := p.file.WriteAt(b[:min(int64(len(b)), hole)], off)
	over()
	p.mu.Lock()
	p.prefix += int64(n)
	p.received += int64(n)
	p.passHere()
	next = p.prefix
	p.moved.fire()
	p.progress.fire()
	p.mu.Unlock()
	p.store.grow(int64(n))
	return next, err
}

// beginAppend returns where the next n bytes belong. If n > 0 and there is no error,
// the caller has entered.
func (p *Partial) beginAppend(n int64) (off int64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.err != nil:
		return 0, p.err
	case p.torrent != nil && !p.whole:
		return 0, ErrPieces
	case n == 0:
		return 0, nil
	case n > p.size-p.contiguous():
		return 0, fmt.Errorf("blob %s is longer than %d bytes: %w", p.digest, p.size, ErrMismatch)
	}
	return p.prefix, p.enter()
}

// Prefix returns how many bytes from the start are here without a gap.
func (p *Partial) Prefix() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.contiguous()
}

// Received returns how many bytes are here. SetTorrent can make it less: what does
// not fill a piece is not counted then.
func (p *Partial) Received() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.received
}

// Torrent returns what SetTorrent was given, by anyone or in an earlier run, or nil.
func (p *Partial) Torrent() *Torrent {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.torrent
}

// Metainfo returns that of the torrent, once it is complete, or nil.
func (p *Partial) Metainfo() *Metainfo {
	if t := p.Torrent(); t != nil {
		return t.Metainfo()
	}
	return nil
}

// Checked is closed when all that was on disk at SetTorrent, or when the arrival
// was resumed, has been judged, but for pieces whose hashes were not known then. Until
// then Gap leaves out and PieceHave denies pieces that may turn out to be here. Before
// there is a torrent it stays open.
func (p *Partial) Checked() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.checked
}

// PieceHave tells whether piece i is here and verified.
func (p *Partial) PieceHave(i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return checkPiece(p.torrent, i) == nil && p.have.has(i)
}

// Unjudged tells whether all bytes of piece i were here before its hash was known, or
// before the last restart, and have still to be judged. If they are found wrong, that is
// Progress.
func (p *Partial) Unjudged(i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unknown.has(i)
}

// Pieces returns how many pieces are here, and of how many; 0, 0 without a torrent.
func (p *Partial) Pieces() (have, total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.torrent == nil {
		return 0, 0
	}
	for _, word := range p.have {
		have += bits.OnesCount64(word)
	}
	return have, p.torrent.Pieces()
}

// Gap returns the next run of n bytes from off that is missing at or after from; ok
// is false when there is none. By pieces, off lies on the start of a piece, at or
// before from if from is in a missing piece. Runs that lie closer than 4 MiB are
// taken for one, so that one HTTP range for it is worth its round trip.
func (p *Partial) Gap(from int64) (off, n int64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	from = max(0, from)
	if p.torrent == nil {
		from = max(from, p.prefix)
	}
	pl, total := PieceLength(p.size), pieceCount(p.size)
	first := total
	if from < p.size {
		first = int(from / pl)
	}
	for first < total && !p.missing(first) {
		first++
	}
	if first == total {
		return 0, 0, false
	}
	last := first
	for i := first + 1; i < total && int64(i-last-1)*pl < gapMerge; i++ {
		if p.missing(i) {
			last = i
		}
	}
	off, _ = pieceSpan(p.size, first)
	_, end := pieceSpan(p.size, last)
	if p.torrent == nil {
		off = max(off, from)
	}
	return off, end - off, true
}

// missing tells whether piece i has to be fetched. p.mu is held.
func (p *Partial) missing(i int) bool { return !p.have.has(i) && !p.unknown.has(i) }

// Wanted returns the offsets readers wait for at this moment, the lowest first.
func (p *Partial) Wanted() []int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var offs []int64
	for r := range p.readers {
		if r.waiting {
			offs = append(offs, r.off)
		}
	}
	slices.Sort(offs)
	return slices.Compact(offs)
}

// WantedChanged is closed at the next change of what Wanted returns.
func (p *Partial) WantedChanged() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wants.wait()
}

// Verified is closed when the whole digest has been found right. From then on every
// byte can be read, whatever becomes of the disk's fsync and rename.
func (p *Partial) Verified() <-chan struct{} { return p.verified }

// Done is closed when the blob is in the store under its digest, or has failed.
func (p *Partial) Done() <-chan struct{} { return p.done }

// Err returns nil before Done, nil after it if the blob is in the store, and else
// why it is not.
func (p *Partial) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Progress is closed when next some bytes come in, verified or not.
func (p *Partial) Progress() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.progress.wait()
}

// Fail ends the Partial: readers get err. What is on disk stays, and the next
// Store.Partial goes on with it; but with an ErrMismatch, or an error that is DiskFailed,
// it is deleted, metainfo included. It does nothing once the whole digest has been found right, nor a
// second time.
func (p *Partial) Fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.whole {
		p.end(err)
	}
}

// over tells whether the Partial needs nothing more.
func (p *Partial) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.whole || p.ended
}

// failed tells whether the Partial has ended without its blob in the store.
func (p *Partial) failed() bool { return p.Err() != nil }

// end ends the Partial, as failed if err is not nil, unless it has ended. p.mu is held.
func (p *Partial) end(err error) {
	if p.ended {
		return
	}
	p.err, p.ended = err, true
	if DiskFailed(err) && p.shelved == nil {
		p.store.ail(err)
	}
	if p.made != nil && err != nil {
		p.made.Fail(err)
	}
	close(p.done)
	p.moved.fire()
	p.followed.fire()
	p.progress.fire()
}
