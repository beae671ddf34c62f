package integration

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Where the fixtures' images are, in every registry over their storage.
const (
	bigRepo     = "team/app"       // the big image, as an index
	hubRepo     = "library/app"    // the same, where Docker Hub's names lead
	publicRepo  = "public/hello"   // a small image for anybody
	privateRepo = "private/secret" // one for some
	otherRepo   = "private/other"  // another, for others
	fixtureTag  = "v1"
)

// fixtures are the images that the tests share, made once per test binary and
// lying ready in a registry's storage folder.
type fixtures struct {
	Storage string
	Big     *bigImage
	Public  v1.Image
	Private v1.Image
	Other   v1.Image
}

// fixturesRoot is where TestMain wants the fixtures; it removes them, too.
var fixturesRoot string

var makeFixturesOnce = sync.OnceValues(func() (*fixtures, error) { return makeFixtures(fixturesRoot) })

// loadFixtures returns the fixtures, which the first caller makes and pushes
// through a registry of its own.
func loadFixtures(t testing.TB) *fixtures {
	t.Helper()
	needs(t, "docker-registry")
	done := logTime(t, "making the images, or waiting for them,")
	f, err := makeFixturesOnce()
	if err != nil {
		t.Fatalf("make fixtures: %v", err)
	}
	done()
	pushFixturesOnce.Do(func() {
		reg := startRegistry(t, registryConfig{Storage: f.Storage})
		push(t, reg.Addr, bigRepo+":"+fixtureTag, f.Big.Index, nil)
		push(t, reg.Addr, hubRepo+":"+fixtureTag, f.Big.Index, nil)
		push(t, reg.Addr, publicRepo+":"+fixtureTag, f.Public, nil)
		push(t, reg.Addr, privateRepo+":"+fixtureTag, f.Private, nil)
		push(t, reg.Addr, otherRepo+":"+fixtureTag, f.Other, nil)
	})
	return f
}

var pushFixturesOnce sync.Once

func makeFixtures(root string) (*fixtures, error) {
	f := &fixtures{Storage: filepath.Join(root, "storage")}
	images := filepath.Join(root, "images")
	err := os.MkdirAll(images, 0o755)
	big, bigErr := makeBigImage(images)
	f.Big = big
	var errs [3]error
	f.Public, errs[0] = makeImage(images, "public", 2<<20, 100)
	f.Private, errs[1] = makeImage(images, "private", 3<<20, 200)
	f.Other, errs[2] = makeImage(images, "other", 1<<20)
	return f, errors.Join(append(errs[:], err, bigErr)...)
}

// push writes an image or an index to a registry. Its transport is its own,
// so that no idle connection outlives the call.
func push(t testing.TB, addr, ref string, what remote.Taggable, auth authn.Authenticator) {
	t.Helper()
	if err := tryPush(t, addr, ref, what, auth); err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
}

func tryPush(t testing.TB, addr, ref string, what remote.Taggable, auth authn.Authenticator) error {
	t.Helper()
	tag, err := name.NewTag(addr+"/"+ref, name.Insecure)
	if err != nil {
		return err
	}
	transport := remote.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	options := []remote.Option{remote.WithContext(t.Context()), remote.WithTransport(transport)}
	if auth != nil {
		options = append(options, remote.WithAuth(auth))
	}
	switch image := what.(type) {
	case v1.ImageIndex:
		return remote.WriteIndex(tag, image, options...)
	case v1.Image:
		return remote.Write(tag, image, options...)
	default:
		return fmt.Errorf("neither image nor index: %T", what)
	}
}

// logTime logs how long what took when the returned function is called.
func logTime(t testing.TB, what string) func() {
	start := time.Now()
	return func() {
		t.Helper()
		t.Logf("%s took %v", what, time.Since(start).Round(time.Millisecond))
	}
}
