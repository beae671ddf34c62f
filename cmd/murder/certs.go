package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/murderp2p/murder/cmd/murder/mtls"
)

func certsCommand() *cli.Command {
	return &cli.Command{
		Name:  "certs",
		Usage: "makes a CA and host certificates for TLS between mirrors and seeders",
		Description: "Makes the CA of a fleet, unless DIR has one, and the certificate and key of a host, for --tls-cert, --tls-key and\n" +
			"--tls-ca of both daemons. A seeder's certificate must name the hosts and addresses by which mirrors ask it; mirrors are not\n" +
			"asked by name, so that one certificate may serve many. Whoever has a key of the CA or of a host is one of the fleet.",
		Flags: []cli.Flag{
			textOf("dir", ".", "`DIR` for the files: ca.crt, ca.key, and HOST.crt and HOST.key for the first --host", checkNotEmpty),
			listOf("host", "`NAME` or IP of the host (repeatable, all in one certificate; default: this host's name)", checkCertHost),
			countOf("days", "365", 1, 3650, "`NUMBER` of days for which the host's certificate is good"),
			&cli.BoolFlag{Name: "overwrite", Usage: "make the host's certificate and key anew where they are there already; the CA stays"},
		},
		Action: certsAction,
	}
}

// checkCertHost wants what can be in a certificate and in the name of a file.
func checkCertHost(s string) error {
	if _, err := netip.ParseAddr(s); err == nil {
		return nil
	}
	for label := range strings.SplitSeq(strings.TrimPrefix(s, "*."), ".") {
		if label == "" || len(label) > 63 || strings.Trim(strings.ToLower(label), "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return errors.New("it is a host's name or IP address, without a port")
		}
	}
	return nil
}

func certsAction(c *cli.Context) error {
	dir := c.String("dir")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	hosts := listFlag(c, "host")
	if len(hosts) == 0 {
		name, err := os.Hostname()
		if err != nil {
			return usagef(c, "name the host with --host: %v", err)
		}
		hosts = []string{name}
	}
	host := certFilesOf(dir, fileName(hosts[0]))
	if _, err := os.Lstat(host.key); err == nil && !c.Bool("overwrite") {
		return fmt.Errorf("certs: %s is there already; --overwrite makes a new one", host.key)
	}
	ca := certFilesOf(dir, "ca")
	authority, made, err := ca.authority()
	if err != nil {
		return fmt.Errorf("certs: %w", err)
	}
	if made {
		fmt.Fprintf(c.App.Writer, "wrote %s and %s, a new CA; no host needs its key\n", ca.cert, ca.key)
	}
	hosts = withLoopback(hosts)
	days := c.Int("days")
	issued, err := authority.Issue(hosts, time.Duration(days)*24*time.Hour)
	if err != nil {
		return fmt.Errorf("certs: %w", err)
	}
	if err := host.write(issued); err != nil {
		return fmt.Errorf("certs: %w", err)
	}
	fmt.Fprintf(c.App.Writer, "wrote %s and %s, for %s, good for %d days\n", host.cert, host.key, strings.Join(hosts, ", "), days)
	fmt.Fprintf(c.App.Writer, "start mirror and seeder with --tls-cert %s --tls-key %s --tls-ca %s, and name the seeder with https://\n", host.cert, host.key, ca.cert)
	return nil
}

// withLoopback adds the names by which the host finds itself.
func withLoopback(hosts []string) []string {
	for _, own := range []string{"localhost", "127.0.0.1", "::1"} {
		if !slices.Contains(hosts, own) {
			hosts = append(hosts, own)
		}
	}
	return hosts
}

// fileName is a host's name as a file can have it; that of the CA is not for hosts.
func fileName(host string) string {
	name := strings.NewReplacer("*", "_", ":", "-").Replace(host)
	if name == "ca" {
		name = "host-ca"
	}
	return name
}

// certFiles are a certificate and its key.
type certFiles struct{ cert, key string }

func certFilesOf(dir, name string) certFiles {
	return certFiles{filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")}
}

// authority is the CA in f, which is made if neither file is there.
func (f certFiles) authority() (a *mtls.Authority, made bool, err error) {
	cert, certErr := os.ReadFile(f.cert)
	key, keyErr := os.ReadFile(f.key)
	switch {
	case errors.Is(certErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist):
		a, kept, err := mtls.NewAuthority()
		if err != nil {
			return nil, false, err
		}
		return a, true, f.write(kept)
	case certErr != nil || keyErr != nil:
		return nil, false, fmt.Errorf("the CA's two files belong together: %w", errors.Join(certErr, keyErr))
	}
	if a, err = mtls.ParseAuthority(mtls.PEM{Cert: cert, Key: key}); err != nil {
		err = fmt.Errorf("read the CA in %s and %s: %w", f.cert, f.key, err)
	}
	return a, false, err
}

// write puts both files in their places, the key readable for its owner alone.
func (f certFiles) write(p mtls.PEM) error {
	if err := replaceFile(f.key, p.Key, 0o600); err != nil {
		return err
	}
	return replaceFile(f.cert, p.Cert, 0o644)
}

// replaceFile writes a file that nobody sees half.
func replaceFile(name string, content []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(name), ".murder-") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(content)
	if err := errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), name)
}
