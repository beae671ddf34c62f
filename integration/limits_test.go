package integration

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// At this rate the test's blob takes the better part of an hour, and the test ends only if the limit goes.
const hardlyAnything = "1KiB"

// TestLimitsOfTransfersUnderWay lifts the limit of a blob whose first bytes a client has: by murder's command and by SIGHUP.
func TestLimitsOfTransfersUnderWay(t *testing.T) {
	needs(t, "docker-registry")
	image, err := makeImage(newRoot(t), "limits", 3<<20)
	if err != nil {
		t.Fatal(err)
	}
	reg := startRegistry(t, registryConfig{})
	push(t, reg.Addr, "limited/app:v1", image, nil)
	blob := layerBlobs(t, image)[0]
	for name, test := range map[string]struct {
		role, limit string
		lift        func(t *testing.T, d *daemon, config string)
	}{
		"mirror by command": {"mirror", "download-limit", func(t *testing.T, d *daemon, _ string) { liftByCommand(t, d, "download-limit") }},
		"seeder by command": {"seeder", "upload-limit", func(t *testing.T, d *daemon, _ string) { liftByCommand(t, d, "upload-limit") }},
		"mirror by SIGHUP":  {"mirror", "download-limit", liftBySignal},
	} {
		t.Run(name, func(t *testing.T) {
			config := filepath.Join(t.TempDir(), "murder.yaml")
			writeFile(t, config, test.limit+": "+hardlyAnything+"\ncache-size: 1GiB\nzone: here\n")
			d := startDaemon(t, test.role, daemonConfig{Insecure: []string{reg.Addr}, Flags: []string{"--config", config}})
			body, err := openBlob(t, d.Blob(reg.Addr, "limited/app", blob.Digest))
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			verifier := blob.Digest.Verifier()
			if _, err := io.CopyN(verifier, body, 1); err != nil {
				t.Fatal(err)
			}
			test.lift(t, d, config)
			if n, err := io.Copy(verifier, body); err != nil || n != blob.Size-1 || !verifier.Verified() {
				t.Errorf("after the limit was lifted %d bytes of %d came, %v", n, blob.Size-1, err)
			}
		})
	}
}

func liftByCommand(t *testing.T, d *daemon, limit string) {
	t.Helper()
	out, errs, code := runMurder(t, nil, "limits", "--mirror", d.URL(), limit+"=0", "cache-size=2GiB")
	if code != 0 || !strings.Contains(out, "cache-size      2GiB\n") {
		t.Fatalf("murder limits = %d: %s\n%s", code, errs, out)
	}
	if got := d.Metrics(t).Sum("murder_cache_limit_bytes"); got != 2<<30 {
		t.Errorf("the cache holds %.0f bytes, want 2 GiB", got)
	}
	// A change that is wrong in one part changes nothing.
	_, errs, code = runMurder(t, nil, "limits", "--mirror", d.URL(), limit+"=1KiB", "cache-size=plenty")
	if code != 2 || !strings.Contains(errs, `invalid value "plenty" for cache-size`) {
		t.Errorf("murder limits with a wrong value = %d: %s", code, errs)
	}
	if out, _, _ := runMurder(t, nil, "limits", "--mirror", d.URL()); !strings.Contains(out, fmt.Sprintf("%-14s  0\n", limit)) {
		t.Errorf("limits after a wrong change:\n%s", out)
	}
}

func liftBySignal(t *testing.T, d *daemon, config string) {
	t.Helper()
	writeFile(t, config, "download-limit: fast\ncache-size: 2GiB\n")
	d.Signal(t, syscall.SIGHUP)
	d.waitLine(t, "the wrong file's error", func(line string) bool { return strings.Contains(line, `invalid value \"fast\" for download-limit`) })
	writeFile(t, config, "download-limit: 0\nzone: elsewhere, which does not count\n")
	d.Signal(t, syscall.SIGHUP)
	d.waitLine(t, "the new limits", func(line string) bool { return strings.Contains(line, `"limits changed"`) })
	if got := d.Metrics(t).Sum("murder_cache_limit_bytes"); got != 1<<30 {
		t.Errorf("the cache holds %.0f bytes, want 1 GiB as before", got)
	}
}

// SIGHUP asks a daemon to read again what can be read again. Where that is nothing, it goes on all the same.
func TestHangupEndsNoDaemon(t *testing.T) {
	for _, role := range []string{"seeder", "mirror"} {
		t.Run(role, func(t *testing.T) {
			d := startDaemon(t, role, daemonConfig{})
			d.Signal(t, syscall.SIGHUP)
			d.waitLine(t, "what SIGHUP is for", func(line string) bool { return strings.Contains(line, "SIGHUP has the file of --config read again") })
			if a := get(t, d.URL()+"/livez"); a.Status != http.StatusOK {
				t.Errorf("after SIGHUP the %s answers %d", role, a.Status)
			}
		})
	}
}
