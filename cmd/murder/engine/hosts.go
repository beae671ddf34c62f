package engine

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// hostsFile is one registry's hosts.toml of containerd, which reads it at each
// pull: https://github.com/containerd/containerd/blob/main/docs/hosts.md.
type hostsFile struct {
	mirror *url.URL
	dir    string // with the root before it
}

// edit puts the mirror first of the file's hosts.
//
// No server line is written. Where there is none, containerd (1.5 to 2.4,
// ConfigureHosts in remotes/docker/config/hosts.go) asks the registry itself
// after the hosts, for _default as for a named one, and knows better than we
// how: registry-1.docker.io for docker.io, plain HTTP for localhost:5000.
func (h hostsFile) edit() edit {
	return edit{
		add:   h.add,
		cut:   func(data []byte, _ record) ([]byte, error) { return cutBlock(data) },
		blank: blankTOML,
	}
}

// table is the mirror's entry. dial_timeout bounds what a mirror on a dead
// address costs a pull; containerd knows it since 2.1, and those before pass
// over keys they do not know. A loopback address refuses at once anyway. The
// capability "referrers" of the newest is left out: those that do not know it
// refuse the whole file.
func (h hostsFile) table() string {
	return fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"1s\"\n", h.mirror)
}

func (h hostsFile) add(base []byte) ([]byte, record, error) {
	rec := record{Mirror: h.mirror.String()}
	doc, err := decodeTOML(base)
	if err != nil {
		return nil, rec, err
	}
	if lookup(doc, "host", h.mirror.String()) != nil {
		return base, rec, nil
	}
	if len(doc) == 0 {
		certs, err := h.certificates()
		data := insert(base, len(base), block(certs+h.table()))
		return data, rec, err
	}
	at := len(base)
	if list := headers(base); len(list) > 0 {
		at = list[0].start
	}
	data := insert(base, at, block(h.table()))
	if !h.first(data) || !sameBut(base, data, "host", h.mirror.String()) {
		return nil, rec, fmt.Errorf("%w: its hosts are not written as [host.\"URL\"] tables, so murder cannot put itself before them; add by hand, first of all: %s",
			ErrConflict, strings.ReplaceAll(strings.TrimSpace(h.table()), "\n", " "))
	}
	return data, rec, nil
}

// first reports whether the mirror is the first of the hosts in the text,
// which is the order containerd asks them in.
func (h hostsFile) first(data []byte) bool {
	for _, path := range paths(data) {
		if len(path) > 1 && path[0] == "host" {
			return path[1] == h.mirror.String()
		}
	}
	return false
}

// certificates are the keys for the certificates in the folder. containerd
// finds them by their suffixes, but only while there is no hosts.toml, and
// setup must not take them away from the registry.
func (h hostsFile) certificates() (string, error) {
	entries, err := os.ReadDir(h.dir)
	if err != nil && !os.IsNotExist(err) {
		return "", err
	}
	var names, ca, client []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	for _, name := range names {
		stem, isCert := strings.CutSuffix(name, ".cert")
		switch {
		case strings.HasSuffix(name, ".crt"):
			ca = append(ca, fmt.Sprintf("%q", name))
		case isCert && slices.Contains(names, stem+".key"):
			client = append(client, fmt.Sprintf("[%q, %q]", name, stem+".key"))
		case isCert:
			client = append(client, fmt.Sprintf("%q", name))
		}
	}
	var lines string
	if len(ca) > 0 {
		lines += "ca = [" + strings.Join(ca, ", ") + "]\n"
	}
	if len(client) > 0 {
		lines += "client = [" + strings.Join(client, ", ") + "]\n"
	}
	return lines, nil
}

// hostFolder is the folder that containerd looks for a registry's hosts.toml
// in: host_port_ if there is one, else host:port.
func hostFolder(root, certsDir, registry string) string {
	if i := strings.LastIndexByte(registry, ':'); i > 0 {
		dir := filepath.Join(certsDir, registry[:i]+"_"+registry[i+1:]+"_")
		if _, err := os.Stat(filepath.Join(root, dir)); err == nil {
			return dir
		}
	}
	return filepath.Join(certsDir, registry)
}
