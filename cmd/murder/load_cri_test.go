package main

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/murderp2p/murder/proxy"
)

// fakeEngine is an ImageService that notes what it is asked to pull.
type fakeEngine struct {
	cri.UnimplementedImageServiceServer
	pull   func(context.Context) error
	has    *cri.Image // afterwards
	pulled *cri.PullImageRequest
}

func (e *fakeEngine) PullImage(ctx context.Context, req *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	e.pulled = req
	if e.pull == nil {
		return &cri.PullImageResponse{}, nil
	}
	return &cri.PullImageResponse{}, e.pull(ctx)
}

func (e *fakeEngine) ImageStatus(context.Context, *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	return &cri.ImageStatusResponse{Image: e.has}, nil
}

// serveCRI runs a gRPC server, with that engine if there is one.
func serveCRI(t *testing.T, e *fakeEngine) loader {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "cri.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	if e != nil {
		cri.RegisterImageServiceServer(server, e)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-served })
	return loader{"cri", socket}
}

const (
	ordered = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	another = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// An image counts as loaded only if the engine has what was ordered; what it says otherwise is the error, with its socket.
func TestLoadByCRI(t *testing.T) {
	fails := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	has := func(digests ...string) *cri.Image {
		image := &cri.Image{Id: "sha256:1"}
		for _, d := range digests {
			image.RepoDigests = append(image.RepoDigests, "reg.example/app@"+d)
		}
		return image
	}
	for _, test := range []struct {
		name   string
		loader loader
		image  proxy.PrefetchImage
		want   string // of the error; "" for none
	}{
		{"pulled", serveCRI(t, &fakeEngine{has: has(another, ordered)}), proxy.PrefetchImage{Digest: ordered}, ""},
		{"no digest was ordered", serveCRI(t, &fakeEngine{}), proxy.PrefetchImage{}, ""},
		{"the engine names no digests", serveCRI(t, &fakeEngine{has: has()}), proxy.PrefetchImage{Digest: ordered}, ""},
		{"the tag has moved", serveCRI(t, &fakeEngine{has: has(another)}), proxy.PrefetchImage{Digest: ordered}, "reg.example/app@" + another + " instead of " + ordered},
		{"gone at once", serveCRI(t, &fakeEngine{}), proxy.PrefetchImage{Digest: ordered}, "does not have it"},
		{"it refuses", serveCRI(t, &fakeEngine{pull: fails(status.Error(codes.Unknown, "no space left on device"))}), proxy.PrefetchImage{}, ": no space left on device"},
		{"without the token", serveCRI(t, &fakeEngine{pull: fails(status.Error(codes.Unknown, "401"))}), proxy.PrefetchImage{Authorization: "Bearer secret"}, "without the order's token, which CRI cannot carry: 401"},
		{"it has no CRI", serveCRI(t, nil), proxy.PrefetchImage{}, "is cri among disabled_plugins?"},
		{"it is not there", loader{"cri", "/none/cri.sock"}, proxy.PrefetchImage{}, "no such file or directory"},
	} {
		err := test.loader.blame(test.loader.cri(t.Context(), "reg.example/app:1", test.image))
		switch {
		case test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		case err != nil && (!strings.HasPrefix(err.Error(), "cri at "+test.loader.socket+": ") || strings.Contains(err.Error(), "secret")):
			t.Errorf("%s: %v, want the socket named and no token", test.name, err)
		}
	}
}

// An engine that hangs holds an order up no longer than the order lasts.
func TestLoadByCRIEnds(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	over := errors.New("the order's time is over")
	l := serveCRI(t, &fakeEngine{pull: func(asked context.Context) error {
		cancel(over)
		<-asked.Done()
		return asked.Err()
	}})
	if err := l.cri(ctx, "reg.example/app:1", proxy.PrefetchImage{}); !errors.Is(err, over) {
		t.Errorf("load = %v, want %v", err, over)
	}
}

// The engine is given a password that the order carries, and nothing made of a token: with an empty AuthConfig it would leave its own unused.
func TestLoadByCRIPassesPasswords(t *testing.T) {
	for authorization, want := range map[string]*cri.AuthConfig{
		"":                       nil,
		"Bearer abc":             nil,
		"Basic !":                nil,
		"Basic dXNlcjpwYTpzcw":   nil, // cut short
		"Basic dXNlcjpwYTpzcw==": {Username: "user", Password: "pa:ss"},
	} {
		e := &fakeEngine{}
		if err := serveCRI(t, e).cri(t.Context(), "reg.example/app:1", proxy.PrefetchImage{Authorization: authorization}); err != nil {
			t.Fatal(err)
		}
		if got := e.pulled.Auth; got.String() != want.String() || (got == nil) != (want == nil) {
			t.Errorf("with %q the engine is given %v, want %v", authorization, got, want)
		}
		if got := e.pulled.Image.GetImage(); got != "reg.example/app:1" {
			t.Errorf("it is asked for %s", got)
		}
	}
}
