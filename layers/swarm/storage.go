package swarm

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/anacrolix/torrent/metainfo"
	"github.com/anacrolix/torrent/storage"

	"github.com/murderp2p/murder/layers"
)

// content is the blob behind a swarm: whole, or arriving.
type content interface {
	io.ReaderAt
	io.WriterAt // only pieces that are not here
	PieceHave(i int) bool
	PieceDone(i int) error
}

// whole is the content of a blob that is all here.
type whole struct {
	*layers.Blob
}

func (whole) PieceHave(int) bool { return true }

func (whole) PieceDone(int) error { return nil }

func (whole) WriteAt([]byte, int64) (int, error) {
	return 0, errors.New("write to a blob that is whole")
}

// files is the library's storage over the content of a swarm, by pread and pwrite: the
// library's own file storage moves half as many bytes a second, and its memory
// maps a third. What is here is known from the content and never from a check of
// the library's own.
type files struct {
	*joined
}

// OpenTorrent implements storage.ClientImpl.
func (f files) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{
		Piece: func(p metainfo.Piece) storage.PieceImpl {
			return piece{f, p.Index(), p.Offset(), p.Length()}
		},
		// The content is closed by who joined the swarm, not under the library's lock.
		Close: func() error { return nil },
	}, nil
}

// piece is one piece of a content.
type piece struct {
	files
	index        int
	from, length int64 // bytes
}

// goneWithin is how soon after a content fails its swarm is usually left.
const goneWithin = time.Second

// ReadAt implements storage.PieceImpl. The library panics, and takes the process with
// it, when a read for a peer fails after it has let go of the torrent; but a content
// fails at just that time, when its file is closed. Nothing of what is read then goes
// anywhere, so such a read succeeds.
func (p piece) ReadAt(b []byte, off int64) (int, error) {
	if off >= p.length {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), p.length-off)]
	n, err := p.content.ReadAt(b, p.from+off)
	if n == len(b) || err == nil {
		return n, err
	}
	select {
	case <-p.gone:
		return len(b), nil
	case <-time.After(goneWithin):
		return n, err
	}
}

// WriteAt implements storage.PieceImpl.
func (p piece) WriteAt(b []byte, off int64) (int, error) {
	return p.content.WriteAt(b, p.from+off)
}

// hashBuffers hold what of a piece is being hashed. The size is where reading by
// pread costs no more than by memory map.
var hashBuffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// WriteTo implements io.WriterTo: the library hashes pieces by it.
func (p piece) WriteTo(w io.Writer) (int64, error) {
	buf := hashBuffers.Get().(*[]byte)
	defer hashBuffers.Put(buf)
	return io.CopyBuffer(w, struct{ io.Reader }{io.NewSectionReader(p.content, p.from, p.length)}, *buf)
}

// MarkComplete implements storage.PieceImpl. The library has found the hash right.
func (p piece) MarkComplete() error {
	if err := p.content.PieceDone(p.index); err != nil {
		p.fail(err)
		return err
	}
	p.told.set(p.index, true)
	return nil
}

// MarkNotComplete implements storage.PieceImpl. The library calls it for a piece
// whose hash is wrong, which nobody has been told is here.
func (p piece) MarkNotComplete() error {
	p.told.set(p.index, false)
	return nil
}

// Completion implements storage.PieceImpl. With Ok false the library would hash
// the piece to find out; and where that is switched off, never begin.
func (p piece) Completion() storage.Completion {
	return storage.Completion{Ok: true, Complete: p.content.PieceHave(p.index)}
}

// noStorage stands in for the library's default storage, which is never asked.
type noStorage struct{}

// OpenTorrent implements storage.ClientImpl.
func (noStorage) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{}, errors.New("torrent without storage")
}
