package integration

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// planted are credentials that no log, page, metric, error or file may have.
var planted = map[string]string{
	"password":          "planted-password",
	"user and password": base64.StdEncoding.EncodeToString([]byte("alice:planted-password")),
	"wrong password":    base64.StdEncoding.EncodeToString([]byte("alice:planted-wrong")),
	"bearer token":      "planted-bearer-token",
	"anonymous token":   "planted-anonymous-token",
	"no scheme":         "planted-without-a-scheme",
	"signature":         "planted-signature",
	"userinfo":          "planted-userinfo",
	"cookie":            "planted-cookie",
	"registry's cookie": "planted-session",
	"API token":         "planted-token-of-the-api",
}

// vault is a registry that asks for credentials of all kinds and redirects to object
// storage by signed URLs.
type vault struct {
	*testRegistry
	storage *testRegistry
	tokens  *httptest.Server
	fail    http.HandlerFunc // in the place of blobs
}

func startVault(t *testing.T) *vault {
	t.Helper()
	images := loadFixtures(t)
	v := &vault{testRegistry: startRegistry(t, registryConfig{Storage: images.Storage}), storage: startRegistry(t, registryConfig{Storage: images.Storage})}
	v.tokens = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := planted["anonymous token"]
		switch user, password, ok := r.BasicAuth(); {
		case ok && (user != "alice" || password != planted["password"]):
			http.Error(w, "who is "+r.Header.Get("Authorization")+"?", http.StatusUnauthorized)
			return
		case ok:
			token = planted["bearer token"]
		}
		w.Header().Set("Set-Cookie", "session="+planted["registry's cookie"])
		fmt.Fprintf(w, `{"token":%q,"expires_in":300}`, token)
	}))
	t.Cleanup(v.tokens.Close)
	v.Replace(v.serve)
	return v
}

func (v *vault) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Set-Cookie", "session="+planted["registry's cookie"])
	given := r.Header.Get("Authorization")
	may := []string{"Bearer " + planted["bearer token"], "Basic " + planted["user and password"]}
	if strings.Contains(r.URL.Path, publicRepo) {
		may = append(may, "Bearer "+planted["anonymous token"])
	}
	blob := strings.Contains(r.URL.Path, "/blobs/")
	switch {
	case !slices.Contains(may, given):
		w.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="vault",scope="repository:x:pull"`, v.tokens.URL))
		w.WriteHeader(http.StatusUnauthorized)
	case blob && v.fail != nil:
		v.fail(w, r)
	case blob:
		http.Redirect(w, r, fmt.Sprintf("http://storage:%s@%s%s?X-Signature=%s", planted["userinfo"], v.storage.Addr, r.URL.Path, planted["signature"]), http.StatusTemporaryRedirect)
	default:
		v.Forward(w, r)
	}
}

// echo answers as a registry that repeats what it was told, which it may to who told it.
func echo(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":%q}]}`, r.Header.Get("Authorization"))
	}
}

// TestNoCredentialIsWrittenDown plants credentials of all kinds in a fleet that logs all it
// can, lets it pull, fail and prefetch, and looks for them everywhere.
func TestNoCredentialIsWrittenDown(t *testing.T) {
	v, images := startVault(t), loadFixtures(t)
	apiToken := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(apiToken, []byte(planted["API token"]), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := daemonConfig{Insecure: []string{v.Addr, v.storage.Addr}, Default: v.Addr, Flags: []string{"--api-token-file", apiToken}}
	var daemons []*daemon
	fleet := func(mirrors int) {
		cfg.Seeders = nil
		seeder := startSeeder(t, cfg)
		cfg.Seeders = []string{seeder.URL()}
		for range mirrors {
			daemons = append(daemons, startMirror(t, cfg))
		}
		daemons = append(daemons, seeder)
	}
	fleet(2)
	warm := len(daemons)
	fleet(1)
	cold := daemons[warm]       // has nothing yet when the registry fails
	said := map[string]string{} // what was answered, by what was asked
	note := func(what string, a answer) { said[what] = fmt.Sprintf("%s%v", a.Body, a.Header) }

	cookie := "Cookie: session=" + planted["cookie"]
	basicOfAlice, bearerOfAlice := "Authorization: Basic "+planted["user and password"], "Authorization: Bearer "+planted["bearer token"]
	for i, d := range daemons {
		for what, header := range map[string]string{"basic": basicOfAlice, "bearer": bearerOfAlice} {
			if i >= warm {
				continue
			}
			if _, err := pullImage(t, d, v.Addr, privateRepo, fixtureTag, header, cookie); err != nil {
				t.Errorf("%s: pull with %s: %v", d.name, what, err)
			}
		}
		if _, err := pullImage(t, d, v.Addr, publicRepo, fixtureTag, cookie); err != nil {
			t.Errorf("%s: pull of what anyone may have: %v", d.name, err)
		}
		for what, header := range map[string]string{
			"wrong": "Authorization: Basic " + planted["wrong password"], "odd": "Authorization: " + planted["no scheme"],
		} {
			note(d.name+what, get(t, d.Manifest(v.Addr, privateRepo, fixtureTag), header, cookie))
			note(d.name+what+"blob", get(t, d.Blob(v.Addr, privateRepo, allBlobs(t, images.Private)[0].Digest), header, cookie))
			note(d.name+what+"bad", get(t, d.URL()+"/v2/"+privateRepo+"/blobs/nonsense?ns="+v.Addr, header, cookie))
			note(d.name+what+"own", get(t, d.URL()+"/v1/status", header, cookie))
		}
	}

	// Storage away, and a registry that fails in all ways, for a mirror that has to ask.
	for n, fail := range []http.HandlerFunc{nil, echo(403), echo(404), echo(500), echo(429), func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://u:"+planted["userinfo"]+"@169.254.169.254/?X-Signature="+planted["signature"], http.StatusFound)
	}} {
		v.fail = fail
		if fail == nil {
			v.storage.Die()
		}
		for i, b := range allBlobs(t, images.Private) {
			a := get(t, cold.Blob(v.Addr, privateRepo, b.Digest), bearerOfAlice, cookie)
			if a.Status < 400 {
				t.Errorf("blob %d = %d, want a failure", i, a.Status)
			}
			if fail == nil || a.Status >= 500 {
				note(fmt.Sprintf("failure %d, blob %d", n, i), a)
			}
		}
	}
	v.fail = nil
	v.storage.Revive(t)

	ref := v.Addr + "/" + privateRepo + ":" + fixtureTag
	apiEnv := "MURDER_API_TOKEN_FILE=" + apiToken
	for _, user := range []string{"alice:planted-wrong", "alice:" + planted["password"]} {
		env := append(dockerLogin(t, v.Addr, user), apiEnv)
		for _, args := range [][]string{
			{"prefetch", "--mirror", cold.URL(), ref}, {"prefetch", "--output", "json", "--mirror", cold.URL(), ref},
			{"status", "--mirror", cold.URL(), "--insecure-registry", v.Addr, ref}, {"status", "--mirror", cold.URL()}, {"doctor", "--mirror", cold.URL()},
		} {
			out, errs, code := runMurder(t, env, args...)
			said[fmt.Sprint(args, user)] = out + errs
			if args[0] == "prefetch" && (code == 0) != !strings.HasSuffix(user, "wrong") {
				t.Errorf("murder %v as %.9s = %d\n%s%s", args, user, code, out, errs)
			}
		}
	}
	_, errs, code := runMurder(t, nil, "mirror", "--seeder", "http://u:"+planted["userinfo"]+"@seeder.example:7070")
	if said["bad flag"] = errs; code != 2 {
		t.Errorf("a seeder with credentials in its URL = %d: %s", code, errs)
	}

	for _, d := range daemons {
		note(d.name+" status", get(t, d.URL()+"/v1/status", "Authorization: Bearer "+planted["API token"]))
		for _, path := range []string{"/metrics", "/", "/livez", "/v2/", "/v2/_catalog", "/scrape", "/announce"} {
			note(d.name+d.Addr+path, get(t, d.URL()+path, cookie))
		}
		d.Stop(t) // what it says at the end counts as well
		for what, word := range planted {
			if found := contains(t, d.output.String(), d.DataDir, word); found != "" {
				t.Errorf("%s has the %s in %s", d.name, what, found)
			}
		}
	}
	for asked, answered := range said {
		for what, word := range planted {
			if strings.Contains(answered, word) {
				t.Errorf("%s: the answer has the %s: %.500s", asked, what, answered)
			}
		}
	}
}
