package layers

import (
	"crypto/sha1"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"slices"
	"time"

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

// rest is an arrival that nobody works on.
type rest struct {
	digest  digest.Digest
	bytes   int64 // counted in Store.arriving
	since   time.Time
	arrival *arrival // nil when it is from an earlier run
}

// addRest keeps what rests of an arrival. Its bytes have been counted unless it is
// from an earlier run.
func (s *Store) addRest(r *rest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rests[r.digest] = r
	if r.arrival == nil {
		s.arriving += r.bytes
	}
}

// dropRest takes a rest out of the map. s.names and s.mu are held.
func (s *Store) dropRest(r *rest) {
	delete(s.rests, r.digest)
	s.arriving -= r.bytes
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

// dropStale removes rests that nobody has gone on with for long.
func (s *Store) dropStale() {
	s.names.Lock()
	defer s.names.Unlock()
	var stale []*rest
	s.mu.Lock()
	for _, r := range s.rests {
		if time.Since(r.since) > restKept {
			stale = append(stale, r)
			s.dropRest(r)
		}
	}
	s.mu.Unlock()
	for _, r := range stale {
		if err := s.unlinkPartial(r.digest); err != nil {
			s.log.Error("partial blob could not be removed", "digest", r.digest, "err", err)
		}
	}
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

// Begun returns how many of the blob's first bytes an earlier download from origin has
// left, so that Partial will go on behind them. It is a guess, made without opening what
// lies there: 0 also where pieces do.
func (s *Store) Begun(d digest.Digest, origin string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rests[d]
	switch {
	case r == nil:
		return 0
	case r.arrival != nil && r.arrival.origin == origin:
		return r.arrival.contiguous()
	case r.arrival != nil:
		return 0
	}
	if from, err := readSmall(s.partialPath(d)+originSuffix, maxOrigin); err != nil || string(from) != origin {
		return 0
	}
	if _, err := os.Lstat(s.partialPath(d) + torrentSuffix); !errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	fi, err := os.Lstat(s.partialPath(d))
	if err != nil {
		return 0
	}
	size, hashes := readNoted(s.partialPath(d) + hashesSuffix)
	pl := PieceLength(size)
	return pl * min(fi.Size()/pl, int64(len(hashes)/sha1.Size))
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

// reopen goes on with a rest. It returns nil when that is of no use.
func (s *Store) reopen(r *rest, d digest.Digest, size int64, origin string) (*arrival, error) {
	if r == nil || r.arrival != nil && (r.arrival.size != size || r.arrival.origin != origin) {
		return nil, nil
	}
	if from, err := readSmall(s.partialPath(d)+originSuffix, maxOrigin); err != nil || string(from) != origin {
		return nil, nil
	}
	f, err := os.OpenFile(s.partialPath(d), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.makeSpaceFor(f, size); err != nil {
		f.Close()
		return nil, err
	}
	if r.arrival != nil {
		r.arrival.file = f
		return r.arrival, nil
	}
	a, err := loadArrival(d, size, f)
	if a == nil {
		f.Close()
		return nil, err
	}
	a.origin = origin
	return a, err
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

// loadArrival takes stock of a file from an earlier run. It returns nil when it cannot
// be gone on with.
func loadArrival(d digest.Digest, size int64, f *os.File) (*arrival, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() > size {
		return nil, nil
	}
	a := newArrival(d, size, f)
	if m := readMetainfo(f.Name()+torrentSuffix, d, size); m != nil {
		a.setPieces(m.Torrent())
	} else {
		was, hashes := readNoted(a.noted.path)
		if was != size || len(hashes) == 0 {
			return nil, nil
		}
		a.noted.hashes = hashes
		a.setPieces(earlierTorrent(a, hashes))
	}
	if err := a.findData(); err != nil {
		return nil, err
	}
	return a, nil
}

// setPieces begins the arrival by pieces, with none here.
func (a *arrival) setPieces(t *Torrent) {
	a.torrent, a.run, a.tail, a.received, a.crcs = t, 0, nil, 0, crcs{}
	a.have = newBitset(t.Pieces())
	a.unknown = newBitset(t.Pieces())
}

// findData marks the pieces that are on disk in full, and have a hash to be judged by, as
// unknown.
func (a *arrival) findData() error {
	pl := a.torrent.PieceLength()
	for off := int64(0); off < a.size; {
		from, to, ok, err := dataAfter(a.file, off)
		if err != nil {
			return fmt.Errorf("look for data: %w", err)
		}
		if !ok || to <= off {
			return nil
		}
		for i := int((from + pl - 1) / pl); i < a.torrent.Known(); i++ {
			if _, end := pieceSpan(a.size, i); end > to {
				break
			}
			a.unknown.set(i)
		}
		off = to
	}
	return nil
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

// giveBack frees what is reserved on disk for bytes that are not here. An arrival that
// nobody goes on with, as a registry has broken off that promised more than it has, would
// keep that from others for a day. It returns how many bytes that makes.
func (a *arrival) giveBack() (freed int64) {
	before, err := a.file.Stat()
	if err != nil {
		return 0
	}
	pl, end := PieceLength(a.size), int64(0)
	gap := func(to int64) {
		if to > end {
			_ = giveBack(a.file, end, to-end) // if not, eviction will
		}
	}
	if a.torrent == nil {
		end = a.prefix
	}
	for i := int(end / pl); i < pieceCount(a.size); i++ {
		if a.have.has(i) || a.unknown.has(i) || a.tail != nil && a.tail.piece == i {
			from, to := pieceSpan(a.size, i)
			gap(from)
			end = to
		}
	}
	gap(a.size)
	after, err := a.file.Stat()
	if err != nil {
		return 0
	}
	return taken(before) - taken(after)
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
