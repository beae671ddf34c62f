package fleet

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
)

// The bounds of what a host says of itself.
const (
	maxName   = 253 // bytes of a name, as in the DNS
	maxWord   = 63  // bytes of a label's key or value, as in Kubernetes, and of a zone
	maxLabels = 16
)

// Member is who a host says it is.
type Member struct {
	Name    string
	Zone    string // "" = none
	Labels  map[string]string
	Version string // of murder there
}

// Check returns nil for a Member that a seeder takes; the error names what is wrong.
func (m Member) Check() error {
	if err := CheckName(m.Name); err != nil {
		return err
	}
	if m.Zone != "" {
		if err := checkWord("zone", m.Zone); err != nil {
			return err
		}
	}
	if len(m.Labels) > maxLabels {
		return fmt.Errorf("%d labels; a host has at most %d", len(m.Labels), maxLabels)
	}
	return checkLabels(m.Labels)
}

func checkLabels(labels map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if err := checkWord("label", k); err != nil {
			return err
		}
		if v := labels[k]; v != "" {
			if err := checkWord("value of label "+k, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// CheckName wants a name by which a host may go.
func CheckName(name string) error { return check("host name", name, maxName) }

func checkWord(what, s string) error { return check(what, s, maxWord) }

func check(what, s string, most int) error {
	switch {
	case s == "":
		return fmt.Errorf("a %s is not empty", what)
	case len(s) > most:
		return fmt.Errorf("%s %.20q... has more than %d characters", what, s, most)
	}
	for _, r := range s {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_/", r) {
			return fmt.Errorf("%s %.80q: it is made of letters, digits, '.', '-', '_' and '/'", what, s)
		}
	}
	return nil
}

// ParseLabel reads KEY=VALUE.
func ParseLabel(s string) (key, value string, err error) {
	key, value, ok := strings.Cut(s, "=")
	if !ok {
		return "", "", errors.New("a label is written as KEY=VALUE")
	}
	return key, value, checkLabels(map[string]string{key: value})
}

// query is the Member as a mirror says it, and parseMember reads it.
func (m Member) query() url.Values {
	q := url.Values{"name": {m.Name}, "version": {m.Version}}
	if m.Zone != "" {
		q.Set("zone", m.Zone)
	}
	for _, k := range slices.Sorted(maps.Keys(m.Labels)) {
		q.Add("label", k+"="+m.Labels[k])
	}
	return q
}

func parseMember(q url.Values) (Member, error) {
	m := Member{Name: q.Get("name"), Zone: q.Get("zone"), Version: q.Get("version")}
	if len(m.Version) > maxWord || strings.ContainsFunc(m.Version, func(r rune) bool { return r < ' ' || r > '~' }) {
		return m, errors.New("a version is of at most 63 printable characters")
	}
	if len(q["label"]) > maxLabels {
		return m, fmt.Errorf("%d labels; a host has at most %d", len(q["label"]), maxLabels)
	}
	for _, text := range q["label"] {
		k, v, err := ParseLabel(text)
		if err != nil {
			return m, fmt.Errorf("label %.80q: %w", text, err)
		}
		if m.Labels == nil {
			m.Labels = make(map[string]string)
		}
		m.Labels[k] = v
	}
	return m, m.Check()
}

// host is a Member that is here or was.
type host struct {
	Member
	address string
	link    *link     // nil while it is away
	since   time.Time // it came or went
	account Account   // its last
	told    bool      // it has given one
}

// public is the host for others, with the newest of jobs that it is at work on.
func (h *host) public(jobs []*job) Host {
	p := Host{Name: h.Name, Zone: h.Zone, Labels: h.Labels, Address: h.address, Version: h.Version, State: Connected, Since: h.since, Account: h.account}
	if h.link == nil {
		p.State = Away
	}
	for _, j := range jobs {
		if t := j.targets[h.Name]; t != nil && j.state == Running && !t.State.final() {
			p.Job, p.JobState, p.Bytes, p.BytesDone = j.order.ID, t.State, t.Bytes, t.BytesDone
			break
		}
	}
	return p
}
