package gate

import (
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// Connections bounds how many connections a server has open. One too many is
// closed at once, so that whoever has another way takes it, rather than wait.
type Connections struct {
	Max int64
	Log *slog.Logger

	open   atomic.Int64
	warned atomic.Int64 // when it was last said, in Unix seconds
}

// warnEvery is the least time between two warnings.
const warnEvery = time.Minute

// Open returns how many connections are open.
func (c *Connections) Open() int64 { return c.open.Load() }

// State is to be told of each connection, as http.Server.ConnState is.
func (c *Connections) State(conn net.Conn, s http.ConnState) {
	switch s {
	case http.StateNew:
		if c.open.Add(1) > c.Max {
			c.warn()
			conn.Close() // the server finds it closed, and tells us
		}
	case http.StateClosed, http.StateHijacked:
		c.open.Add(-1)
	}
}

func (c *Connections) warn() {
	now, last := time.Now().Unix(), c.warned.Load()
	if now-last >= int64(warnEvery/time.Second) && c.warned.CompareAndSwap(last, now) {
		c.Log.Warn("too many connections, new ones are closed", "max", c.Max)
	}
}
