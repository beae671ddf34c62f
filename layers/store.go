package layers

import (
	"cmp"
	"container/list"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Errors of a Store and of its Partials; ask with errors.Is.
var (
	// ErrNotFound: the store has no such whole blob or manifest.
	ErrNotFound = errors.New("blob not found")
	// ErrMismatch: bytes are not what their digest, or their piece's hash, says.
	ErrMismatch = errors.New("content does not match its digest")
	// ErrWhole: Partial was asked for a blob that is whole already; use Open.
	ErrWhole = errors.New("blob is whole already")
	// ErrSize: the blob is arriving under the same digest with another size, or
	// from another origin.
	ErrSize = errors.New("blob is arriving as another")
	// ErrPieces: Append was called after SetTorrent; WritePiece from now on.
	ErrPieces = errors.New("blob arrives by pieces")
	// ErrClosed: the store has been closed.
	ErrClosed = errors.New("store is closed")
)

// touchInterval is how often a blob's use is noted on disk, as the file's mtime: often
// enough for the order of eviction after a restart, rare enough to cost nothing.
const touchInterval = time.Minute

// StoreConfig says where a Store lives and how large it may grow.
type StoreConfig struct {
	// Dir is the root of the OCI image layout. It is made if it is missing.
	Dir string
	// Limit is how many bytes of blobs are kept; 0 is no limit. The least
	// recently used goes first, and never one that is open or pinned. What arrives
	// counts too, and the limit is kept to within one blob. Once pins alone reach it
	// no blob is taken (ErrPinsFill), and none that would take it further above while
	// others arrive (ErrFull).
	Limit int64
	// TakeAll lets what arrives at the same time exceed Limit for so long, instead of
	// ErrFull: whom a seeder turns away goes to the registry, and that may be a fleet.
	TakeAll bool
	// MinFree is how many bytes of the disk are left free, whoever fills it: idle
	// blobs go, and what is new is refused with ENOSPC. 0 is down to the last byte.
	MinFree int64
	// ScrubRate is how many bytes a second of whole blobs are read and hashed in the
	// background, each blob once a week; 0 is none.
	ScrubRate int64
	// Log is where the store reports; nil is slog.Default().
	Log *slog.Logger
	// Shelf is looked into for blobs that another program on this host has, so that the
	// store need not have them too. May be nil.
	Shelf *Shelf
	// Busy tells whether others are being sent a blob at this moment, so that its file had
	// better not be changed for that on the Shelf. May be nil.
	Busy func(d digest.Digest) bool
	// OnEvict is told of each blob that went to make room or has rotted, soon after it has gone, so
	// that its owner can leave the swarm; not of one that is back by then, nor of
	// Remove. It is told too of one that is still there, but on the Shelf now: who has it
	// open had better open it anew, as the old file takes space until it is closed. It is called from one goroutine and may call the store, but not Close.
	// May be nil.
	OnEvict func(d digest.Digest)

	hangsAfter time.Duration // the constant, but in tests
}

// Store is whole blobs on disk under their digests, and the Partials of those
// that are arriving. It is safe for concurrent use by one process.
//
// Beside the image layout its directory holds partial/, with what arrives and
// temporary files, and torrents/, with the metainfo of whole blobs.
type Store struct {
	dir     string
	takeAll bool
	log     *slog.Logger
	onEvict func(digest.Digest)
	shelf   *Shelf // nil = none
	busy    func(digest.Digest) bool
	index   *index
	locked  *os.File // held open while the folder is ours; nil if it could not be

	mount    string // point that the folder lies on
	vanished bool   // the folder is gone; only watch looks
	trouble  trouble
	patience *patience

	space *space // on the disk

	// pinning is held while pins change, until the disk has the change. It is taken
	// before names.
	pinning sync.Mutex
	pins    map[string]Pin // by Image; the map itself is never changed

	// Callers who need the same work done on a digest share it.
	opening, hashing singleflight.Group

	told    evictions      // those onEvict is still to be told of
	stop    chan struct{}  // closed by Close
	running sync.WaitGroup // the index's writer, and who calls onEvict

	// names is held while a file under blobs/ or partial/ is given its name or loses
	// it, together with the change of the maps below that says so. Without it an
	// eviction could unlink the file of a blob that has just come in again. System
	// calls are made under it, but no data is moved. It is taken before mu.
	names names

	mu        sync.Mutex // guards all below
	limit     int64
	blobs     map[digest.Digest]*entry
	idle      *list.List // of the entries that nobody has open and no pin keeps, most recently used first
	newest    *entry     // the last one used; its eviction would be untimely
	bytes     int64      // of blobs, but for those of the shelf
	shelved   int64      // of blobs of the shelf
	shelfLen  int        // how many they are
	short     int64      // bytes by which the disk has less free than it should
	arriving  int64      // received bytes of partials and rests
	evictions int64
	rotted    int64
	partials  map[digest.Digest]*Partial // not yet at rest
	rests     map[digest.Digest]*rest
	held      map[digest.Digest]int // how often each blob, here or not, is kept from eviction by Hold
	pinsFill  bool                  // what is held reaches the limit
	closed    bool

	maxBlobs, maxRests int // the constants, but in tests
}

// entry is a whole blob. Its fields but the first four are guarded by Store.mu.
type entry struct {
	digest  digest.Digest
	size    int64
	proof   proof // which of its bytes can be believed
	shelved bool  // it lies on the shelf, and not in blobs/
	used    time.Time
	touched time.Time // used, as the file's mtime has it
	looked  time.Time // when the shelf was looked at for it
	pins    int       // who keep it from being evicted
	elem    *list.Element
	gone    bool // it is not in the store any more
}

// OpenStore opens the layout under cfg.Dir or begins one. What lies there is not hashed
// before it is read (see Blob.Check); stale temporary files, and partial blobs that
// nobody has touched for a day, are removed.
func OpenStore(cfg StoreConfig) (*Store, error) {
	s := &Store{
		dir:      cfg.Dir,
		limit:    cfg.Limit,
		takeAll:  cfg.TakeAll,
		log:      cfg.Log,
		onEvict:  cfg.OnEvict,
		shelf:    cfg.Shelf,
		busy:     cfg.Busy,
		told:     evictions{ready: make(chan struct{}, 1)},
		stop:     make(chan struct{}),
		space:    newSpace(cfg.Dir, cfg.MinFree),
		patience: newPatience(cmp.Or(cfg.hangsAfter, hangsAfter)),
		blobs:    make(map[digest.Digest]*entry),
		idle:     list.New(),
		partials: make(map[digest.Digest]*Partial),
		rests:    make(map[digest.Digest]*rest),
		held:     make(map[digest.Digest]int),
		pins:     make(map[string]Pin),
		maxBlobs: maxBlobs,
		maxRests: maxRests,
	}
	s.names.patience = s.patience
	if s.log == nil {
		s.log = slog.Default()
	}
	waits := time.AfterFunc(s.patience.after, func() { s.log.Warn("disk hangs, the start waits for it", "dir", s.dir) })
	defer waits.Stop()
	err := s.load()
	if err == nil {
		err = s.loadPins()
	}
	if err == nil {
		s.mount, err = mountOf(s.dir)
	}
	if err != nil {
		s.unlock()
		return nil, fmt.Errorf("open store: %w", err)
	}
	s.index.failed = s.ail
	s.running.Go(func() { s.index.run(s.stop) })
	if s.onEvict != nil {
		s.running.Go(s.tell)
	}
	s.running.Go(s.watch)
	s.goWith(s.watchPatience)
	s.startScrub(cfg.ScrubRate)
	if s.shelf != nil {
		s.probeShelf()
		s.goWith(s.watchShelf)
		s.goWith(s.retireCopies)
	}
	s.trim()
	return s, nil
}

// Open opens a whole blob, which counts as use, or returns ErrNotFound. The blob
// is not evicted before Close or Unpin. While the disk hangs that is a failure of it.
func (s *Store) Open(d digest.Digest) (*Blob, error) {
	if hangs, _, _ := s.patience.state(); hangs {
		return nil, fmt.Errorf("%s: %w", d, ErrHangs)
	}
	e := s.pin(d)
	if e == nil {
		return nil, fmt.Errorf("%s: %w", d, ErrNotFound)
	}
	f, err := s.openBlob(e)
	if err != nil {
		s.unpin(e)
		if e.shelved {
			s.unshelve(e, err)
			return nil, fmt.Errorf("%s: %w", d, ErrNotFound)
		}
		if errors.Is(err, fs.ErrNotExist) {
			s.forget(e) // somebody tidied up
			return nil, fmt.Errorf("%s: %w", d, ErrNotFound)
		}
		s.ail(err)
		return nil, err
	}
	s.use(e)
	// It may leave the store while it is read, and what it is judged by with it.
	return &Blob{store: s, entry: e, file: f, meta: readMetainfo(s.torrentPath(d), d, e.size)}, nil
}

// Stat returns the size in bytes of a whole blob. It does not count as use.
func (s *Store) Stat(d digest.Digest) (size int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.blobs[d]
	if !ok {
		return 0, false
	}
	return e.size, true
}

// Remove removes a whole blob, its metainfo and its place in the index; blobs
// that are open stay readable. It returns ErrNotFound when there is none.
func (s *Store) Remove(d digest.Digest) error {
	s.names.Lock()
	defer s.names.Unlock()
	s.mu.Lock()
	e := s.blobs[d]
	if e == nil {
		s.mu.Unlock()
		return fmt.Errorf("%s: %w", d, ErrNotFound)
	}
	s.drop(e)
	s.mu.Unlock()
	return s.unlink(d)
}

// Partial returns the arriving blob d of size bytes: the same pointer to all who
// ask while it lives. One that was left half done, by a Partial that failed or by
// an earlier run, is gone on with where it stood, if it came from the same origin
// (the registry that vouches for whoever asks): what is half done is not verified,
// and another origin may have no right to it. Else it is begun anew.
//
// It returns ErrWhole when the blob is in the store and not on the Shelf only, ErrSize when it is arriving
// with another size or from another origin, and otherwise the disk's error as it is (ENOSPC, EROFS, ...):
// then nothing is left behind, and the caller had best stream past the store.
func (s *Store) Partial(d digest.Digest, size int64, origin string) (*Partial, error) {
	if err := checkDigest(d); err != nil {
		return nil, err
	}
	if size < 0 {
		return nil, fmt.Errorf("%s: size %d is negative", d, size)
	}
	var p *Partial
	err := s.orHangs(func() error {
		v, err, _ := s.opening.Do(string(d), func() (any, error) { return s.openPartial(d, size, origin) })
		if err == nil {
			p = v.(*Partial)
		}
		return err
	}, func() {
		if p != nil { // nobody waits for it any more
			p.Fail(ErrHangs)
		}
	})
	if err != nil {
		return nil, err
	}
	if p.size != size {
		return nil, fmt.Errorf("%s: %d bytes, not %d: %w", d, p.size, size, ErrSize)
	}
	if p.origin != origin {
		return nil, fmt.Errorf("%s: from %s, not %s: %w", d, p.origin, origin, ErrSize)
	}
	return p, nil
}

// Metainfo returns the metainfo of a whole blob, made from its bytes if it is not
// saved (as slow as reading the blob), or ErrNotFound.
func (s *Store) Metainfo(d digest.Digest) (*Metainfo, error) {
	size, ok := s.Stat(d)
	if !ok {
		return nil, fmt.Errorf("%s: %w", d, ErrNotFound)
	}
	if m := readMetainfo(s.torrentPath(d), d, size); m != nil {
		return m, nil
	}
	v, err, _ := s.hashing.Do(string(d), func() (any, error) { return s.hash(d) })
	if err != nil {
		return nil, err
	}
	return v.(*Metainfo), nil
}

// hash makes and saves the metainfo of a whole blob.
func (s *Store) hash(d digest.Digest) (*Metainfo, error) {
	b, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	defer b.Close() // and so it is not evicted before its metainfo is saved
	fi, err := b.File().Stat()
	if err != nil {
		return nil, err
	}
	m, err := makeMetainfo(d, b.Size(), b.File())
	if err != nil {
		err = fmt.Errorf("hash blob %s: %w", d, err)
		s.rotten(b.entry, err)
		return nil, errors.Join(errLost, err)
	}
	if b.entry.shelved {
		if err := unchanged(b.File(), stampOf(fi)); err != nil {
			return nil, err
		}
	}
	b.entry.proof.found(fi)
	if err := writeFile(s.partialDir(), s.torrentPath(d), m.Bytes()); err != nil {
		s.ail(fmt.Errorf("save metainfo of %s: %w", d, err))
	}
	return m, nil
}

// readMetainfo returns the metainfo of d saved at path, or nil if there is none that
// is sound: it can be had again.
func readMetainfo(path string, d digest.Digest, size int64) *Metainfo {
	b, err := readSmall(path, maxMetainfo)
	if err != nil {
		return nil
	}
	m, err := ParseMetainfo(b)
	if err != nil || m.Digest() != d || m.Size() != size {
		return nil
	}
	return m
}

// Blobs lists the whole blobs, the most recently used first.
func (s *Store) Blobs() []BlobInfo {
	s.mu.Lock()
	list := make([]BlobInfo, 0, len(s.blobs))
	for _, e := range s.blobs {
		list = append(list, BlobInfo{e.digest, e.size, e.used, e.shelved})
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b BlobInfo) int { return b.Used.Compare(a.Used) })
	return list
}

// Usage returns what the store holds now.
func (s *Store) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := Usage{
		Bytes: s.bytes, Shelved: s.shelved, Pinned: s.heldBytes(), Arriving: s.arriving, Limit: s.limit, Blobs: len(s.blobs) - s.shelfLen,
		Evictions: s.evictions, Rotten: s.rotted, Failures: s.failures(),
	}
	if s.shelf != nil {
		u.ShelfFailure = s.shelf.failure()
	}
	return u
}

// SetLimit changes how many bytes of blobs are kept, as [StoreConfig.Limit] says, and evicts
// what is too much. What arrives already is not turned away.
func (s *Store) SetLimit(bytes int64) {
	s.mu.Lock()
	s.limit = bytes
	s.mu.Unlock()
	s.weighPins()
	s.trim()
}

// Close fails what is arriving with ErrClosed (it can be resumed by the next
// OpenStore), writes index.json and waits until all is at rest. It may be called
// twice. Blobs that are open stay readable.
func (s *Store) Close() error {
	waits := time.AfterFunc(s.patience.after, func() { s.log.Warn("disk hangs, the end waits for it", "dir", s.dir) })
	defer waits.Stop()
	s.mu.Lock()
	partials := slices.Collect(maps.Values(s.partials))
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	for _, p := range partials {
		p.Fail(ErrClosed)
		<-p.atRest
	}
	if first {
		close(s.stop)
	}
	s.running.Wait()
	defer s.unlock()
	return s.index.write()
}

// unlock lets another process open the folder.
func (s *Store) unlock() {
	if s.locked != nil {
		s.locked.Close()
	}
}

func (s *Store) partialDir() string { return filepath.Join(s.dir, "partial") }

// blobPath returns where the layout has a blob. Like the two below it must be given
// valid digests only; those in blobs and partials are.
func (s *Store) blobPath(d digest.Digest) string {
	return filepath.Join(s.dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// partialPath returns where a blob lies while it arrives. Beside it, with besideSuffixes,
// lie its origin and what its pieces are judged by.
func (s *Store) partialPath(d digest.Digest) string {
	return filepath.Join(s.partialDir(), fileName(d))
}

// torrentPath returns where the metainfo of a whole blob lies.
func (s *Store) torrentPath(d digest.Digest) string {
	return filepath.Join(s.dir, "torrents", fileName(d)+torrentSuffix)
}

// BlobInfo is one whole blob in a Store.
type BlobInfo struct {
	Digest digest.Digest
	Size   int64     // bytes
	Used   time.Time // last opened; over a restart, exact to a minute
	// Shelved: it lies on the Shelf, and takes no room in the store.
	Shelved bool
}

// Usage is how full a Store is.
type Usage struct {
	Bytes     int64 // of whole blobs, but for those of the Shelf
	Shelved   int64 // bytes of whole blobs that lie on the Shelf
	Pinned    int64 // of them, bytes that pins keep
	Arriving  int64 // bytes of blobs that are not whole yet
	Limit     int64 // bytes; 0 is no limit
	Blobs     int   // whole blobs, but for those of the Shelf
	Evictions int64 // blobs removed to make room since OpenStore
	Failures  int64 // of the disk since OpenStore
	Rotten    int64 // blobs removed since OpenStore because their bytes were wrong
	// ShelfFailure is why the Shelf cannot be used at all; nil if it can, or there is none.
	ShelfFailure error
}
