package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// image is the name of an image or other artifact, as an engine would understand it.
type image struct{ ref name.Reference }

// parseImage reads HOST/REPOSITORY:TAG or @DIGEST; Docker Hub is meant, and its library, where engines would mean it.
func parseImage(s string) (image, error) {
	ref, err := name.ParseReference(s)
	if err != nil {
		return image{}, errors.New("an image is written as HOST/REPOSITORY:TAG or HOST/REPOSITORY@DIGEST")
	}
	return image{ref}, nil
}

// registry is the host as the wire and people name it: Docker Hub is docker.io.
func (i image) registry() string {
	if host := i.ref.Context().RegistryStr(); host != name.DefaultRegistry {
		return host
	}
	return "docker.io"
}

func (i image) repository() string { return i.ref.Context().RepositoryStr() }

// String is the full name: docker.io/library/debian:12.
func (i image) String() string {
	sep := ":"
	if _, ok := i.ref.(name.Digest); ok {
		sep = "@"
	}
	return fmt.Sprintf("%s/%s%s%s", i.registry(), i.repository(), sep, i.ref.Identifier())
}

// checkPlatform wants OS/ARCH or OS/ARCH/VARIANT, or "all".
func checkPlatform(s string) error {
	parts := strings.Split(s, "/")
	for _, p := range parts {
		if p == "" {
			parts = nil
		}
	}
	if s != "all" && len(parts) != 2 && len(parts) != 3 {
		return errors.New("a platform is written as linux/arm64, or linux/arm/v7, or all")
	}
	return nil
}
