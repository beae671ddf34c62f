package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/murderp2p/murder/seeder/fleet"
)

// defaultSeeder is where the seeder of this host listens unless told otherwise.
const defaultSeeder = "http://127.0.0.1:7070"

// fleetFlags are the flags of `murder prefetch --fleet`. Those that say which hosts are meant do not listen to the variables in which a
// mirror is told its own zone and labels.
func fleetFlags() []cli.Flag {
	zone := listOf("zone", "`NAME` of a zone whose hosts are meant (with --fleet; repeatable)", checkZone)
	zone.EnvVars = []string{envName("prefetch-zone")}
	label := listOf("label", "`KEY=VALUE` that hosts must have to be meant (with --fleet; repeatable, all of them)", checkLabel)
	label.EnvVars = []string{envName("prefetch-label")}
	return []cli.Flag{
		&cli.BoolFlag{Name: "fleet", Usage: "have a seeder tell all its mirrors"},
		listOf("seeder", "`URL` of a seeder of the fleet, as mirrors have it (repeatable: the next is asked when one is away; default: "+defaultSeeder+")", checkSeeder),
		zone, label,
		listOf("hosts", "`NAME` of a host that is meant (with --fleet; repeatable, or with commas between)", checkHostName),
		countOf("percent", "100", 1, 100, "`PERCENT` of the hosts that would be meant; which, follows from their names (with --fleet)"),
		typed("ready", "100%", "`PERCENT` of the hosts meant that must have everything (with --fleet)", parsePercent),
		&cli.BoolFlag{Name: "load", Usage: "have the hosts' engines pull the images, too (with --fleet; needs --load-into on the mirrors)"},
	}
}

// parsePercent reads 95% or 95.
func parsePercent(s string) (int, error) {
	n, err := strconv.Atoi(strings.TrimSuffix(s, "%"))
	if err != nil || n < 1 || n > 100 {
		return 0, errors.New("it is a share such as 95%, from 1% to 100%")
	}
	return n, nil
}

// checkFleetFlags refuses flags that mean nothing with the others.
func checkFleetFlags(c *cli.Context) error {
	with, without := []string{"seeder", "zone", "label", "hosts", "percent", "ready", "load"}, []string{"mirror", "mirrors-file", "parallel"}
	for _, name := range with {
		if given(c, name) && !c.Bool("fleet") && name != "seeder" { // MURDER_SEEDER is in the environment of mirrors
			return usagef(c, "--%s goes with --fleet only", name)
		}
	}
	for _, name := range without {
		if c.Bool("fleet") && given(c, name) {
			return usagef(c, "--%s does not go with --fleet, which reaches hosts by their seeder", name)
		}
	}
	for _, name := range []string{"zone", "label", "hosts"} { // as in --hosts "$CANARIES" of a script: that is not the whole fleet
		if c.IsSet(name) && c.Bool("fleet") && len(listFlag(c, name)) == 0 {
			return usagef(c, "--%s is empty: leave it out if all hosts are meant", name)
		}
	}
	return nil
}

// given tells whether a flag has been given, and not empty.
func given(c *cli.Context, name string) bool {
	return c.IsSet(name) && (c.String(name) != "" || len(listFlag(c, name)) > 0 || c.Bool(name))
}

// lateError is the end of the time before the work was done.
type lateError struct{ text string }

func (e *lateError) Error() string { return e.text }

// fleetPrefetch is one run of `murder prefetch --fleet`.
type fleetPrefetch struct {
	seeders  []*client
	turn     int // which of them is asked
	request  fleet.Request
	deadline time.Time
	images   []image
	ready    int // percent
	creds    *credentials
	progress *fleetProgress
	renewals int   // since the fleet was last seen to get on
	seen     int64 // bytes that it had then
}

func fleetAction(c *cli.Context) error {
	p, err := newFleetPrefetch(c)
	if err != nil {
		return err
	}
	for _, s := range p.seeders {
		defer s.close()
	}
	begun := time.Now()
	ctx, cancel := context.WithDeadline(c.Context, p.deadline)
	defer cancel()
	job, err := p.run(ctx)
	p.progress.end()
	if job == nil {
		if wantsJSON(c) {
			printJSON(c.App.Writer, fleetResult{Error: err.Error(), TookMS: time.Since(begun).Milliseconds()})
		}
		return err
	}
	if full, fullErr := p.whole(c.Context, job); fullErr == nil {
		job = full
	}
	result := fleetResult{OK: err == nil, TookMS: time.Since(begun).Milliseconds(), Needed: p.needed(job), Job: job}
	if err != nil {
		result.Error = err.Error()
	}
	if err := result.print(c.App.Writer, wantsJSON(c)); err != nil {
		return err
	}
	return err
}

func newFleetPrefetch(c *cli.Context) (*fleetPrefetch, error) {
	images, err := imagesOf(c)
	if err != nil {
		return nil, err
	}
	token, err := apiToken(c)
	if err != nil {
		return nil, err
	}
	id, err := openTLS(c, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	labels, err := labelsOf(c)
	if err != nil {
		return nil, err
	}
	lifetime := cmp.Or(c.Duration("timeout"), fleet.DefaultLifetime)
	if lifetime > fleet.MaxLifetime {
		return nil, usagef(c, "--timeout %s is too long: an order to the fleet holds for %s at the most", c.String("timeout"), fleet.MaxLifetime)
	}
	p := &fleetPrefetch{
		images: images, ready: flagValue[int](c, "ready"), deadline: time.Now().Add(lifetime),
		creds: newCredentials(listFlag(c, "insecure-registry")), progress: newFleetProgress(c.App.ErrWriter),
		request: fleet.Request{
			ID: fleet.NewID(), Platforms: listFlag(c, "platform"), Pin: c.Bool("pin"), Load: c.Bool("load"),
			Select: fleet.Select{
				Hosts: listFlag(c, "hosts"), Zones: listFlag(c, "zone"), Labels: labels, Percent: flagValue[int](c, "percent"),
			},
		},
	}
	seen := make(map[string]bool)
	for _, img := range images {
		if !seen[img.String()] {
			seen[img.String()] = true
			p.request.Images = append(p.request.Images, fleet.RequestImage{Ref: img.String()})
		}
	}
	seeders := listFlag(c, "seeder")
	if len(seeders) == 0 {
		seeders = []string{defaultSeeder}
	}
	p.seeders, err = seederClients(c.Context, seeders, token, id)
	return p, err
}

// run gives the order and watches it until it is done, or cannot be. The job is as last heard of; nil if nothing was.
func (p *fleetPrefetch) run(ctx context.Context) (job *fleet.Job, err error) {
	for {
		given, err := p.give(ctx, job != nil)
		if err != nil {
			return job, p.gaveUp(ctx, job, err)
		}
		job = given
		over, err := p.judge(job)
		for err == nil && !over && len(job.Needs) == 0 {
			heard := p.watch(ctx, func(j *fleet.Job) bool {
				job = j
				over, err = p.judge(j)
				return err == nil && !over && len(j.Needs) == 0
			})
			if ctx.Err() != nil {
				return job, p.gaveUp(ctx, job, ctx.Err())
			}
			if !heard { // that seeder is away, or knows nothing of the order: it is said again, to the next
				p.turn++
				pause(ctx)
				break
			}
		}
		if over || err != nil {
			return job, err
		}
		if err := p.renew(ctx, job); err != nil {
			return job, p.gaveUp(ctx, job, err)
		}
	}
}

// gaveUp says why it is over before it is done, and takes the order back if that is this user's will.
func (p *fleetPrefetch) gaveUp(ctx context.Context, job *fleet.Job, err error) error {
	late := errors.Is(ctx.Err(), context.DeadlineExceeded)
	switch {
	case late && job == nil:
		return &lateError{fmt.Sprintf("prefetch: the order could not be given in time: %v", err)}
	case late:
		return p.late(job)
	case job == nil && ctx.Err() == nil:
		return err
	}
	// Also one that no answer has come to: the seeder may have taken it.
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if resp, cancelErr := p.seeder().do(bye, http.MethodDelete, "/v1/prefetch/"+p.request.ID, nil, nil); cancelErr == nil {
		resp.Body.Close()
	}
	return fmt.Errorf("prefetch: order withdrawn: %w", err)
}

func (p *fleetPrefetch) seeder() *client { return p.seeders[p.turn%len(p.seeders)] }

// needed is how many hosts must be ready.
func (p *fleetPrefetch) needed(job *fleet.Job) int { return (job.Hosts*p.ready + 99) / 100 }

// judge tells whether enough hosts are ready; the error says why they will not be.
func (p *fleetPrefetch) judge(job *fleet.Job) (over bool, err error) {
	p.progress.show(job)
	need := p.needed(job)
	switch {
	case job.Hosts == 0:
		return false, errors.New("prefetch: no host of this seeder's fleet is meant; its `GET /v1/hosts` lists them")
	case job.Ready >= need:
		return true, nil
	case job.Hosts-job.Failed < need:
		return false, fmt.Errorf("prefetch: %d of %d hosts have failed, and %d must be ready%s", job.Failed, job.Hosts, need, firstFailure(job))
	case job.State == fleet.Cancelled:
		return false, errors.New("prefetch: somebody has withdrawn the order")
	case job.State == fleet.Expired:
		return false, p.late(job)
	default:
		return false, nil
	}
}

func (p *fleetPrefetch) late(job *fleet.Job) error {
	return &lateError{fmt.Sprintf("prefetch: %d of %d hosts are ready in time, and %d had to be; %d are away, %d have failed",
		job.Ready, job.Hosts, p.needed(job), job.Away, job.Failed)}
}

func firstFailure(job *fleet.Job) string {
	if len(job.Failures) == 0 {
		return ""
	}
	return fmt.Sprintf(": %s: %s", job.Failures[0].Host, job.Failures[0].Error)
}

// orderAgain is how long the fleet's seeders may all be away, before the order has been given; then it is as long as the order holds.
const orderAgain = 5 * time.Second

// give gives the order, or says it again, to the first seeder that answers.
func (p *fleetPrefetch) give(ctx context.Context, known bool) (*fleet.Job, error) {
	patience := time.Now().Add(orderAgain)
	for n := 1; ; n++ {
		job, err := p.ask(ctx)
		if _, refused := errors.AsType[*fleet.Refusal](err); err == nil || refused || ctx.Err() != nil {
			return job, err
		}
		if answer, ok := errors.AsType[*answerError](err); ok && answer.status < 500 {
			return nil, fmt.Errorf("seeder %s %w", p.seeder().base, err)
		}
		base := p.seeder().base
		p.turn++
		if n%len(p.seeders) != 0 {
			continue
		}
		if !known && time.Now().After(patience) {
			return nil, fmt.Errorf("seeder %s: %w", base, err)
		}
		if pause(ctx); ctx.Err() != nil {
			return nil, fmt.Errorf("seeder %s: %w", base, err)
		}
	}
}

// pause keeps us from asking seeders that are away again and again.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(500 * time.Millisecond):
	}
}

// ask gives the order to one seeder, with this user's credentials where the registry wants some.
func (p *fleetPrefetch) ask(ctx context.Context) (*fleet.Job, error) {
	tried := make(map[string]bool)
	for {
		p.request.Lifetime = fleet.Duration(max(time.Until(p.deadline), time.Second))
		job, err := p.post(ctx)
		refusal, ok := errors.AsType[*fleet.Refusal](err)
		if !ok || refusal.Challenge == "" || tried[refusal.Image] {
			return job, err
		}
		tried[refusal.Image] = true
		if err := p.answer(ctx, refusal.Image, refusal.Challenge); err != nil {
			return nil, &fleet.Refusal{Message: err.Error()}
		}
	}
}

// post sends the order once.
func (p *fleetPrefetch) post(ctx context.Context) (*fleet.Job, error) {
	body, err := json.Marshal(p.request)
	if err != nil {
		return nil, err
	}
	resp, err := p.seeder().send(ctx, http.MethodPost, "/v1/prefetch", http.Header{"Content-Type": {"application/json"}}, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		job := new(fleet.Job)
		if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(job); err != nil {
			return nil, fmt.Errorf("the seeder's answer is no job: %w", err)
		}
		for i, img := range job.Images { // said again, the order is for the same, wherever the tag has moved
			if i < len(p.request.Images) {
				p.request.Images[i].Digest = img.Digest
			}
		}
		return job, nil
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	refusal := new(fleet.Refusal)
	if json.Unmarshal(text, refusal) == nil && refusal.Message != "" && resp.StatusCode < 500 {
		return nil, refusal
	}
	resp.Body = io.NopCloser(bytes.NewReader(text))
	return nil, answerErrorOf(resp)
}

// answer has the order be given with this user's credentials for an image.
func (p *fleetPrefetch) answer(ctx context.Context, ref, challenge string) error {
	for i, img := range p.images {
		for j := range p.request.Images {
			if order := &p.request.Images[j]; order.Ref == ref && img.String() == ref {
				auth, err := p.creds.authorization(ctx, p.images[i], challenge, order.Authorization)
				if err != nil {
					return err
				}
				order.Authorization = auth
				return nil
			}
		}
	}
	return fmt.Errorf("the seeder asks for credentials for %q, which was not ordered", ref)
}

// maxRenewals is how often credentials are given anew without the fleet getting on.
const maxRenewals = 3

// renew gets credentials for what hosts were refused.
func (p *fleetPrefetch) renew(ctx context.Context, job *fleet.Job) error {
	if job.BytesDone > p.seen {
		p.seen, p.renewals = job.BytesDone, 0
	}
	for _, need := range job.Needs {
		if p.renewals++; p.renewals > maxRenewals*len(p.request.Images) {
			return fmt.Errorf("%s: the registry does not let hosts read it with this user's credentials", need.Image)
		}
		if err := p.answer(ctx, need.Image, need.Challenge); err != nil {
			return err
		}
	}
	return nil
}

// watchIdle is how long a seeder may say nothing about a job; it says something each 15 s.
const watchIdle = 40 * time.Second

// watch calls each with the job as it goes on, until that returns false. It tells whether it heard anything.
func (p *fleetPrefetch) watch(ctx context.Context, each func(*fleet.Job) bool) (heard bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dog := time.AfterFunc(watchIdle, cancel)
	defer dog.Stop()
	resp, err := p.seeder().do(ctx, http.MethodGet, "/v1/prefetch/"+p.request.ID, http.Header{"Accept": {"text/event-stream"}}, nil)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxEvent)
	for lines.Scan() {
		dog.Reset(watchIdle)
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		job := new(fleet.Job)
		if !ok || json.Unmarshal([]byte(data), job) != nil {
			continue
		}
		heard = true
		if !each(job) {
			return true
		}
	}
	return heard
}

// whole asks for a job host by host.
func (p *fleetPrefetch) whole(ctx context.Context, job *fleet.Job) (*fleet.Job, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
	defer cancel()
	raw, _, err := p.seeder().get(ctx, "/v1/prefetch/"+url.PathEscape(job.ID)+"?all=1", nil)
	if err != nil {
		return nil, err
	}
	full := new(fleet.Job)
	return full, json.Unmarshal(raw, full)
}
