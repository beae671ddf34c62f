package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	digest "github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/cmd/murder/otlp/otlptest"
)

// TestTraces pulls a private image with an engine that traces, and then another past a seeder that is gone. The collector must see where
// each blob came from, mirror and seeder in one trace, and no credential.
func TestTraces(t *testing.T) {
	needs(t, "docker-registry")
	collector := otlptest.Start(t, nil)
	flags := []string{"--otlp-endpoint", collector.URL}
	const user, password = "alice", "a-password-for-no-trace"
	f := startFleet(t, fleetConfig{Registry: registryConfig{Users: map[string]string{user: password}}, Mirrors: 1, SeederFlags: flags, MirrorFlags: flags})
	for _, tag := range []string{"v1", "v2"} {
		image, err := makeImage(newRoot(t), tag, 3<<20)
		if err != nil {
			t.Fatal(err)
		}
		push(t, f.Registry.Addr, "traced/app:"+tag, image, &authn.Basic{Username: user, Password: password})
		blobs := allBlobs(t, image)
		trace := digest.FromString(tag).Encoded()[:32]
		engine := fmt.Sprintf("traceparent: 00-%s-00f067aa0ba902b7-01", trace)
		for range 2 { // into the cache, and from it once it is there
			if _, err := pullImage(t, f.Mirrors[0], f.Registry.Addr, "traced/app", tag, basic(user+":"+password), engine); err != nil {
				t.Fatal(err)
			}
			for _, b := range blobs {
				f.waitCached(t, b)
			}
		}
		if tag == "v1" {
			f.checkTraces(t, collector, trace, blobs)
			f.Seeder.Kill()
		} else {
			f.checkTraceOfFallBack(t, collector, blobs[0])
		}
	}
	for _, secret := range []string{password, strings.TrimPrefix(basic(user+":"+password), "Authorization: Basic ")} {
		if strings.Contains(string(collector.Raw()), secret) {
			t.Errorf("a credential was sent to the collector: %s", secret)
		}
	}
}

// waitCached waits until the first mirror's download of a blob is over: a client has the last byte a moment before.
func (f *fleet) waitCached(t *testing.T, b blobInfo) {
	t.Helper()
	waitUntil(t, b.Digest.String()+" is cached", func() error {
		a := get(t, f.Mirrors[0].URL()+"/v1/status?digest="+b.Digest.String())
		if !strings.Contains(string(a.Body), `"state": "whole"`) {
			return fmt.Errorf("%.500s", a.Body)
		}
		return nil
	})
}

// spansOf waits for the spans of a blob from one of the daemons that match.
func spansOf(t *testing.T, c *otlptest.Collector, name string, d digest.Digest, match func(otlptest.Span) bool) (s otlptest.Span) {
	t.Helper()
	waitUntil(t, "a span "+name+" of "+d.String(), func() error {
		for _, s = range c.Spans(name) {
			if s.Attributes["murder.digest"] == d.String() && match(s) {
				return nil
			}
		}
		return fmt.Errorf("the collector has %d spans of that name", len(c.Spans(name)))
	})
	return s
}

func came(s otlptest.Span) bool {
	return s.Attributes["murder.outcome"] == "whole" && s.Attributes["murder.source"] == nil
}

func (f *fleet) checkTraces(t *testing.T, c *otlptest.Collector, trace string, blobs []blobInfo) {
	t.Helper()
	for _, b := range blobs {
		pull, fetch := spansOf(t, c, "pull blob", b.Digest, came), spansOf(t, c, "fetch blob", b.Digest, came)
		if pull.Service != "murder-mirror" || fetch.Service != "murder-seeder" {
			t.Errorf("blob %s was pulled by %s and fetched by %s", b.Digest, pull.Service, fetch.Service)
		}
		if pull.Trace != trace || pull.Parent != "00f067aa0ba902b7" {
			t.Errorf("pull is of trace %s and parent %s, want the engine's", pull.Trace, pull.Parent)
		}
		if fetch.Trace != trace || fetch.Parent == "" {
			t.Errorf("fetch is of trace %s and parent %q, want the engine's trace by way of the mirror", fetch.Trace, fetch.Parent)
		}
		if parent := spansOf(t, c, "pull blob", b.Digest, func(s otlptest.Span) bool { return s.ID == fetch.Parent }); parent.Service != "murder-mirror" {
			t.Errorf("the fetch's parent is a span of %s", parent.Service)
		}
		for _, s := range []otlptest.Span{pull, fetch} {
			a := s.Attributes
			sum := a["murder.bytes.peer"].(int64) + a["murder.bytes.seeder"].(int64) + a["murder.bytes.upstream"].(int64)
			if sum != b.Size || a["murder.size"] != b.Size || a["murder.registry"] != f.name() || a["murder.repository"] != "traced/app" || s.Failed {
				t.Errorf("%s of %d bytes: %v", s.Name, b.Size, a)
			}
			if len(s.Events) == 0 || s.Events[0].Name != "way taken" {
				t.Errorf("%s took no way: %v", s.Name, s.Events)
			}
		}
		if fetch.Attributes["murder.bytes.upstream"] != b.Size {
			t.Errorf("the seeder fetched %v", fetch.Attributes)
		}
		spansOf(t, c, "pull blob", b.Digest, func(s otlptest.Span) bool { return s.Attributes["murder.source"] == "cache" })
	}
}

func (f *fleet) checkTraceOfFallBack(t *testing.T, c *otlptest.Collector, b blobInfo) {
	t.Helper()
	s := spansOf(t, c, "pull blob", b.Digest, came)
	if s.Attributes["murder.bytes.upstream"] != b.Size || s.Attributes["murder.why"] != "seeder unreachable" {
		t.Errorf("a pull past a dead seeder: %v", s.Attributes)
	}
}
