package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/murderp2p/murder/cmd/murder/mtls"
)

// defaultMirror is where the mirror of this host listens unless told otherwise.
const defaultMirror = "http://127.0.0.1:7080"

const (
	// dialTimeout bounds the wait for a host that is down: a live one on the same network answers within milliseconds.
	dialTimeout = 5 * time.Second
	// answerTimeout bounds the wait for the head of an answer. The mirror itself waits for registries, and gives up earlier.
	answerTimeout = 60 * time.Second
	// maxAnswer bounds what is read of an answer that is no stream, in bytes: a status with some ten thousand blobs fits.
	maxAnswer = 32 << 20
)

// client speaks to the HTTP API of a mirror, and to as much of it as a seeder has too.
type client struct {
	base  string // "http://HOST:PORT", no slash at the end
	token string // for the daemon's own API, "" for none
	http  *http.Client
}

// newClient is for the daemon at base, as [mirrorURL] returns it, and the token in its --api-token-file, if any. Proxies of the environment
// are not used: they lead to the world, and mirrors are at home.
func newClient(base, token string) *client {
	return &client{base: base, token: token, http: &http.Client{Transport: &http.Transport{
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: answerTimeout,
		IdleConnTimeout:       time.Minute,
	}}}
}

// daemonOf is the daemon that --mirror names, asked as the other flags of the command say.
func daemonOf(c *cli.Context) (*client, error) {
	base, err := mirrorURL(c.String("mirror"))
	if err != nil {
		return nil, usagef(c, "--mirror: %v", err)
	}
	token, err := apiToken(c)
	if err != nil {
		return nil, err
	}
	id, err := openTLS(c, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	daemon := newClient(base, token)
	if id != nil {
		daemon.identify(id)
	}
	return daemon, nil
}

// identify has the client show a certificate to daemons that are asked by https.
func (c *client) identify(id *mtls.Identity) {
	c.http.Transport.(*http.Transport).DialTLSContext = id.DialHTTPS
}

func (c *client) close() { c.http.CloseIdleConnections() }

// mirrorURL is the base URL of a mirror that may be given as HOST or HOST:PORT.
func mirrorURL(s string) (string, error) {
	if !strings.Contains(s, "://") {
		if u, err := url.Parse("//" + s); err == nil && u.Port() == "" {
			s += ":7080"
		}
		s = "http://" + s
	}
	s = strings.TrimRight(s, "/")
	if err := checkHTTPURL(s); err != nil {
		return "", errors.New("a mirror is written as HOST:PORT or http://HOST:PORT")
	}
	return s, nil
}

func checkMirrorAddress(s string) error {
	_, err := mirrorURL(s)
	return err
}

// answerError is an answer that is not 2xx.
type answerError struct {
	status    int
	challenge string // WWW-Authenticate of a 401
	text      string // what the body says, on one line, cut to a readable length; may be ""
}

func (e *answerError) Error() string {
	text := fmt.Sprintf("answered %d %s", e.status, http.StatusText(e.status))
	if e.text != "" {
		text += ": " + e.text
	}
	return text
}

// do sends a request and returns its answer when that is 2xx. Otherwise it returns an *answerError, or what went wrong on the way, without
// the URL, which the caller knows.
func (c *client) do(ctx context.Context, method, path string, header http.Header, body io.Reader) (*http.Response, error) {
	resp, err := c.send(ctx, method, path, header, body)
	if err != nil || resp.StatusCode/100 == 2 {
		return resp, err
	}
	defer resp.Body.Close()
	return nil, answerErrorOf(resp)
}

// send is do for who understands any answer.
func (c *client) send(ctx context.Context, method, path string, header http.Header, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if c.token != "" && strings.HasPrefix(path, "/v1/") { // the registry's affairs have tokens of their own
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	req.Header.Set("User-Agent", "murder/"+buildVersion())
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, withoutURL(ctx, err)
	}
	return resp, nil
}

// get reads a whole answer.
func (c *client) get(ctx context.Context, path string, header http.Header) ([]byte, http.Header, error) {
	resp, err := c.do(ctx, http.MethodGet, path, header, nil)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("read the answer: %w", err)
	case len(b) > maxAnswer:
		return nil, nil, fmt.Errorf("the answer is longer than %s", bytesText(maxAnswer))
	default:
		return b, resp.Header, nil
	}
}

// withoutURL takes the method and URL away that net/http wraps its errors in, and tells why ctx ended if that was the cause.
func withoutURL(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// answerErrorOf reads the error of an answer in any of the forms that are used: the OCI error body, {"error": "..."}, or text.
func answerErrorOf(resp *http.Response) *answerError {
	e := &answerError{status: resp.StatusCode, challenge: resp.Header.Get("WWW-Authenticate")}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	var body struct {
		Error  string
		Errors []struct{ Code, Message string }
	}
	switch {
	case json.Unmarshal(b, &body) != nil:
		e.text = strings.Join(strings.Fields(string(b)), " ")
	case len(body.Errors) > 0:
		e.text = strings.TrimSpace(body.Errors[0].Code + " " + body.Errors[0].Message)
	default:
		e.text = body.Error
	}
	if len(e.text) > 300 {
		e.text = e.text[:300] + "..."
	}
	return e
}

// statusReport is what GET /v1/status answers.
type statusReport struct {
	Version            string         `json:"version"`
	Role               string         `json:"role"` // "mirror" or "seeder"
	Listen             string         `json:"listen"`
	PeerListen         string         `json:"peer_listen"`
	DataDir            string         `json:"data_dir"`
	Zone               string         `json:"zone"`
	DefaultRegistry    string         `json:"default_registry"`
	InsecureRegistries []string       `json:"insecure_registries"`
	Seeders            []seederStatus `json:"seeders"`
	TLS                *tlsStatus     `json:"tls,omitempty"`
	Cache              cacheStatus    `json:"cache"`
	Shelf              *shelfStatus   `json:"shelf,omitempty"`
	LoadInto           *loaderStatus  `json:"load_into,omitempty"` // of a mirror
	Totals             totalsStatus   `json:"totals"`
	TorrentsActive     int            `json:"torrents_active"`
	Pins               []pinStatus    `json:"pins"` // of a mirror
	Blobs              []blobStatus   `json:"blobs"`
}

// pinStatus is one pinned image, as GET /v1/pins tells of it too.
type pinStatus struct {
	Image   string    `json:"image"`
	Digest  string    `json:"digest"` // that the image had when it was pinned
	Pinned  time.Time `json:"pinned"`
	Blobs   int       `json:"blobs"`             // manifests, configs and layers
	Bytes   int64     `json:"bytes"`             // of those that are here
	Missing []string  `json:"missing,omitempty"` // blobs that were lost with the disk
}

// seederStatus is how a mirror finds one of its seeders.
type seederStatus struct {
	URL     string    `json:"url"`
	OK      bool      `json:"ok"`
	Error   string    `json:"error"`
	Checked time.Time `json:"checked"`
}

// tlsStatus is the certificate that a daemon shows others.
type tlsStatus struct {
	Certificate string    `json:"certificate"` // the file
	Expires     time.Time `json:"expires"`
}

// cacheStatus counts bytes of whole blobs; a limit of 0 is none.
type cacheStatus struct {
	Bytes     int64 `json:"bytes"`
	Pinned    int64 `json:"pinned"` // bytes of them that pins keep
	Limit     int64 `json:"limit"`
	Blobs     int64 `json:"blobs"`
	Evictions int64 `json:"evictions"`
	Failures  int64 `json:"failures"` // of the disk, since the daemon started
}

// loaderStatus is the engine that takes images for orders with --load.
type loaderStatus struct {
	Engine string `json:"engine"`
	Socket string `json:"socket"`
	Error  string `json:"error,omitempty"` // that keeps the mirror from it
}

// shelfStatus is the registry's or the engine's own folder of blobs, that a daemon shares
// blobs from without a copy.
type shelfStatus struct {
	Dir   string `json:"dir"`
	Bytes int64  `json:"bytes"` // of whole blobs shared from there
	Error string `json:"error"` // why it cannot be used; "" if it can
}

// totalsStatus counts bytes since the daemon started.
type totalsStatus struct {
	Received sources `json:"received"`
	Sent     struct {
		Peer   int64 `json:"peer"`
		Client int64 `json:"client"`
	} `json:"sent"`
}

// sources are bytes by where they came from.
type sources struct {
	Cache    int64 `json:"cache,omitempty"`
	Peer     int64 `json:"peer"`
	Seeder   int64 `json:"seeder"`
	Upstream int64 `json:"upstream"`
}

func (s sources) plus(t sources) sources {
	return sources{Cache: s.Cache + t.Cache, Peer: s.Peer + t.Peer, Seeder: s.Seeder + t.Seeder, Upstream: s.Upstream + t.Upstream}
}

// blobStatus is one blob that is here or arriving.
type blobStatus struct {
	Digest     string    `json:"digest"`
	Registry   string    `json:"registry"`
	Repository string    `json:"repository"`
	Size       int64     `json:"size"`
	Received   int64     `json:"received"`
	State      string    `json:"state"` // "arriving", "whole" or "failed"
	Way        string    `json:"way"`   // "swarm", "seeder", "upstream" or "cache"
	From       sources   `json:"from"`
	Why        string    `json:"why"` // why it did not come from the swarm, or not all of it; "" when it did
	Peers      int       `json:"peers"`
	Pinned     bool      `json:"pinned,omitempty"`  // a pin keeps it
	Shelved    bool      `json:"shelved,omitempty"` // it lies in the registry's or the engine's folder, and not in the cache
	Started    time.Time `json:"started"`
	TookMS     int64     `json:"took_ms"`
}

// status asks for the daemon's state, of the given digests only if there are any. raw is the document as it came.
func (c *client) status(ctx context.Context, digests ...string) (report statusReport, raw []byte, err error) {
	path := "/v1/status"
	if len(digests) > 0 {
		path += "?" + url.Values{"digest": digests}.Encode()
	}
	raw, _, err = c.get(ctx, path, nil)
	if err != nil {
		return report, nil, err
	}
	if err := json.Unmarshal(raw, &report); err != nil || report.Role == "" {
		return report, nil, errors.New("does not answer as a murder daemon does: is another program on that port?")
	}
	return report, raw, nil
}
