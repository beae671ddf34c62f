package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
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

// TestSystemdUnits has systemd read the units and judge what they leave to the daemons.
func TestSystemdUnits(t *testing.T) {
	needs(t, "systemd-analyze")
	for _, role := range []string{"mirror", "seeder"} {
		content, err := os.ReadFile(filepath.Join("..", "deploy", "systemd", "murder-"+role+".service"))
		if err != nil {
			t.Fatal(err)
		}
		unit := filepath.Join(newRoot(t), "murder-"+role+".service")
		const installed = "/usr/local/bin/murder"
		if !strings.Contains(string(content), "\nExecStart="+installed+" "+role+"\n") {
			t.Errorf("%s starts something else", unit)
		}
		writeFile(t, unit, strings.Replace(string(content), "ExecStart="+installed, "ExecStart="+murderProgram(t), 1))
		for _, args := range [][]string{{"verify", "--man=no", unit}, {"security", "--offline=true", "--threshold=20", unit}} {
			out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
			if err != nil || args[0] == "verify" && len(out) > 0 {
				t.Errorf("systemd-analyze %v: %v\n%s", args, err, out)
			}
		}
		for _, line := range []string{"CapabilityBoundingSet=", "NoNewPrivileges=yes", "ProtectSystem=strict", "DynamicUser=yes", "StateDirectory=murder/" + role} {
			if !strings.Contains(string(content), "\n"+line+"\n") {
				t.Errorf("%s lacks %s", unit, line)
			}
		}
	}
}
