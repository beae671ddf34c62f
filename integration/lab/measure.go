package main

import (
	"context"
	"errors"
	"sync"
	"time"
)

// sample is all counters of a stage at one moment.
type sample struct {
	machine machineTime
	traffic map[string]traffic // by role
	hosts   []traffic
	cable   traffic
	drops   drops
	usage   map[string]usage // by role; CPU summed up, the highest peak
	each    []usage          // of the hosts' programs
	payload payload
}

func (s *stage) sample(ctx context.Context, f fleet) (c sample, err error) {
	c.traffic, c.usage = map[string]traffic{}, map[string]usage{}
	if c.machine, err = readMachine(); err != nil {
		return c, err
	}
	if c.traffic[roleRegistry], err = readTraffic(s.registry); err != nil {
		return c, err
	}
	for _, m := range s.seeders() {
		t, err := readTraffic(m)
		if err != nil {
			return c, err
		}
		c.traffic[roleSeeder] = c.traffic[roleSeeder].plus(t)
	}
	for _, m := range s.hosts {
		t, err := readTraffic(m)
		if err != nil {
			return c, err
		}
		c.hosts = append(c.hosts, t)
		c.traffic[roleHosts] = c.traffic[roleHosts].plus(t)
	}
	if s.plan.Cable > 0 {
		if c.cable, err = readCrossing(s.network); err != nil {
			return c, err
		}
	}
	if c.drops, err = readDrops(s.network); err != nil {
		return c, err
	}
	if err := s.sampleUsage(&c); err != nil {
		return c, err
	}
	c.payload, err = f.payload(ctx)
	return c, err
}

func (s *stage) sampleUsage(c *sample) error {
	for role, processes := range s.running {
		for _, p := range processes {
			u, err := p.usage()
			if err != nil {
				return err
			}
			if role == roleHosts {
				c.each = append(c.each, u)
			}
			sum := c.usage[role]
			c.usage[role] = usage{CPU: sum.CPU + u.CPU, Peak: max(sum.Peak, u.Peak)}
		}
	}
	var err error
	c.usage[roleClients], err = readUsage("self")
	return err
}

// measure has all hosts of a stage pull at their times, and returns what that
// took and cost. A host that failed is in the result; an error means that
// there is none.
func measure(ctx context.Context, s *stage, f fleet) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, s.plan.patience())
	defer cancel()
	before, err := s.sample(ctx, f)
	if err != nil {
		return result{}, err
	}
	if err := s.profileBegin(); err != nil {
		return result{}, err
	}
	start := time.Now()
	hosts, moments, err := s.watchAll(ctx, f)
	seconds := time.Since(start).Seconds()
	if cause := context.Cause(ctx); errors.Is(cause, context.Canceled) {
		err = cause
	}
	if err != nil {
		return result{}, err
	}
	after, err := s.sample(context.WithoutCancel(ctx), f)
	if err != nil {
		return result{}, err
	}
	if err := s.profileEnd(ctx); err != nil {
		return result{}, err
	}
	r := newResult(s, before, after, hosts, seconds)
	r.Timeline = moments
	return r, nil
}

// watchAll is pullAll with an eye on the cables.
func (s *stage) watchAll(ctx context.Context, f fleet) (hosts []hostResult, moments []moment, err error) {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	var watcher sync.WaitGroup
	watcher.Go(func() { moments, err = s.timeline(watching) })
	hosts = s.pullAll(ctx, f)
	stop()
	watcher.Wait()
	return hosts, moments, err
}

// pullAll runs the hosts' pulls and kills, and waits for those that count.
func (s *stage) pullAll(ctx context.Context, f fleet) []hostResult {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make([]hostResult, len(s.plan.Hosts))
	var all, counted sync.WaitGroup
	for i, h := range s.plan.Hosts {
		one := func() { results[i] = s.pullOne(ctx, f, i) }
		if h.Behind || h.Kill > 0 {
			all.Go(one)
		} else {
			counted.Go(one)
		}
		if h.Kill > 0 {
			all.Go(func() {
				if sleep(ctx, h.Kill) == nil {
					f.kill(i)
				}
			})
		}
	}
	counted.Wait()
	cancel()
	all.Wait()
	return results
}

func (s *stage) pullOne(ctx context.Context, f fleet, i int) hostResult {
	h := s.plan.Hosts[i]
	r := hostResult{Host: i, Group: h.Group, Limit: s.plan.limit(h.Link)}
	err := sleep(ctx, h.Delay)
	if err == nil {
		r.pulled, err = f.pull(ctx, i)
	}
	if err != nil {
		r.Error = err.Error()
	}
	r.Uncounted = h.Behind || h.Kill > 0
	return r
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
