package swarm

import (
	"net/url"
	"strings"
)

// identity is who a client says it is, in its extended handshake (BEP 10, "v"):
// "murder/0.1.0 seeder zone=a". Other clients, and murders that lie, are mirrors
// without a zone; what is done differently for a seeder or a zone costs them alone.
type identity struct {
	version string
	seeder  bool
	zone    string
}

// self is who we are.
func (c *Client) self() identity {
	return identity{version: c.cfg.Version, seeder: c.cfg.Seeder, zone: c.cfg.Zone}
}

// murder tells whether it is one of us.
func (id identity) murder() bool { return id.version != "" }

// String writes what parseIdentity reads.
func (id identity) String() string {
	role := "mirror"
	if id.seeder {
		role = "seeder"
	}
	return "murder/" + url.QueryEscape(id.version) + " " + role + " zone=" + url.QueryEscape(id.zone)
}

func parseIdentity(v string) identity {
	var id identity
	words := strings.Fields(v)
	if len(words) < 2 || !strings.HasPrefix(words[0], "murder/") {
		return id
	}
	id.version = strings.TrimPrefix(words[0], "murder/")
	id.seeder = words[1] == "seeder"
	for _, word := range words[2:] {
		if zone, ok := strings.CutPrefix(word, "zone="); ok {
			id.zone, _ = url.QueryUnescape(zone)
		}
	}
	return id
}
