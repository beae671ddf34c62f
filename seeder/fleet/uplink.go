package fleet

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// A host that lost its link asks for another after firstWait, and each time after
	// about twice as long, so that a fleet does not come back to a seeder all at once.
	firstWait = 250 * time.Millisecond
	lastWait  = 10 * time.Second
	// otherWait is for a host that has lost its link to another of the same name.
	otherWait = time.Minute
	dialTime  = 10 * time.Second
)

// Seeder is one that an [Agent] holds a link to.
type Seeder struct {
	URL *url.URL
	// DialTLS connects to a seeder of https; nil = as the system's CAs have it, with
	// no certificate of our own.
	DialTLS func(ctx context.Context, network, addr string) (net.Conn, error)
}

// uplink is the host's side of a link.
type uplink struct {
	agent  *Agent
	seeder Seeder
	conn   net.Conn
	soon   chan struct{} // holds one token when there is progress to tell of
	now    chan struct{} // likewise, when that is not to wait

	accountEvery atomic.Int64 // a time.Duration, as the seeder asks for; 0 = it has not yet

	// guarded by Agent.mu
	news  map[*task]bool
	every time.Duration // between progress
}

// hold keeps a link to a seeder until ctx ends.
func (a *Agent) hold(ctx context.Context, s Seeder, start func(*task)) {
	wait, told := firstWait, ""
	for ctx.Err() == nil {
		up, err := a.link(ctx, s, start)
		if up {
			wait = firstWait
		}
		level := a.Log.Debug
		if refused, ok := errors.AsType[*refusedLink](err); ok && told != refused.text {
			level, told = a.Log.Warn, refused.text // whoever runs the fleet has to know
			wait = max(wait, refused.wait)
		}
		if ctx.Err() == nil {
			level("no link to the seeder's fleet", "seeder", s.URL.Redacted(), "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait/2 + rand.N(wait)):
		}
		wait = min(2*wait, lastWait)
	}
}

// refusedLink is the seeder's word that it will not have us.
type refusedLink struct {
	text string
	wait time.Duration
}

func (r *refusedLink) Error() string { return r.text }

// link makes a link and keeps it until it breaks. up tells whether it was there.
func (a *Agent) link(ctx context.Context, s Seeder, start func(*task)) (up bool, err error) {
	u := &uplink{agent: a, seeder: s, soon: make(chan struct{}, 1), now: make(chan struct{}, 1), news: make(map[*task]bool), every: reportEvery(0)}
	r, err := u.dial(ctx)
	if err != nil {
		return false, err
	}
	defer u.conn.Close()
	defer context.AfterFunc(ctx, func() { u.conn.Close() })()
	linked, unlink := context.WithCancel(ctx)
	defer unlink()
	a.up(u, true)
	defer a.up(u, false)
	written := make(chan struct{})
	go func() {
		defer close(written)
		u.write(linked)
		u.conn.Close()
	}()
	a.Log.Info("link to the seeder's fleet", "seeder", s.URL.Redacted(), "as", a.Member.Name)
	err = readMessages(u.conn, r, maxLine, func(m message) error {
		switch {
		case m.Every > 0:
			u.accountEvery.Store(int64(m.Every))
		case m.Bye != "":
			return &refusedLink{m.Bye, otherWait}
		case m.Order != nil:
			a.ordered(u, *m.Order, start)
		case m.Cancel != "":
			a.cancelled(m.Cancel)
		}
		return nil
	})
	unlink()
	u.conn.Close()
	<-written
	return true, err
}

func (a *Agent) up(u *uplink, up bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.uplinks == nil {
		a.uplinks = make(map[*uplink]bool)
	}
	if up {
		a.uplinks[u] = true
	} else {
		delete(a.uplinks, u)
	}
}

// dial connects, and has the connection upgraded. The reader is what to read on from.
func (u *uplink) dial(ctx context.Context) (r *bufio.Reader, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	if u.conn, err = u.seeder.connect(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			u.conn.Close()
		}
	}()
	defer context.AfterFunc(ctx, func() { u.conn.Close() })()
	target := u.seeder.URL.JoinPath(Path)
	target.RawQuery = u.agent.Member.query().Encode()
	req, err := http.NewRequest(http.MethodGet, target.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	if err := req.Write(u.conn); err != nil {
		return nil, err
	}
	r = bufio.NewReader(u.conn)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols || !strings.EqualFold(resp.Header.Get("Upgrade"), protocol) {
		defer resp.Body.Close()
		why, _ := io.ReadAll(io.LimitReader(resp.Body, maxError))
		return nil, &refusedLink{fmt.Sprintf("it answers %s: %s", resp.Status, clip(strings.TrimSpace(string(why)), maxError)), lastWait}
	}
	return r, nil
}

// connect dials the seeder's HTTP port.
func (s Seeder) connect(ctx context.Context) (net.Conn, error) {
	secure := s.URL.Scheme == "https"
	port := "80"
	if secure {
		port = "443"
	}
	addr := net.JoinHostPort(s.URL.Hostname(), cmp.Or(s.URL.Port(), port))
	switch {
	case !secure:
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	case s.DialTLS != nil:
		return s.DialTLS(ctx, "tcp", addr)
	default:
		return new(tls.Dialer).DialContext(ctx, "tcp", addr)
	}
}

// note has the seeder told how a task is. Agent.mu is held.
func (u *uplink) note(t *task, every Duration) {
	u.every = min(max(time.Duration(every), reportEvery(0)), time.Minute)
	u.changed(t, true)
}

// changed has the seeder told of news, now or when it is time. Agent.mu is held.
func (u *uplink) changed(t *task, urgent bool) {
	u.news[t] = true
	wake := u.soon
	if urgent {
		wake = u.now
	}
	select {
	case wake <- struct{}{}:
	default:
	}
}

// write tells the seeder of news, and that we are there, until ctx ends or nothing can
// be written any more.
func (u *uplink) write(ctx context.Context) {
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	<-pause.C
	soon := u.soon // nil during a pause
	accounts := u.agent.accounts(u.conn)
	due := time.NewTimer(0)
	defer due.Stop()
	for {
		beats := false
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
			soon = u.soon
			continue
		case <-beat.C:
			beats = true
		case <-due.C:
			if err := accounts(); err != nil {
				return
			}
			due.Reset(u.untilAccount())
			continue
		case <-u.now:
		case <-soon:
		}
		every, err := u.tell(beats)
		if err != nil {
			return
		}
		soon = nil
		pause.Reset(every)
	}
}

// tell writes the news, or that there are none.
func (u *uplink) tell(beats bool) (every time.Duration, err error) {
	u.agent.mu.Lock()
	var reports []Report
	for t := range u.news {
		reports = append(reports, t.report)
	}
	clear(u.news)
	every = u.every
	u.agent.mu.Unlock()
	for _, r := range reports {
		r.Error, r.Challenge = clip(r.Error, maxError), clip(r.Challenge, maxNeeds)
		if err := writeMessage(u.conn, message{Report: &r}); err != nil {
			return every, err
		}
	}
	if beats && len(reports) == 0 {
		err = writeMessage(u.conn, message{})
	}
	return every, err
}
