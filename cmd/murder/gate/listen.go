package gate

import (
	"context"
	"net"
	"time"
)

// stall is for how long a client may take none of the bytes that it has asked
// for. An engine that unpacks a large layer may stop reading for a while.
const stall = 5 * time.Minute

// Listen listens for TCP at addr. A connection whose client takes no byte any
// more is cut; the kernel sees to it, so that content can still go out by
// sendfile. Where it cannot (see listen_other.go) such a client keeps its
// connection until it leaves.
func Listen(addr string) (net.Listener, error) { return listen(addr, stall) }

func listen(addr string, stall time.Duration) (net.Listener, error) {
	cfg := net.ListenConfig{Control: bound(stall)}
	cfg.SetMultipathTCP(false) // which knows fewer options
	return cfg.Listen(context.Background(), "tcp", addr)
}
