package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// lone has one host get a blob from one seeder through its mirror, with no
// limit on the cables, and beside it by curl from the registry to disk with
// sha256. After either the host has the bytes on its disk and has found them
// right; murder has also handed them to a client. Rounds alternate.
func lone(ctx context.Context, l *lab) error {
	const rounds = 5
	o := l.options
	o.size, o.hosts = o.sizeOr(1<<30), 1
	p := unlimited(basic(o, 1))
	p.Title = fmt.Sprintf("%s to one host, unlimited, %d rounds", humanize.IBytes(uint64(p.size())), rounds)
	r := result{Scenario: "lone", Contender: "murder", Title: p.Title, Time: time.Now().UTC().Truncate(time.Second), Version: l.version,
		Hosts: 1, Size: p.size(), Folder: l.dir}
	err := l.onStage(ctx, p, asSeederOnly, func(s *stage, f fleet) error {
		before, err := readMachine()
		if err != nil {
			return err
		}
		start := time.Now()
		for round := range rounds {
			pair, err := loneRound(ctx, s, f.(*murderFleet), round)
			if err != nil {
				return err
			}
			r.Each = append(r.Each, pair...)
		}
		r.Seconds = time.Since(start).Seconds()
		after, err := readMachine()
		r.Machine = after.since(before)
		r.Warnings = s.warnings()
		return err
	})
	if err != nil {
		return err
	}
	r.Groups = groupsOf(r.Each, r.Size)
	r.Groups[2].Unit = "x curl's"
	return l.report(r)
}

// asSeederOnly leaves the mirrors to whoever wants them anew each time.
func asSeederOnly(ctx context.Context, s *stage) (fleet, error) {
	f := &murderFleet{stage: s}
	return f, f.startSeeder(ctx, f.seeder)
}

// loneRound has the host get the blob in both ways; who goes first alternates.
func loneRound(ctx context.Context, s *stage, f *murderFleet, round int) ([]hostResult, error) {
	straight := func() (float64, error) { return curlToDisk(ctx, s) }
	through := func() (float64, error) { return curlThroughMirror(ctx, s, f) }
	ways := []func() (float64, error){straight, through}
	seconds := [2]float64{}
	for i := range ways {
		way := (i + round) % 2
		var err error
		if seconds[way], err = ways[way](); err != nil {
			return nil, err
		}
	}
	return []hostResult{
		{Group: "curl", pulled: pulled{End: seconds[0]}},
		{Group: "murder", pulled: pulled{End: seconds[1]}},
		{Group: "speed", pulled: pulled{End: seconds[0] / seconds[1]}}, // of curl's
	}, nil
}

// curlToDisk writes the blob to a file and checks it on the way.
func curlToDisk(ctx context.Context, s *stage) (float64, error) {
	file := filepath.Join(s.dir, "curl")
	defer os.Remove(file)
	b := s.image.Layers[0]
	url := fmt.Sprintf("http://%s/v2/%s/blobs/%s", registryName(registryAddr), repository, b.Digest)
	seconds, out, err := s.shell(ctx, fmt.Sprintf("set -o pipefail; curl -sSf %s | tee %s | sha256sum", url, file))
	if err == nil && !strings.HasPrefix(out, b.Digest.Encoded()) {
		err = errWrong
	}
	return seconds, err
}

// curlThroughMirror has a new mirror get the blob for a client, and removes it.
func curlThroughMirror(ctx context.Context, s *stage, f *murderFleet) (float64, error) {
	if err := f.startMirror(ctx, 0); err != nil {
		return 0, err
	}
	mirror, client := f.mirrors[0], f.clients[0]
	f.mirrors, f.clients = nil, nil
	defer client.close()
	defer mirror.kill()
	seconds, _, err := s.shell(ctx, fmt.Sprintf("curl -sSf -o /dev/null '%s'", client.url("blobs", s.image.Layers[0].Digest.String())))
	mirror.kill()
	return seconds, errors.Join(err, os.RemoveAll(filepath.Join(s.dir, "mirror00")))
}

// shell runs a command line on the first host, and tells how long it took.
func (s *stage) shell(ctx context.Context, line string) (seconds float64, out string, err error) {
	cmd := exec.CommandContext(ctx, "bash", "-c", line)
	start := time.Now()
	err = s.hosts[0].Do(func() error {
		b, err := cmd.CombinedOutput()
		out = string(b)
		return err
	})
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return time.Since(start).Seconds(), out, err
}
