package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// maxFile bounds what is read of a file that may be another's, in bytes.
const maxFile = 256 << 20

// kept is the content of Config.File: the hosts, so that an order given right after a
// restart counts those that have not come back yet, and the orders. No credentials: an
// order has them again when whoever waits for it has said it once more.
type kept struct {
	Hosts []keptHost `json:"hosts"`
	Jobs  []keptJob  `json:"jobs"`
}

type keptHost struct {
	Member
	Since time.Time `json:"since"`
}

type keptJob struct {
	Job
	Cutoff uint64    `json:"cutoff"`
	Ended  time.Time `json:"ended"`
}

// save writes the file if anything in it has changed. What cannot be written is tried
// again with the next change; orders go on.
func (f *Fleet) save() {
	f.mu.Lock()
	if !f.dirty || f.cfg.File == "" {
		f.mu.Unlock()
		return
	}
	f.dirty = false
	k := f.kept()
	f.mu.Unlock()
	if err := k.write(f.cfg.File); err != nil {
		f.cfg.Log.Error("orders to the fleet are not kept", "file", f.cfg.File, "err", err)
	}
}

// kept is what is to be written. f.mu is held.
func (f *Fleet) kept() kept {
	k := kept{}
	for _, h := range f.hosts {
		k.Hosts = append(k.Hosts, keptHost{h.Member, h.since})
	}
	for _, j := range f.jobs {
		k.Jobs = append(k.Jobs, keptJob{f.public(j, true), j.cutoff, j.ended})
	}
	return k
}

func (k kept) write(path string) error {
	content, err := json.Marshal(k)
	if err != nil {
		return err
	}
	temp, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = temp.Write(content)
	if err == nil {
		err = temp.Sync()
	}
	if closeErr := temp.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// load reads the file. One that cannot be used is left aside, and said so: orders are for
// minutes, and the seeder for more than them.
func (f *Fleet) load() {
	if f.cfg.File == "" {
		return
	}
	k, err := readKept(f.cfg.File)
	if err != nil {
		f.cfg.Log.Error("orders of before are lost", "file", f.cfg.File, "err", err)
		return
	}
	now := time.Now()
	for _, h := range k.Hosts {
		f.hosts[h.Name] = &host{Member: h.Member, since: now} // away from now on: it was we who went
	}
	for _, j := range k.Jobs {
		f.jobs[j.ID] = j.restored()
	}
}

func readKept(path string) (k kept, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return k, err
	}
	if info.Size() > maxFile {
		return k, fmt.Errorf("it has %d bytes", info.Size())
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return k, err
	}
	return parseKept(content)
}

// parseKept holds the file to the bounds of what is said to us.
func parseKept(content []byte) (k kept, err error) {
	if err := json.Unmarshal(content, &k); err != nil {
		return k, err
	}
	if len(k.Hosts) > maxHosts || len(k.Jobs) > maxJobs {
		return k, fmt.Errorf("%d hosts and %d orders are too many", len(k.Hosts), len(k.Jobs))
	}
	for _, h := range k.Hosts {
		if err := h.Check(); err != nil {
			return k, err
		}
	}
	for _, j := range k.Jobs {
		r := Request{ID: j.ID, Platforms: j.Platforms, Select: j.Select}
		for _, i := range j.Images {
			r.Images = append(r.Images, RequestImage{Ref: i.Ref, Digest: i.Digest})
		}
		if err := r.check(); err != nil || j.ID == "" {
			return k, fmt.Errorf("order %.40q: %w", j.ID, err)
		}
	}
	return k, nil
}

// restored is the job as it was, without credentials, and with all that was under way to
// be told of again.
func (k keptJob) restored() *job {
	j := &job{
		order: Order{ID: k.ID, Platforms: k.Platforms, Pin: k.Pin, Load: k.Load}, sel: k.Select, cutoff: k.Cutoff,
		state: k.State, created: k.Created, expires: k.Expires, ended: k.Ended,
		private: make(map[string]bool), targets: make(map[string]*target),
	}
	for _, i := range k.Images {
		j.order.Images = append(j.order.Images, OrderImage{Ref: i.Ref, Digest: i.Digest})
		j.private[i.Ref] = i.Private
	}
	for _, t := range k.Targets {
		if !t.State.final() {
			t.State = Waiting
		}
		j.targets[t.Host] = &target{Zone: t.Zone, Progress: t.Progress}
	}
	return j
}
