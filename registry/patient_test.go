package registry

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func answerOf(r *http.Request, status int, retryAfter string) *http.Response {
	resp := &http.Response{Request: r, StatusCode: status, Status: http.StatusText(status), Header: http.Header{}, Body: io.NopCloser(strings.NewReader(testManifest))}
	if retryAfter != "" {
		resp.Header.Set("Retry-After", retryAfter)
	}
	return resp
}

// A registry that says when to ask again is asked again, if that is soon.
func TestBusyRegistry(t *testing.T) {
	for name, test := range map[string]struct {
		status      int
		after       string
		busy, asked int // how often it says so, and is asked
		want        int // status
		took        time.Duration
	}{
		"too many requests": {429, "1", 2, 3, 0, 2 * time.Second},
		"unavailable":       {503, "1", 2, 3, 0, 2 * time.Second},
		"at once":           {429, "0", 1, 2, 0, time.Second / 2},
		"for too long":      {429, "1", 99, 4, 429, 3 * time.Second},
		"until later":       {429, "3600", 99, 1, 429, 0},
		"no time":           {429, "", 99, 1, 429, 0},
		"nonsense":          {429, "-1", 99, 1, 429, 0},
		"a huge number":     {503, "99999999999999999999", 99, 1, 502, 0},
		"another error":     {500, "1", 99, 1, 502, 0},
		"a date":            {429, "Sat, 01 Jan 2000 00:00:03 GMT", 1, 2, 0, 3 * time.Second}, // a bubble's time begins in 2000
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun, asked := time.Now(), 0
				c := NewClient(ClientConfig{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
					if asked++; asked <= test.busy {
						return answerOf(r, test.status, test.after), nil
					}
					return answerOf(r, 200, ""), nil
				})})
				_, _, err := c.GetManifest(t.Context(), Repository{"reg.example", "a"}, "v1", "Basic abc")
				if status(err) != test.want || asked != test.asked || time.Since(begun) != test.took {
					t.Errorf("GetManifest = %v after %d questions and %s, want %d after %d and %s", err, asked, time.Since(begun), test.want, test.asked, test.took)
				}
			})
		})
	}
}

// A blob may take longer to begin than anything else: some caches fetch all of it first.
func TestAnswersThatDoNotBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, d := content(1000)
		repo := Repository{"reg.example", "a"}
		c := NewClient(ClientConfig{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			select {
			case <-r.Context().Done():
				return nil, r.Context().Err()
			case <-time.After(20 * time.Second):
				return answerOf(r, 200, ""), nil
			}
		})})
		c.prompt = answerTimeout
		begun := time.Now()
		if _, err := c.HeadManifest(t.Context(), repo, "v1", "Basic abc"); status(err) != 502 || time.Since(begun) != answerTimeout {
			t.Errorf("HeadManifest = %v after %s, want an Unavailable after %s", err, time.Since(begun), answerTimeout)
		}
		body, _, err := c.GetBlob(t.Context(), repo, d, 0, "Basic abc")
		if err != nil {
			t.Fatal(err)
		}
		body.Close()
	})
}
