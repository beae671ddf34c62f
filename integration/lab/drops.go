package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"

	"github.com/murderp2p/murder/integration/netlab"
)

// drops are frames that found a queue full.
type drops struct {
	Cards  int64 // in front of machines' own cables
	Switch int64 // in front of the switch's, which is where many send to one
}

// readDrops counts what the queues of the network have dropped since they were made.
func readDrops(w *netlab.Network) (d drops, err error) {
	if d.Switch, err = dropped(w.Hub); err != nil {
		return d, err
	}
	for _, m := range w.Machines {
		n, err := dropped(m.Namespace)
		if err != nil {
			return d, err
		}
		d.Cards += n
	}
	return d, nil
}

// dropped adds up the drops of all queues in n.
func dropped(n *netlab.Namespace) (sum int64, err error) {
	var out []byte
	err = n.Do(func() (err error) {
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
