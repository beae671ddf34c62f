package layers

import (
	"bytes"
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := make([]byte, 10<<20)
		limiter := NewLimiter(1 << 20)
		start := time.Now()
		got, err := io.ReadAll(Limited(t.Context(), bytes.NewReader(content), limiter))
		if err != nil || len(got) != len(content) {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}
		if took := time.Since(start); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("10 MiB at 1 MiB/s took %v", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := io.ReadAll(Limited(ctx, bytes.NewReader(content), limiter)); err == nil {
			t.Error("read after the context's end = nil error")
		}
	})
	if r := bytes.NewReader(nil); Limited(t.Context(), r, NewLimiter(0)) != io.Reader(r) {
		t.Error("no limit, and yet another reader")
	}
}
