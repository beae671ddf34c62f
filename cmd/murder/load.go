package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/murderp2p/murder/proxy"
)

// loader has an engine take images out of the mirror's cache. Docker and containerd are handed them and ask nobody; by CRI the engine is told
// to pull, and asks its mirror.
type loader struct {
	engine string // a key of engineSockets; "" for none
	socket string
}

// engineSockets are where engines listen unless told otherwise.
var engineSockets = map[string]string{
	"docker":     "/var/run/docker.sock",
	"containerd": "/run/containerd/containerd.sock",
	"cri":        "/run/containerd/containerd.sock",
}

// parseLoader reads ENGINE or ENGINE=SOCKET. A socket may be written as the kubelet and docker have it, unix:///run/x.sock.
func parseLoader(s string) (loader, error) {
	engine, socket, _ := strings.Cut(s, "=")
	byDefault, known := engineSockets[engine]
	if !known {
		return loader{}, errors.New("it is docker, containerd or cri, or one of them with its socket, as cri=/run/crio/crio.sock")
	}
	socket = cmp.Or(strings.TrimPrefix(socket, "unix://"), byDefault)
	if !filepath.IsAbs(socket) {
		return loader{}, fmt.Errorf("socket %q is no absolute path", socket)
	}
	return loader{engine, socket}, nil
}

// status tells what keeps the mirror from the engine, as far as can be seen while nothing is loaded; nil without an engine.
func (l loader) status(ctx context.Context) *loaderStatus {
	if l.engine == "" {
		return nil
	}
	s := &loaderStatus{Engine: l.engine, Socket: l.socket}
	if err := l.reach(ctx); err != nil {
		s.Error = err.Error()
	}
	return s
}

func (l loader) reach(ctx context.Context) error {
	if l.engine == "containerd" {
		if _, err := exec.LookPath("ctr"); err != nil {
			return err
		}
	}
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", l.socket)
	if err != nil {
		return err
	}
	return conn.Close()
}

// maxSaid bounds what is read of an engine's own words, in bytes.
const maxSaid = 4 << 10

// load has the engine take what export writes.
func (l loader) load(ctx context.Context, export func(io.Writer) error) error {
	archive, feed := io.Pipe()
	fed := make(chan error, 1)
	go func() {
		err := export(feed)
		feed.CloseWithError(err)
		fed <- err
	}()
	err := l.take(ctx, archive)
	archive.CloseWithError(cmp.Or(err, io.ErrClosedPipe)) // an engine may leave the end of a tar unread
	if exportErr := <-fed; exportErr != nil && !errors.Is(exportErr, io.ErrClosedPipe) && (err == nil || !errors.Is(exportErr, err)) {
		return exportErr
	}
	return l.blame(err)
}

func (l loader) take(ctx context.Context, archive io.Reader) error {
	if l.engine == "docker" {
		return l.docker(ctx, archive)
	}
	return l.containerd(ctx, archive)
}

// docker is `docker load`. https://docs.docker.com/reference/api/engine/
func (l loader) docker(ctx context.Context, archive io.Reader) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://docker/images/load?quiet=1", archive)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-tar")
	resp, err := client.Do(req)
	if err != nil {
		return withoutURL(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, maxSaid))
		return fmt.Errorf("it answers %s: %s", resp.Status, bytes.TrimSpace(said))
	}
	for said := json.NewDecoder(resp.Body); ; {
		var line struct{ Error string }
		if err := said.Decode(&line); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if line.Error != "" {
			return errors.New(line.Error)
		}
	}
}

// containerd is `ctr images import` into the namespace of Kubernetes, unless the environment names another.
func (l loader) containerd(ctx context.Context, archive io.Reader) error {
	cmd := exec.CommandContext(ctx, "ctr", "--address", l.socket, "--namespace", cmp.Or(os.Getenv("CONTAINERD_NAMESPACE"), "k8s.io"), "images", "import", "-")
	var said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = archive, io.Discard, &limitedWriter{&said, maxSaid}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("ctr images import: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}

// limitedWriter keeps the first bytes and takes all.
type limitedWriter struct {
	*bytes.Buffer
	left int
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.left)
	w.left -= n
	w.Buffer.Write(p[:n])
	return len(p), nil
}

// loadAll loads the images of an order.
func (l loader) loadAll(ctx context.Context, mirror *proxy.Mirror, images []proxy.PrefetchImage) error {
	for _, image := range images {
		if err := l.loadOne(ctx, mirror, image); err != nil {
			return fmt.Errorf("load %s: %w", image.Ref, err)
		}
	}
	return nil
}

func (l loader) loadOne(ctx context.Context, mirror *proxy.Mirror, image proxy.PrefetchImage) error {
	if l.engine != "cri" {
		return l.load(ctx, func(w io.Writer) error { return mirror.Export(ctx, image, w) })
	}
	name, err := mirror.ImageName(image)
	if err != nil {
		return err
	}
	return l.blame(l.cri(ctx, name, image))
}

// blame says which engine an error is of.
func (l loader) blame(err error) error {
	if err != nil {
		err = fmt.Errorf("%s at %s: %w", l.engine, l.socket, err)
	}
	return err
}
