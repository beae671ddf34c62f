package pushes

import (
	"slices"
	"strings"
	"testing"

	"github.com/murderp2p/murder/registry"
)

const (
	one = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	two = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
)

// envelope is a notification as docker-registry 2.8 sends it.
func envelope(events ...string) string { return `{"events":[` + strings.Join(events, ",") + `]}` }

func event(action, mediaType, d, end, tag string) string {
	return `{"id":"5a1e","timestamp":"2026-11-27T20:00:00Z","action":"` + action + `","target":{"mediaType":"` + mediaType +
		`","size":528,"digest":"` + d + `","length":528,"repository":"team/app","url":"http://reg.test:5000/v2/team/app/` + end + `","tag":"` + tag +
		`"},"request":{"id":"9d","addr":"10.0.0.7:4711","host":"reg.test:5000","method":"PUT","useragent":"push"},"actor":{"name":"ci"},"source":{"addr":"reg-0:5000","instanceID":"77"}}`
}

// webhook is what Harbor sends about a push.
func webhook(kind, data, tag, d, url string) string {
	return `{"specversion":"1.0","type":"` + kind + `","occur_at":1586922308,"operator":"admin","` + data + `":{"resources":[{"digest":"` + d +
		`","tag":"` + tag + `","resource_url":"` + url + `"}],"repository":{"date_created":1586922308,"name":"app","namespace":"team","repo_full_name":"team/app","repo_type":"private"}}}`
}

func TestParse(t *testing.T) {
	const (
		manifestType = "application/vnd.oci.image.manifest.v1+json"
		indexType    = "application/vnd.oci.image.index.v1+json"
		octets       = "application/octet-stream"
	)
	repo := func(host string) registry.Repository { return registry.Repository{Host: host, Name: "team/app"} }
	tagged := Push{repo("reg.test:5000"), registry.Manifest, "v1", one, false}
	inHarbor := Push{repo("harbor.test"), registry.Manifest, "v1", one, false}
	for _, c := range []struct {
		name, body, host string
		want             []Push
		ignored          int
	}{
		{"tag", envelope(event("push", manifestType, one, "manifests/"+one, "v1")), "", []Push{tagged}, 0},
		{"index", envelope(event("push", indexType, one, "manifests/"+one, "v1")), "", []Push{tagged}, 0},
		{"manifest without a tag", envelope(event("push", manifestType, one, "manifests/"+one, "")), "", []Push{{repo("reg.test:5000"), registry.Manifest, "", one, false}}, 0},
		{"manifest without a URL", envelope(strings.Replace(event("push", manifestType, one, "", "v1"), `"url":"http://reg.test:5000/v2/team/app/",`, "", 1)), "", []Push{tagged}, 0},
		{"blob", envelope(event("push", octets, two, "blobs/"+two, "")), "", []Push{{repo("reg.test:5000"), registry.Blob, "", two, false}}, 0},
		{"by another name", envelope(event("push", manifestType, one, "manifests/"+one, "v1")), "pull.test", []Push{{repo("pull.test"), registry.Manifest, "v1", one, false}}, 0},
		{"host of the URL", envelope(strings.Replace(event("push", manifestType, one, "manifests/"+one, "v1"), `"host":"reg.test:5000",`, "", 1)), "", []Push{tagged}, 0},
		{"pull, mount, delete", envelope(event("pull", manifestType, one, "manifests/"+one, "v1"), event("mount", octets, two, "blobs/"+two, ""), event("delete", manifestType, one, "manifests/"+one, "")), "", nil, 3},
		{"one of several is nonsense", envelope(`7`, event("push", manifestType, "sha256:x", "manifests/x", "v1"), `{"action":["push"]}`, event("push", manifestType, one, "manifests/"+one, "v1")), "", []Push{tagged}, 3},
		{"no tag", envelope(event("push", manifestType, one, "manifests/"+one, "../v1")), "", nil, 1},
		{"none", envelope(), "", nil, 0},
		{"Harbor", webhook("PUSH_ARTIFACT", "event_data", "v1", one, "harbor.test/team/app:v1"), "", []Push{inHarbor}, 0},
		{"Harbor by a URL", webhook("PUSH_ARTIFACT", "event_data", "v1", one, "https://harbor.test/team/app:v1"), "", []Push{inHarbor}, 0},
		{"Harbor by digest", webhook("PUSH_ARTIFACT", "event_data", one, one, "harbor.test/team/app@"+one), "", []Push{{repo("harbor.test"), registry.Manifest, "", one, false}}, 0},
		{"Harbor's CloudEvent", webhook("harbor.artifact.pushed", "data", "v1", one, "harbor.test/team/app:v1"), "", []Push{inHarbor}, 0},
		{"Harbor by another name", webhook("PUSH_ARTIFACT", "event_data", "v1", one, "harbor.test/team/app:v1"), "pull.test", []Push{{repo("pull.test"), registry.Manifest, "v1", one, false}}, 0},
		{"Harbor's several", `{"type":"PUSH_ARTIFACT","occur_at":1,"operator":"robot$ci","event_data":{"resources":[` +
			`{"digest":"` + one + `","tag":"v1","resource_url":"harbor.test/team/app:v1"},{"digest":"` + two + `","resource_url":"harbor.test/team/app@` + two + `"},` +
			`{"digest":"` + one + `","tag":"v1","resource_url":"/team/app:v1"}],"repository":{"name":"app","namespace":"team","repo_full_name":"team/app","repo_type":"public"}}}`,
			"", []Push{inHarbor, {repo("harbor.test"), registry.Manifest, "", two, false}}, 1},
		{"Harbor's replication", `{"type":"REPLICATION","occur_at":1,"operator":"MANUAL","event_data":{"replication":{"job_status":"Success",` +
			`"successful_artifact":[{"type":"image","status":"Success","name_tag":"app [1 item(s) in total]"}]}}}`, "", nil, 1},
		{"Harbor's scan", webhook("SCANNING_COMPLETED", "event_data", "v1", one, "harbor.test/team/app:v1"), "", nil, 1},
		{"Harbor's nonsense", webhook("PUSH_ARTIFACT", "event_data", "v1", "x", "harbor.test/team/app:v1"), "", nil, 1},
		{"Harbor's emptiness", `{"type":"PUSH_ARTIFACT","event_data":{"resources":[]}}`, "", nil, 1},
	} {
		got, ignored, err := Parse([]byte(c.body), c.host)
		if err != nil || !slices.Equal(got, c.want) || ignored != c.ignored {
			t.Errorf("%s: %v, %d ignored, %v; want %v, %d", c.name, got, ignored, err, c.want, c.ignored)
		}
	}
	for _, body := range []string{"", "null", "[]", "{}", "7", `{"events":null}`, `{"events":{}}`, `{"type":7}`, `{"events":[`, "<html>"} {
		if got, _, err := Parse([]byte(body), ""); err == nil {
			t.Errorf("%q = %v, want an error", body, got)
		}
	}
}

// Whatever is sent, what is made of it can be asked of a registry.
func FuzzParse(f *testing.F) {
	f.Add(envelope(event("push", "application/vnd.oci.image.manifest.v1+json", one, "manifests/"+one, "v1")), "")
	f.Add(envelope(event("push", "application/octet-stream", two, "blobs/"+two, "")), "reg.test")
	f.Add(webhook("PUSH_ARTIFACT", "event_data", "v1", one, "harbor.test/team/app:v1"), "")
	f.Add(webhook("harbor.artifact.pushed", "data", one, one, "https://harbor.test/team/app@"+one), "")
	f.Fuzz(func(t *testing.T, body, host string) {
		pushed, _, err := Parse([]byte(body), host)
		if err != nil && len(pushed) > 0 {
			t.Errorf("%d pushes and %v", len(pushed), err)
		}
		for _, p := range pushed {
			if again, err := registry.ParseRepository(p.Repo.Host, p.Repo.Name); err != nil || again != p.Repo {
				t.Errorf("repository %v: %v", p.Repo, err)
			}
			if _, err := registry.ParseDigest(p.Digest.String()); err != nil && (p.Digest != "" || p.Tag == "") {
				t.Errorf("digest %q", p.Digest)
			}
			if p.Tag != "" && (!registry.IsTag(p.Tag) || p.Kind != registry.Manifest) {
				t.Errorf("tag %q", p.Tag)
			}
		}
	})
}
