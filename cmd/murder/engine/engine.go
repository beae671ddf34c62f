// Package engine edits the configuration files that make a container engine
// pull through a murder mirror: containerd's hosts.toml and config.toml,
// Docker's daemon.json, and the registries.conf.d of podman, CRI-O, buildah
// and skopeo.
//
// These files belong to the machine's owner, so the package changes as little
// text as it can, parses the result before it writes it, keeps a backup
// beside each file it changes, and can take its own part out again. Nothing
// here talks to an engine or to a mirror; that is `murder doctor`'s job.
//
// Each engine is a struct with two methods. Setup and Undo only read; they
// return a Plan, which shows itself as a diff or is carried out by Run.
package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
)

// DefaultMirror is the address a murder mirror listens on unless told
// otherwise.
const DefaultMirror = "http://127.0.0.1:7080"

// ErrConflict marks an error that only the owner of the files can settle: a
// setting of theirs stands against ours. Nothing has been changed.
var ErrConflict = errors.New("conflict")

// Engine is what `murder setup` can point at a mirror.
type Engine interface {
	// Setup plans what makes the engine use the mirror. The plan of a setup
	// that has been carried out already is empty.
	Setup() (*Plan, error)
	// Undo plans the way back to the files as they were before Setup.
	Undo() (*Plan, error)
}

// ParseMirror checks a mirror's address: http or https, a host, perhaps a
// port, and nothing else, since no engine accepts more than that everywhere.
func ParseMirror(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("mirror %q is not a URL", s)
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("mirror %q must start with http:// or https://", s)
	}
	if u.Hostname() == "" || !hostPattern.MatchString(u.Host) {
		return nil, fmt.Errorf("mirror %q names no host", s)
	}
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("mirror %q must be scheme://host:port and nothing more", s)
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// A registry as the engines name it: a host with an optional port. IPv6
// literals stand in brackets.
var hostPattern = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`)

// ParseRegistry checks the name of a registry and returns the one the engines
// look it up by: all of Docker Hub's names are docker.io.
func ParseRegistry(s string) (string, error) {
	if !hostPattern.MatchString(s) {
		return "", fmt.Errorf("registry %q must be HOST or HOST:PORT", s)
	}
	switch s = strings.ToLower(s); s {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io", nil
	}
	return s, nil
}

// ParsePathRegistry is ParseRegistry for engines that can only put the
// registry's name into the image's path, as in 127.0.0.1:7080/ghcr.io/app.
// A mirror takes the first part of a path for a registry if it has a dot or
// is localhost, and a port's colon may not stand in a path at all: podman
// then refuses every pull from that registry.
func ParsePathRegistry(s string) (string, error) {
	s, err := ParseRegistry(s)
	switch {
	case err != nil:
		return "", err
	case strings.ContainsAny(s, ":"):
		return "", fmt.Errorf("registry %q has a port, which cannot stand in the path of an image's name", s)
	case s != "localhost" && !strings.Contains(s, "."):
		return "", fmt.Errorf("registry %q has no dot, so a mirror would take it for a part of the repository's name", s)
	}
	return s, nil
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || err == nil && addr.IsLoopback()
}
