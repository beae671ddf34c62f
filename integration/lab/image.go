package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/integration/netlab"
)

// repository is where the lab's images are in its registry.
const repository = "lab/app"

// blob is a piece of content that hosts pull.
type blob struct {
	Digest digest.Digest
	Size   int64
}

// image is an image in the registry.
type image struct {
	Tag    string
	Config blob
	Layers []blob
	layers []*noise // what Layers are the blobs of
}

// blobs are all that a host pulls, in the order in which it asks.
func (i image) blobs() []blob { return append([]blob{i.Config}, i.Layers...) }

// noise is a layer of bytes that do not compress and follow from its seed and
// size, so that they need not be kept anywhere. It implements v1.Layer. It is
// no tar: the lab unpacks nothing.
type noise struct {
	seed   string
	size   int64
	digest v1.Hash
}

func newNoise(seed string, size int64) (*noise, error) {
	l := &noise{seed: fmt.Sprintf("%s %d", seed, size), size: size}
	sum := sha256.New()
	if _, err := io.Copy(sum, l.reader()); err != nil {
		return nil, err
	}
	l.digest = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}
	return l, nil
}

func (l *noise) reader() io.Reader {
	return io.LimitReader(rand.NewChaCha8(sha256.Sum256([]byte(l.seed))), l.size)
}

func (l *noise) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *noise) DiffID() (v1.Hash, error)             { return l.digest, nil }
func (l *noise) Size() (int64, error)                 { return l.size, nil }
func (l *noise) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }
func (l *noise) Compressed() (io.ReadCloser, error)   { return io.NopCloser(l.reader()), nil }
func (l *noise) Uncompressed() (io.ReadCloser, error) { return io.NopCloser(l.reader()), nil }

func (l *noise) blob() blob { return blob{digest.Digest(l.digest.String()), l.size} }

// pushImage pushes an image with a layer for each size to the registry on m.
// The same tag and sizes give the same image.
func pushImage(ctx context.Context, m *netlab.Machine, tag string, sizes []int64) (image, error) {
	pushed := image{Tag: tag}
	built := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for i, size := range sizes {
		layer, err := newNoise(fmt.Sprintf("%s %d", tag, i), size)
		if err != nil {
			return pushed, err
		}
		pushed.Layers, pushed.layers = append(pushed.Layers, layer.blob()), append(pushed.layers, layer)
		if built, err = mutate.AppendLayers(built, layer); err != nil {
			return pushed, err
		}
	}
	config, err := built.RawConfigFile()
	if err != nil {
		return pushed, err
	}
	pushed.Config = blob{digest.FromBytes(config), int64(len(config))}
	ref, err := name.NewTag(fmt.Sprintf("%s/%s:%s", registryName(m.Addr), repository, tag), name.Insecure)
	if err != nil {
		return pushed, err
	}
	transport := &http.Transport{DialContext: m.DialContext}
	defer transport.CloseIdleConnections()
	if err := remote.Write(ref, built, remote.WithContext(ctx), remote.WithTransport(transport)); err != nil {
		return pushed, fmt.Errorf("push %s: %w", ref, err)
	}
	return pushed, nil
}

// registryName is how images and flags name the registry at addr.
func registryName(addr netip.Addr) string {
	return netip.AddrPortFrom(addr, registryPort).String()
}
