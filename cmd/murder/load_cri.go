package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/murderp2p/murder/proxy"
	"github.com/murderp2p/murder/seeder/fleet"
)

// cri has the engine pull an image as the kubelet would. Nothing is handed over: the engine asks its mirror, which has all of it by now.
// CRI pulls by name, and the name may lead elsewhere than when the image was ordered; that is an error.
func (l loader) cri(ctx context.Context, name string, image proxy.PrefetchImage) error {
	conn, err := grpc.NewClient("unix:"+l.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	images, spec := cri.NewImageServiceClient(conn), &cri.ImageSpec{Image: name}
	auth := criAuth(image.Authorization)
	if _, err := images.PullImage(ctx, &cri.PullImageRequest{Image: spec, Auth: auth}); err != nil {
		err = criError(ctx, err)
		if auth == nil && image.Authorization != "" {
			err = fmt.Errorf("without the order's token, which CRI cannot carry: %w", err) // first, as reports are cut short
		}
		return err
	}
	if image.Digest == "" {
		return nil
	}
	has, err := images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec})
	if err != nil {
		return criError(ctx, err)
	}
	return checkPulled(has.GetImage(), image.Digest)
}

// criAuth is what CRI can carry of an Authorization header: user and password. Of tokens it knows only those that are exchanged for others
// (containerd's ParseAuth, CRI-O's PullImage). Nil has the engine ask with credentials of its own, if it has any; an empty one would not.
func criAuth(authorization string) *cri.AuthConfig {
	user, password, ok := (&http.Request{Header: http.Header{"Authorization": {authorization}}}).BasicAuth()
	if !ok {
		return nil
	}
	return &cri.AuthConfig{Username: user, Password: password} // without a ServerAddress, which would keep it from the mirror
}

// checkPulled compares what the engine has under a name with what was ordered.
func checkPulled(has *cri.Image, ordered digest.Digest) error {
	if has == nil {
		return errors.New("it says that it has pulled the image, and does not have it")
	}
	named := slices.ContainsFunc(has.RepoDigests, func(s string) bool { return strings.HasSuffix(s, "@"+ordered.String()) })
	if len(has.RepoDigests) > 0 && !named {
		return fmt.Errorf("%w: the tag has moved since the order, and it has pulled %s instead of %s", fleet.ErrHopeless, strings.Join(has.RepoDigests, ", "), ordered)
	}
	return nil
}

// criError is what the engine says, without gRPC's own words around it.
func criError(ctx context.Context, err error) error {
	said := status.Convert(err)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case said.Code() == codes.Unimplemented: // as containerd is that Docker brings along
		return fmt.Errorf("%w: it does not speak CRI v1; with containerd, is cri among disabled_plugins? (%s)", fleet.ErrHopeless, said.Message())
	default:
		return errors.New(said.Message())
	}
}
