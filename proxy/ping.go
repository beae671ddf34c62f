package proxy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/murderp2p/murder/registry"
)

const (
	// pingWait is how long GET /v2/ waits for the registry. Engines ask it
	// before each pull, of whatever registry; on a host without a way out the
	// default one may never answer.
	pingWait = time.Second
	// pingTTL is for how long an answer is given to all.
	pingTTL = time.Minute
	// noPingTTL is for how long one that gave no answer is not asked again.
	noPingTTL = 5 * time.Second
	// maxPings bounds the registries whose answer is remembered.
	maxPings = 1024
	// maxPinging bounds those that are being asked: nobody waits for one that is slow, so
	// connections do not bound them. Of more the answer is what it was, or yes.
	maxPinging = 256
)

// pings remembers what registries answer to GET /v2/ without credentials: the
// challenge, above all.
type pings struct {
	asks   singleflight.Group
	asking atomic.Int64

	mu      sync.Mutex // guards answers
	answers map[string]pinged
}

type pinged struct {
	refusal error // nil = come in
	until   time.Time
}

// Ping implements [registry.Backend]. With nobody to ask the answer is what it
// was, or yes: what is cached can be pulled by those who were admitted before,
// and what is not will be refused where it is asked for.
func (m *Mirror) Ping(ctx context.Context, req registry.Request) error {
	if req.Authorization != "" {
		ctx, cancel := context.WithTimeout(ctx, pingWait)
		defer cancel()
		return refusal(m.upstream.Ping(ctx, req.Repo.Host, req.Authorization))
	}
	host := req.Repo.Host
	last := m.pings.last(host)
	if time.Now().Before(last.until) {
		return last.refusal
	}
	asked := m.pings.asks.DoChan(host, func() (any, error) {
		defer m.pings.asking.Add(-1)
		if m.pings.asking.Add(1) > maxPinging {
			return nil, last.refusal
		}
		err := m.upstream.Ping(m.ctx, host, "")
		ttl := pingTTL
		if err != nil && !registry.Refused(err) {
			err, ttl = last.refusal, noPingTTL
		}
		m.pings.remember(host, err, ttl)
		return nil, err
	})
	timer := time.NewTimer(pingWait)
	defer timer.Stop()
	select {
	case answer := <-asked:
		return answer.Err
	case <-timer.C:
		return m.pings.last(host).refusal
	case <-ctx.Done():
		return ctx.Err()
	}
}

func refusal(err error) error {
	if registry.Refused(err) {
		return err
	}
	return nil
}

func (p *pings) last(host string) pinged {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answers[host]
}

func (p *pings) remember(host string, refusal error, ttl time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answers == nil || len(p.answers) >= maxPings {
		p.answers = make(map[string]pinged)
	}
	p.answers[host] = pinged{refusal, time.Now().Add(ttl)}
}
