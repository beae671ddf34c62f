package swarm

import (
	"net/url"
	"strconv"
	"strings"
)

// identity is who a client says it is, in its extended handshake (BEP 10, "v"):
// "murder/0.1.0 seeder zone=a origins=2". Other clients, and murders that lie, are mirrors
// without a zone; what is done differently for a seeder or a zone costs them alone.
type identity struct {
	version string
	seeder  bool
	zone    string
	origins int // seeders it knows of; 0 is not said
}

// self is who we are in x. Every seeder has a tracker of its own, so we know how many
// there are, and they, who do not know of each other, hear it from us.
func (x *exchange) self() identity {
	cfg := x.client.cfg
	return identity{version: cfg.Version, seeder: cfg.Seeder, zone: cfg.Zone, origins: len(x.trackers)}
}

// murder tells whether it is one of us.
func (id identity) murder() bool { return id.version != "" }

// String writes what parseIdentity reads.
func (id identity) String() string {
	role := "mirror"
	if id.seeder {
		role = "seeder"
	}
	v := "murder/" + url.QueryEscape(id.version) + " " + role + " zone=" + url.QueryEscape(id.zone)
	if id.origins > 0 {
		v += " origins=" + strconv.Itoa(id.origins)
	}
	return v
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
		if n, ok := strings.CutPrefix(word, "origins="); ok {
			origins, _ := strconv.ParseUint(n, 10, 8)
			id.origins = int(origins)
		}
	}
	return id
}
