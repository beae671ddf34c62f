package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"sync"
	"time"

	orders "github.com/murderp2p/murder/seeder/fleet"
)

// orderedFleet is a murderFleet whose hosts fetch because `murder prefetch --fleet` on the
// seeder's machine has told them to. Their times begin with that command.
type orderedFleet struct {
	*murderFleet
	order func() (orders.Job, time.Time, error) // the one that all hosts' pulls are
}

func asOrdered(ctx context.Context, s *stage) (fleet, error) {
	m, err := openMurder(ctx, s)
	f := &orderedFleet{murderFleet: m}
	if err != nil {
		return f, err
	}
	var once sync.Once
	var job orders.Job
	var start time.Time
	f.order = func() (orders.Job, time.Time, error) {
		once.Do(func() {
			start = time.Now()
			job, err = f.prefetch(ctx)
		})
		return job, start, err
	}
	return f, f.waitLinked(ctx)
}

// waitLinked returns when every host holds a link.
func (f *orderedFleet) waitLinked(ctx context.Context) error {
	seeder := f.lab.askSeeder(f.seeder)
	defer seeder.close()
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		m, err := readMetrics(ctx, seeder)
		if err != nil {
			return err
		}
		if linked := m.sum("murder_fleet_hosts", `state="connected"`); linked == int64(len(f.hosts)) {
			return nil
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("wait for links: %w", err)
		}
	}
}

// prefetch gives the order, and waits until all hosts are ready.
func (f *orderedFleet) prefetch(ctx context.Context) (job orders.Job, err error) {
	scheme := "http"
	if f.lab.tls {
		scheme = "https"
	}
	args := append([]string{"prefetch", "--fleet", "--output", "json", "--seeder", fmt.Sprintf("%s://127.0.0.1:%d", scheme, seederPort),
		fmt.Sprintf("%s/%s:%s", registryName(registryAddr), repository, f.image.Tag)}, f.lab.certs.flags...)
	cmd := exec.CommandContext(ctx, f.lab.murder, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := f.seeder.Do(cmd.Run); err != nil {
		return job, fmt.Errorf("murder prefetch --fleet: %w: %s", err, errs.Bytes())
	}
	var result struct{ Job orders.Job }
	return result.Job, errors.Join(json.Unmarshal(out.Bytes(), &result))
}

// pull tells how host i has fared with the order.
func (f *orderedFleet) pull(_ context.Context, i int) (pulled, error) {
	job, start, err := f.order()
	if err != nil {
		return pulled{}, err
	}
	n := slices.IndexFunc(job.Targets, func(t orders.Target) bool { return t.Host == mirrorName(i) })
	if n < 0 || job.Targets[n].State != orders.Ready {
		return pulled{}, fmt.Errorf("%s is not ready", mirrorName(i))
	}
	t := job.Targets[n]
	told := job.Created.Sub(start).Seconds() // one machine, one clock
	return pulled{FirstByte: told + float64(t.FirstByteMS)/1000, End: told + float64(t.TookMS)/1000}, nil
}

// fleet16 has a fleet told to fetch, rather than pull by itself.
func fleet16(ctx context.Context, l *lab) error {
	return l.runPlan(ctx, "fleet16", "murder", basic(l.options, 16).titled("told by murder prefetch --fleet"), asOrdered)
}
