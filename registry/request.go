package registry

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Kind says which end of the distribution API a request is for.
type Kind int

// The pull side of the API, with the endpoint numbers of the distribution
// specification 1.1.
const (
	Ping      Kind = iota // end-1   GET /v2/
	Blob                  // end-2   GET, HEAD /v2/<name>/blobs/<digest>
	Manifest              // end-3   GET, HEAD /v2/<name>/manifests/<reference>
	Tags                  // end-8a  GET /v2/<name>/tags/list
	Referrers             // end-12a GET /v2/<name>/referrers/<digest>
)

// DockerHub is the name by which engines know Docker Hub. Its API lives on
// another host, see [Client].
const DockerHub = "docker.io"

// Repository names a repository of one registry. It is comparable, and only
// made by [ParseRepository] and [Parse], so that its parts are always valid.
type Repository struct {
	Host string // HOST or HOST:PORT, lower case; docker.io for Docker Hub
	Name string // as in the spec's <name>; with library/ on Docker Hub
}

func (r Repository) String() string { return r.Host + "/" + r.Name }

// Request is one parsed pull request.
type Request struct {
	Kind   Kind
	Repo   Repository    // Name is empty for Ping
	Tag    string        // of a manifest asked for by tag
	Digest digest.Digest // of a blob, of a manifest asked for by digest, of a referrers' subject

	// HostInPath is true where the registry's name was the first component
	// of the path. An engine that pulls in this way thinks of the mirror as
	// the registry, so what it sends as Authorization answers a challenge of
	// the default registry, not of this one.
	HostInPath bool

	// Authorization is the puller's, word for word; never log it.
	Authorization string
}

// Asker is the same for requests that a registry answers alike: of one caller
// about one repository. Like the Authorization in it, never log it.
func (r Request) Asker() string { return r.Repo.String() + " " + r.Authorization }

var (
	// The grammar of <name> and of a tag, from the distribution spec 1.1,
	// "Pulling manifests".
	nameGrammar = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagGrammar  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	hostGrammar = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?$`)
)

// maxName is the length in bytes that registries agree to bear in a name.
const maxName = 255

// IsPull tells whether a path belongs to this API. It is to be asked before an
// http.ServeMux is, which would redirect paths that it finds unclean, where the
// spec wants an error.
func IsPull(path string) bool { return path == "/v2" || strings.HasPrefix(path, "/v2/") }

// Parse reads a pull request to /v2/. The registry is the ns parameter's,
// else the first component of the path when it is a host, else defaultHost.
// Every error is an [*Error] ready to be sent.
func Parse(method string, u *url.URL, defaultHost string) (Request, error) {
	if method != http.MethodGet && method != http.MethodHead {
		e := newError(http.StatusMethodNotAllowed, CodeUnsupported, "murder only pulls: %s is not supported", clip(method))
		e.Header = http.Header{"Allow": {"GET, HEAD"}}
		return Request{}, e
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Request{}, newError(http.StatusBadRequest, CodeNameInvalid, "query string: %s", clip(err.Error()))
	}
	if len(query["ns"]) > 1 {
		return Request{}, newError(http.StatusBadRequest, CodeNameInvalid, "ns names %d registries", len(query["ns"]))
	}
	path, ok := strings.CutPrefix(u.Path, "/v2")
	if !ok || (path != "" && path[0] != '/') {
		return Request{}, newError(http.StatusNotFound, CodeUnsupported, "no such endpoint: %q", clip(u.Path))
	}
	path = strings.TrimPrefix(path, "/")
	if path == "" {
		host, err := ParseHost(orDefault(query.Get("ns"), defaultHost))
		return Request{Kind: Ping, Repo: Repository{Host: host}}, err
	}
	req, name, err := parseEnd(path)
	if err != nil {
		return Request{}, err
	}
	if query.Has("ns") {
		req.Repo, err = ParseRepository(query.Get("ns"), name)
		return req, err
	}
	host, rest, found := strings.Cut(name, "/")
	if found && isHost(host) {
		req.HostInPath = true
		req.Repo, err = ParseRepository(host, rest)
		return req, err
	}
	req.Repo, err = ParseRepository(defaultHost, name)
	return req, err
}

// parseEnd takes the end of a path apart from the name before it. The end is
// looked for from the right: a name may itself have a component like "blobs".
func parseEnd(path string) (Request, string, error) {
	if name, ok := strings.CutSuffix(path, "/tags/list"); ok {
		return Request{Kind: Tags}, name, nil
	}
	dir, last, _ := cutLast(path, "/")
	name, end, ok := cutLast(dir, "/")
	if !ok {
		return Request{}, "", newError(http.StatusNotFound, CodeUnsupported, "no such endpoint: %q", clip(path))
	}
	switch end {
	case "blobs":
		d, err := ParseDigest(last)
		return Request{Kind: Blob, Digest: d}, name, err
	case "referrers":
		d, err := ParseDigest(last)
		return Request{Kind: Referrers, Digest: d}, name, err
	case "manifests":
		if strings.Contains(last, ":") {
			d, err := ParseDigest(last)
			return Request{Kind: Manifest, Digest: d}, name, err
		}
		if !tagGrammar.MatchString(last) {
			return Request{}, "", newError(http.StatusBadRequest, CodeNameInvalid, "not a tag: %q", clip(last))
		}
		return Request{Kind: Manifest, Tag: last}, name, nil
	}
	return Request{}, "", newError(http.StatusNotFound, CodeUnsupported, "no such endpoint: %q", clip(path))
}

// IsTag tells whether s can be a tag.
func IsTag(s string) bool { return tagGrammar.MatchString(s) }

// ParseRepository checks host and name. Names of Docker Hub without a slash
// get their library/, as the engines do it.
func ParseRepository(host, name string) (Repository, error) {
	host, err := ParseHost(host)
	if err != nil {
		return Repository{}, err
	}
	if len(name) > maxName || !nameGrammar.MatchString(name) {
		return Repository{}, newError(http.StatusBadRequest, CodeNameInvalid, "not a repository name: %q", clip(name))
	}
	if host == DockerHub && !strings.Contains(name, "/") {
		name = "library/" + name
	}
	return Repository{Host: host, Name: name}, nil
}

// ParseHost checks HOST or HOST:PORT of a registry and returns it in the form
// in which it is compared: lower case, docker.io for all names of Docker Hub.
func ParseHost(s string) (string, error) {
	host := strings.ToLower(s)
	if len(host) > maxName || !hostGrammar.MatchString(host) {
		return "", newError(http.StatusBadRequest, CodeNameInvalid, "not a registry's HOST[:PORT]: %q", clip(s))
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 && host[len(host)-1] != ']' {
		if port, err := strconv.Atoi(host[i+1:]); err != nil || port < 1 || port > 65535 {
			return "", newError(http.StatusBadRequest, CodeNameInvalid, "not a port: %q", clip(s))
		}
	}
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return DockerHub, nil
	}
	return host, nil
}

// ParseDigest checks a digest. sha256 and sha512 are the two algorithms that
// the image spec registers; no other is taken.
func ParseDigest(s string) (digest.Digest, error) {
	d := digest.Digest(s)
	err := d.Validate()
	if err == nil && d.Algorithm() != digest.SHA256 && d.Algorithm() != digest.SHA512 {
		err = fmt.Errorf("algorithm %s is not sha256 or sha512", d.Algorithm())
	}
	if err != nil {
		return "", newError(http.StatusBadRequest, CodeDigestInvalid, "digest %q: %v", clip(s), err)
	}
	return d, nil
}

// isHost tells a registry from the first component of a name by the rule of
// the engines: it has a dot or a port, or is localhost.
func isHost(s string) bool {
	return s == "localhost" || strings.ContainsAny(s, ".:")
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// clip bounds what a message repeats of a stranger's words.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}
