package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestWithoutRoot runs the daemons as nobody, with no capability left and none to be had,
// as the container image and the systemd units do. A pull works.
func TestWithoutRoot(t *testing.T) {
	needs(t, "setpriv", "docker-registry")
	needsRoot(t) // to give it up
	const nobody = 65534
	images := loadFixtures(t)
	reg := startRegistry(t, registryConfig{Storage: images.Storage})
	if err := os.Chmod(filepath.Dir(murderProgram(t)), 0o711); err != nil {
		t.Fatal(err)
	}
	start := func(role string, seeders ...string) *daemon {
		root := newRoot(t)
		if err := os.Chown(root, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		d := startDaemon(t, role, daemonConfig{
			Seeders: seeders, Insecure: []string{reg.Addr}, Default: reg.Addr, DataDir: filepath.Join(root, "data"),
			Through: []string{program(t, "setpriv"), fmt.Sprint("--reuid=", nobody), fmt.Sprint("--regid=", nobody), "--clear-groups",
				"--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"},
		})
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.PID()))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`Uid:(\t65534){4}`, `CapPrm:\t0+`, `CapEff:\t0+`, `CapBnd:\t0+`, `NoNewPrivs:\t1`} {
			if !regexp.MustCompile("(?m)^" + want + "$").Match(status) {
				t.Errorf("%s runs with more than it needs; want %q in\n%s", role, want, status)
			}
		}
		return d
	}
	seeder := start("seeder")
	for range 2 {
		if _, err := pullImage(t, start("mirror", seeder.URL()), reg.Addr, bigRepo, fixtureTag); err != nil {
			t.Error(err)
		}
	}
}
