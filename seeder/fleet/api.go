package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"
	"time"
)

const (
	maxWatching = 256 // who watches jobs by server-sent events
	watchEvery  = 250 * time.Millisecond
	watchBeat   = 15 * time.Second // after which a comment tells that we are there
)

// Routes adds the fleet's API to a seeder's. The link is for mirrors; all else orders
// them about, or tells of them, and is for who may.
func (f *Fleet) Routes(mux *http.ServeMux) {
	mux.HandleFunc("GET "+Path, f.serveLink)
	mux.HandleFunc("GET /v1/hosts", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, struct {
			Hosts []Host `json:"hosts"`
		}{f.Snapshot().Hosts})
	})
	mux.HandleFunc("GET /v1/prefetch", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, struct {
			Jobs []Job `json:"jobs"`
		}{f.Snapshot().Jobs})
	})
	mux.HandleFunc("POST /v1/prefetch", f.serveGive)
	mux.HandleFunc("GET /v1/prefetch/{id}", f.serveJob)
	mux.HandleFunc("DELETE /v1/prefetch/{id}", func(w http.ResponseWriter, r *http.Request) {
		j, err := f.cancel(r.PathValue("id"))
		answer(w, http.StatusOK, j, err)
	})
}

// serveGive answers POST /v1/prefetch: it takes an order, a [Request], and tells how it is
// going, as a [Job].
func (f *Fleet) serveGive(w http.ResponseWriter, r *http.Request) {
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t != "application/json" {
		answer(w, 0, Job{}, refuse(http.StatusUnsupportedMediaType, "the body must be application/json"))
		return
	}
	var req Request
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&req); err != nil {
		answer(w, 0, Job{}, refuse(http.StatusBadRequest, "order: %v", err))
		return
	}
	j, err := f.give(r.Context(), req)
	if err == nil {
		w.Header().Set("Location", "/v1/prefetch/"+j.ID)
	}
	answer(w, http.StatusAccepted, j, err)
}

// serveJob answers GET /v1/prefetch/<id>, with all=1 host by host, and to who accepts
// text/event-stream again and again until the job is over.
func (f *Fleet) serveJob(w http.ResponseWriter, r *http.Request) {
	id, all := r.PathValue("id"), r.URL.Query().Get("all") == "1"
	j, rev, err := f.job(id, all)
	if err != nil || !strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
		answer(w, http.StatusOK, j, err)
		return
	}
	select {
	case f.watching <- struct{}{}:
		defer func() { <-f.watching }()
	default:
		answer(w, 0, j, refuse(http.StatusTooManyRequests, "%d watch already", maxWatching))
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	f.watch(w, r, j, rev)
}

// watch sends the job when it is another, and ends with it.
func (f *Fleet) watch(w http.ResponseWriter, r *http.Request, j Job, rev uint64) {
	out := http.NewResponseController(w)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	last := time.Time{}
	for sent := rev - 1; ; {
		if sent != rev {
			body, _ := json.Marshal(j)
			fmt.Fprintf(w, "event: job\ndata: %s\n\n", body)
			sent, last = rev, time.Now()
			out.Flush()
		} else if time.Since(last) > watchBeat {
			fmt.Fprint(w, ": still here\n\n")
			last = time.Now()
			out.Flush()
		}
		if j.State != Running {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-f.over:
			return
		case <-tick.C:
		}
		var err error
		if j, rev, err = f.job(j.ID, false); err != nil {
			return
		}
	}
}

// answer sends a job, or why there is none.
func answer(w http.ResponseWriter, status int, j Job, err error) {
	if err == nil {
		writeJSON(w, status, j)
		return
	}
	refusal, ok := errors.AsType[*Refusal](err)
	if !ok {
		refusal = refuse(http.StatusBadGateway, "%v", err)
	}
	writeJSON(w, refusal.Status, refusal)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // fails only with the client
}
