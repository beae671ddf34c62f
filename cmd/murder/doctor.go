package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/murderp2p/murder/cmd/murder/engine"
	"github.com/murderp2p/murder/proxy"
)

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "checks mirror, seeder, registry, engine and disk, and says what to mend",
		Description: "Run it on the host whose pulls are in question. What concerns the machine itself, that is engine and disk, is looked at\n" +
			"only if the mirror is on it. Exits with 1 if something must be mended.",
		Flags: []cli.Flag{
			textOf("mirror", defaultMirror, "`URL` or HOST:PORT of the mirror", checkMirrorAddress),
			listOf("registry", "`HOST` of a registry that must be reachable (repeatable; default: those that the mirror has blobs of)", checkRegistry),
			apiTokenFlag(),
			textOf("root", "/", "`DIR` in which the engines' file tree lies", checkNotEmpty),
			outputFlag(),
		},
		Action: doctorAction,
	}
}

// checkTimeout bounds each look at something on the network: what takes longer is ill for a pull, too.
const checkTimeout = 10 * time.Second

// finding is what one check has found.
type finding struct {
	Check string `json:"check"`
	State state  `json:"state"`
	Found string `json:"found"`
	Mend  string `json:"mend,omitempty"` // what to do about it
}

// state is how bad a finding is.
type state string

const (
	stateOK   state = "ok"
	stateWarn state = "warn" // worth knowing; pulls work
	stateFail state = "fail" // must be mended
)

func doctorAction(c *cli.Context) error {
	daemon, err := daemonOf(c)
	if err != nil {
		return err
	}
	d := &doctor{mirror: daemon, registries: listFlag(c, "registry"), root: c.String("root")}
	defer d.mirror.close()
	d.examine(c.Context)
	if err := d.print(c.App.Writer, wantsJSON(c)); err != nil {
		return err
	}
	if n := d.count(stateFail); n > 0 {
		return fmt.Errorf("doctor: %d of %d checks found something to mend", n, len(d.findings))
	}
	return nil
}

// doctor looks at one mirror and what it stands on.
type doctor struct {
	mirror     *client
	registries []string // to check; none: those the mirror knows
	root       string   // of the engines' files
	findings   []finding
}

// found notes what a check has found; mend may be "".
func (d *doctor) found(check string, s state, mend, format string, args ...any) {
	d.findings = append(d.findings, finding{Check: check, State: s, Found: fmt.Sprintf(format, args...), Mend: mend})
}

func (d *doctor) count(s state) (n int) {
	for _, f := range d.findings {
		if f.State == s {
			n++
		}
	}
	return n
}

func (d *doctor) examine(ctx context.Context) {
	report, ok := d.checkMirror(ctx)
	if ok {
		d.checkNeighbours(ctx, report)
		d.checkCertificate(report)
		d.checkPeerPort(ctx, report)
	}
	if !d.isLocal() {
		return
	}
	d.checkEngines()
	if ok {
		d.checkDisk(report)
		d.checkShelf(report)
		d.checkLoader(report)
	}
}

// isLocal reports whether the mirror is on this machine, as far as its address tells.
func (d *doctor) isLocal() bool {
	u, err := url.Parse(d.mirror.base)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
}

func (d *doctor) checkMirror(ctx context.Context) (statusReport, bool) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	report, _, err := d.mirror.status(ctx)
	if e, ok := errors.AsType[*answerError](err); ok && (e.status == http.StatusUnauthorized || e.status == http.StatusForbidden) {
		d.found("mirror", stateFail, "run this on the mirror's host, or give the mirror and this command the same --api-token-file", "%s %v", d.mirror.base, e)
		return report, false
	}
	if err != nil {
		d.found("mirror", stateFail, "start it with `murder mirror`, or name the right address with --mirror", "%s: %v", d.mirror.base, err)
		return report, false
	}
	if report.Role != "mirror" {
		d.found("mirror", stateFail, "name the address of a mirror with --mirror", "%s is a %s, not a mirror", d.mirror.base, report.Role)
		return report, false
	}
	if _, _, err := d.mirror.get(ctx, "/readyz", nil); err != nil {
		d.found("mirror", stateWarn, "wait a moment and look again; its log says what it waits for", "%s is up but not ready: %v", d.mirror.base, err)
		return report, true
	}
	d.found("mirror", stateOK, "", "%s answers, version %s", d.mirror.base, report.Version)
	return report, true
}

// checkNeighbours has the mirror, not this process, ask its seeders and registries: pulls depend on that.
func (d *doctor) checkNeighbours(ctx context.Context, r statusReport) {
	ctx, cancel := context.WithTimeoutCause(ctx, checkTimeout, fmt.Errorf("no answer for %s", checkTimeout))
	defer cancel()
	names, bad := d.registriesOf(r)
	raw, _, err := d.mirror.get(ctx, "/v1/check?"+url.Values{"registry": names}.Encode(), nil)
	var check proxy.Check
	if err == nil {
		err = json.Unmarshal(raw, &check)
	}
	if err != nil {
		d.found("mirror", stateFail, "see the mirror's log; one that is older than this command is to be restarted as what this is", "%s does not say how it finds others: %v", d.mirror.base, err)
		return
	}
	d.checkSeeders(check.Seeders)
	for _, answer := range check.Registries {
		d.checkRegistry(answer, bad)
	}
}

func (d *doctor) checkSeeders(seeders []proxy.SeederHealth) {
	if len(seeders) == 0 {
		d.found("seeder", stateFail, "start the mirror with --seeder URL", "the mirror knows none, so every layer comes from the registry")
		return
	}
	alive := slices.ContainsFunc(seeders, func(s proxy.SeederHealth) bool { return s.OK })
	for _, s := range seeders {
		switch {
		case s.OK:
			d.found("seeder", stateOK, "", "%s answers the mirror", s.URL)
		case alive:
			d.found("seeder", stateWarn, mendSeeder, "%s does not answer the mirror, another does: %s", s.URL, s.Error)
		default:
			d.found("seeder", stateFail, mendSeeder, "%s does not answer the mirror: %s", s.URL, s.Error)
		}
	}
}

// renewWithin is when a certificate's end is worth a warning.
const renewWithin = 7 * 24 * time.Hour

// checkCertificate sees whether others still accept what the mirror shows them.
func (d *doctor) checkCertificate(r statusReport) {
	const mend = "put a new one in its place; the mirror takes it up without a restart"
	if r.TLS == nil {
		return
	}
	until := r.TLS.Expires.Local().Format(time.DateTime)
	switch left := time.Until(r.TLS.Expires); {
	case left <= 0:
		d.found("tls", stateFail, mend, "the certificate %s expired at %s: seeders and peers refuse the mirror", r.TLS.Certificate, until)
	case left < renewWithin:
		d.found("tls", stateWarn, mend, "the certificate %s expires at %s", r.TLS.Certificate, until)
	default:
		d.found("tls", stateOK, "", "the certificate %s is good until %s", r.TLS.Certificate, until)
	}
}

const mendSeeder = "see that `murder seeder` runs there and that no firewall is between; until then pulls go to the registry"

// registriesOf are those to look at, and how bad it is if one does not answer: the default one alone may well be one that nobody here uses.
func (d *doctor) registriesOf(r statusReport) (names []string, bad state) {
	if len(d.registries) > 0 {
		return d.registries, stateFail
	}
	for _, b := range r.Blobs {
		if b.Registry != "" && !slices.Contains(names, b.Registry) {
			names = append(names, b.Registry)
		}
	}
	if len(names) == 0 && r.DefaultRegistry != "" {
		return []string{r.DefaultRegistry}, stateWarn
	}
	return names, stateFail
}

func (d *doctor) checkRegistry(r proxy.RegistryHealth, bad state) {
	switch {
	case r.OK && r.Credentials:
		d.found("registry", stateOK, "", "%s answers the mirror and wants credentials", r.Registry)
	case r.OK:
		d.found("registry", stateOK, "", "%s answers the mirror", r.Registry)
	default:
		d.found("registry", bad, "see whether this host's network, DNS and proxy lead there; if it speaks plain HTTP, the daemons need --insecure-registry "+r.Registry,
			"%s does not answer the mirror: %s", r.Registry, r.Error)
	}
}

// checkPeerPort sees whether the BitTorrent port takes connections. It can do so from this host only.
func (d *doctor) checkPeerPort(ctx context.Context, r statusReport) {
	addr, err := d.peerAddr(r.PeerListen)
	if err != nil {
		d.found("peers", stateFail, "restart the mirror; its log says what happened to --peer-listen", "the mirror says that it listens on %q", r.PeerListen)
		return
	}
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", addr)
	if err != nil {
		d.found("peers", stateFail, "open this port for the other hosts", "%s takes no connections: %v", addr, withoutURL(ctx, err))
		return
	}
	conn.Close()
	d.found("peers", stateOK, "", "%s takes connections from here; other hosts must reach that port too", addr)
}

// peerAddr is where to dial what a mirror listens on: at the mirror's own host if it listens on all addresses.
func (d *doctor) peerAddr(listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", err
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		u, err := url.Parse(d.mirror.base)
		if err != nil {
			return "", err
		}
		host = u.Hostname()
	}
	return net.JoinHostPort(host, port), nil
}

// checkDisk sees whether the cache can grow to its limit, and whether there is room at all.
func (d *doctor) checkDisk(r statusReport) {
	_, free, err := diskSpace(r.DataDir)
	grow := r.Cache.Limit - r.Cache.Bytes
	switch {
	case err != nil:
		d.found("disk", stateWarn, "", "%v", err)
	case free < minFree:
		d.found("disk", stateFail, "make room, or lower --cache-size", "only %s are free where %s lies: the mirror cannot cache", bytesText(free), r.DataDir)
	case r.Cache.Limit == 0:
		d.found("disk", stateWarn, "set --cache-size", "%s are free where %s lies, and the cache has no limit", bytesText(free), r.DataDir)
	case grow > free:
		d.found("disk", stateWarn, "lower --cache-size, or make room",
			"the cache may grow by %s, but only %s are free where %s lies", bytesText(grow), bytesText(free), r.DataDir)
	default:
		d.found("disk", stateOK, "", "the cache may grow by %s; %s are free where %s lies", bytesText(grow), bytesText(free), r.DataDir)
	}
}

// checkShelf sees whether the mirror can read what the engine has. The mirror tells: it may well run as another user than this.
func (d *doctor) checkShelf(r statusReport) {
	switch {
	case r.Shelf == nil:
	case strings.Contains(r.Shelf.Error, "permission denied"):
		d.found("store", stateFail, "let the mirror's user read it, as with AmbientCapabilities=CAP_DAC_READ_SEARCH in its systemd unit, or start it without --engine-store",
			"the mirror may not read the engine's blobs: %s", r.Shelf.Error)
	case r.Shelf.Error != "":
		d.found("store", stateFail, "name the folder that has containerd's blobs/sha256 with --engine-store; as a rule it is "+contentStore,
			"the mirror finds no blobs of the engine: %s", r.Shelf.Error)
	case sets(filepath.Join(d.root, engine.ContainerdConfig), "discard_unpacked_layers", "true"):
		d.found("store", stateWarn, "set discard_unpacked_layers = false in "+engine.ContainerdConfig+", or start the mirror without --engine-store",
			"containerd throws layers away once they are unpacked, so that this host may have none of an image to share")
	default:
		d.found("store", stateOK, "", "the mirror shares %s from %s and keeps no copy", bytesText(r.Shelf.Bytes), r.Shelf.Dir)
	}
}

// checkLoader sees whether the mirror reaches the engine that it is to load images into.
func (d *doctor) checkLoader(r statusReport) {
	switch l := r.LoadInto; {
	case l == nil:
	case l.Error != "":
		d.found("load", stateFail, "let the mirror's user use the socket, with --load-into "+l.Engine+"=SOCKET if it is elsewhere, or start the mirror without --load-into",
			"orders with --load fail, as the mirror does not reach %s at %s: %s", l.Engine, l.Socket, l.Error)
	default:
		d.found("load", stateOK, "", "the mirror reaches %s at %s, for orders with --load", l.Engine, l.Socket)
	}
}

// contentStore is where containerd keeps blobs.
const contentStore = "/var/lib/containerd/io.containerd.content.v1.content"

// minFree is the least free space, in bytes, at which a layer of ordinary size can still be cached.
const minFree = 1 << 30

func (d *doctor) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, struct {
			OK     bool      `json:"ok"`
			Checks []finding `json:"checks"`
		}{d.count(stateFail) == 0, d.findings})
	}
	var b strings.Builder
	for _, f := range d.findings {
		word := string(f.State)
		if f.State == stateFail {
			word = "FAIL"
		}
		fmt.Fprintf(&b, "%-5s %-10s %s\n", word, f.Check, f.Found)
		if f.Mend != "" {
			fmt.Fprintf(&b, "%-5s %-10s mend: %s\n", "", "", f.Mend)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
