package main

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// runScenario makes all runs of a scenario and reports each.
func (l *lab) runScenario(ctx context.Context, s scenario) error {
	if s.run != nil {
		return s.run(ctx, l)
	}
	p := s.plan(l.options)
	var errs []error
	compare := (s.compare || l.compare) && p.straight()
	if compare && !l.noDirect {
		errs = append(errs,
			l.runPlan(ctx, s.name, "floor", p.alone(), asDirect),
			l.runPlan(ctx, s.name, "direct", p.sliced(), asDirect))
	}
	if compare && !l.noLibrary {
		errs = append(errs, l.runPlan(ctx, s.name, "library", p, asLibrary))
	}
	errs = append(errs, l.runPlan(ctx, s.name, "murder", p, asMurder))
	return errors.Join(errs...)
}

// alone is one host that pulls from the registry over an idle link: what TCP
// and HTTP themselves cost.
func (p plan) alone() plan {
	p.Hosts = p.Hosts[:1]
	return p.titled("one host alone, straight from the registry")
}

// sliced has each host pull straight from the registry a blob smaller by the
// number of hosts: all of them take as long as one took for the whole.
func (p plan) sliced() plan {
	p.Sizes = []int64{p.size() / int64(len(p.Hosts))}
	return p.titled("all straight from the registry, a blob of %d KiB to save time", p.size()>>10)
}

// opener brings a stage to life in one contender's way.
type opener func(ctx context.Context, s *stage) (fleet, error)

func asMurder(ctx context.Context, s *stage) (fleet, error)  { return openMurder(ctx, s) }
func asLibrary(ctx context.Context, s *stage) (fleet, error) { return openLibrary(ctx, s) }
func asDirect(_ context.Context, s *stage) (fleet, error)    { return openDirect(s), nil }

// runPlan makes one run on a stage of its own, and reports it.
func (l *lab) runPlan(ctx context.Context, scenario, contender string, p plan, open opener) (err error) {
	r, err := l.measurePlan(ctx, p, open)
	if err != nil {
		return fmt.Errorf("%s: %w", contender, err)
	}
	r.Scenario, r.Contender = scenario, contender
	return l.report(r)
}

// report prints a run and writes its file. Hosts that failed are an error.
func (l *lab) report(r result) error {
	l.results = append(l.results, r)
	printResult(os.Stdout, r)
	if l.timeline {
		printTimeline(os.Stdout, r.Timeline)
	}
	if err := writeResult(l.out, r); err != nil {
		return err
	}
	if len(r.Errors) > 0 {
		return fmt.Errorf("%s: %d hosts failed", r.Contender, len(r.Errors))
	}
	return nil
}

func (l *lab) measurePlan(ctx context.Context, p plan, open opener) (r result, err error) {
	err = l.onStage(ctx, p, open, func(s *stage, f fleet) error {
		r, err = measure(ctx, s, f)
		return err
	})
	return r, err
}

// onStage does something on a stage of its own, once open has brought it to
// life and its cables have been limited.
func (l *lab) onStage(ctx context.Context, p plan, open opener, do func(s *stage, f fleet) error) (err error) {
	s, err := openStage(ctx, l, p)
	defer func() { err = errors.Join(err, s.close()) }()
	if err != nil {
		return err
	}
	f, err := open(ctx, s)
	defer f.close()
	if err != nil {
		return err
	}
	if err := s.shape(); err != nil {
		return err
	}
	return do(s, f)
}
