package tracker

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/anacrolix/torrent/bencode"
)

const (
	// maxScrape bounds the torrents of one scrape, as the UDP protocol does
	// (BEP 15: up to about 74).
	maxScrape = 74
	// maxScrapeQuery holds that many infohashes, each byte escaped.
	maxScrapeQuery = maxScrape * (len("&info_hash=") + 3*20)
)

// scrapeAnswer is the form of BEP 48.
type (
	scrapeAnswer struct {
		Files map[string]scraped `bencode:"files"`
	}
	scraped struct {
		Complete   int `bencode:"complete"`
		Downloaded int `bencode:"downloaded"`
		Incomplete int `bencode:"incomplete"`
	}
)

var errScrape = errors.New("bad scrape")

// parseScrape reads the infohashes asked for. A scrape without any, which BEP
// 48 takes as "everything", is refused: what is shared here is nobody's
// business who does not know it already.
func parseScrape(query string) ([][20]byte, error) {
	if len(query) > maxScrapeQuery {
		return nil, fmt.Errorf("%w: query too long", errScrape)
	}
	q, err := url.ParseQuery(query)
	if err != nil {
		return nil, fmt.Errorf("%w: malformed query", errScrape)
	}
	hashes := q["info_hash"]
	if len(hashes) == 0 || len(hashes) > maxScrape {
		return nil, fmt.Errorf("%w: between 1 and %d times info_hash", errScrape, maxScrape)
	}
	infohashes := make([][20]byte, len(hashes))
	for i, h := range hashes {
		if copy(infohashes[i][:], h) != 20 || len(h) != 20 {
			return nil, fmt.Errorf("%w: info_hash is not 20 bytes", errScrape)
		}
	}
	return infohashes, nil
}

// ServeScrape answers GET /scrape (BEP 48) for the infohashes given. Those
// without a swarm count nobody.
func (t *Tracker) ServeScrape(w http.ResponseWriter, r *http.Request) {
	infohashes, err := parseScrape(r.URL.RawQuery)
	if err != nil {
		t.refuse(w, r, err)
		return
	}
	answer := scrapeAnswer{Files: make(map[string]scraped, len(infohashes))}
	for _, ih := range infohashes {
		answer.Files[string(ih[:])] = t.scrape(ih)
	}
	b, err := bencode.Marshal(answer)
	if err != nil { // our own types: cannot happen but by a mistake in this file
		t.cfg.Log.ErrorContext(r.Context(), "encode answer", "err", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	write(w, b)
}

func (t *Tracker) scrape(ih [20]byte) scraped {
	found := t.shard(ih).scrape(ih)
	if t.cfg.Has(ih) {
		found.Complete++
	}
	return found
}

func (s *shard) scrape(ih [20]byte) scraped {
	s.mu.Lock()
	defer s.mu.Unlock()
	sw := s.swarms[ih]
	if sw == nil {
		return scraped{}
	}
	return scraped{Complete: sw.Complete(), Downloaded: sw.Completed(), Incomplete: sw.Len() - sw.Complete()}
}
