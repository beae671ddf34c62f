package seeder

import (
	"io"
	"maps"
	"net/http"
	"sync"
	"time"
)

// A mirror gives a seeder up that is silent for a second, but an answer may
// rightly take longer, while the registry thinks. So to a mirror that asks for
// it the seeder says 102 Processing (RFC 2518, 10.1) until it answers.
const (
	beatHeader = "Murder-Beat" // of a request whose sender understands
	beatEvery  = 200 * time.Millisecond
)

// beating is the answer to a mirror. The handler has a header of its own until
// it answers: the beats send the other's.
type beating struct {
	w      http.ResponseWriter
	header http.Header

	mu       sync.Mutex // guards below, and w until the handler has answered
	answered bool
	timer    *time.Timer
}

func newBeating(w http.ResponseWriter) *beating {
	b := &beating{w: w, header: make(http.Header)}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timer = time.AfterFunc(beatEvery, b.beat)
	return b
}

func (b *beating) beat() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.answered {
		b.w.WriteHeader(http.StatusProcessing)
		b.timer.Reset(beatEvery)
	}
}

// stop is called when the handler has returned.
func (b *beating) stop() { b.answer(http.StatusOK) }

// answer ends the beats. Only the first call counts.
func (b *beating) answer(status int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.answered {
		return
	}
	b.answered = true
	b.timer.Stop()
	maps.Copy(b.w.Header(), b.header)
	b.header = b.w.Header()
	b.w.WriteHeader(status)
}

// Header implements http.ResponseWriter.
func (b *beating) Header() http.Header { return b.header }

// WriteHeader implements http.ResponseWriter.
func (b *beating) WriteHeader(status int) { b.answer(status) }

// Write implements http.ResponseWriter.
func (b *beating) Write(p []byte) (int, error) {
	b.answer(http.StatusOK)
	return b.w.Write(p)
}

// ReadFrom implements io.ReaderFrom, by which files go out without a copy.
func (b *beating) ReadFrom(r io.Reader) (int64, error) {
	b.answer(http.StatusOK)
	return io.Copy(b.w, r)
}

// FlushError is for http.ResponseController.
func (b *beating) FlushError() error {
	b.answer(http.StatusOK)
	return http.NewResponseController(b.w).Flush()
}

// Unwrap is for http.ResponseController.
func (b *beating) Unwrap() http.ResponseWriter { return b.w }
