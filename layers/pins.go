package layers

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// ErrFull: with the blobs that arrive at this moment the store would hold more than its
// limit, and none of the others may go.
var ErrFull = errors.New("cache is full of blobs in use")

// ErrPinsFill: the blobs of pinned images reach the store's limit by themselves, so that
// nothing else is taken.
var ErrPinsFill = errors.New("pinned images alone fill the cache")

// ErrNotPinned: UnpinImage was asked for an image that is not pinned.
var ErrNotPinned = errors.New("is not pinned")

// Pin is an image that the store keeps, however long nobody uses it.
type Pin struct {
	// Image is its name, HOST/REPOSITORY:TAG or @DIGEST.
	Image string `json:"image"`
	// Digest is what the name stood for when the image was pinned: a tag that moves
	// later takes no pin with it.
	Digest digest.Digest `json:"digest"`
	// Pinned is when.
	Pinned time.Time `json:"pinned"`
	// Blobs are its manifests, configs and layers, each once.
	Blobs []digest.Digest `json:"blobs"`
}

// MissingError is the error of an image that cannot be pinned, since not all of it is
// here.
type MissingError struct{ Blobs []digest.Digest }

func (e *MissingError) Error() string {
	texts := make([]string, 0, len(e.Blobs))
	for _, d := range e.Blobs {
		texts = append(texts, string(d))
	}
	return "not in the cache: " + strings.Join(texts, ", ")
}

// PinImage keeps all blobs of p from being evicted until UnpinImage, over restarts and
// crashes too, when it has returned nil. A pin of the same Image is replaced. It returns a
// [*MissingError] if not all of it is here, or the disk's error; then nothing has changed.
func (s *Store) PinImage(p Pin) error {
	s.pinning.Lock()
	defer s.pinning.Unlock()
	unhold := s.Hold(p.Blobs)
	if err := s.copyShelved(p.Blobs); err != nil {
		unhold()
		return fmt.Errorf("pin %s: %w", p.Image, err)
	}
	if missing := s.missing(p.Blobs); len(missing) > 0 {
		unhold()
		return &MissingError{missing}
	}
	next := maps.Clone(s.pins)
	next[p.Image] = p
	if err := s.writePins(next); err != nil {
		unhold()
		return fmt.Errorf("pin %s: %w", p.Image, err)
	}
	old := s.pins[p.Image]
	s.pins = next
	s.unhold(old.Blobs)
	s.weighPins()
	return nil
}

// UnpinImage lets what PinImage has kept go when room is needed, but for blobs that other
// pinned images have too. It returns ErrNotPinned, or the disk's error; the pin stands
// then.
func (s *Store) UnpinImage(image string) error {
	s.pinning.Lock()
	defer s.pinning.Unlock()
	old, ok := s.pins[image]
	if !ok {
		return fmt.Errorf("%s %w", image, ErrNotPinned)
	}
	next := maps.Clone(s.pins)
	delete(next, image)
	if err := s.writePins(next); err != nil {
		return fmt.Errorf("unpin %s: %w", image, err)
	}
	s.pins = next
	s.unhold(old.Blobs)
	s.weighPins()
	return nil
}

// Pins lists the pinned images by name.
func (s *Store) Pins() []Pin {
	s.pinning.Lock()
	defer s.pinning.Unlock()
	return sortedPins(s.pins)
}

func sortedPins(pins map[string]Pin) []Pin {
	return slices.SortedFunc(maps.Values(pins), func(a, b Pin) int { return cmp.Compare(a.Image, b.Image) })
}

// Hold keeps blobs from being evicted, those that are here and those that come in, until
// unhold is called or the process ends.
func (s *Store) Hold(blobs []digest.Digest) (unhold func()) {
	s.mu.Lock()
	for _, d := range blobs {
		s.held[d]++
		if e := s.blobs[d]; e != nil && e.elem != nil {
			s.idle.Remove(e.elem)
			e.elem = nil
		}
	}
	s.mu.Unlock()
	return func() { s.unhold(blobs) }
}

// unhold undoes Hold.
func (s *Store) unhold(blobs []digest.Digest) {
	s.mu.Lock()
	for _, d := range blobs {
		if s.held[d]--; s.held[d] > 0 {
			continue
		}
		delete(s.held, d)
		if e := s.blobs[d]; e != nil && e.pins == 0 && e.elem == nil && !e.shelved {
			s.idleAgain(e)
		}
	}
	s.mu.Unlock()
	s.trim()
}

// idleAgain puts a blob where it belongs by its last use. s.mu is held.
func (s *Store) idleAgain(e *entry) {
	for after := s.idle.Front(); after != nil; after = after.Next() {
		if after.Value.(*entry).used.Before(e.used) {
			e.elem = s.idle.InsertBefore(e, after)
			return
		}
	}
	e.elem = s.idle.PushBack(e)
}

// missing returns which of the blobs, which are held, are not on disk.
func (s *Store) missing(blobs []digest.Digest) (missing []digest.Digest) {
	for _, d := range blobs {
		s.mu.Lock()
		e := s.blobs[d]
		s.mu.Unlock()
		if e == nil || e.shelved {
			missing = append(missing, d)
			continue
		}
		if _, err := os.Lstat(s.blobPath(d)); err != nil {
			s.forget(e) // unless it has come in again
			missing = append(missing, d)
		}
	}
	return missing
}

// heldBytes returns how many bytes of the store pins keep. s.mu is held.
func (s *Store) heldBytes() (n int64) {
	for d := range s.held {
		if e := s.blobs[d]; e != nil && !e.shelved {
			n += e.size
		}
	}
	return n
}

// weighPins returns ErrPinsFill if pins leave no room for anything else, and says so in
// the log, once.
func (s *Store) weighPins() error {
	s.mu.Lock()
	held := s.heldBytes()
	limit := s.limit
	full := limit > 0 && held >= limit
	changed := full != s.pinsFill
	s.pinsFill = full
	s.mu.Unlock()
	switch {
	case changed && full:
		s.log.Error("pinned images alone fill the cache, other blobs go past it", "bytes", held, "limit", limit)
	case changed:
		s.log.Info("pinned images leave room in the cache again", "bytes", held, "limit", limit)
	}
	if full {
		return fmt.Errorf("%w: %d bytes of %d", ErrPinsFill, held, limit)
	}
	return nil
}

// pinsFile is the name, in the layout's folder, of the list of pins.
const pinsFile = "pins.json"

// pinsDocument is the content of pinsFile.
type pinsDocument struct {
	Pins []Pin `json:"pins"`
}

func (s *Store) writePins(pins map[string]Pin) error {
	b, err := json.MarshalIndent(pinsDocument{sortedPins(pins)}, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(s.partialDir(), filepath.Join(s.dir, pinsFile), b)
}

// loadPins keeps what an earlier run had pinned. A file that is malformed is put aside:
// nobody can pull from a daemon that does not start.
func (s *Store) loadPins() error {
	path := filepath.Join(s.dir, pinsFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pins, err := parsePins(b)
	if err != nil {
		s.log.Error("pins are malformed, nothing is pinned", "path", path, "err", err, "aside", os.Rename(path, path+".malformed") == nil)
		return nil
	}
	for _, p := range pins {
		s.pins[p.Image] = p
		s.Hold(p.Blobs)
	}
	s.weighPins()
	return nil
}

// parsePins reads what writePins wrote.
func parsePins(b []byte) ([]Pin, error) {
	var doc pinsDocument
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	seen := make(map[string]bool)
	for _, p := range doc.Pins {
		if p.Image == "" || seen[p.Image] {
			return nil, fmt.Errorf("a pin of %q: no name, or one that is there twice", p.Image)
		}
		seen[p.Image] = true
		for _, d := range append([]digest.Digest{p.Digest}, p.Blobs...) {
			if err := checkDigest(d); err != nil {
				return nil, fmt.Errorf("pin of %s: %w", p.Image, err)
			}
		}
	}
	return doc.Pins, nil
}
