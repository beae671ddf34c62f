package layers

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"time"
)

// flushEvery is how often the hashes that have become known are passed on. At 1 Gbit/s
// there are more than a hundred a second, and a thousand hosts may be listening; who
// gets one later than its piece waits with that piece for so long at the most.
const flushEvery = 50 * time.Millisecond

// WriteTo writes the torrent file, its hashes as they become known; w, if it has a
// Flush method, is flushed after each write. It returns nil when all of it is written,
// the torrent's error when that fails, w's, or ctx's; then the file must not look
// complete to who reads it. A BitTorrent client that waits for the end has an ordinary
// torrent file.
func (t *Torrent) WriteTo(ctx context.Context, w io.Writer) error {
	next := torrentHead(t.digest, t.size)
	for sent := 0; ; {
		changed := t.Changed()
		hashes, whole, err := t.state()
		if err != nil {
			return fmt.Errorf("torrent of %s: %w", t.digest, err)
		}
		next = append(next, hashes[sent:]...)
		sent = len(hashes)
		if whole {
			next = append(next, torrentTail...)
		}
		if err := writeThrough(w, next); err != nil || whole {
			return err
		}
		next = next[:0]
		if err := t.pause(ctx, changed, sent > 0); err != nil {
			return err
		}
	}
}

// state returns the hashes that are known, whether these are all, and why there will be
// no more.
func (t *Torrent) state() (hashes []byte, whole bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hashes, t.meta != nil, t.err
}

// pause waits for a change, and if it is not the first one, not for too short a time.
func (t *Torrent) pause(ctx context.Context, changed <-chan struct{}, begun bool) error {
	if begun {
		timer := time.NewTimer(flushEvery)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-t.done:
		case <-ctx.Done():
		}
	}
	select {
	case <-changed:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// writeThrough writes b, if it is not empty, and flushes.
func writeThrough(w io.Writer, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("write torrent: %w", err)
	}
	if f, ok := w.(interface{ Flush() }); ok {
		f.Flush()
	}
	return nil
}

// ReadTorrent reads the torrent file of t, a new one, from r, and makes its hashes known
// as they come in. It returns nil when the file is whole and nothing follows it; else t
// fails with what it returns. Only the bytes that WriteTo writes for the same blob are
// taken, and the last piece's hash only once the end of the file has been seen.
func ReadTorrent(t *Torrent, r io.Reader) error {
	if err := t.read(r); err != nil {
		err = fmt.Errorf("read torrent of %s: %w", t.digest, err)
		t.Fail(err)
		return err
	}
	return nil
}

func (t *Torrent) read(r io.Reader) error {
	total := int64(t.Pieces()) * sha1.Size
	if total > maxMetainfo {
		return fmt.Errorf("%d bytes of hashes are more than %d", total, maxMetainfo)
	}
	if err := expect(r, torrentHead(t.digest, t.size)); err != nil {
		return err
	}
	last := make([]byte, min(total, sha1.Size))
	if err := t.readHashes(r, total-int64(len(last))); err != nil {
		return err
	}
	if _, err := io.ReadFull(r, last); err != nil {
		return noEOF(err)
	}
	if err := expect(r, []byte(torrentTail)); err != nil {
		return err
	}
	if n, err := io.ReadFull(r, make([]byte, 1)); n > 0 {
		return errors.New("it goes on behind its end")
	} else if err != io.EOF {
		return err
	}
	return t.Add(last)
}

// readHashes reads n bytes of hashes.
func (t *Torrent) readHashes(r io.Reader, n int64) error {
	buf := make([]byte, 32<<10)
	has := 0 // bytes of a hash that is not all here
	for n > 0 {
		got, err := io.ReadAtLeast(r, buf[has:min(int64(len(buf)), int64(has)+n)], sha1.Size-has)
		if err != nil {
			return noEOF(err)
		}
		n -= int64(got)
		has += got
		whole := has / sha1.Size * sha1.Size
		if err := t.Add(buf[:whole]); err != nil {
			return err
		}
		has = copy(buf, buf[whole:has])
	}
	return nil
}

// expect reads what must come next.
func expect(r io.Reader, want []byte) error {
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil {
		return noEOF(err)
	}
	if !bytes.Equal(got, want) {
		return errors.New("not as this blob's torrent is written")
	}
	return nil
}
