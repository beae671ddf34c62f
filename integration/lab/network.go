package main

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// network is a switch and the machines that are plugged into it. The switch
// is a namespace with one bridge for each zone; where there are two, a cable
// joins them.
type network struct {
	hub      *namespace
	machines []*machine
}

// machine is a namespace with one network card, eth0.
type machine struct {
	*namespace
	addr netip.Addr
	hub  *namespace
	port string // the other end of its cable, in the hub
}

// newNetwork makes a switch with one or two zones.
func newNetwork(zones int) (*network, error) {
	hub, err := newNamespace()
	if err != nil {
		return nil, err
	}
	w := &network{hub: hub}
	for z := range zones {
		if err := hub.ip(fmt.Sprintf("link add zone%d type bridge", z), fmt.Sprintf("link set zone%d up", z)); err != nil {
			w.close()
			return nil, err
		}
	}
	if zones == 2 {
		err = hub.ip("link add cable0 type veth peer name cable1",
			"link set cable0 master zone0 up", "link set cable1 master zone1 up")
	}
	if err != nil {
		w.close()
		return nil, err
	}
	return w, hub.tune() // now that there is a bridge, its settings are there
}

func (w *network) close() {
	for _, m := range w.machines {
		m.close()
	}
	w.hub.close()
}

// plug adds a machine to a zone.
func (w *network) plug(addr netip.Addr, zone int) (*machine, error) {
	n, err := newNamespace()
	if err != nil {
		return nil, err
	}
	m := &machine{namespace: n, addr: addr, hub: w.hub, port: fmt.Sprintf("port%d", len(w.machines))}
	w.machines = append(w.machines, m)
	err = w.hub.ip(
		fmt.Sprintf("link add %s type veth peer name eth0 netns %s", m.port, n.path()),
		fmt.Sprintf("link set %s master zone%d up", m.port, zone))
	if err != nil {
		return nil, err
	}
	return m, n.ip(fmt.Sprintf("addr add %s/16 dev eth0", addr), "link set eth0 up",
		fmt.Sprintf("route change 10.77.0.0/16 dev eth0 proto kernel scope link src %s congctl %s", addr, congestion))
}

// congestion is Linux's default congestion control. It is set by route: where
// the machine's own default is another, a namespace may not change it.
const congestion = "cubic"

// link is the rate of a cable in bits a second. Zero is unlimited.
type link struct {
	up, down int64
}

// queueTime bounds the queue in front of each cable, as a switch's memory
// bounds that of a port: what comes when it is full is dropped.
const queueTime = 80 // milliseconds of the cable's rate

// shape limits what goes through the machine's cable: what it sends by its
// card, what it receives at the switch.
func (m *machine) shape(l link) error {
	if err := limit(m.namespace, "eth0", l.up); err != nil {
		return err
	}
	return limit(m.hub, m.port, l.down)
}

// shapeCable limits what zones send each other, each way.
func (w *network) shapeCable(rate int64) error {
	return errors.Join(limit(w.hub, "cable0", rate), limit(w.hub, "cable1", rate))
}

// limit bounds what leaves by a card to rate bits a second. A burst of 2 ms
// spares the timers; the queue is a plain first in, first out.
func limit(n *namespace, card string, rate int64) error {
	if rate == 0 {
		return nil
	}
	bytes := rate / 8
	return n.tc(
		fmt.Sprintf("qdisc add dev %s root handle 1: htb default 1", card),
		fmt.Sprintf("class add dev %s parent 1: classid 1:1 htb rate %dbit ceil %[2]dbit burst %d cburst %[3]d quantum 60000", card, rate, max(bytes/500, 3200)),
		fmt.Sprintf("qdisc add dev %s parent 1:1 handle 10: bfifo limit %d", card, max(bytes*queueTime/1000, 64<<10)))
}

// block makes two machines unreachable for each other: connecting fails at once.
func block(a, b *machine) error {
	return errors.Join(
		a.ip(fmt.Sprintf("route add unreachable %s", b.addr)),
		b.ip(fmt.Sprintf("route add unreachable %s", a.addr)))
}

// blockPeers keeps two machines from connecting to each other's BitTorrent
// ports; all other ports can be reached.
func blockPeers(a, b *machine) error {
	rules := func(from, to *machine) error {
		rule := "rule add to %s ipproto tcp dport %d unreachable"
		return from.ip(fmt.Sprintf(rule, to.addr, seederPeerPort), fmt.Sprintf(rule, to.addr, mirrorPeerPort))
	}
	return errors.Join(rules(a, b), rules(b, a))
}

// traffic is what a card has seen, in bytes, and what the machine's TCP did. A
// card counts the headers of a burst that it is handed at once only once, so
// the bytes are hardly more than the content, and less than the cable carries.
type traffic struct {
	Sent, Received        int64 // bytes
	Segments, Retransmits int64 // of TCP, sent
}

func (t traffic) minus(u traffic) traffic {
	return traffic{t.Sent - u.Sent, t.Received - u.Received, t.Segments - u.Segments, t.Retransmits - u.Retransmits}
}

func (t traffic) plus(u traffic) traffic {
	return traffic{t.Sent + u.Sent, t.Received + u.Received, t.Segments + u.Segments, t.Retransmits + u.Retransmits}
}

// traffic reads the counters of a machine.
func (m *machine) traffic() (t traffic, err error) {
	err = m.do(func() error {
		t, err = readCard("eth0")
		if err == nil {
			t.Segments, t.Retransmits, err = readTCP()
		}
		return err
	})
	return t, err
}

// crossing is what zone 0 sent (Sent) and received over the cable between zones.
func (w *network) crossing() (t traffic, err error) {
	err = w.hub.do(func() error {
		t, err = readCard("cable0")
		return err
	})
	return t, err
}

// readCard reads /proc/net/dev of the namespace that this thread is in.
func readCard(card string) (t traffic, err error) {
	fields, err := findLine("/proc/thread-self/net/dev", card+":", 1)
	if err != nil {
		return t, err
	}
	if len(fields) < 10 {
		return t, fmt.Errorf("/proc/net/dev: %q", fields)
	}
	t.Received, err = strconv.ParseInt(fields[1], 10, 64)
	if err == nil {
		t.Sent, err = strconv.ParseInt(fields[9], 10, 64)
	}
	return t, err
}

// readTCP reads the TCP line of /proc/net/snmp, whose columns RFC 1213 names:
// tcpOutSegs, which leaves retransmitted ones out, and tcpRetransSegs.
func readTCP() (sent, again int64, err error) {
	fields, err := findLine("/proc/thread-self/net/snmp", "Tcp:", 2)
	if err != nil {
		return 0, 0, err
	}
	if len(fields) < 13 {
		return 0, 0, fmt.Errorf("/proc/net/snmp: %q", fields)
	}
	sent, err = strconv.ParseInt(fields[11], 10, 64)
	if err == nil {
		again, err = strconv.ParseInt(fields[12], 10, 64)
	}
	return sent, again, err
}

// findLine returns the words of the nth line of file that begins with first.
func findLine(file, first string, nth int) ([]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > 0 && fields[0] == first {
			if nth--; nth == 0 {
				return fields, nil
			}
		}
	}
	return nil, errors.Join(lines.Err(), fmt.Errorf("%s: no line %q", file, first))
}
