package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
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
	setHeaders(req, headers)
	resp, err := plainClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{Status: resp.StatusCode, Header: resp.Header}
	a.Body, a.Err = io.ReadAll(resp.Body)
	return a, nil
}

// setHeaders sets headers written "Name: value".
func setHeaders(req *http.Request, headers []string) {
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
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

// pulled is what one pull through a mirror brought.
type pulled struct {
	Manifest digest.Digest
	Bytes    int64 // of blobs
}

// pullImage pulls an image of an upstream through a mirror (or from a seeder)
// as containerd does: the tag, the manifest of linux/amd64, then all blobs at
// once. Each digest is checked. Headers go with every request.
func pullImage(t testing.TB, from *daemon, registry, repo, tag string, headers ...string) (pulled, error) {
	t.Helper()
	content, err := getManifest(t, from.Manifest(registry, repo, tag), headers...)
	if err != nil {
		return pulled{}, err
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(content, &index); err != nil {
		return pulled{}, err
	}
	for _, m := range index.Manifests {
		if m.Platform == nil || m.Platform.Architecture != "amd64" {
			continue
		}
		if content, err = getManifest(t, from.Manifest(registry, repo, m.Digest.String()), headers...); err != nil {
			return pulled{}, err
		}
		if got := digest.FromBytes(content).String(); got != m.Digest.String() {
			return pulled{}, fmt.Errorf("manifest %s has the digest %s", m.Digest, got)
		}
	}
	var manifest v1.Manifest
	if err := json.Unmarshal(content, &manifest); err != nil {
		return pulled{}, err
	}
	p := pulled{Manifest: digest.FromBytes(content)}
	var blobs errgroup.Group
	for _, b := range append(manifest.Layers, manifest.Config) {
		p.Bytes += b.Size
		blobs.Go(func() error {
			return checkBlob(t, from.Blob(registry, repo, digest.Digest(b.Digest.String())), digest.Digest(b.Digest.String()), headers...)
		})
	}
	return p, blobs.Wait()
}

func getManifest(t testing.TB, url string, headers ...string) ([]byte, error) {
	t.Helper()
	accept := "Accept: " + strings.Join([]string{string(types.OCIImageIndex), string(types.OCIManifestSchema1),
		string(types.DockerManifestList), string(types.DockerManifestSchema2)}, ", ")
	a, err := tryAsk(t, http.MethodGet, url, append(headers, accept)...)
	if err != nil {
		return nil, err
	}
	if a.Status != http.StatusOK || a.Err != nil {
		return nil, fmt.Errorf("GET %s = %d, %v: %.300s", url, a.Status, a.Err, a.Body)
	}
	return a.Body, nil
}

// checkBlob gets a blob without keeping it and checks its digest.
func checkBlob(t testing.TB, url string, want digest.Digest, headers ...string) error {
	t.Helper()
	body, err := openBlob(t, url, headers...)
	if err != nil {
		return err
	}
	defer body.Close()
	verifier := want.Verifier()
	if n, err := io.Copy(verifier, body); err != nil {
		return fmt.Errorf("GET %s: after %d bytes: %w", url, n, err)
	}
	if !verifier.Verified() {
		return fmt.Errorf("GET %s: the bytes do not have the digest", url)
	}
	return nil
}

// openBlob begins to get a blob, for tests that read it step by step.
func openBlob(t testing.TB, url string, headers ...string) (io.ReadCloser, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	setHeaders(req, headers)
	resp, err := plainClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		resp.Body.Close()
		return nil, fmt.Errorf("GET %s = %d: %s", url, resp.StatusCode, text)
	}
	return resp.Body, nil
}

// basic is the Authorization header of a user ("name:password").
func basic(userPassword string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(userPassword))
}

// bearer exchanges a user's password ("name:password", "" for nobody) for the
// Authorization header that a Bearer challenge asks for.
func bearer(t testing.TB, challenge, userPassword string) string {
	t.Helper()
	params := map[string]string{}
	for _, m := range challengeParam.FindAllStringSubmatch(challenge, -1) {
		params[m[1]] = m[2]
	}
	if !strings.HasPrefix(challenge, "Bearer ") || params["realm"] == "" {
		t.Fatalf("challenge = %q, want a Bearer challenge with a realm", challenge)
	}
	query := url.Values{"service": {params["service"]}, "scope": {params["scope"]}}
	var headers []string
	if userPassword != "" {
		headers = append(headers, basic(userPassword))
	}
	a := get(t, params["realm"]+"?"+query.Encode(), headers...)
	var answer struct{ Token string }
	if err := json.Unmarshal(a.Body, &answer); err != nil || a.Status != http.StatusOK {
		t.Fatalf("token for %q = %d, %v: %s", userPassword, a.Status, err, a.Body)
	}
	return "Authorization: Bearer " + answer.Token
}

var challengeParam = regexp.MustCompile(`(\w+)="([^"]*)"`)
