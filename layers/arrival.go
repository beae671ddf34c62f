package layers

import (
	"crypto/sha1"
	"errors"
	"fmt"
	"hash"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
)

// torrentSuffix of files that hold metainfo.
const torrentSuffix = ".torrent"

// originSuffix of files that hold where an arrival comes from.
const originSuffix = ".origin"

// besideSuffixes are those of all files that may lie beside that of an arrival.
var besideSuffixes = []string{torrentSuffix, originSuffix, hashesSuffix}

// arrival is what is known of a blob that is not whole: the file under partial/ and
// what has been hashed of it. It outlives a Partial that fails, so that the next one
// goes on at the same byte without reading the file again.
//
// Beside the file lies what its pieces are judged by: metainfo, where that is complete, or
// else the hashes that have become known (see noted). Which pieces are here is found by
// hashing them, so a crash needs no record that could be wrong.
type arrival struct {
	digest digest.Digest
	size   int64
	origin string   // who vouches for it
	file   *os.File // nil at rest
	noted  *noted   // nil = nothing is
	// shelved is set when file is not ours, but lies on the shelf: what it was when it was
	// opened. Then all bytes are here from the start, and none counts as arriving.
	shelved *stamp

	// While torrent is nil the first prefix bytes are here, and behind them the
	// pieces of have, if there was a torrent once. None counts as verified.
	prefix int64

	// While torrent is set, these pieces are here, and are verified ...
	torrent *Torrent
	have    bitset
	run     int  // pieces here from the first on
	crcs    crcs // of those that were hashed in memory as they came
	// ... and these are on disk, but it is not known whether they are right.
	unknown bitset
	// tail is what had been appended behind the last whole piece, if anything.
	tail *tail

	received int64 // bytes here; counted in Store.arriving

	// What has been hashed. Only the follower uses the hashes themselves.
	digester hash.Hash
	pieces   *pieceHasher
	hashed   int64  // bytes in digester
	fed      int64  // the same, with those being hashed at this moment
	sums     []byte // of the pieces hashed while there was no torrent
	rewind   bool   // bytes that were hashed have changed: hash from the start
}

// tail is the part of a piece that was appended before there was a torrent. Readers may
// have been given it and the follower may have hashed it, so they go on from it only if
// the piece, from whomever it comes, has the same bytes there.
type tail struct {
	piece    int
	from, to int64
}

// unlinkPartial removes what the disk has of an arrival. s.names is held, or nobody
// else has the store yet.
func (s *Store) unlinkPartial(d digest.Digest) error {
	if err := remove(s.partialPath(d)); err != nil {
		return err
	}
	return s.unlinkBeside(d)
}

// unlinkBeside removes what lies beside the file of an arrival.
func (s *Store) unlinkBeside(d digest.Digest) error {
	var errs []error
	for _, suffix := range besideSuffixes {
		errs = append(errs, remove(s.partialPath(d)+suffix))
	}
	return errors.Join(errs...)
}

// openPartial finds or makes the live Partial of d; Store.opening keeps it to one call
// per digest at a time.
func (s *Store) openPartial(d digest.Digest, size int64, origin string) (*Partial, error) {
	s.dropStale()
	for {
		s.mu.Lock()
		p, closed, whole := s.partials[d], s.closed, s.blobs[d] != nil && !s.blobs[d].shelved
		s.mu.Unlock()
		switch {
		case closed:
			return nil, ErrClosed
		case whole:
			return nil, fmt.Errorf("%s: %w", d, ErrWhole)
		case p == nil:
			a, err := s.openArrival(d, size, origin)
			if err != nil {
				if DiskFailed(err) {
					s.ail(err)
				}
				return nil, fmt.Errorf("open partial blob %s: %w", d, err)
			}
			return s.startPartial(a)
		case !p.failed():
			return p, nil
		}
		<-p.atRest // it has let go of the file then
	}
}

// startPartial registers a Partial over a, and sets it to work.
func (s *Store) startPartial(a *arrival) (*Partial, error) {
	p := newPartial(s, a)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		a.file.Close()
		return nil, ErrClosed
	}
	s.partials[a.digest] = p
	s.mu.Unlock()
	p.start()
	return p, nil
}

// openArrival opens what rests of d, if it has the right size, or begins anew.
func (s *Store) openArrival(d digest.Digest, size int64, origin string) (*arrival, error) {
	defer s.patience.call()()
	s.names.Lock()
	defer s.names.Unlock()
	s.mu.Lock()
	r := s.rests[d]
	if r != nil {
		s.dropRest(r)
	}
	s.mu.Unlock()
	a, err := s.reopen(r, d, size, origin)
	if err == nil && a == nil {
		if err = s.unlinkPartial(d); err == nil {
			a, err = s.create(d, size, origin)
		}
	}
	if err != nil {
		if r != nil {
			s.mu.Lock()
			s.rests[d] = r
			s.arriving += r.bytes
			s.mu.Unlock()
		}
		return nil, err
	}
	s.mu.Lock()
	s.arriving += a.received
	s.mu.Unlock()
	return a, nil
}

// maxOrigin bounds the name of an origin in bytes.
const maxOrigin = 1 << 10

// create begins an arrival with an empty file.
func (s *Store) create(d digest.Digest, size int64, origin string) (*arrival, error) {
	if err := errors.Join(s.weighPins(), s.fits(size)); err != nil {
		return nil, err
	}
	if err := s.makeSpace(size); err != nil {
		return nil, err
	}
	// A crash that loses this costs a beginning anew.
	if err := os.WriteFile(s.partialPath(d)+originSuffix, []byte(origin), 0o600); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(s.partialPath(d), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	s.space.gained(-size)
	a := newArrival(d, size, f)
	a.origin = origin
	return a, nil
}

// makeSpaceFor makes the room that f lacks to have size bytes. s.names is held.
func (s *Store) makeSpaceFor(f *os.File, size int64) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	lacks := max(0, size-taken(fi))
	if err := s.makeSpace(lacks); err != nil {
		return err
	}
	s.space.gained(-lacks)
	return nil
}

// newArrival returns an arrival of which nothing is here.
func newArrival(d digest.Digest, size int64, f *os.File) *arrival {
	return &arrival{
		digest:   d,
		size:     size,
		file:     f,
		noted:    &noted{path: f.Name() + hashesSuffix, size: size},
		digester: d.Algorithm().Hash(),
		pieces:   newPieceHasher(size),
	}
}

// setPieces begins the arrival by pieces, with none here.
func (a *arrival) setPieces(t *Torrent) {
	a.torrent, a.run, a.tail, a.received, a.crcs = t, 0, nil, 0, crcs{}
	a.have = newBitset(t.Pieces())
	a.unknown = newBitset(t.Pieces())
}

// clone returns a copy for who still looks at what the arrival was. The hashes, which
// only the follower uses, are not copied.
func (a *arrival) clone() *arrival {
	c := *a
	c.have, c.unknown = slices.Clone(a.have), slices.Clone(a.unknown)
	c.file, c.digester, c.pieces, c.crcs = nil, nil, nil, crcs{}
	return &c
}

// contiguous returns how many bytes from the start are here: appended, or verified.
func (a *arrival) contiguous() int64 {
	if a.torrent == nil {
		return a.prefix
	}
	return min(a.size, int64(a.run)*a.torrent.PieceLength())
}

// mark notes that piece i is here and right, and returns how many bytes that adds.
func (a *arrival) mark(i int) int64 {
	a.unknown.clear(i)
	if a.tail != nil && a.tail.piece == i {
		a.tail = nil // verified, as all of its piece
	}
	if a.have.has(i) {
		return 0
	}
	a.have.set(i)
	for a.run < a.torrent.Pieces() && a.have.has(a.run) {
		a.run++
	}
	n := a.torrent.PieceSize(i)
	a.received += n
	return n
}

// judge goes by t from now on, and keeps of what was taken in order the pieces that have
// been hashed and are right. wrong is called with what was hashed and is not; what was
// not hashed yet, or has no known hash, is unknown.
func (a *arrival) judge(t *Torrent, wrong func(from, to int64)) {
	prefix, behind, sums := a.prefix, a.have, a.sums
	a.setPieces(t)
	if pl := t.PieceLength(); prefix%pl > 0 && prefix < a.size {
		i := int(prefix / pl)
		a.tail = &tail{piece: i, from: int64(i) * pl, to: prefix}
	}
	for i := range t.Pieces() {
		from, to := pieceSpan(a.size, i)
		if to > prefix && !behind.has(i) {
			continue
		}
		switch sum, known := t.Piece(i); {
		case !known, (i+1)*sha1.Size > len(sums):
			a.unknown.set(i)
		case [sha1.Size]byte(sums[i*sha1.Size:]) == sum:
			a.mark(i)
		default:
			wrong(from, to)
		}
	}
}

// takeOnTrust goes by no torrent from now on. What is here, judged or not, stays, but
// for a tail behind a piece that is missing: wrong is called with that.
func (a *arrival) takeOnTrust(wrong func(from, to int64)) {
	for i := range a.torrent.Pieces() {
		if a.unknown.has(i) {
			a.have.set(i)
		}
	}
	a.torrent, a.unknown, a.run, a.prefix = nil, nil, 0, 0
	a.passHere()
	if t := a.tail; t != nil && t.from == a.prefix {
		a.prefix = t.to
	} else if t != nil {
		wrong(t.from, t.to)
	}
	a.tail = nil
	a.received = a.prefix
	for i := range pieceCount(a.size) {
		if from, to := pieceSpan(a.size, i); from >= a.prefix && a.have.has(i) {
			a.received += to - from
		}
	}
}

// passHere moves prefix to the end of the pieces that are here from there on.
func (a *arrival) passHere() {
	pl := PieceLength(a.size)
	for a.prefix%pl == 0 && a.have.has(int(a.prefix/pl)) {
		_, a.prefix = pieceSpan(a.size, int(a.prefix/pl))
	}
}

// hole returns how many bytes from prefix on are missing in a row.
func (a *arrival) hole() int64 {
	pl := PieceLength(a.size)
	for i := int(a.prefix/pl) + 1; i < len(a.have)*64; i++ {
		if a.have.has(i) {
			return int64(i)*pl - a.prefix
		}
	}
	return a.size - a.prefix
}

// unjudged returns which bytes of piece i are here unverified: [from, to), which may be
// empty. There is a torrent.
func (a *arrival) unjudged(i int) (from, to int64) {
	if a.unknown.has(i) {
		return pieceSpan(a.size, i)
	}
	if a.tail != nil && a.tail.piece == i {
		return a.tail.from, a.tail.to
	}
	return 0, 0
}

// bitset is a set of pieces; nil is the empty one. The arrival's lock guards it.
type bitset []uint64

func newBitset(n int) bitset    { return make(bitset, (n+63)/64) }
func (b bitset) has(i int) bool { return i/64 < len(b) && b[i/64]>>(i%64)&1 != 0 }
func (b bitset) set(i int)      { b[i/64] |= 1 << (i % 64) }
func (b bitset) clear(i int)    { b[i/64] &^= 1 << (i % 64) }

// list returns what is in the set, in order.
func (b bitset) list() (all []int) {
	for i := range len(b) * 64 {
		if b.has(i) {
			all = append(all, i)
		}
	}
	return all
}

// signal wakes all who wait for the next event. The lock of what it belongs to guards it.
type signal struct{ ch chan struct{} }

// wait returns a channel that is closed at the next event.
func (s *signal) wait() <-chan struct{} {
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

// fire is the event.
func (s *signal) fire() {
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
