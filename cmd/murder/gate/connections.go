package gate

import (
	"container/list"
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Connections bounds how many connections a server has open. Who comes when they are as
// many as may be gets the place of one that no request is being answered on, of those the
// one that has been quiet for longest: who only holds places, silent or in the middle of a
// header, keeps nobody out. Where all are at work the new one is closed at once, so that
// whoever has another way takes it, rather than wait.
type Connections struct {
	Max int
	Log *slog.Logger

	mu     sync.Mutex // guards all below
	places map[net.Conn]*list.Element
	quiet  list.List // of net.Conn, the longest first
	warned time.Time
}

// warnEvery is the least time between two warnings.
const warnEvery = time.Minute

// Bound has the connections of a server be bounded, which must have its handler already.
func (c *Connections) Bound(s *http.Server) {
	next := s.Handler
	s.ConnState = c.state
	s.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, conn)
	}
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if conn, ok := r.Context().Value(connKey{}).(net.Conn); ok {
			c.atWork(conn)
		}
		next.ServeHTTP(w, r)
	})
}

type connKey struct{}

// Open returns how many connections are open.
func (c *Connections) Open() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.places)
}

// state is told of each connection.
func (c *Connections) state(conn net.Conn, s http.ConnState) {
	var closed net.Conn
	c.mu.Lock()
	switch s {
	case http.StateNew:
		closed = c.enter(conn)
	case http.StateIdle:
		if place, ok := c.places[conn]; ok && place == nil {
			c.places[conn] = c.quiet.PushBack(conn)
		}
	case http.StateClosed, http.StateHijacked:
		c.hush(conn)
		delete(c.places, conn)
	}
	c.mu.Unlock()
	if closed != nil {
		hangUp(closed) // the server finds it closed, and tells us
	}
}

// enter gives conn a place. It returns the connection that has to go for it, if one has: it
// may be conn. c.mu is held.
func (c *Connections) enter(conn net.Conn) (closed net.Conn) {
	if c.places == nil {
		c.places = make(map[net.Conn]*list.Element)
	}
	c.places[conn] = c.quiet.PushBack(conn)
	if len(c.places) <= c.Max {
		return nil
	}
	closed = c.quiet.Front().Value.(net.Conn)
	c.hush(closed)
	if closed == conn && time.Since(c.warned) >= warnEvery {
		c.warned = time.Now()
		c.Log.Warn("too many connections, new ones are closed", "max", c.Max)
	}
	return closed
}

// atWork notes that a request of conn is being answered.
func (c *Connections) atWork(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hush(conn)
}

// hush takes conn off the list of those that are quiet. c.mu is held.
func (c *Connections) hush(conn net.Conn) {
	if place := c.places[conn]; place != nil {
		c.quiet.Remove(place)
		c.places[conn] = nil
	}
}

// hangUp closes a connection without a word: TLS would wait until the other end takes one.
func hangUp(conn net.Conn) {
	if over, ok := conn.(*tls.Conn); ok {
		conn = over.NetConn()
	}
	conn.Close()
}
