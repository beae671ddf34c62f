package seeder_test

import (
	"context"
	"testing"
	"time"

	"github.com/murderp2p/murder/registry"
	"github.com/murderp2p/murder/registry/registrytest"
	"github.com/murderp2p/murder/seeder"
	"github.com/murderp2p/murder/seeder/fleet"
	"github.com/murderp2p/murder/seeder/pushes"
)

// joinFleet makes a host of the seeder's fleet, and returns what that is ordered.
func joinFleet(t testing.TB, s ...*testSeeder) <-chan fleet.Order {
	t.Helper()
	orders := make(chan fleet.Order, 10)
	agent := &fleet.Agent{Member: fleet.Member{Name: "h1"}, Log: testLog(t), Carry: func(_ context.Context, o fleet.Order, _ func(fleet.Progress)) error {
		orders <- o
		return nil
	}}
	var list []fleet.Seeder
	for _, s := range s {
		list = append(list, fleet.Seeder{URL: registrytest.ParseURL(t, s.server.URL)})
	}
	agent.SetSeeders(list)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- agent.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	eventually(t, "the host is in the fleet", func() bool { return agent.Links() == len(s) })
	return orders
}

// Hosts are told of what has been pushed and matches, once by however many seeders, and
// bring what was pushed, not what the tag stands for by then.
func TestFleetIsToldOfPushes(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	set := func(cfg *seeder.Config) { cfg.WarmFleet = []string{up.Host + "/other:*", up.Host + "/app:v*"} }
	one, two := newSeederWith(t, t.TempDir(), set, up), newSeederWith(t, t.TempDir(), set, up)
	orders := joinFleet(t, one, two)
	beside := up.PushImage(t, "app", "latest", random(10, 40), random(1000, 41))
	pushed := up.PushImage(t, "app", "v1", random(10, 42), random(1000, 43))
	up.PushImage(t, "app", "v1", random(10, 44), random(1000, 45)) // it has moved on
	for _, s := range []*testSeeder{one, two} {
		s.tell(t, up.Host, "manifests", beside, "latest").mustAccept(t, 1, 0)
		s.tell(t, up.Host, "manifests", pushed, "v1").mustAccept(t, 1, 0)
	}
	o := <-orders
	if len(o.Images) != 1 || o.Images[0].Ref != up.Host+"/app:v1" || o.Images[0].Digest != pushed || o.Images[0].Authorization != "" {
		t.Errorf("ordered %+v", o.Images)
	}
	for _, s := range []*testSeeder{one, two} {
		eventually(t, "all pushes have been looked at, and the order is carried out", func() bool {
			return s.counter(t, "murder_warmed_total", "ready") == 2 && len(s.Fleet().Snapshot().Jobs) > 0 && s.Fleet().Counts().Running == 0
		})
		if jobs := s.Fleet().Snapshot().Jobs; len(jobs) != 1 {
			t.Errorf("%d orders, want one: %+v", len(jobs), jobs)
		}
	}
	select {
	case again := <-orders:
		t.Errorf("ordered again: %+v", again)
	default:
	}
}

// A seeder that begins to watch has the fleet fetch the latest tag and none of those before it, and then what is pushed.
func TestFleetIsNotToldOfOldTags(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	for i, tag := range []string{"v1", "v2", "v10"} {
		up.PushImage(t, "app", tag, random(10, 60+uint64(i)), random(1000, 70+uint64(i)))
	}
	s := newSeederWith(t, t.TempDir(), func(cfg *seeder.Config) {
		cfg.Watch = []pushes.Pattern{{Repo: registry.Repository{Host: up.Host, Name: "app"}, Tags: "*"}}
		cfg.WatchEvery, cfg.TagTTL, cfg.WarmFleet = 20*time.Millisecond, 0, []string{up.Host + "/app:*"}
	}, up)
	orders := joinFleet(t, s)
	eventually(t, "all tags have been fetched", func() bool { return s.counter(t, "murder_warmed_total", "ready") == 3 })
	mustOrder := func(tag string) {
		t.Helper()
		if o := <-orders; o.Images[0].Ref != up.Host+"/app:"+tag {
			t.Errorf("ordered %+v, want %s", o.Images, tag)
		}
	}
	mustOrder("v10")
	up.PushImage(t, "app", "v1", random(10, 63), random(1000, 73))
	mustOrder("v1")
}

// A token for a repository goes with an order where hosts are known by certificates. A
// password never does.
func TestFleetIsToldOfPrivatePushes(t *testing.T) {
	t.Parallel()
	up := registrytest.New(t)
	first := up.PushImage(t, "app", "v1", random(10, 46), random(1000, 47))
	second := up.PushImage(t, "app", "v2", random(10, 48), random(1000, 49))
	up.Push(t, "app", true, []byte("private"))
	authorization := make(chan string, 10)
	self := func(context.Context, registry.Repository, string, string) (string, error) {
		return <-authorization, nil
	}
	s := newSeederWith(t, t.TempDir(), func(cfg *seeder.Config) {
		cfg.WarmFleet, cfg.Self, cfg.FleetCredentials = []string{up.Host + "/*:*"}, self, true
	}, up)
	orders := joinFleet(t, s)

	password := registrytest.Basic("murder")
	authorization <- password
	up.Admit(password)
	s.tell(t, up.Host, "manifests", first, "v1").mustAccept(t, 1, 0)
	eventually(t, "ready", func() bool { return s.counter(t, "murder_warmed_total", "ready") == 1 })

	up.Revoke(password)
	authorization <- "Bearer token"
	up.Admit("Bearer token")
	s.tell(t, up.Host, "manifests", second, "v2").mustAccept(t, 1, 0)
	o := <-orders
	if len(o.Images) != 1 || o.Images[0].Digest != second || o.Images[0].Authorization != "Bearer token" {
		t.Errorf("ordered %+v", o.Images)
	}
	for _, job := range s.Fleet().Snapshot().Jobs {
		if job.Images[0].Ref != up.Host+"/app:v2" {
			t.Errorf("ordered with a password: %+v", job)
		}
	}
}
