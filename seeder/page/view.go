package page

import "time"

// Source is what the page shows.
type Source interface {
	// Totals is asked once a second, whether anybody looks or not.
	Totals() Totals
	// View is asked once a second while somebody looks.
	View() View
}

// Totals are bytes of blobs since the daemon started. They only grow.
type Totals struct {
	Fleet    int64 // that hosts have received, from wherever
	Registry int64 // that the registries have sent, to the seeder or to hosts
}

// View is the fleet at one moment.
//
// Each row has an ID in its first field, which stays the same as long as the
// row is there and must not tell anything by itself; an infohash, above all,
// is never in a View: who knows it is sent the blob.
//
// A field is sent under its json name. What is tagged page:"open" everybody is
// sent who reaches the page, and page:"round" too, in whole MiB, since the exact
// size of a layer tells which one it is. All other fields are names, for those
// alone whom [Config].Operator lets see them.
type View struct {
	Now       Now
	Swarms    []Swarm
	Hosts     []Host
	Jobs      []Job
	Fallbacks []Fallback
}

// Now is what there is one of.
type Now struct {
	Version  string `json:"version"`
	Hosts    int    `json:"hosts" page:"open"`    // also those that are not among View.Hosts
	Ready    int    `json:"ready" page:"open"`    // of them, those that lack nothing they have asked for
	Pulling  int    `json:"pulling" page:"open"`  // those that do
	Away     int    `json:"away" page:"open"`     // those that have been here and are not now
	Swarms   int    `json:"swarms" page:"open"`   // also those that are not among View.Swarms
	Fetching int    `json:"fetching" page:"open"` // blobs that the registry is sending to the seeder
	Cached   int64  `json:"cached" page:"round"`  // bytes of whole blobs in the seeder's cache

	// These the page fills in.
	Fleet        int64 `json:"fleet" page:"open"`    // see Totals
	Registry     int64 `json:"registry" page:"open"` // see Totals
	FleetRate    int64 `json:"fleet_rate" page:"open"`
	RegistryRate int64 `json:"registry_rate" page:"open"` // both in bytes a second
}

// Deciles is how many classes of hosts a swarm has: by the tenths of the blob
// that they have, and those that have all of it.
const Deciles = 11

// Swarm is one blob that is on offer.
type Swarm struct {
	ID      int          `json:"id" page:"open"`
	Name    string       `json:"name"`   // of a repository that it was fetched of, with the registry's
	Digest  string       `json:"digest"` // shortened
	Size    int64        `json:"size" page:"round"`
	Fetched int          `json:"fetched" page:"open"` // per cent of it that the seeder has
	Percent int          `json:"percent" page:"open"` // of it that the hosts have, on average
	Hosts   int          `json:"hosts" page:"open"`
	Fill    [Deciles]int `json:"fill" page:"open"` // the hosts by what they have
}

// States of a host.
const (
	Ready   = "ready"
	Pulling = "pulling"
	Away    = "away"
)

// Host is one mirror.
type Host struct {
	ID       int    `json:"id" page:"open"`
	Name     string `json:"name"`
	Addr     string `json:"addr"`
	Zone     int    `json:"zone" page:"open"` // a number for it, from 1; 0 = none
	ZoneName string `json:"zone_name"`
	State    string `json:"state" page:"open"`
	Percent  int    `json:"percent" page:"open"` // of what it is pulling
	Left     int64  `json:"left" page:"round"`   // bytes of it that it lacks
	Whole    int    `json:"whole" page:"open"`   // blobs that it offers to others
}

// States of a job.
const (
	Running = "running"
	Done    = "done"
	Failed  = "failed"
)

// Job is one prefetch of the fleet.
type Job struct {
	ID      int       `json:"id" page:"open"`
	Images  string    `json:"images"`
	Whom    string    `json:"whom"` // the hosts that it is for, in words
	State   string    `json:"state" page:"open"`
	Hosts   int       `json:"hosts" page:"open"`
	Done    int       `json:"done" page:"open"`   // hosts that are
	Failed  int       `json:"failed" page:"open"` // hosts that have
	Have    int64     `json:"have" page:"round"`  // bytes that the hosts have of it
	Want    int64     `json:"want" page:"round"`  // of how many
	Began   time.Time `json:"began" page:"open"`
	Slowest string    `json:"slowest"` // hosts
	Error   string    `json:"error"`
}

// Fallback is how often pulls have left a better way for a worse one.
type Fallback struct {
	Reason string `json:"id" page:"open"` // a constant phrase of murder's own
	Count  int64  `json:"count" page:"open"`
}
