package main

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/urfave/cli/v2"

	"github.com/murderp2p/murder/cmd/murder/mtls"
	"github.com/murderp2p/murder/seeder/roster"
)

// tlsFlagNames are the flags of [tlsFlags] in the order in which people are told of them.
var tlsFlagNames = []string{"tls-cert", "tls-key", "tls-ca"}

// tlsFlags are for who speaks TLS with other murders. All three are given, or none.
func tlsFlags() []cli.Flag {
	return []cli.Flag{
		textOf("tls-cert", "", "`FILE` with this host's certificate, for mutual TLS between mirrors and seeders", nil),
		textOf("tls-key", "", "`FILE` with the private key of --tls-cert", nil),
		textOf("tls-ca", "", "`FILE` with the CA of all mirrors and seeders; `murder certs` makes all three files", nil),
	}
}

// tlsFiles are the files that tlsFlags name; the zero Files are none.
func tlsFiles(c *cli.Context) (mtls.Files, error) {
	var given, missing []string
	for _, name := range tlsFlagNames {
		if c.String(name) == "" {
			missing = append(missing, "--"+name)
		} else {
			given = append(given, "--"+name)
		}
	}
	if len(given) > 0 && len(missing) > 0 {
		return mtls.Files{}, usagef(c, "%s without %s: TLS takes all of --%s", strings.Join(given, " and "), strings.Join(missing, " and "), strings.Join(tlsFlagNames, ", --"))
	}
	return mtls.Files{Cert: c.String("tls-cert"), Key: c.String("tls-key"), CA: c.String("tls-ca")}, nil
}

// openTLS reads the files of tlsFlags; nil without.
func openTLS(c *cli.Context, log *slog.Logger) (*mtls.Identity, error) {
	files, err := tlsFiles(c)
	if err != nil || files == (mtls.Files{}) {
		return nil, err
	}
	id, err := mtls.Open(files, log)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", strings.Join(tlsFlagNames, ", --"), err)
	}
	return id, nil
}

// openTLS is how the daemon shows others who it is, and knows them.
func (d *daemon) openTLS() error {
	id, err := openTLS(d.cli, d.log)
	if err != nil || id == nil {
		return err
	}
	for _, url := range listFlag(d.cli, "seeder") {
		if name, err := roster.Parse(url); err == nil && !name.TLS() {
			return usagef(d.cli, "invalid value %q for --seeder: with --tls-ca it is written as https://HOST:PORT or srv+https://NAME", url)
		}
	}
	d.tls = id
	d.metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "murder_tls_certificate_expiry_timestamp_seconds", Help: "When this host's certificate expires, in Unix time.",
	}, func() float64 { return float64(id.Expires().Unix()) }))
	return nil
}
