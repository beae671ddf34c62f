package registry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Backend is what a [Handler] serves from. Errors are [*Error]s; any other is
// a fault of our own, answered with 500 and logged.
type Backend interface {
	Ping(ctx context.Context, req Request) error
	HeadManifest(ctx context.Context, req Request) (ocispec.Descriptor, error)
	GetManifest(ctx context.Context, req Request) (ocispec.Descriptor, []byte, error)
	// StatBlob returns a blob's size in bytes without fetching it.
	StatBlob(ctx context.Context, req Request) (int64, error)
	// OpenBlob returns a blob, which may still be arriving. The handler
	// closes it.
	OpenBlob(ctx context.Context, req Request) (OpenBlob, error)
	// Relay answers for what is never cached. end is the path after the
	// name. The handler closes the body.
	Relay(ctx context.Context, req Request, end string, query url.Values) (*http.Response, error)
}

// OpenBlob is a blob that is being served.
type OpenBlob interface {
	// Size in bytes, or -1 where it shows only at the end; then Section is
	// called for all of it, with n = -1.
	Size() int64
	// Section returns the n bytes from off on. Read fails rather than hand
	// out the last of them unverified. A regular file, in an
	// *io.LimitedReader, goes out by sendfile.
	Section(ctx context.Context, off, n int64) io.Reader
	Close() error
}

// Handler serves the pull side of the OCI distribution API.
type Handler struct {
	Backend Backend
	// DefaultHost is the registry of requests that name none.
	DefaultHost string
	// Sent, when set, is told of bytes of blobs that went out.
	Sent func(n int64)
	Log  *slog.Logger
}

// ServeHTTP answers one request below /v2/.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	// What registries send is not ours: no browser may take it for a page.
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; sandbox")
	err := h.serve(w, r)
	if err == nil {
		return
	}
	if r.Context().Err() != nil {
		// The client has left, or we end. To return would be to send an empty
		// answer with 200.
		panic(http.ErrAbortHandler)
	}
	if _, ok := errors.AsType[*Error](err); !ok {
		h.Log.Error("request failed", "path", r.URL.Path, "err", err)
	}
	WriteError(w, r, err)
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request) error {
	req, err := Parse(r.Method, r.URL, h.DefaultHost)
	if err != nil {
		return err
	}
	req.Authorization = r.Header.Get("Authorization")
	if req.Authorization != "" && h.elsewhere(req) {
		anyone := req
		anyone.Authorization = ""
		if err := h.answer(w, r, anyone); !TurnedAway(err) && !hasStatus(err, http.StatusNotFound) {
			return err
		}
	}
	return h.answer(w, r, req)
}

// elsewhere tells of a request for another registry's content whose credentials, if any, an
// engine may have for the default one (see Request.HostInPath). Only who wants some and has
// nothing for anyone is shown them.
func (h *Handler) elsewhere(req Request) bool {
	byDefault, err := ParseHost(h.DefaultHost)
	return req.HostInPath && (err != nil || req.Repo.Host != byDefault)
}

// answer either returns an error before anything is sent, or sends.
func (h *Handler) answer(w http.ResponseWriter, r *http.Request, req Request) error {
	switch req.Kind {
	case Manifest:
		return h.manifest(w, r, req)
	case Blob:
		return h.blob(w, r, req)
	case Tags, Referrers:
		return h.relay(w, r, req)
	}
	if err := h.Backend.Ping(r.Context(), req); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, err := io.WriteString(w, "{}")
	return ignore(err)
}

func (h *Handler) manifest(w http.ResponseWriter, r *http.Request, req Request) error {
	if r.Method == http.MethodHead {
		desc, err := h.Backend.HeadManifest(r.Context(), req)
		if err != nil {
			return err
		}
		if !notModified(w, r, desc) {
			describe(w, desc)
		}
		return nil
	}
	desc, content, err := h.Backend.GetManifest(r.Context(), req)
	if err != nil {
		return err
	}
	if notModified(w, r, desc) {
		return nil
	}
	describe(w, desc)
	_, err = w.Write(content)
	return ignore(err)
}

func (h *Handler) blob(w http.ResponseWriter, r *http.Request, req Request) error {
	desc := ocispec.Descriptor{MediaType: "application/octet-stream", Digest: req.Digest}
	if r.Method == http.MethodHead {
		size, err := h.Backend.StatBlob(r.Context(), req)
		if err != nil {
			return err
		}
		if desc.Size = size; !notModified(w, r, desc) {
			describe(w, desc)
			w.Header().Set("Accept-Ranges", "bytes")
		}
		return nil
	}
	blob, err := h.Backend.OpenBlob(r.Context(), req)
	if err != nil {
		return err
	}
	defer blob.Close()
	desc.Size = blob.Size()
	return h.send(w, r, desc, blob)
}

// send sends a blob or the section asked for. Once the first byte is out an
// error cannot be sent: the connection is cut, so that no client takes a part
// for the whole.
func (h *Handler) send(w http.ResponseWriter, r *http.Request, desc ocispec.Descriptor, blob OpenBlob) error {
	if notModified(w, r, desc) {
		return nil
	}
	off, n, status := int64(0), desc.Size, http.StatusOK
	if desc.Size >= 0 {
		var whole bool
		var err error
		if off, n, whole, err = ParseRange(rangeHeader(r, desc), desc.Size); err != nil {
			return err
		}
		describe(w, desc)
		w.Header().Set("Accept-Ranges", "bytes")
		if !whole {
			status = http.StatusPartialContent
			w.Header().Set("Content-Range", contentRange(off, n, desc.Size))
			w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		}
	} else {
		describe(w, desc)
	}
	w.WriteHeader(status)
	sent, err := io.Copy(w, blob.Section(r.Context(), off, n))
	if h.Sent != nil {
		h.Sent(sent)
	}
	if err != nil || n >= 0 && sent != n {
		if r.Context().Err() == nil {
			h.Log.Warn("blob cut off", "digest", desc.Digest, "bytes", sent, "err", err)
		}
		panic(http.ErrAbortHandler)
	}
	return nil
}

// rangeHeader is the Range to obey: none, when If-Range names other content
// (RFC 9110, 13.1.5).
func rangeHeader(r *http.Request, desc ocispec.Descriptor) string {
	if condition := r.Header.Get("If-Range"); condition != "" && condition != etag(desc) {
		return ""
	}
	return r.Header.Get("Range")
}

func (h *Handler) relay(w http.ResponseWriter, r *http.Request, req Request) error {
	end := "tags/list"
	if req.Kind == Referrers {
		end = "referrers/" + req.Digest.String()
	}
	query := r.URL.Query()
	query.Del("ns")
	resp, err := h.Backend.Relay(r.Context(), req, end, query)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for _, key := range []string{"Content-Type", "Content-Length", "Oci-Filters-Applied", "Etag"} {
		if value := resp.Header.Get(key); value != "" {
			w.Header().Set(key, value)
		}
	}
	if next := nextPage(resp.Header.Get("Link"), r.URL); next != "" {
		w.Header().Set("Link", next)
	}
	w.WriteHeader(resp.StatusCode)
	if r.Method == http.MethodHead {
		return nil
	}
	if _, err := io.Copy(w, resp.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

// nextPage rewrites the Link to the next page of a list, so that the client
// comes back to us, for the same registry.
func nextPage(link string, asked *url.URL) string {
	target, rest, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	if !ok {
		return ""
	}
	u, err := url.Parse(target)
	if err != nil {
		return ""
	}
	query := u.Query()
	query.Del("ns") // a seeder's; it is in the path where the client has put it there
	if ns := asked.Query().Get("ns"); ns != "" {
		query.Set("ns", ns)
	}
	next := url.URL{Path: asked.Path, RawQuery: query.Encode()}
	return "<" + next.String() + ">" + rest
}

// describe sets the headers that name content.
func describe(w http.ResponseWriter, desc ocispec.Descriptor) {
	header := w.Header()
	header.Set("Content-Type", desc.MediaType)
	header.Set("Docker-Content-Digest", desc.Digest.String())
	header.Set("Etag", etag(desc))
	if desc.Size >= 0 {
		header.Set("Content-Length", strconv.FormatInt(desc.Size, 10))
	}
}

func etag(desc ocispec.Descriptor) string { return `"` + desc.Digest.String() + `"` }

// notModified answers 304 to a client that has this content already (RFC 9110,
// 13.1.2). It goes before all else that a request asks.
func notModified(w http.ResponseWriter, r *http.Request, desc ocispec.Descriptor) bool {
	for tag := range strings.SplitSeq(r.Header.Get("If-None-Match"), ",") {
		if tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/"); tag == etag(desc) || tag == "*" {
			w.Header().Set("Docker-Content-Digest", desc.Digest.String())
			w.Header().Set("Etag", etag(desc))
			w.WriteHeader(http.StatusNotModified)
			return true
		}
	}
	return false
}

func contentRange(off, n, size int64) string {
	return "bytes " + strconv.FormatInt(off, 10) + "-" + strconv.FormatInt(off+n-1, 10) + "/" + strconv.FormatInt(size, 10)
}

// ignore drops the error of a client that went away in a small answer.
func ignore(error) error { return nil }
