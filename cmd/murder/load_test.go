package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseLoader(t *testing.T) {
	for text, want := range map[string]loader{
		"docker":                         {"docker", "/var/run/docker.sock"},
		"containerd":                     {"containerd", "/run/containerd/containerd.sock"},
		"containerd=/run/x.sock":         {"containerd", "/run/x.sock"},
		"cri":                            {"cri", "/run/containerd/containerd.sock"},
		"cri=unix:///run/crio/crio.sock": {"cri", "/run/crio/crio.sock"},
	} {
		if got, err := parseLoader(text); got != want || err != nil {
			t.Errorf("parseLoader(%s) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "podman", "=/run/x.sock", "Docker", "cri=crio.sock", "cri=tcp://10.0.0.1:1"} {
		if got, err := parseLoader(text); err == nil {
			t.Errorf("parseLoader(%q) = %v, want an error", text, got)
		}
	}
}

// What would keep an order from being loaded is known before one comes.
func TestLoaderStatus(t *testing.T) {
	engine := fakeDocker(t, http.NotFound)
	t.Setenv("PATH", t.TempDir()) // without a ctr
	for _, test := range []struct {
		loader loader
		want   string
	}{
		{engine, ""},
		{loader{"cri", engine.socket}, ""},
		{loader{"cri", "/none/cri.sock"}, "no such file or directory"},
		{loader{"containerd", engine.socket}, `"ctr": executable file not found`},
	} {
		if s := test.loader.status(t.Context()); s.Socket != test.loader.socket || (s.Error == "") != (test.want == "") || !strings.Contains(s.Error, test.want) {
			t.Errorf("%v: %+v, want the error %q", test.loader, s, test.want)
		}
	}
	if s := (loader{}).status(t.Context()); s != nil {
		t.Errorf("without an engine: %+v", s)
	}
}

// fakeDocker answers POST /images/load at a socket.
func fakeDocker(t *testing.T, answer http.HandlerFunc) loader {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "docker.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: answer}}
	server.Start()
	t.Cleanup(server.Close)
	return loader{"docker", socket}
}

// What an engine says is the error, and so is what kept the archive from being written; a broken archive is never a loaded image.
func TestLoad(t *testing.T) {
	archive := func(w io.Writer) error {
		_, err := io.WriteString(w, strings.Repeat("tar", 1<<20))
		return err
	}
	ctr := func(script string) loader {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "ctr"), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
		return loader{"containerd", "/none"}
	}
	takes := func(w http.ResponseWriter, r *http.Request) {
		if n, err := io.Copy(io.Discard, r.Body); err != nil || n != 3<<20 {
			http.Error(w, fmt.Sprintf("%d bytes, %v", n, err), http.StatusBadRequest)
			return
		}
		fmt.Fprintln(w, `{"stream":"Loaded image: app:1"}`)
	}
	for _, test := range []struct {
		name   string
		loader loader
		export func(io.Writer) error
		want   string // of the error; "" for none
	}{
		{"docker takes it", fakeDocker(t, takes), archive, ""},
		{"docker refuses", fakeDocker(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) }), archive, "403 Forbidden: no"},
		{"docker fails in the middle", fakeDocker(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			fmt.Fprintln(w, `{"stream":"x"}`)
			fmt.Fprintln(w, `{"error":"no space left on device"}`)
		}), archive, "no space left on device"},
		{"the archive breaks off", fakeDocker(t, takes), func(w io.Writer) error {
			io.WriteString(w, "ta")
			return errors.New("the blob came out wrong")
		}, "the blob came out wrong"},
		{"docker is not there", loader{"docker", "/none"}, archive, "docker at /none"},
		{"ctr takes it", ctr("cat >/dev/null"), archive, ""},
	} {
		err := test.loader.load(t.Context(), test.export)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
	for script, want := range map[string]string{
		"cat >/dev/null; echo permission denied >&2; exit 1": "permission denied",
		"echo at once >&2; exit 1":                           "at once",
	} {
		if err := ctr(script).load(t.Context(), archive); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ctr %q: %v, want %q", script, err, want)
		}
	}
}
