package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

// Set by the Makefile with -ldflags "-X main.version=... -X main.commit=..."; without it the build's own information stands in.
var (
	version string
	commit  string
)

// build says what the binary was made from.
type build struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"` // "" when not known
	Go       string `json:"go"`
	Platform string `json:"platform"` // "linux/amd64"
}

func thisBuild() build {
	b := build{Version: version, Commit: commit, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	if b.Version == "" && info.Main.Version != "" && info.Main.Version != "(devel)" {
		b.Version = info.Main.Version
	}
	if b.Version == "" {
		b.Version = "devel"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && b.Commit == "" {
			b.Commit = s.Value
		}
	}
	return b
}

// buildVersion is the version that the daemons report and the help shows.
func buildVersion() string { return thisBuild().Version }

func (b build) String() string {
	text := fmt.Sprintf("murder %s (%s, %s", b.Version, b.Go, b.Platform)
	if b.Commit != "" {
		text += ", commit " + b.Commit
	}
	return text + ")"
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "what this binary was built from",
		Flags: []cli.Flag{outputFlag()},
		Action: func(c *cli.Context) error {
			if wantsJSON(c) {
				return printJSON(c.App.Writer, thisBuild())
			}
			_, err := fmt.Fprintln(c.App.Writer, thisBuild())
			return err
		},
	}
}

// printJSON writes v as one JSON document for scripts.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
