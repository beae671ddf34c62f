package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/murderp2p/murder/seeder/fleet"
)

// fleetSeeder is a seeder's fleet at an address of its own.
type fleetSeeder struct {
	*fleet.Fleet
	URL string
}

// serveFleet starts one. Without a resolve it orders whatever it is asked to.
func serveFleet(t *testing.T, resolve func(fleet.RequestImage) error) *fleetSeeder {
	t.Helper()
	f := fleet.New(fleet.Config{Credentials: true, Log: slog.New(slog.DiscardHandler), Resolve: func(_ context.Context, image fleet.RequestImage) (digest.Digest, error) {
		if resolve == nil {
			return testDigest, nil
		}
		return testDigest, resolve(image)
	}})
	mux := http.NewServeMux()
	f.Routes(mux)
	server := httptest.NewServer(mux)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { f.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		server.Close()
	})
	return &fleetSeeder{f, server.URL}
}

// serveHost starts a host of seeders.
func serveHost(t *testing.T, m fleet.Member, carry fleet.Carry, seeders ...*fleetSeeder) {
	t.Helper()
	if carry == nil {
		carry = func(_ context.Context, _ fleet.Order, say func(fleet.Progress)) error {
			say(fleet.Progress{State: fleet.Fetching, Bytes: 300, BytesDone: 300, From: fleet.Sources{Peer: 200, Seeder: 100}})
			return nil
		}
	}
	a := &fleet.Agent{Member: m, Carry: carry, Log: slog.New(slog.DiscardHandler)}
	var list []fleet.Seeder
	for _, s := range seeders {
		u, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, fleet.Seeder{URL: u})
	}
	a.SetSeeders(list)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { a.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		linked := 0
		for _, s := range seeders {
			for _, h := range s.Snapshot().Hosts {
				if h.Name == m.Name && h.State == fleet.Connected {
					linked++
				}
			}
		}
		if linked == len(seeders) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not linked", m.Name)
		}
	}
}

// prefetchFleet runs `murder prefetch --fleet --output json`.
func prefetchFleet(t *testing.T, ctx context.Context, args ...string) (result fleetResult, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	stdout, stderr, err := runMurder(t, ctx, append([]string{"prefetch", "--fleet", "--output", "json"}, args...)...)
	if stdout != "" {
		if err := json.Unmarshal([]byte(stdout), &result); err != nil {
			t.Fatalf("stdout is no JSON document: %v\n%s", err, stdout)
		}
	}
	return result, stderr, err
}

// never carries an order out.
func never(ctx context.Context, _ fleet.Order, say func(fleet.Progress)) error {
	say(fleet.Progress{State: fleet.Fetching, Bytes: 300, BytesDone: 30})
	<-ctx.Done()
	return ctx.Err()
}

func fails(context.Context, fleet.Order, func(fleet.Progress)) error {
	return fmt.Errorf("%w: the disk is full", fleet.ErrHopeless)
}

func TestPrefetchFleet(t *testing.T) {
	t.Setenv("MURDER_ZONE", "elsewhere") // a mirror's own, and no condition of the order
	s := serveFleet(t, nil)
	for i := range 4 {
		serveHost(t, fleet.Member{Name: fmt.Sprintf("h%d", i), Zone: "z", Labels: map[string]string{"role": "web"}}, nil, s)
	}
	result, stderr, err := prefetchFleet(t, t.Context(), "--seeder", s.URL, "app:1", "--label", "role=web", "--percent", "75")
	if err != nil || !result.OK || result.Needed != 3 || result.Job.Ready != 3 || len(result.Job.Targets) != 3 {
		t.Errorf("prefetch: %v, %+v, want 3 of 3\n%s", err, result, stderr)
	}
	if images := result.Job.Images; len(images) != 1 || images[0].Ref != "docker.io/library/app:1" || images[0].Digest != testDigest {
		t.Errorf("images = %+v", images)
	}
	stdout, stderr, err := runMurder(t, t.Context(), "prefetch", "--fleet", "--seeder", s.URL, "app:1", "--hosts", "h0,h1")
	if err != nil || !strings.Contains(stdout, "2 of 2 hosts ready, after ") || !strings.Contains(stdout, "400 B from peers, 200 B from the seeder") {
		t.Errorf("text: %v\n%s", err, stdout)
	}
	if !strings.Contains(stderr, "hosts ready") {
		t.Errorf("stderr tells nothing of how it went:\n%s", stderr)
	}
}

// The exit codes that rollouts rely on: 0 as soon as enough hosts are ready, 1 when they cannot be, 3 when the time is over.
func TestPrefetchFleetExitCodes(t *testing.T) {
	s := serveFleet(t, func(image fleet.RequestImage) error {
		if strings.Contains(image.Ref, "missing") {
			return &fleet.Refusal{Status: http.StatusUnprocessableEntity, Message: image.Ref + ": manifest unknown", Image: image.Ref}
		}
		return nil
	})
	serveHost(t, fleet.Member{Name: "good"}, nil, s)
	serveHost(t, fleet.Member{Name: "stuck"}, never, s)
	serveHost(t, fleet.Member{Name: "broken"}, fails, s)
	for _, test := range []struct {
		args string
		code int
		says string
	}{
		{"--hosts good", 0, ""},
		{"--hosts good,stuck --ready 50%", 0, ""},
		{"--hosts good,broken --ready 50%", 0, ""},
		{"--hosts good,broken", exitFailure, "broken: "},
		{"--hosts stuck,broken", exitFailure, "1 of 2 hosts have failed, and 2 must be ready: broken: another attempt would fail as well: the disk is full"},
		{"--hosts good,stuck --timeout 1s", exitLate, "1 of 2 hosts are ready in time, and 2 had to be"},
		{"--hosts good,stranger --timeout 1s", exitLate, "1 are away"},
		{"--zone none", exitFailure, "no host of this seeder's fleet is meant"},
		{"missing:1", exitFailure, "missing:1: manifest unknown"},
	} {
		args := append([]string{"--seeder", s.URL, "app:1"}, strings.Fields(test.args)...)
		result, _, err := prefetchFleet(t, t.Context(), args...)
		if code := exitCode(err); code != test.code || result.OK != (code == 0) || err != nil && (!strings.Contains(err.Error(), test.says) || result.Error != err.Error()) {
			t.Errorf("prefetch --fleet %s = exit %d, %v, and as JSON %q; want %d with %q", test.args, code, err, result.Error, test.code, test.says)
		}
	}
}

// The order is given with the credentials that the registry asks for, and again with new ones when hosts are refused.
func TestPrefetchFleetCredentials(t *testing.T) {
	login(t, "reg.example", "alice", "secret")
	basic := "Basic YWxpY2U6c2VjcmV0"
	s := serveFleet(t, func(image fleet.RequestImage) error {
		if image.Authorization != basic {
			return &fleet.Refusal{Status: http.StatusUnprocessableEntity, Message: "unauthorized", Image: image.Ref, Challenge: `Basic realm="r"`}
		}
		return nil
	})
	serveHost(t, fleet.Member{Name: "h"}, func(_ context.Context, o fleet.Order, _ func(fleet.Progress)) error {
		if o.Images[0].Authorization != basic {
			return &fleet.NeedCredentials{Image: o.Images[0].Ref, Challenge: `Basic realm="r"`, Err: errors.New("unauthorized")}
		}
		return nil
	}, s)
	if result, stderr, err := prefetchFleet(t, t.Context(), "--seeder", s.URL, "reg.example/app:1"); err != nil || !result.OK {
		t.Errorf("prefetch: %v\n%s", err, stderr)
	}
	if _, _, err := prefetchFleet(t, t.Context(), "--seeder", s.URL, "other.example/app:1"); err == nil || !strings.Contains(err.Error(), "docker login other.example") {
		t.Errorf("without a login: %v, want what to do", err)
	}
}

// A token that hosts are refused with, because it has expired, is replaced while the command waits.
func TestPrefetchFleetRenewsTokens(t *testing.T) {
	var tokens atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"token":"t%d"}`, tokens.Add(1))
	}))
	t.Cleanup(server.Close)
	challenge := fmt.Sprintf(`Bearer realm="%s/token",service="r",scope="repository:app:pull"`, server.URL)
	s := serveFleet(t, func(image fleet.RequestImage) error {
		if image.Authorization == "" {
			return &fleet.Refusal{Status: http.StatusUnprocessableEntity, Message: "unauthorized", Image: image.Ref, Challenge: challenge}
		}
		return nil
	})
	var seen sync.Map
	serveHost(t, fleet.Member{Name: "h"}, func(_ context.Context, o fleet.Order, _ func(fleet.Progress)) error {
		seen.Store(o.Images[0].Authorization, true)
		if o.Images[0].Authorization == "Bearer t1" {
			return &fleet.NeedCredentials{Image: o.Images[0].Ref, Challenge: challenge, Err: errors.New("token expired")}
		}
		return nil
	}, s)
	result, stderr, err := prefetchFleet(t, t.Context(), "--seeder", s.URL, "localhost:5000/app:1")
	if _, ok := seen.Load("Bearer t1"); err != nil || !result.OK || !ok || tokens.Load() < 2 {
		t.Errorf("prefetch: %v after %d tokens, want it done with the second\n%s", err, tokens.Load(), stderr)
	}
}

// A seeder that is away is passed over; one that goes while the command waits hands over to the next, and no host begins anew.
func TestPrefetchFleetTakesTheNextSeeder(t *testing.T) {
	dead := httptest.NewServer(nil)
	dead.Close()
	second := serveFleet(t, nil)
	first := serveFleet(t, nil)
	watched := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet { // it dies once the order has been given
			panic(http.ErrAbortHandler)
		}
		req, err := http.NewRequest(r.Method, first.URL+r.URL.Path, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		req.Header = r.Header
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	}))
	t.Cleanup(watched.Close)
	var carried atomic.Int64
	release := make(chan struct{})
	serveHost(t, fleet.Member{Name: "h"}, func(ctx context.Context, _ fleet.Order, _ func(fleet.Progress)) error {
		carried.Add(1)
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}, first, second)
	go func() {
		for len(second.Snapshot().Jobs) == 0 && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		close(release)
	}()
	result, stderr, err := prefetchFleet(t, t.Context(), "--seeder", dead.URL, "--seeder", watched.URL, "--seeder", second.URL, "app:1")
	if err != nil || !result.OK || carried.Load() != 1 {
		t.Errorf("prefetch: %v, carried out %d times\n%s", err, carried.Load(), stderr)
	}
}

// Who ends the command takes the order back.
func TestPrefetchFleetIsWithdrawn(t *testing.T) {
	s := serveFleet(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	serveHost(t, fleet.Member{Name: "h"}, func(work context.Context, o fleet.Order, say func(fleet.Progress)) error {
		cancel()
		return never(work, o, say)
	}, s)
	if _, _, err := prefetchFleet(t, ctx, "--seeder", s.URL, "app:1"); err == nil || !strings.Contains(err.Error(), "withdrawn") {
		t.Errorf("prefetch = %v, want it to say that the order is withdrawn", err)
	}
	if jobs := s.Snapshot().Jobs; len(jobs) != 1 || jobs[0].State != fleet.Cancelled {
		t.Errorf("jobs = %+v, want one cancelled", jobs)
	}
}

// Hosts that have not brought a byte are not said to have missed none.
func TestFleetThatHasNothing(t *testing.T) {
	for want, j := range map[string]fleet.Job{
		"0 of 3 hosts ready, 3 away, after 1.00s\n":              {Hosts: 3, Away: 3},
		"3 of 3 hosts ready, after 1.00s: nothing was missing\n": {Hosts: 3, Ready: 3},
		"1 of 3 hosts ready, after 1.00s: 5 B from peers\n":      {Hosts: 3, Ready: 1, From: fleet.Sources{Peer: 5}},
	} {
		var out strings.Builder
		if err := (&fleetResult{TookMS: 1000, Job: &j}).print(&out, false); err != nil || out.String() != want {
			t.Errorf("%q, %v; want %q", out.String(), err, want)
		}
	}
}
