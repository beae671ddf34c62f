package integration

import (
	"io"
	"net/http"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	digest "github.com/opencontainers/go-digest"
)

// blobInfo names one blob of an image.
type blobInfo struct {
	Digest digest.Digest
	Size   int64
}

// layerBlobs lists an image's layers, lowest first.
func layerBlobs(t testing.TB, image v1.Image) []blobInfo {
	t.Helper()
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	var blobs []blobInfo
	for _, l := range manifest.Layers {
		blobs = append(blobs, blobInfo{digest.Digest(l.Digest.String()), l.Size})
	}
	return blobs
}

// allBlobs is layerBlobs with the config.
func allBlobs(t testing.TB, image v1.Image) []blobInfo {
	t.Helper()
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	config := blobInfo{digest.Digest(manifest.Config.Digest.String()), manifest.Config.Size}
	return append(layerBlobs(t, image), config)
}

// answer is an HTTP answer, read to its end.
type answer struct {
	Status int
	Header http.Header
	Body   []byte
	Err    error // of reading the body
}

// get asks for url with some headers ("Name: value") and reads the answer. It
// fails the test if there is none.
func get(t testing.TB, url string, headers ...string) answer {
	t.Helper()
	return ask(t, http.MethodGet, url, headers...)
}

func ask(t testing.TB, method, url string, headers ...string) answer {
	t.Helper()
	a, err := tryAsk(t, method, url, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// tryAsk is ask for servers that may not answer. Redirects are not followed:
// the answer is the server's own.
func tryAsk(t testing.TB, method, url string, headers ...string) (answer, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		return answer{}, err
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := plainClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{Status: resp.StatusCode, Header: resp.Header}
	a.Body, a.Err = io.ReadAll(resp.Body)
	return a, nil
}

// plainClient keeps no connections, so that none outlives its test and none
// to a killed program is used again.
var plainClient = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// getBlob gets a blob that must come whole.
func getBlob(t testing.TB, url string, headers ...string) []byte {
	t.Helper()
	a := get(t, url, headers...)
	if a.Status != http.StatusOK || a.Err != nil {
		t.Fatalf("GET %s = %d, %v: %.300s", url, a.Status, a.Err, a.Body)
	}
	return a.Body
}
