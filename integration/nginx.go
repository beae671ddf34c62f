package integration

import (
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
)

// nginx serves a folder as static files with sendfile: the yardstick for warm
// blobs.
type nginx struct {
	*process
	Addr string
}

// startNginx starts one worker, as murder too is one process. tcp_nopush stays
// off: over loopback it costs nginx up to half of its throughput.
func startNginx(t testing.TB, folder string) *nginx {
	t.Helper()
	needs(t, "nginx")
	root := newRoot(t)
	n := &nginx{Addr: freeAddr(t, "127.0.0.1")}
	conf := filepath.Join(root, "nginx.conf")
	writeFile(t, conf, fmt.Sprintf(`daemon off; master_process off; worker_processes 1; pid %[1]s/pid; error_log stderr warn;
events {}
http {
	access_log off; sendfile on;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
	server { listen %[2]s; root %[3]s; }
}
`, root, n.Addr, folder))
	n.process = startProcess(t, processConfig{Args: []string{program(t, "nginx"), "-p", root, "-e", "stderr", "-c", conf}})
	n.waitUntil(t, "GET /", func() error {
		resp, err := http.Get("http://" + n.Addr + "/")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	return n
}
