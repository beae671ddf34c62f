package tracker

import (
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/anacrolix/torrent/bencode"
)

func FuzzScrape(f *testing.F) {
	f.Add("info_hash=aaaaaaaaaaaaaaaaaaaa&info_hash=%00%01%02%03%04%05%06%07%08%09%0a%0b%0c%0d%0e%0f%10%11%12%13")
	f.Add("info_hash=short")
	f.Add("info_hash=%zz;&&=")
	tr := New(Config{Has: func(ih [20]byte) bool { return ih[0] == 'a' }})
	f.Fuzz(func(t *testing.T, q string) {
		hashes, err := parseScrape(q)
		if err == nil && (len(hashes) == 0 || len(hashes) > maxScrape) {
			t.Errorf("parseScrape(%q) has %d infohashes", q, len(hashes))
		}
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/scrape", nil)
		r.URL = &url.URL{Path: "/scrape", RawQuery: q}
		tr.ServeScrape(w, r)
		var answer struct {
			Failure string                    `bencode:"failure reason"`
			Files   map[string]map[string]int `bencode:"files"`
		}
		if err := bencode.Unmarshal(w.Body.Bytes(), &answer); err != nil || (answer.Failure == "") != (len(answer.Files) > 0) {
			t.Errorf("the answer to %q is %q, %v", q, w.Body, err)
		}
	})
}
