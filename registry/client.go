package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// MaxManifest bounds a manifest's size in bytes, as the CNCF registry
	// does (the spec asks registries to take at least 4 MiB).
	MaxManifest = 4 << 20

	// UpstreamHeader marks an answer of a seeder as a registry's verdict, so
	// that a mirror can tell it from the 404 of some other web server that
	// --seeder names by mistake.
	UpstreamHeader = "Murder-Upstream"

	// SeederHeader is in each answer of a seeder. Without it a registry that
	// --seeder names by mistake would be believed about the images of others.
	SeederHeader = "Murder-Seeder"

	// MirrorHeader is in each answer of a mirror, for who must know that it is
	// not some other registry that listens there.
	MirrorHeader = "Murder-Mirror"

	// userAgent is murder's name for registries: some turn away who has none, or
	// that of a programming language.
	userAgent = "murder"

	maxErrorBody = 64 << 10
	dialTimeout  = 3 * time.Second
	// aliveTimeout is how long an HTTP/2 connection may be silent before it is asked whether
	// it lives, and how long it has to answer: together less than an answer may take.
	aliveTimeout = 3 * time.Second
	// idleTimeout ends a body of which nothing comes any more.
	idleTimeout = 10 * time.Second
)

// acceptManifests is sent with every question about a manifest, whatever the
// puller accepts: without it the CNCF registry converts manifests to older
// types, under a digest of their own.
var acceptManifests = strings.Join([]string{
	ocispec.MediaTypeImageIndex,
	ocispec.MediaTypeImageManifest,
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.docker.distribution.manifest.v2+json",
	"application/vnd.oci.artifact.manifest.v1+json",
	"*/*;q=0.1",
}, ", ")

// Upstream answers pull requests: a registry, or a murder nearer to it. Its
// errors are an [*Error] when the registry gave a verdict (see [Refused]) or
// could not be asked ([Unavailable]).
//
// authorization is the puller's header, word for word, or empty.
type Upstream interface {
	// Ping asks GET /v2/, where engines read the challenge.
	Ping(ctx context.Context, host, authorization string) error
	// HeadManifest resolves a tag or digest. The digest of the answer is
	// empty where the registry does not name it.
	HeadManifest(ctx context.Context, repo Repository, ref, authorization string) (ocispec.Descriptor, error)
	// GetManifest returns a manifest, checked against ref when that is a digest.
	GetManifest(ctx context.Context, repo Repository, ref, authorization string) (ocispec.Descriptor, []byte, error)
	// StatBlob returns a blob's size in bytes.
	StatBlob(ctx context.Context, repo Repository, d digest.Digest, authorization string) (int64, error)
	// GetBlob streams a blob from byte off on. The size is that of the whole
	// blob, or -1 where the upstream does not say. Not verified.
	GetBlob(ctx context.Context, repo Repository, d digest.Digest, off int64, authorization string) (io.ReadCloser, int64, error)
	// ReadBlob returns the n bytes of a blob from off on, or those up to its
	// end. Not verified.
	ReadBlob(ctx context.Context, repo Repository, d digest.Digest, off int64, n int, authorization string) ([]byte, error)
	// Relay asks for what is never cached: tags/list, referrers/<digest>.
	Relay(ctx context.Context, repo Repository, end string, query url.Values, authorization string) (*http.Response, error)
}

// ClientConfig says where a [Client] finds registries.
type ClientConfig struct {
	// Insecure lists the registries (HOST or HOST:PORT) that speak HTTP, and
	// hosts without TLS to which the others may redirect.
	Insecure []string
	// Allow lists the registries that may be asked, as [ParsePattern] returns
	// them; none = any.
	Allow []string
	// Near lists those, besides the Insecure, that may be on this machine, and
	// lead to others on it; patterns as well.
	Near []string
	// Via sends all questions to a murder at this URL instead of to the
	// registries; nil = to the registries themselves.
	Via *url.URL
	// Transport is used for all requests, wherever they lead; nil = with Via
	// one with murder's timeouts, else such ones that obey HTTP_PROXY and its
	// like, and go to no address that a stranger must not reach through us.
	Transport http.RoundTripper
	// Idle ends a body of which nothing has come for so long; 0 = 10 s.
	Idle time.Duration
}

// Client is the [Upstream] that is asked over HTTP.
type Client struct {
	cfg    ClientConfig
	http   http.Client // for registries that strangers name
	near   http.Client // for those that may be on this machine
	tokens *anonymousTokens
	idle   time.Duration
	prompt time.Duration // for the head of an answer that is no blob's; 0 = the transport's
}

var _ Upstream = (*Client)(nil)

// NewClient returns a Client that is safe for concurrent use.
func NewClient(cfg ClientConfig) *Client {
	far, near := cfg.Transport, cfg.Transport
	switch {
	case cfg.Transport != nil:
	case cfg.Via != nil:
		far = Transport()
		near = far
	default: // apart, or what one has connected to could serve the other
		far, near = bounded(false), bounded(true)
	}
	c := &Client{cfg: cfg, idle: cmp.Or(cfg.Idle, idleTimeout)}
	if cfg.Transport == nil && cfg.Via == nil {
		c.prompt = answerTimeout
	}
	c.http = http.Client{Transport: far, CheckRedirect: c.redirect}
	c.near = http.Client{Transport: near, CheckRedirect: c.redirect}
	c.tokens = newAnonymousTokens(c.to)
	return c
}

// Transport returns a new HTTP transport with murder's timeouts. It knows of
// no compression: what is hashed is the body as the registry holds it.
func Transport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: blobTimeout,
		DisableCompression:    true,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   16,
		MaxIdleConns:          maxIdle,
		IdleConnTimeout:       90 * time.Second,
		ReadBufferSize:        64 << 10,
		// A connection that has died without a word, as one does whose load balancer is
		// replaced, would be asked again until TCP gives it up, after a quarter of an hour.
		HTTP2: &http.HTTP2Config{SendPingTimeout: aliveTimeout, PingTimeout: aliveTimeout},

		MaxResponseHeaderBytes: maxAnswerHeader,
	}
}

const (
	// maxIdle bounds the connections kept for the next question. Strangers name
	// registries: one of them has as many names as its DNS likes.
	maxIdle = 256
	// maxAnswerHeader bounds the header of an answer in bytes. A signed URL and a
	// challenge take a few thousand.
	maxAnswerHeader = 64 << 10
)

// redirect follows redirects, to object storage for one, but takes the
// puller's credentials only to where they were meant to go. net/http would
// take them to other ports and subdomains as well.
//
// From TLS it does not go to HTTP: any registry can be named in a request, and
// one that redirects could read what speaks HTTP in our network, a cloud's
// metadata for one.
func (c *Client) redirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("more than 10 redirects")
	}
	origin := via[0].URL
	if origin.Scheme == "https" && req.URL.Scheme != "https" && !c.insecure(req.URL.Host) {
		return fmt.Errorf("redirected to %s without TLS", req.URL.Host)
	}
	if req.URL.Host != origin.Host || req.URL.Scheme != origin.Scheme || via[len(via)-1].Header.Get("Authorization") == "" {
		req.Header.Del("Authorization")
	}
	return nil
}

// Ping implements [Upstream].
func (c *Client) Ping(ctx context.Context, host, authorization string) error {
	resp, err := c.do(ctx, http.MethodGet, Repository{Host: host}, "", nil, nil, authorization)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// HeadManifest implements [Upstream].
func (c *Client) HeadManifest(ctx context.Context, repo Repository, ref, authorization string) (ocispec.Descriptor, error) {
	resp, err := c.do(ctx, http.MethodHead, repo, "manifests/"+ref, nil, accept(acceptManifests), authorization)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	resp.Body.Close()
	desc := ocispec.Descriptor{MediaType: mediaType(resp), Size: resp.ContentLength}
	if d, err := ParseDigest(resp.Header.Get("Docker-Content-Digest")); err == nil {
		desc.Digest = d
	}
	return desc, nil
}

// GetManifest implements [Upstream].
func (c *Client) GetManifest(ctx context.Context, repo Repository, ref, authorization string) (ocispec.Descriptor, []byte, error) {
	resp, err := c.do(ctx, http.MethodGet, repo, "manifests/"+ref, nil, accept(acceptManifests), authorization)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	body := c.whole(resp.Body)
	defer body.Close()
	content, err := io.ReadAll(io.LimitReader(body, MaxManifest+1))
	if err != nil {
		return ocispec.Descriptor{}, nil, Unavailable("manifest of %s: %w", repo, err)
	}
	if len(content) > MaxManifest {
		return ocispec.Descriptor{}, nil, Unavailable("manifest of %s has more than %d bytes", repo, MaxManifest)
	}
	var manifest manifestHead
	parseErr := json.Unmarshal(content, &manifest)
	d := digest.FromBytes(content)
	if want, err := ParseDigest(ref); err == nil {
		if d = want.Algorithm().FromBytes(content); d != want {
			return ocispec.Descriptor{}, nil, Unavailable("manifest %s of %s: the registry sent bytes of digest %s", want, repo, d)
		}
	} else if parseErr != nil || manifest.SchemaVersion == 0 && manifest.MediaType == "" { // a login page, say
		return ocispec.Descriptor{}, nil, Unavailable("manifest %s of %s: the registry sent what is no manifest", ref, repo)
	}
	return ocispec.Descriptor{MediaType: cmp.Or(manifest.kind(), mediaType(resp)), Digest: d, Size: int64(len(content))}, content, nil
}

// manifestHead is what a manifest says of itself.
type manifestHead struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Manifests     json.RawMessage `json:"manifests"`
	Layers        json.RawMessage `json:"layers"`
}

// kind returns the manifest's media type, or "" where it does not tell. It goes before the
// answer's header: a manifest is kept for all who may have it, of whatever registry, and
// any of these could call it what no engine takes. OCI's need no mediaType; which of the
// two it is their fields say then.
func (m manifestHead) kind() string {
	said, _, err := mime.ParseMediaType(m.MediaType)
	switch {
	case err == nil:
		return said
	case m.SchemaVersion != 2, (m.Manifests == nil) == (m.Layers == nil):
		return ""
	case m.Manifests != nil:
		return ocispec.MediaTypeImageIndex
	default:
		return ocispec.MediaTypeImageManifest
	}
}

// StatBlob implements [Upstream]. Object storage behind a redirect may admit
// GET only, and some registries leave the size out of the answer to HEAD, or say
// that it is 0; they are then asked for one byte.
func (c *Client) StatBlob(ctx context.Context, repo Repository, d digest.Digest, authorization string) (int64, error) {
	resp, err := c.do(ctx, http.MethodHead, repo, "blobs/"+d.String(), nil, nil, authorization)
	if err == nil {
		resp.Body.Close()
		if size := resp.ContentLength; size > 0 || size == 0 && d == d.Algorithm().FromBytes(nil) {
			return size, nil
		}
	} else if !headUnwelcome(err) {
		return 0, err
	}
	header := http.Header{"Range": {"bytes=0-0"}}
	if resp, err = c.do(ctx, http.MethodGet, repo, "blobs/"+d.String(), nil, header, authorization); err != nil {
		return 0, err
	}
	resp.Body.Close()
	return wholeSize(resp, 0)
}

// errInternal is in the chain of an error where a registry has failed over the question.
var errInternal = errors.New("500 Internal Server Error")

// headUnwelcome is true for answers that may be to the method rather than to
// the question. Behind some proxies a HEAD is a bad request, or an error of theirs.
func headUnwelcome(err error) bool {
	return errors.Is(err, errInternal) || hasStatus(err, http.StatusMethodNotAllowed, http.StatusForbidden,
		http.StatusNotImplemented, http.StatusBadRequest, http.StatusNotAcceptable)
}

// GetBlob implements [Upstream]. A registry that sends a blob without its size, in
// chunks or compressed, is asked for that apart: what has a size can be kept.
func (c *Client) GetBlob(ctx context.Context, repo Repository, d digest.Digest, off int64, authorization string) (io.ReadCloser, int64, error) {
	resp, err := c.getBlob(ctx, repo, d, off, authorization)
	if err != nil {
		return nil, 0, err
	}
	size, err := wholeSize(resp, off)
	if err != nil {
		resp.Body.Close()
		return nil, 0, Unavailable("blob %s of %s from byte %d: %w", d, repo, off, err)
	}
	if size < 0 && c.cfg.Via == nil {
		if said, err := c.StatBlob(ctx, repo, d, authorization); err == nil {
			size = said
		}
	}
	if resp.StatusCode != http.StatusPartialContent {
		// A registry without ranges: what we have is read past.
		return &tailBody{resp.Body, off}, size, nil
	}
	return resp.Body, size, nil
}

// tailBody is a body without its first bytes. They are read past when the first of the
// others is asked for: whoever learns the size by it, and goes on with what is here, need
// not wait for them, and if all is here nobody does.
type tailBody struct {
	io.ReadCloser
	before int64
}

func (b *tailBody) Read(p []byte) (int, error) {
	n, err := io.CopyN(io.Discard, b.ReadCloser, b.before)
	if b.before -= n; err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, err
	}
	return b.ReadCloser.Read(p)
}

// getBlob asks for the section from off on, or for all of a blob where a registry or its
// storage has no such sections: some answer without the section's place, or with an error.
func (c *Client) getBlob(ctx context.Context, repo Repository, d digest.Digest, off int64, authorization string) (*http.Response, error) {
	end := "blobs/" + d.String()
	if off > 0 {
		header := http.Header{"Range": {fmt.Sprintf("bytes=%d-", off)}}
		resp, err := c.do(ctx, http.MethodGet, repo, end, nil, header, authorization)
		if err != nil && !rangeUnwelcome(err) {
			return nil, err
		}
		if err == nil {
			if _, err = wholeSize(resp, off); err == nil {
				return resp, nil
			}
			resp.Body.Close()
		}
	}
	return c.do(ctx, http.MethodGet, repo, end, nil, nil, authorization)
}

// rangeUnwelcome is true for answers that may be to the Range rather than to the question.
func rangeUnwelcome(err error) bool {
	return hasStatus(err, http.StatusRequestedRangeNotSatisfiable, http.StatusBadRequest)
}

// ReadBlob implements [Upstream].
func (c *Client) ReadBlob(ctx context.Context, repo Repository, d digest.Digest, off int64, n int, authorization string) ([]byte, error) {
	header := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", off, off+int64(n)-1)}}
	resp, err := c.do(ctx, http.MethodGet, repo, "blobs/"+d.String(), nil, header, authorization)
	if err != nil {
		return nil, err
	}
	body := resp.Body
	defer func() { body.Close() }()
	section := make([]byte, n)
	if _, err = wholeSize(resp, off); err == nil && resp.StatusCode != http.StatusPartialContent {
		_, err = io.CopyN(io.Discard, body, off)
	}
	if err == nil {
		body = c.whole(body)
		n, err = io.ReadFull(body, section)
	}
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, Unavailable("blob %s of %s at byte %d: %w", d, repo, off, err)
	}
	return section[:n], nil
}

// wholeSize is the size of the content that resp holds from byte off on.
func wholeSize(resp *http.Response, off int64) (int64, error) {
	if resp.StatusCode != http.StatusPartialContent {
		return resp.ContentLength, nil
	}
	contentRange := resp.Header.Get("Content-Range")
	section, total, ok := strings.Cut(contentRange, "/")
	if !ok || !strings.HasPrefix(section, fmt.Sprintf("bytes %d-", off)) {
		return 0, Unavailable("asked for bytes from %d, got Content-Range %q", off, clip(contentRange))
	}
	size, err := strconv.ParseInt(total, 10, 64)
	if err != nil || size <= off {
		return 0, Unavailable("Content-Range %q does not tell the size", clip(contentRange))
	}
	return size, nil
}

// Relay implements [Upstream].
func (c *Client) Relay(ctx context.Context, repo Repository, end string, query url.Values, authorization string) (*http.Response, error) {
	return c.do(ctx, http.MethodGet, repo, end, query, nil, authorization)
}

// Ask asks the murder at cfg.Via for what it offers beside the pull API: path,
// for content of repo. Errors are as for the pull API. The answer's body may be
// silent for as long as the other has reason to be; see Bound.
func (c *Client) Ask(ctx context.Context, path string, repo Repository, query url.Values, authorization string) (*http.Response, error) {
	query.Set("ns", repo.Host)
	query.Set("repo", repo.Name)
	u := c.cfg.Via.JoinPath(path)
	u.User = nil // net/http would send it in the place of the puller's
	u.RawQuery = query.Encode()
	return c.get(ctx, http.MethodGet, u.String(), repo, nil, authorization)
}

// Bound returns body as one that fails when nothing comes of it for too long.
func (c *Client) Bound(body io.ReadCloser) io.ReadCloser { return newIdleBody(body, c.idle) }

// do asks for an end of repo and returns the answer when it is a success, else
// an [*Error].
func (c *Client) do(ctx context.Context, method string, repo Repository, end string, query url.Values, header http.Header, authorization string) (*http.Response, error) {
	send := func(authorization string) (*http.Response, error) {
		resp, err := c.get(ctx, method, c.url(repo, end, query), repo, header, authorization)
		if err == nil {
			resp.Body = c.Bound(resp.Body)
		}
		return resp, err
	}
	if authorization != "" || c.cfg.Via != nil {
		return send(authorization)
	}
	return c.tokens.with(ctx, repo, c.insecure(repo.Host), send)
}

// get sends one request and turns whatever is not a success into an [*Error].
func (c *Client) get(ctx context.Context, method, url string, repo Repository, header http.Header, authorization string) (*http.Response, error) {
	if err := c.denied(repo.Host); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, fmt.Errorf("request for %s: %w", repo, err)
	}
	for key, values := range header {
		req.Header[key] = values
	}
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", userAgent)
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := c.send(req, repo.Host)
	if err != nil {
		return nil, c.unreached(repo.Host, err)
	}
	success := resp.StatusCode/100 == 2
	stranger := c.cfg.Via != nil && resp.Header.Get(SeederHeader) == ""
	if success && !isPage(resp) && !stranger {
		return decode(resp)
	}
	defer resp.Body.Close()
	if stranger {
		return nil, Unavailable("%s does not answer as a seeder does: is that its address?", c.party(repo.Host))
	}
	if success {
		return nil, Unavailable("%s answered with a web page", c.party(repo.Host))
	}
	if c.cfg.Via != nil && resp.Header.Get(UpstreamHeader) == "" {
		return nil, Unavailable("%s answered %s of its own", c.party(repo.Host), resp.Status)
	}
	if resp.StatusCode == http.StatusInternalServerError {
		return nil, Unavailable("%s answered %w", c.party(repo.Host), errInternal)
	}
	if resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented || resp.StatusCode/100 == 3 {
		return nil, Unavailable("%s answered %s", c.party(repo.Host), resp.Status)
	}
	if expired(resp) {
		return nil, Unavailable("object storage of %s answered %s", c.party(repo.Host), resp.Status)
	}
	return nil, c.verdict(resp, repo)
}

// expired tells what object storage says of a signed URL that holds no longer
// (S3 and Azure 403, Google 400), for which the registry has another, from the
// registry's verdict on the caller: it gave the URL to whom it had admitted.
func expired(resp *http.Response) bool {
	if resp.StatusCode != http.StatusForbidden && resp.StatusCode != http.StatusBadRequest {
		return false
	}
	r := resp.Request
	return r.Method == http.MethodGet && r.Response != nil && r.URL.RawQuery != "" && !strings.HasPrefix(r.URL.Path, "/v2/")
}

// isPage tells the login page of a sign-on proxy, which answers 200 to
// everything, from a registry's answer. An HTML file that is a blob comes with
// its digest where the registry guesses types, and as octets elsewhere.
func isPage(resp *http.Response) bool {
	return mediaType(resp) == "text/html" && resp.Header.Get("Docker-Content-Digest") == ""
}

func (c *Client) url(repo Repository, end string, query url.Values) string {
	u := url.URL{Scheme: "https", Host: apiHost(repo.Host), Path: "/v2/", RawQuery: query.Encode()}
	if c.insecure(repo.Host) {
		u.Scheme = "http"
	}
	if via := c.cfg.Via; via != nil {
		u.Scheme, u.Host = via.Scheme, via.Host
		u.Path = strings.TrimSuffix(via.Path, "/") + "/v2/"
		withNS := url.Values{"ns": {repo.Host}}
		for key, values := range query {
			withNS[key] = values
		}
		u.RawQuery = withNS.Encode()
	}
	if repo.Name != "" {
		u.Path += repo.Name + "/" + end
	}
	return u.String()
}

func (c *Client) insecure(host string) bool { return slices.Contains(c.cfg.Insecure, host) }

// party names in errors whose answer is missing.
func (c *Client) party(host string) string {
	if c.cfg.Via != nil {
		return "seeder " + c.cfg.Via.Redacted()
	}
	return "registry " + host
}

// apiHost is where a registry's API is served.
func apiHost(host string) string {
	if host == DockerHub {
		return "registry-1.docker.io"
	}
	return host
}

// verdict makes the registry's refusal ready to be relayed. Its words must
// come within the idle time, all of them.
func (c *Client) verdict(resp *http.Response, repo Repository) *Error {
	e := &Error{Status: resp.StatusCode, Header: http.Header{}, Code: codeFor(resp.StatusCode, resp.Request.URL.Path)}
	e.Message = fmt.Sprintf("registry %s answered %s for %s", repo.Host, resp.Status, cmp.Or(repo.Name, "/v2/"))
	for _, key := range []string{"Www-Authenticate", "Retry-After", "Content-Range"} {
		if values := resp.Header.Values(key); len(values) > 0 {
			e.Header[key] = values
		}
	}
	e.Header.Set(UpstreamHeader, repo.Host)
	defer time.AfterFunc(c.idle, func() { resp.Body.Close() }).Stop()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if t, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil && t == "application/json" && len(body) > 0 {
		e.Body = body
	}
	return e
}

// codeFor is the code for a refusal that brings no words of its own, as the
// answer to HEAD never does.
func codeFor(status int, path string) string {
	switch status {
	case http.StatusUnauthorized:
		return CodeUnauthorized
	case http.StatusForbidden:
		return CodeDenied
	case http.StatusNotFound:
		switch {
		case strings.Contains(path, "/manifests/"):
			return CodeManifestUnknown
		case strings.Contains(path, "/blobs/"):
			return CodeBlobUnknown
		case strings.Contains(path, "/referrers/"): // of which a registry without that API knows nothing
			return CodeUnsupported
		}
		return CodeNameUnknown
	case http.StatusTooManyRequests:
		return CodeTooManyRequests
	}
	return CodeUnsupported
}

// stripURL takes the URL off net/http's error: redirects to object storage
// carry signatures in it, and errors end in logs.
func stripURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

func accept(types string) http.Header { return http.Header{"Accept": {types}} }

func mediaType(resp *http.Response) string {
	t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}
