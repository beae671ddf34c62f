package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/go-digest"
)

// demoReport is what a demo has shown, and the document of --output json.
type demoReport struct {
	Image struct {
		Digest string `json:"digest"`
		Layers int    `json:"layers"`
		Bytes  int64  `json:"bytes"`
	} `json:"image"`
	Hosts  []demoHost `json:"hosts"`
	Seeder struct {
		Received  sources `json:"received"`
		SentPeers int64   `json:"sent_to_peers"` // bytes over BitTorrent
	} `json:"seeder"`
	Registry     demoUpstream `json:"registry"`
	DirectBytes  int64        `json:"direct_bytes"` // what the registry would have sent had every host pulled from it
	SavedPercent float64      `json:"saved_percent"`
	PullMS       int64        `json:"pull_ms"` // until the last host was done
	TookMS       int64        `json:"took_ms"` // of the whole demo
}

// demoUpstream is what the registry was asked for.
type demoUpstream struct {
	asked
	Blobs     map[string]asked `json:"blobs"`     // by digest
	Manifests map[string]asked `json:"manifests"` // by digest or tag
}

// oftenText says how often blobs were asked for.
func (u demoUpstream) oftenText() string {
	n := 0
	for _, a := range u.Blobs {
		n += a.Requests
	}
	if n == len(u.Blobs) {
		return "each blob once"
	}
	return fmt.Sprintf("in %d requests for %d blobs", n, len(u.Blobs))
}

// demoHost is one host's pull.
type demoHost struct {
	Host        string  `json:"host"`
	TookMS      int64   `json:"took_ms"`
	FirstByteMS int64   `json:"first_byte_ms"` // until the first byte of a layer or the config
	Bytes       int64   `json:"bytes"`
	From        sources `json:"from"`
	SentPeers   int64   `json:"sent_to_peers"`
	// Blobs tells of each blob which way it came, and why if not from the swarm.
	Blobs []blobStatus `json:"blobs"`
}

func (d *demo) report(ctx context.Context, img *demoImage, seeder *child, mirrors []*child, pulls []*demoPull) (*demoReport, error) {
	r := &demoReport{TookMS: time.Since(d.start).Milliseconds()}
	r.Image.Digest = digest.FromBytes(img.manifest).String()
	r.Image.Layers = len(img.blobs) - 1
	r.Image.Bytes = img.size()
	for i, m := range mirrors {
		s, err := m.status(ctx)
		if err != nil {
			return nil, err
		}
		p := pulls[i]
		r.Hosts = append(r.Hosts, demoHost{
			Host: m.name, TookMS: p.took.Milliseconds(), FirstByteMS: time.Duration(p.first.Load()).Milliseconds(),
			Bytes: p.done.Load(), From: s.Totals.Received, SentPeers: s.Totals.Sent.Peer, Blobs: s.Blobs,
		})
		r.PullMS = max(r.PullMS, p.took.Milliseconds())
	}
	s, err := seeder.status(ctx)
	if err != nil {
		return nil, err
	}
	r.Seeder.Received, r.Seeder.SentPeers = s.Totals.Received, s.Totals.Sent.Peer
	r.Registry = d.registry.counted()
	r.DirectBytes = img.size() * int64(len(mirrors))
	r.SavedPercent = 100 * (1 - float64(r.Registry.Bytes)/float64(r.DirectBytes))
	return r, nil
}

// status asks a daemon of the demo.
func (c *child) status(ctx context.Context) (statusReport, error) {
	daemon := newClient("http://"+c.addr, "")
	defer daemon.close()
	report, _, err := daemon.status(ctx)
	if err != nil {
		return report, fmt.Errorf("status of %s: %w", c.name, err)
	}
	return report, nil
}

func (r *demoReport) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "HOST\tTIME\tRATE\tFIRST BYTE\tFROM PEERS\tFROM SEEDER\tFROM REGISTRY\t")
	var sum sources
	for _, h := range r.Hosts {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", h.Host, tookText(millis(h.TookMS)), rateText(h.Bytes, millis(h.TookMS)),
			tookText(millis(h.FirstByteMS)), bytesText(h.From.Peer), bytesText(h.From.Seeder), bytesText(h.From.Upstream))
		sum = sum.plus(h.From)
	}
	fmt.Fprintf(t, "all\t%s\t%s\t\t%s\t%s\t%s\t\n", tookText(millis(r.PullMS)), rateText(r.Image.Bytes*int64(len(r.Hosts)), millis(r.PullMS)),
		bytesText(sum.Peer), bytesText(sum.Seeder), bytesText(sum.Upstream))
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d hosts have the image, %s in %d layers, every digest right.\n"+
		"The registry sent %s, %s; %d direct pulls would have cost it %s: %.0f%% saved.\n",
		len(r.Hosts), bytesText(r.Image.Bytes), r.Image.Layers,
		bytesText(r.Registry.Bytes), r.Registry.oftenText(), len(r.Hosts), bytesText(r.DirectBytes), r.SavedPercent)
	return err
}
