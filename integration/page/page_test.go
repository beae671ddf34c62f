// Package page tests the seeder's page in a browser: headless Chromium, driven by
// page.mjs. Each state of the page is kept as a picture in bin/page.
package page_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// every is the pace of the page in these tests, so that they do not wait for it.
const every = 200 * time.Millisecond

// TestPage runs page.mjs, which looks at the page of a fake seeder, and reports each of
// its checks.
func TestPage(t *testing.T) {
	node, chromium := needsBrowser(t)
	s := startSeeder(t, &fakeFleet{idle: true}, every)
	control := httptest.NewServer(s)
	defer control.Close()
	shots, err := filepath.Abs("../../bin/page")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, "page.mjs")
	cmd.Env = append(os.Environ(), "PAGE_URL="+s.url(), "PAGE_CONTROL="+control.URL, "PAGE_TOKEN="+rightToken, "PAGE_SHOTS="+shots, "PAGE_CHROMIUM="+chromium)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	checked := 0
	for lines := bufio.NewScanner(out); lines.Scan(); checked++ {
		var check struct {
			Name, Error string
			Seconds     float64
		}
		if err := json.Unmarshal(lines.Bytes(), &check); err != nil {
			t.Errorf("page.mjs said %q", lines.Text())
			continue
		}
		t.Run(check.Name, func(t *testing.T) {
			t.Logf("%.1f s", check.Seconds)
			if check.Error != "" {
				t.Error(check.Error)
			}
		})
	}
	if err := cmd.Wait(); err != nil || checked == 0 {
		t.Errorf("page.mjs ended after %d checks: %v", checked, err)
	}
}

// needsBrowser returns the programs that `make test` installs.
func needsBrowser(t *testing.T) (node, chromium string) {
	t.Helper()
	if testing.Short() {
		t.Skip("a browser, for which -short has no time")
	}
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("node is not installed")
	}
	if chromium, err = exec.LookPath("chromium"); err != nil {
		t.Skip("chromium is not installed")
	}
	if _, err := os.Stat("node_modules/playwright-core"); err != nil {
		t.Skip("playwright-core is not installed: make page-driver")
	}
	return node, chromium
}
