package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
)

// drops are frames that found a queue full.
type drops struct {
	Cards  int64 // in front of machines' own cables
	Switch int64 // in front of the switch's, which is where many send to one
}

// drops counts what the queues of the network have dropped since they were made.
func (w *network) drops() (d drops, err error) {
	if d.Switch, err = w.hub.dropped(); err != nil {
		return d, err
	}
	for _, m := range w.machines {
		n, err := m.dropped()
		if err != nil {
			return d, err
		}
		d.Cards += n
	}
	return d, nil
}

// dropped adds up the drops of all queues in n.
func (n *namespace) dropped() (sum int64, err error) {
	var out []byte
	err = n.do(func() (err error) {
		out, err = exec.Command("tc", "-s", "-j", "qdisc", "show").Output()
		return err
	})
	var queues []struct {
		Kind  string
		Drops int64
	}
	if err := errors.Join(err, json.Unmarshal(out, &queues)); err != nil {
		return 0, fmt.Errorf("tc -s -j qdisc show: %w", err)
	}
	for _, q := range queues {
		if q.Kind == "bfifo" {
			sum += q.Drops
		}
	}
	return sum, nil
}
