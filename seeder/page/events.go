package page

import (
	"fmt"
	"net/http"
	"time"

	"github.com/murderp2p/murder/registry"
)

var errCrowded = &registry.Error{
	Status: http.StatusServiceUnavailable, Code: registry.CodeUnavailable, Header: http.Header{"Retry-After": {"10"}},
	Message: fmt.Sprintf("%d are looking at this page already, which is the most at the same time", maxViewers),
}

// serveEvents answers GET /page/events.
func (p *Page) serveEvents(w http.ResponseWriter, r *http.Request) {
	names, err := p.cfg.Operator(r)
	if err != nil {
		registry.WriteError(w, r, err)
		return
	}
	a := p.join(names)
	if a == nil {
		registry.WriteError(w, r, errCrowded)
		return
	}
	defer p.leave(a)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would gather events
	w.Header().Set("Connection", "close")     // which keeps the deadlines below from who comes next
	guard(w.Header())
	if r.Method == http.MethodGet {
		p.send(w, r, a)
	}
}

// send sends events until the viewer leaves.
func (p *Page) send(w http.ResponseWriter, r *http.Request, a *audience) {
	control := http.NewResponseController(w)
	over := time.NewTimer(maxStream)
	defer over.Stop()
	control.Flush() // the header: the viewer is let in
	for seen := int64(0); ; {
		event, seq, turned := p.next(a, seen)
		seen = seq
		if len(event) > 0 {
			control.SetWriteDeadline(time.Now().Add(maxWrite))
			if _, err := w.Write(event); err != nil || control.Flush() != nil {
				return
			}
		}
		select {
		case <-turned:
		case <-over.C:
			return
		case <-r.Context().Done():
			return
		case <-p.ended:
			return
		}
	}
}

// next returns what a viewer is sent who has seen the event of number seen, 0 for none;
// then its number, and what is closed when there is more. Who has missed one, being
// slow, is sent all anew.
func (p *Page) next(a *audience, seen int64) (event []byte, seq int64, turned <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case a.frames == nil || a.frames.seq == seen:
		return nil, seen, a.turned
	case seen > 0 && a.frames.seq == seen+1:
		return a.delta, a.frames.seq, a.turned
	case a.whole == nil:
		a.whole = a.frames.whole(p.rates)
	}
	return a.whole, a.frames.seq, a.turned
}

// join takes a viewer in; nil if there are too many.
func (p *Page) join(names bool) *audience {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.audiences[0]
	if names {
		a = p.audiences[1]
	}
	if a.viewers == maxViewers {
		return nil
	}
	if a.viewers++; a.viewers == 1 {
		select {
		case p.woken <- struct{}{}:
		default:
		}
	}
	return a
}

func (p *Page) leave(a *audience) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a.viewers--; a.viewers == 0 {
		a.frames, a.delta, a.whole = nil, nil, nil
	}
}
