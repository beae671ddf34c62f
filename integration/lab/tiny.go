package main

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// tiny pulls blobs of 1 KiB that no mirror and no seeder has, each first by
// one host straight from the registry, and then by all hosts at once through
// their mirrors. What counts is how much later murder's answer is.
func tiny(ctx context.Context, l *lab) error {
	const blobs, size = 20, 1 << 10
	o := l.options
	o.size = size
	p := basic(o, 16)
	p.Cold = true
	p.Sizes = make([]int64, blobs)
	for i := range p.Sizes {
		p.Sizes[i] = size
	}
	p.Title = fmt.Sprintf("%d hosts at %s, %d blobs of 1 KiB, cold everywhere, one by one", len(p.Hosts), rateText(p.Rate), blobs)
	var r result
	err := l.onStage(ctx, p, asMurder, func(s *stage, f fleet) (err error) {
		before, err := s.sample(ctx, f)
		if err != nil {
			return err
		}
		start := time.Now()
		answers, err := tinyAnswers(ctx, s, f.(*murderFleet))
		if err != nil {
			return err
		}
		seconds := time.Since(start).Seconds()
		after, err := s.sample(ctx, f)
		if err == nil {
			r = newResult(s, before, after, answers, seconds)
		}
		return err
	})
	if err != nil {
		return err
	}
	r.Scenario, r.Contender = "tiny", "murder"
	return l.report(r)
}

// tinyAnswers is the registry's own answer to each blob, every mirror's, and
// how much longer that took.
func tinyAnswers(ctx context.Context, s *stage, f *murderFleet) ([]hostResult, error) {
	straight := openDirect(s)
	defer straight.close()
	var results []hostResult
	for n, b := range s.image.Layers {
		own := n % len(s.hosts)
		floor, err := straight.clients[own].pull(ctx, []blob{b}, 1)
		if err != nil {
			return nil, err
		}
		results = append(results, hostResult{Host: own, Group: "registry", pulled: floor})
		answers := make([]hostResult, len(f.clients))
		var all sync.WaitGroup
		for i, client := range f.clients {
			all.Go(func() {
				answers[i] = hostResult{Host: i, Group: "murder"}
				answers[i].pulled, err = client.pull(ctx, []blob{b}, 1)
				if err != nil {
					answers[i].Error = err.Error()
				}
			})
		}
		all.Wait()
		for _, a := range answers {
			results = append(results, a)
			a.Group, a.End = "later by", a.End-floor.End
			results = append(results, a)
		}
	}
	return results, nil
}
