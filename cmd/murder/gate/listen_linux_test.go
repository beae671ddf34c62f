package gate

import (
	"net/http"
	"testing"
	"time"
)

// A client that asks for much and reads nothing is cut.
func TestStalledClientIsCut(t *testing.T) {
	ended := make(chan error, 1)
	addr := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		chunk := make([]byte, 1<<20)
		for {
			if _, err := w.Write(chunk); err != nil {
				ended <- err
				return
			}
		}
	}), 10, 300*time.Millisecond)
	dial(t, addr, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	select {
	case <-ended:
	case <-time.After(time.Minute): // far more than it takes
		t.Error("the client was not cut")
	}
}
