// Package pushes knows what has been pushed to registries: they tell of it ([Parse] reads
// the CNCF registry's notifications and Harbor's webhooks), or are asked for it again and
// again ([Watch]). What is done about a push is others' to decide.
package pushes

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/registry"
)

// MaxBody bounds what [Parse] should be given, in bytes. A registry tells of one push, or
// of a few together; an event has about a kilobyte.
const MaxBody = 1 << 20

// Push is something that a registry has been given. It is comparable.
type Push struct {
	Repo   registry.Repository
	Kind   registry.Kind // Manifest (or an index), or Blob
	Tag    string        // of a manifest; "" if it was pushed by its digest alone
	Digest digest.Digest // "" if only the tag is known
	// Old is set for what was there when its registry was first looked at, but for the latest
	// tag of a pattern: it may be pulled, but nobody has just pushed it.
	Old bool
}

// Image is how a manifest that was pushed is named: by its tag, if it has one.
func (p Push) Image() string {
	if p.Tag != "" {
		return p.Repo.String() + ":" + p.Tag
	}
	return p.Repo.String() + "@" + p.Digest.String()
}

// Ref is what the registry is to be asked for: the digest, since the tag may stand for
// something else by now.
func (p Push) Ref() string {
	if p.Digest != "" {
		return p.Digest.String()
	}
	return p.Tag
}

var errForm = errors.New("neither the notifications of a CNCF registry nor a webhook of Harbor")

// Parse reads what a registry sends. host is the registry's name, or "" to take the one
// that is in the events, as whoever pushed knew it. What is no push of an image or of a
// part of one, or cannot be understood, is counted as ignored. The error is for what is no
// such message at all.
func Parse(body []byte, host string) (pushed []Push, ignored int, err error) {
	var message struct {
		Events []json.RawMessage `json:"events"` // distribution
		Type   string            `json:"type"`   // Harbor
	}
	if err := json.Unmarshal(body, &message); err != nil {
		return nil, 0, errForm
	}
	switch {
	case message.Events != nil:
		for _, raw := range message.Events {
			if p, ok := parseNotification(raw, host); ok {
				pushed = append(pushed, p)
			} else {
				ignored++
			}
		}
		return pushed, ignored, nil
	case message.Type != "":
		pushed, ignored = parseHarbor(message.Type, body, host)
		return pushed, ignored, nil
	}
	return nil, 0, errForm
}

// notification is one event of the CNCF registry's envelope:
// https://distribution.github.io/distribution/about/notifications/
type notification struct {
	Action string `json:"action"`
	Target struct {
		MediaType  string `json:"mediaType"`
		Digest     string `json:"digest"`
		Repository string `json:"repository"`
		URL        string `json:"url"`
		Tag        string `json:"tag"`
	} `json:"target"`
	Request struct {
		Host string `json:"host"`
	} `json:"request"`
}

func parseNotification(raw []byte, host string) (Push, bool) {
	var n notification
	if json.Unmarshal(raw, &n) != nil || n.Action != "push" {
		return Push{}, false
	}
	at, err := url.Parse(n.Target.URL)
	if err != nil {
		at = new(url.URL)
	}
	p := Push{Kind: registry.Blob}
	if strings.Contains(at.Path, "/manifests/") || !strings.Contains(at.Path, "/blobs/") && isManifest(n.Target.MediaType) {
		p.Kind, p.Tag = registry.Manifest, n.Target.Tag
	}
	return p.complete(cmp.Or(host, n.Request.Host, at.Host), n.Target.Repository, n.Target.Digest)
}

func isManifest(mediaType string) bool {
	return strings.Contains(mediaType, ".manifest.") || strings.Contains(mediaType, ".index.")
}

// harbor is the payload of Harbor's webhooks, in its own form and as a CloudEvent:
// https://goharbor.io/docs/main/working-with-projects/project-configuration/configure-webhooks/
type harbor struct {
	EventData harborData `json:"event_data"`
	Data      harborData `json:"data"` // of a CloudEvent
}

type harborData struct {
	Resources []struct {
		Digest string `json:"digest"`
		Tag    string `json:"tag"`
		URL    string `json:"resource_url"` // HOST/PROJECT/NAME:TAG
	} `json:"resources"`
	Repository struct {
		FullName string `json:"repo_full_name"`
	} `json:"repository"`
}

// harborPushes are the types of the events that tell of pushes; the last was that of
// Harbor 1.
var harborPushes = map[string]bool{"PUSH_ARTIFACT": true, "harbor.artifact.pushed": true, "pushImage": true}

func parseHarbor(kind string, body []byte, host string) (pushed []Push, ignored int) {
	var h harbor
	if !harborPushes[kind] || json.Unmarshal(body, &h) != nil {
		return nil, 1
	}
	for _, data := range []harborData{h.EventData, h.Data} {
		for _, r := range data.Resources {
			_, rest, found := strings.Cut(r.URL, "://")
			if !found {
				rest = r.URL
			}
			at, _, _ := strings.Cut(rest, "/")
			p := Push{Kind: registry.Manifest, Tag: r.Tag}
			if _, err := registry.ParseDigest(r.Tag); err == nil { // so it says of what has no tag
				p.Tag = ""
			}
			if p, ok := p.complete(cmp.Or(host, at), data.Repository.FullName, r.Digest); ok {
				pushed = append(pushed, p)
			} else {
				ignored++
			}
		}
	}
	if len(pushed) == 0 {
		ignored = max(ignored, 1)
	}
	return pushed, ignored
}

// complete checks the names that strangers have sent.
func (p Push) complete(host, name, d string) (_ Push, ok bool) {
	var err error
	if p.Repo, err = registry.ParseRepository(host, name); err != nil {
		return p, false
	}
	if p.Digest, err = registry.ParseDigest(d); err != nil && (d != "" || p.Tag == "") {
		return p, false
	}
	if d == "" {
		p.Digest = ""
	}
	return p, p.Tag == "" || registry.IsTag(p.Tag)
}
