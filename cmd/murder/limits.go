package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"mime"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/murderp2p/murder/layers"
	"github.com/murderp2p/murder/registry"
)

// limitNames are the flags that can be changed while a daemon runs: by PATCH /v1/limits, and by SIGHUP from the file of --config.
var limitNames = []string{"upload-limit", "download-limit", "cache-size"}

// maxLimitsBody bounds the body of PATCH /v1/limits in bytes.
const maxLimitsBody = 16 << 10

// limits are a daemon's, by the names of their flags and as somebody wrote them. Transfers under way keep to them as they are now.
type limits struct {
	upload   *layers.Limiter // of what peers and mirrors are served
	download *layers.Limiter // of what comes in
	store    *layers.Store
	dataDir  string
	log      *slog.Logger

	mu  sync.Mutex // guards now, and is held while that is put into force
	now map[string]string
}

// newLimits are those of the daemon's flags; the store keeps to its own already.
func newLimits(c *cli.Context, log *slog.Logger) *limits {
	l := &limits{
		upload: layers.NewLimiter(rateFlag(c, "upload-limit")), download: layers.NewLimiter(rateFlag(c, "download-limit")),
		log: log, now: make(map[string]string),
	}
	for _, name := range limitNames {
		l.now[name] = c.String(name)
	}
	return l
}

// all returns the limits as they are now.
func (l *limits) all() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.now)
}

// change puts new values of some limits into force: of all that are named, or of none if one is wrong, which the error names.
func (l *limits) change(to map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var sets []func()
	for _, name := range slices.Sorted(maps.Keys(to)) {
		set, err := l.parse(name, to[name])
		if err != nil {
			return err
		}
		sets = append(sets, set)
	}
	for _, set := range sets {
		set()
	}
	maps.Copy(l.now, to)
	if len(to) > 0 {
		l.log.Info("limits changed", "upload_limit", l.now["upload-limit"], "download_limit", l.now["download-limit"], "cache_size", l.now["cache-size"])
	}
	return nil
}

// parse returns what puts a limit into force.
func (l *limits) parse(name, text string) (set func(), err error) {
	var n int64
	switch name {
	case "upload-limit":
		n, err = parseRate(text)
		set = func() { l.upload.Set(n) }
	case "download-limit":
		n, err = parseRate(text)
		set = func() { l.download.Set(n) }
	case "cache-size":
		var size cacheSize
		if size, err = parseCacheSize(text); err == nil {
			n, err = size.limit(l.dataDir)
		}
		set = func() { l.store.SetLimit(n) }
	default:
		return nil, fmt.Errorf("unknown limit %.80q; there are %s", name, strings.Join(limitNames, ", "))
	}
	if err != nil {
		return nil, fmt.Errorf("invalid value %.80q for %s: %w", text, name, err)
	}
	return set, nil
}

// serve answers GET and PATCH /v1/limits.
func (l *limits) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPatch {
		to, err := readLimits(w, r)
		if err == nil {
			err = l.change(to)
		}
		if err != nil {
			registry.WriteError(w, r, &registry.Error{Status: http.StatusBadRequest, Code: registry.CodeUnsupported, Message: err.Error()})
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	printJSON(w, l.all())
}

// readLimits reads the body of a PATCH: JSON, which a page in a browser cannot send to another site unasked.
func readLimits(w http.ResponseWriter, r *http.Request) (map[string]string, error) {
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t != "application/json" && t != "application/merge-patch+json" {
		return nil, fmt.Errorf("the body must be application/json, not %.80q", t)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxLimitsBody))
	if err != nil {
		return nil, fmt.Errorf("limits: %w", err)
	}
	return parseLimits(body)
}

// parseLimits reads a JSON object of limits. Values are texts as the flags take them, or numbers of bytes.
func parseLimits(body []byte) (map[string]string, error) {
	var values map[string]json.RawMessage
	if err := json.Unmarshal(body, &values); err != nil || values == nil {
		return nil, fmt.Errorf(`limits are written as {"upload-limit": "500Mbit"}, not %.80q`, body)
	}
	to := make(map[string]string)
	for name, value := range values {
		var text string
		var number json.Number
		switch {
		case string(value) == "null":
			return nil, fmt.Errorf("the value of %.80q is missing", name)
		case json.Unmarshal(value, &text) == nil:
			to[name] = text
		case json.Unmarshal(value, &number) == nil:
			to[name] = number.String()
		default:
			return nil, fmt.Errorf("invalid value %.80s for %.80q: it is a text such as \"60MiB\"", value, name)
		}
	}
	return to, nil
}

// catchHangups keeps SIGHUP from ending the program from now on: it asks a daemon to read again what can be read again, and it may come
// before the daemon is ready for that.
func catchHangups() chan os.Signal {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	return hangups
}

// reloadOnHangup reads the limits from the file of --config again at each SIGHUP until ctx ends. Without such a file there is nothing to be
// done: certificates and tokens are read again by themselves.
func (l *limits) reloadOnHangup(ctx context.Context, hangups <-chan os.Signal, c *cli.Context) {
	file := c.String(configFlag)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		}
		if file == "" {
			l.log.Info("SIGHUP has the file of --config read again, and there is none; `murder limits` changes limits, certificates and tokens are read again by themselves")
			continue
		}
		if err := l.reload(c, file); err != nil {
			l.log.Error("config not read again, the limits stay", "file", file, "err", err)
		}
	}
}

// reload puts the limits that the file names into force, but for those that a flag or the environment has set.
func (l *limits) reload(c *cli.Context, file string) error {
	doc, err := readYAML(file)
	if err != nil {
		return err
	}
	to := make(map[string]string)
	for i := 0; i+1 < len(doc.Content); i += 2 {
		name, value := doc.Content[i].Value, doc.Content[i+1]
		if !slices.Contains(limitNames, name) || outranked(c, name) {
			continue
		}
		items, err := scalars(value)
		if err == nil && len(items) != 1 {
			err = fmt.Errorf("it takes one value, not %d", len(items))
		}
		if err != nil {
			return fmt.Errorf("line %d: key %q: %w", doc.Content[i].Line, name, err)
		}
		to[name] = items[0]
	}
	return l.change(to)
}

func limitsCommand() *cli.Command {
	return &cli.Command{
		Name:      "limits",
		Usage:     "shows or changes the limits of a daemon that runs",
		ArgsUsage: "[NAME=VALUE...]",
		Description: "NAME is upload-limit, download-limit or cache-size, and VALUE what that flag of the daemon takes. Transfers under way keep\n" +
			"to the new limit at once, a cache that is too large shrinks. It holds until the daemon ends; for longer change its flags,\n" +
			"or its --config file, of which the daemon reads these again on SIGHUP. A seeder answers too: --mirror http://SEEDER:7070,\n" +
			"or https:// with the --tls flags of the daemons.\n\n" +
			"   murder limits upload-limit=100Mbit cache-size=50GiB",
		Flags: append([]cli.Flag{
			textOf("mirror", defaultMirror, "`URL` or HOST:PORT of the mirror", checkMirrorAddress),
			apiTokenFlag(),
			outputFlag(),
		}, tlsFlags()...),
		Action: limitsAction,
	}
}

func limitsAction(c *cli.Context) error {
	to := make(map[string]string)
	for _, arg := range c.Args().Slice() {
		name, value, ok := strings.Cut(arg, "=")
		if !ok {
			return usagef(c, "invalid argument %q: a limit is written as upload-limit=500Mbit", arg)
		}
		if _, err := (&limits{dataDir: "/"}).parse(name, value); err != nil {
			return usagef(c, "%v", err)
		}
		to[name] = value
	}
	daemon, err := daemonOf(c)
	if err != nil {
		return err
	}
	defer daemon.close()
	now, err := daemon.limits(c.Context, to)
	if err != nil {
		return fmt.Errorf("limits of %s: %w", daemon.base, err)
	}
	if wantsJSON(c) {
		return printJSON(c.App.Writer, now)
	}
	t := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
	for _, name := range limitNames {
		fmt.Fprintf(t, "%s\t%s\n", name, now[name])
	}
	return t.Flush()
}

// limits changes those that are named, and returns all.
func (c *client) limits(ctx context.Context, to map[string]string) (now map[string]string, err error) {
	method, header, body := http.MethodGet, http.Header{}, io.Reader(nil)
	if len(to) > 0 {
		b, err := json.Marshal(to)
		if err != nil {
			return nil, err
		}
		method, body = http.MethodPatch, bytes.NewReader(b)
		header.Set("Content-Type", "application/json")
	}
	resp, err := c.do(ctx, method, "/v1/limits", header, body)
	if err != nil {
		return nil, mirrorError(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&now); err != nil {
		return nil, fmt.Errorf("read the daemon's answer: %w", err)
	}
	return now, nil
}
