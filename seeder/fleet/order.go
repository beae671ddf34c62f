package fleet

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// The bounds of an order.
const (
	maxBody          = 1 << 20 // bytes
	maxImages        = 16
	maxRef           = 512      // bytes of an image's name
	maxAuthorization = 16 << 10 // bytes, as the body of a token
	maxPlatforms     = 64
	maxNamed         = 10_000 // hosts that it names
	maxZones         = 64
	// MaxLifetime is the longest of an order.
	MaxLifetime = 24 * time.Hour
	// DefaultLifetime is that of an order which says none.
	DefaultLifetime = 10 * time.Minute
)

// Request is an order as it is given: the body of POST /v1/prefetch.
type Request struct {
	// ID names the order, 32 hexadecimal digits; "" = the seeder makes one. An order that is there already is not given twice: it goes on with the
	// credentials of the newest request.
	ID     string         `json:"id,omitempty"`
	Images []RequestImage `json:"images"`
	// Platforms as os/arch[/variant], or "all"; none is each host's own.
	Platforms []string `json:"platforms,omitempty"`
	// Pin keeps the images on the hosts until they are unpinned.
	Pin bool `json:"pin,omitempty"`
	// Load has the engines of the hosts pull them, too.
	Load bool `json:"load,omitempty"`
	Select
	// Lifetime is for how long the order holds; 0 = DefaultLifetime.
	Lifetime Duration `json:"lifetime,omitempty"`
}

// RequestImage is one image to bring, in the name of whoever the Authorization is of.
type RequestImage struct {
	Ref string `json:"ref"`
	// Digest is what the hosts bring; "" = what the registry has under Ref now.
	Digest        digest.Digest `json:"digest,omitempty"`
	Authorization string        `json:"authorization,omitempty"`
}

// Select says for which hosts an order is: all that meet each condition.
type Select struct {
	Hosts   []string          `json:"hosts,omitempty"`   // names; none = any
	Zones   []string          `json:"zones,omitempty"`   // none = any
	Labels  map[string]string `json:"labels,omitempty"`  // all of them
	Percent int               `json:"percent,omitempty"` // of those, 1 to 100; 0 = all
}

// Duration is a time.Duration that is written as Go does: "10m".
type Duration time.Duration

// MarshalJSON implements json.Marshaler.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return errors.New(`a duration is written as "90s" or "10m"`)
	}
	parsed, err := time.ParseDuration(text)
	if err != nil {
		return errors.New(`a duration is written as "90s" or "10m"`)
	}
	*d = Duration(parsed)
	return nil
}

// NewID makes the name of an order.
func NewID() string {
	id := make([]byte, 16)
	rand.Read(id)
	return hex.EncodeToString(id)
}

// check returns nil for a request that can be an order; the error names what is wrong.
// The images' names are for the registry to judge.
func (r *Request) check() error {
	if id, err := hex.DecodeString(r.ID); r.ID != "" && (err != nil || len(id) != 16 || hex.EncodeToString(id) != r.ID) {
		return fmt.Errorf("id %.40q is not 32 hexadecimal digits", r.ID)
	}
	switch {
	case len(r.Images) == 0:
		return errors.New("an order names at least one image")
	case len(r.Images) > maxImages:
		return fmt.Errorf("%d images; an order has at most %d", len(r.Images), maxImages)
	case len(r.Platforms) > maxPlatforms:
		return fmt.Errorf("%d platforms; an order has at most %d", len(r.Platforms), maxPlatforms)
	case r.Lifetime < 0 || time.Duration(r.Lifetime) > MaxLifetime:
		return fmt.Errorf("lifetime %v is not from 1s to %v", time.Duration(r.Lifetime), MaxLifetime)
	}
	seen := make(map[string]bool)
	for _, image := range r.Images {
		switch {
		case image.Ref == "" || len(image.Ref) > maxRef:
			return fmt.Errorf("image %.40q: a name has from 1 to %d characters", image.Ref, maxRef)
		case seen[image.Ref]:
			return fmt.Errorf("image %s is named twice", image.Ref)
		case len(image.Authorization) > maxAuthorization:
			return fmt.Errorf("image %s: the authorization is longer than %d bytes", image.Ref, maxAuthorization)
		}
		seen[image.Ref] = true
	}
	for _, p := range r.Platforms { // the rest is for the hosts to judge
		if len(p) > maxWord {
			return fmt.Errorf("platform %.20q... has more than %d characters", p, maxWord)
		}
	}
	return r.Select.check()
}

// check leaves the hosts sorted. A list that is there and empty is as a rule a script's that found nobody, who is not the whole fleet.
func (s *Select) check() error {
	switch {
	case s.Hosts != nil && len(s.Hosts) == 0:
		return errors.New("hosts is empty: leave it out if all are meant")
	case s.Zones != nil && len(s.Zones) == 0:
		return errors.New("zones is empty: leave it out if all are meant")
	case s.Labels != nil && len(s.Labels) == 0:
		return errors.New("labels is empty: leave it out if all are meant")
	case len(s.Hosts) > maxNamed:
		return fmt.Errorf("%d hosts; an order names at most %d", len(s.Hosts), maxNamed)
	case len(s.Zones) > maxZones:
		return fmt.Errorf("%d zones; an order names at most %d", len(s.Zones), maxZones)
	case len(s.Labels) > maxLabels:
		return fmt.Errorf("%d labels; an order names at most %d", len(s.Labels), maxLabels)
	case s.Percent < 0 || s.Percent > 100:
		return fmt.Errorf("percent %d is not from 1 to 100", s.Percent)
	}
	for _, name := range s.Hosts {
		if err := CheckName(name); err != nil {
			return err
		}
	}
	slices.Sort(s.Hosts)
	s.Hosts = slices.Compact(s.Hosts)
	for _, zone := range s.Zones {
		if err := checkWord("zone", zone); err != nil {
			return err
		}
	}
	return checkLabels(s.Labels)
}

// matches tells whether a host meets the conditions, but for Percent.
func (s Select) matches(m Member) bool {
	if _, named := slices.BinarySearch(s.Hosts, m.Name); len(s.Hosts) > 0 && !named {
		return false
	}
	if len(s.Zones) > 0 && !slices.Contains(s.Zones, m.Zone) {
		return false
	}
	for k, v := range s.Labels {
		if has, ok := m.Labels[k]; !ok || has != v {
			return false
		}
	}
	return true
}

// rank orders hosts for Percent: by their names only, so that who orders for 20 and
// then for 50 percent has the first among the second.
func rank(name string) uint64 {
	sum := sha256.Sum256([]byte(name))
	return binary.BigEndian.Uint64(sum[:])
}

// choose returns the names of an order's hosts among those known, and the highest rank
// that a host may have which comes later.
func (s Select) choose(known []Member) (names []string, cutoff uint64) {
	for _, m := range known {
		if s.matches(m) {
			names = append(names, m.Name)
		}
	}
	if len(s.Zones)+len(s.Labels) == 0 && len(s.Hosts) > 0 {
		names = slices.Clone(s.Hosts) // who is named counts, known or not
	}
	if s.Percent == 0 || s.Percent == 100 {
		return names, ^uint64(0)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(rank(a), rank(b)) })
	names = names[:(len(names)*s.Percent+99)/100]
	if len(names) == 0 {
		return nil, ^uint64(0) / 100 * uint64(s.Percent)
	}
	return names, rank(names[len(names)-1])
}

// Order is what a host is told to do.
type Order struct {
	ID        string       `json:"id"`
	Images    []OrderImage `json:"images"`
	Platforms []string     `json:"platforms,omitempty"`
	Pin       bool         `json:"pin,omitempty"`
	Load      bool         `json:"load,omitempty"`
	// Left is how much of its lifetime is left.
	Left Duration `json:"left"`
	// Every is the least time between two reports.
	Every Duration `json:"every"`
}

// OrderImage is an image of an order: all hosts bring the same, whatever becomes of the
// tag meanwhile.
type OrderImage struct {
	Ref           string        `json:"ref"`
	Digest        digest.Digest `json:"digest"`
	Authorization string        `json:"authorization,omitempty"`
}
