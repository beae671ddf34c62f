package page_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/seeder/page"
)

// rightToken is the operator's in these tests.
const rightToken = "0123456789abcdef0123456789abcdef"

// operator is as cmd/murder/gate's of a seeder with a token.
func operator(r *http.Request) (bool, error) {
	switch r.Header.Get("Authorization") {
	case "":
		return false, nil
	case "Bearer " + rightToken:
		return true, nil
	default:
		return false, &registry.Error{Status: http.StatusUnauthorized, Code: registry.CodeUnauthorized, Message: "this needs the token of the daemon's --api-token-file"}
	}
}

// seeder serves the page of a fake fleet, and can be killed and started anew at the
// same address.
type seeder struct {
	fleet *fakeFleet
	addr  string
	every time.Duration

	mu   sync.Mutex // guards stop
	stop func()
}

// startSeeder returns one that runs until the test ends.
func startSeeder(t testing.TB, f *fakeFleet, every time.Duration) *seeder {
	t.Helper()
	s := &seeder{fleet: f, addr: "127.0.0.1:0", every: every}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	return s
}

func (s *seeder) url() string { return "http://" + s.addr + "/" }

func (s *seeder) start() error {
	listener, err := net.Listen("tcp", s.addr)
	if err != nil {
		return err
	}
	p := page.New(page.Config{Source: s.fleet, Operator: operator, Every: s.every})
	server := &http.Server{Handler: p}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = p.Run(ctx) })
	running.Go(func() { _ = server.Serve(listener) })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addr = listener.Addr().String()
	s.stop = func() {
		server.Close()
		cancel()
		running.Wait()
	}
	return nil
}

func (s *seeder) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop != nil {
		s.stop()
		s.stop = nil
	}
}

// ServeHTTP does what the browser's side of a test asks for: /set?hosts=&step=&hostile=&idle=&play=,
// /kill, /start.
func (s *seeder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var err error
	switch r.URL.Path {
	case "/set":
		err = s.set(r)
	case "/kill":
		s.kill()
	case "/start":
		err = s.start()
	default:
		err = errors.New("no such order")
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

func (s *seeder) set(r *http.Request) (err error) {
	q := r.URL.Query()
	s.fleet.set(func(f *fakeFleet) {
		number := func(name string, into *int) {
			if q.Has(name) {
				n, e := strconv.Atoi(q.Get(name))
				*into, err = n, errors.Join(err, e)
			}
		}
		number("hosts", &f.hosts)
		number("step", &f.step)
		f.hostile, f.idle, f.play = q.Has("hostile"), q.Has("idle"), q.Has("play")
	})
	return err
}
