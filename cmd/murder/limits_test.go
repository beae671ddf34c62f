package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/murderp2p/murder/layers"
)

func testLimits(t *testing.T) *limits {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	store, err := layers.OpenStore(layers.StoreConfig{Dir: t.TempDir(), Limit: 1 << 30, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return &limits{
		upload: layers.NewLimiter(0), download: layers.NewLimiter(0), store: store, dataDir: t.TempDir(), log: log,
		now: map[string]string{"upload-limit": "0", "download-limit": "0", "cache-size": "1GiB"},
	}
}

func (l *limits) patch(contentType, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPatch, "/v1/limits", strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	l.serve(w, r)
	return w
}

func TestLimitsAreChanged(t *testing.T) {
	l := testLimits(t)
	w := l.patch("application/json", `{"upload-limit": "100Mbit", "cache-size": 1048576}`)
	want := `{"cache-size":"1048576","download-limit":"0","upload-limit":"100Mbit"}`
	if got := strings.Join(strings.Fields(w.Body.String()), ""); w.Code != http.StatusOK || got != want {
		t.Errorf("PATCH = %d %s, want %s", w.Code, got, want)
	}
	if got := l.store.Usage().Limit; got != 1<<20 {
		t.Errorf("the store keeps %d bytes, want 1 MiB", got)
	}
	w = httptest.NewRecorder()
	l.serve(w, httptest.NewRequest(http.MethodGet, "/v1/limits", nil))
	if got := strings.Join(strings.Fields(w.Body.String()), ""); got != want {
		t.Errorf("GET = %s, want %s", got, want)
	}
}

// What is wrong is named, and nothing changes, also of what else is asked for.
func TestWrongLimitsAreNamed(t *testing.T) {
	l := testLimits(t)
	before := fmt.Sprint(l.all())
	for body, named := range map[string]string{
		`{"upload-limit": "fast", "cache-size": "2GiB"}`:   `invalid value \"fast\" for upload-limit: a rate is written as`,
		`{"cache-size": "120%", "download-limit": "1MiB"}`: `invalid value \"120%\" for cache-size`,
		`{"upload_limit": "1MiB", "cache-size": "2GiB"}`:   `unknown limit \"upload_limit\"; there are upload-limit, download-limit, cache-size`,
		`{"upload-limit": null}`:                           `the value of \"upload-limit\" is missing`,
		`{"upload-limit": ["1MiB"]}`:                       `invalid value [\"1MiB\"] for \"upload-limit\"`,
		`{"upload-limit": -1}`:                             `invalid value \"-1\" for upload-limit`,
		`["upload-limit"]`:                                 `limits are written as`,
		`null`:                                             `limits are written as`,
		``:                                                 `limits are written as`,
		`{"upload-limit": "1MiB"} x`:                       `limits are written as`,
		`{"upload-limit": "` + strings.Repeat("9", 20<<10): `too large`,
	} {
		if w := l.patch("application/json", body); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), named) {
			t.Errorf("PATCH %.60s = %d %s, want 400 with %s", body, w.Code, w.Body, named)
		}
	}
	if w := l.patch("text/plain", `{"upload-limit": "1MiB"}`); w.Code != http.StatusBadRequest {
		t.Errorf("PATCH of text/plain, as a page in a browser may send it = %d", w.Code)
	}
	if got := fmt.Sprint(l.all()); got != before || l.store.Usage().Limit != 1<<30 {
		t.Errorf("limits are %s and %d bytes, want them as before: %s", got, l.store.Usage().Limit, before)
	}
}

func FuzzParseLimits(f *testing.F) {
	for _, seed := range []string{`{"upload-limit": "1MiB"}`, `{"cache-size": 5}`, `{"a": null}`, `{"a": {"b": []}}`, `[]`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		to, err := parseLimits(body)
		if (to == nil) == (err == nil) {
			t.Errorf("parseLimits(%q) = %v, %v", body, to, err)
		}
	})
}

func TestConnectionsLeaveFilesForPulls(t *testing.T) {
	for _, test := range []struct{ files, most, overHTTP, peers int }{
		{plentyOfFiles, 65536, 65536, 8192},
		{65536, 65536, 55296, 8192},
		{1024, 4096, 512, 256},
		{1024, 100, 100, 256},
		{1, 4096, 1, 1},
	} {
		if overHTTP, peers := connectionsFor(test.files, test.most); overHTTP != test.overHTTP || peers != test.peers {
			t.Errorf("of %d files %d connections and %d of peers, want %d and %d", test.files, overHTTP, peers, test.overHTTP, test.peers)
		}
	}
}
