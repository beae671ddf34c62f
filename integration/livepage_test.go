package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// pageEvents looks at a seeder's page until ctx ends; headers go with the request.
func pageEvents(ctx context.Context, t testing.TB, seeder *daemon, headers ...string) *bufio.Reader {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, seeder.URL()+"/page/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		req.Header.Set(name, value)
	}
	resp, err := seeder.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	context.AfterFunc(ctx, func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("the page's events: %s", resp.Status)
	}
	return bufio.NewReader(resp.Body)
}

// pageData reads the next event.
func pageData(t testing.TB, events *bufio.Reader) string {
	t.Helper()
	for {
		line, err := events.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			return data
		}
	}
}

// pageNow is all that the page shows at this moment.
func pageNow(t testing.TB, seeder *daemon, headers ...string) string {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context()) // a place is for who looks on
	defer leave()
	return pageData(t, pageEvents(ctx, t, seeder, headers...))
}

// TestLivePage has two mirrors fetch an image and looks at what the seeder's page says of it: to the operator, who is on the
// seeder's host, and to a stranger. A viewer holds up no end.
func TestLivePage(t *testing.T) {
	images := loadFixtures(t)
	f := startFleetOf(t, 2, fleetConfig{Registry: registryConfig{Storage: images.Storage}})
	f.prefetch(t, nil, f.Registry.Addr+"/"+publicRepo+":"+fixtureTag).must(t, "all hosts", 0, 2)
	bytes := sizeOf(allBlobs(t, images.Public))
	var shown string
	f.Seeder.waitUntil(t, "all is on the page", func() error {
		shown = pageNow(t, f.Seeder)
		var v struct {
			Now struct {
				Hosts, Ready    int
				Fleet, Registry int64
			}
		}
		if err := json.Unmarshal([]byte(shown), &v); err != nil {
			return err
		}
		if v.Now.Hosts != 2 || v.Now.Ready != 2 || v.Now.Fleet != 2*bytes || v.Now.Registry != bytes {
			return fmt.Errorf("%+v; want 2 hosts, ready, that have %d bytes, of which the registry has sent %d", v.Now, 2*bytes, bytes)
		}
		return nil
	})
	names := []string{`"name":"m0"`, `"name":"m1"`, publicRepo, f.Registry.Addr, `"zone_name":"b"`, "127.0.0.1"}
	for _, name := range append(names, `"hosts":2,"fill":[0,0,0,0,0,0,0,0,0,0,2]`, `"state":"done","hosts":2,"done":2`) {
		if !strings.Contains(shown, name) {
			t.Errorf("the operator is not shown %s: %s", name, shown)
		}
	}
	stranger := pageNow(t, f.Seeder, "X-Forwarded-For: 192.0.2.7")
	for _, name := range append(names, "sha256:", `"name":`) {
		if strings.Contains(stranger, name) {
			t.Errorf("a stranger is shown %s: %s", name, stranger)
		}
	}
	pageData(t, pageEvents(t.Context(), t, f.Seeder)) // it looks on
	f.Seeder.Stop(t)
	f.Seeder.waitLine(t, "the end", func(line string) bool {
		if strings.Contains(line, "answers under way were cut") {
			t.Error("who looks at the page held the end up")
		}
		return strings.Contains(line, `"msg":"stopped"`)
	})
}
