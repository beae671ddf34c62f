package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// prefetchRequest is the body of POST /v1/prefetch.
type prefetchRequest struct {
	Images    []prefetchImage `json:"images"`
	Platforms []string        `json:"platforms,omitempty"` // none: the mirror's own
	Pin       bool            `json:"pin,omitempty"`
}

type prefetchImage struct {
	Ref           string `json:"ref"`
	Authorization string `json:"authorization,omitempty"`
}

// prefetchEvent is a line of the answer. Which fields it has depends on Event; the last line is "end".
type prefetchEvent struct {
	Event     string  `json:"event"` // resolved, progress, blob, done, error or end
	Image     string  `json:"image"`
	Digest    string  `json:"digest"`
	Blobs     int     `json:"blobs"`
	Bytes     int64   `json:"bytes"`
	BytesDone int64   `json:"bytes_done"`
	From      sources `json:"from"`
	Error     string  `json:"error"`
	Status    int     `json:"status"`    // the registry's, when it was the registry that refused
	Challenge string  `json:"challenge"` // and its WWW-Authenticate
	Pinned    bool    `json:"pinned"`
	OK        bool    `json:"ok"`
}

// maxEvent bounds a line of the answer, in bytes.
const maxEvent = 1 << 20

// hostJob warms one mirror.
type hostJob struct {
	*prefetch
	client *client
	order  []string             // the images' names
	images map[string]*imageJob // by name
}

// imageJob is where one image stands on one mirror.
type imageJob struct {
	image
	result    imageResult
	blobs     map[string]bool // those told of: the answer to a second request tells of them again, as cached
	auth      string          // the Authorization sent with it, "" for none
	challenge string          // set when the registry has refused, until it is answered
	done      int64           // bytes that the mirror has of it
	deniedAt  int64           // done when the registry last refused
}

func (p *prefetch) host(ctx context.Context, mirror string) hostResult {
	start := time.Now()
	j := &hostJob{prefetch: p, client: newClient(mirror, p.token), images: make(map[string]*imageJob)}
	defer j.client.close()
	if p.identity != nil {
		j.client.identify(p.identity)
	}
	for _, img := range p.images {
		if name := img.String(); j.images[name] == nil {
			j.order = append(j.order, name)
			result := imageResult{Image: name, Error: "the mirror has said nothing about it"}
			j.images[name] = &imageJob{image: img, blobs: make(map[string]bool), result: result}
		}
	}
	result := hostResult{Mirror: mirror, OK: true}
	if err := j.run(ctx); err != nil {
		result.OK, result.Error = false, err.Error()
	}
	for _, name := range j.order {
		img := j.images[name].result
		result.Images = append(result.Images, img)
		result.OK = result.OK && img.OK
	}
	result.TookMS = time.Since(start).Milliseconds()
	p.progress.hostEnd(result)
	return result
}

// run asks for all images, and again for those that their registry has refused, with credentials, as long as that leads further: in a
// long job tokens expire. An error concerns the host; what concerns one image is in its result.
func (j *hostJob) run(ctx context.Context) error {
	pending := j.order
	for len(pending) > 0 {
		if err := j.post(ctx, pending); err != nil {
			return err
		}
		var again []string
		for _, name := range pending {
			img := j.images[name]
			if img.challenge == "" {
				continue
			}
			if err := j.answerChallenge(ctx, img); err != nil {
				img.result.Error = err.Error()
				j.progress.event(j.client.base, prefetchEvent{Event: "error", Image: name, Error: img.result.Error})
				continue
			}
			again = append(again, name)
		}
		pending = again
	}
	return nil
}

// answerChallenge gets the Authorization with which to ask for img once more. It gives up when the last one has led no further.
func (j *hostJob) answerChallenge(ctx context.Context, img *imageJob) error {
	if img.auth != "" && img.done <= img.deniedAt {
		return fmt.Errorf("%s does not let this user's credentials read it: %s", img.registry(), img.result.Error)
	}
	auth, err := j.creds.authorization(ctx, img.image, img.challenge, img.auth)
	if err != nil {
		return err
	}
	img.auth, img.challenge, img.deniedAt = auth, "", img.done
	return nil
}

// post sends one request and takes in the events of its answer.
func (j *hostJob) post(ctx context.Context, names []string) error {
	req := prefetchRequest{Platforms: j.platforms, Pin: j.pin}
	for _, name := range names {
		req.Images = append(req.Images, prefetchImage{Ref: name, Authorization: j.images[name].auth})
	}
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dog := time.AfterFunc(j.idle, func() { cancel(fmt.Errorf("the mirror %w: no event for %s", errIdle, j.idle)) })
	defer dog.Stop()
	header := http.Header{"Content-Type": {"application/json"}, "Accept": {"application/x-ndjson"}}
	resp, err := j.client.do(ctx, http.MethodPost, "/v1/prefetch", header, bytes.NewReader(body))
	if err != nil {
		return mirrorError(err)
	}
	defer resp.Body.Close()
	return j.events(ctx, resp.Body, func() { dog.Reset(j.idle) })
}

// events reads an answer to its end, calling alive at each event.
func (j *hostJob) events(ctx context.Context, r io.Reader, alive func()) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxEvent)
	for lines.Scan() {
		alive()
		var e prefetchEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("the mirror's answer is not made of events: %w", err)
		}
		if e.Event == "end" {
			return nil
		}
		j.take(e)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	err := lines.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("the mirror's answer ended too early: %w", err)
}

// take notes what an event says of its image; events of images that were not asked for, and of kinds that are not known, are none.
func (j *hostJob) take(e prefetchEvent) {
	img := j.images[e.Image]
	if img == nil {
		return
	}
	switch e.Event {
	case "resolved":
		img.result.Digest, img.result.Bytes = e.Digest, e.Bytes
		img.result.Error = "not finished"
	case "progress":
		img.done = max(img.done, e.BytesDone)
	case "blob":
		if img.blobs[e.Digest] {
			return
		}
		img.blobs[e.Digest] = true
		img.result.From = img.result.From.plus(e.From)
	case "done":
		img.result.OK, img.result.Error, img.result.Pinned = true, "", e.Pinned
		img.result.Digest, img.result.Bytes, img.done = e.Digest, e.Bytes, e.Bytes
	case "error": // also of what was done, and has gone again for another image
		img.result.OK, img.result.Error = false, e.Error
		if e.Status == http.StatusUnauthorized && e.Challenge != "" {
			img.challenge = e.Challenge
			return // it is not over yet
		}
	}
	j.progress.event(j.client.base, e)
}

// mirrorError says of a failed request what it means for the user.
func mirrorError(err error) error {
	if e, ok := errors.AsType[*answerError](err); ok {
		switch e.status {
		case http.StatusNotFound, http.StatusMethodNotAllowed:
			return fmt.Errorf("is no mirror of murder, or an older one: it %w", err)
		default:
			return fmt.Errorf("the mirror %w", err)
		}
	}
	if errors.Is(err, errIdle) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("the mirror does not answer: %w", err)
}
