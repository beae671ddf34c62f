package seeder

import (
	"encoding/json"
	"io"
	"net/http"

	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/seeder/pushes"
)

// eventsAnswer is what POST /v1/events says of the events in a message.
type eventsAnswer struct {
	Accepted int `json:"accepted"` // will be fetched
	Ignored  int `json:"ignored"`  // are no pushes, or not to be fetched
}

// serveEvents answers POST /v1/events?ns=, where registries tell of pushes. ns is the name
// by which hosts pull from the registry, if it is another than that by which one pushes.
// The answer comes before anything is fetched. A registry that is told 503 tells again.
func (s *Seeder) serveEvents(w http.ResponseWriter, r *http.Request) {
	answer, err := s.events(w, r)
	if err != nil {
		s.cfg.Metrics.event("refused", 1)
		registry.WriteError(w, r, err)
		return
	}
	s.cfg.Metrics.event("accepted", answer.Accepted)
	s.cfg.Metrics.event("ignored", answer.Ignored)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	json.NewEncoder(w).Encode(answer) // fails only with the client
}

func (s *Seeder) events(w http.ResponseWriter, r *http.Request) (answer eventsAnswer, err error) {
	host := r.URL.Query().Get("ns")
	if host != "" {
		if host, err = registry.ParseHost(host); err != nil {
			return answer, err
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, pushes.MaxBody))
	if err != nil {
		return answer, &registry.Error{Status: http.StatusRequestEntityTooLarge, Code: registry.CodeUnsupported, Message: "events: " + err.Error()}
	}
	pushed, ignored, err := pushes.Parse(body, host)
	if err != nil {
		return answer, &registry.Error{Status: http.StatusBadRequest, Code: registry.CodeUnsupported, Message: "events: " + err.Error()}
	}
	answer.Ignored = ignored
	for _, p := range pushed {
		switch {
		case len(s.cfg.Allow) > 0 && !registry.Matches(s.cfg.Allow, p.Repo.Host):
			s.cfg.Log.Warn("event of a registry that may not be asked", "upstream", p.Repo.Host)
			answer.Ignored++
		case !s.warmer.heeds(p):
			answer.Ignored++
		case !s.warmer.add(p):
			return answer, &registry.Error{
				Status: http.StatusServiceUnavailable, Code: registry.CodeUnavailable, Header: http.Header{"Retry-After": {"5"}},
				Message: "too many pushes wait to be fetched; tell of it again later",
			}
		default:
			answer.Accepted++
		}
	}
	return answer, nil
}
